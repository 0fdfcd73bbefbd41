"""The thread of a store: the store is used on its event loop alone, from wherever it is asked."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import socket
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, TypeVar

from async_task_state.errors import AsyncTaskStateError, StoreUnavailableError
from async_task_state.handover import watch
from async_task_state.logs import Log
from async_task_state.requests import FIRST_RETRY_SECONDS, Requests

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from async_task_state.settings import Settings
    from async_task_state.stores import Store

__all__ = ["StoreThread"]

T = TypeVar("T")

log = Log(__name__)


class StoreThread(ABC):
    """Runs a store on a daemon thread with an asyncio loop of its own.

    No fault of one round ends the thread. Where something else does, `_note_end` releases whoever waits for it.

    Args:
        store: Used by this thread alone from here on.
        settings: For the timeouts.

    Raises:
        StoreUnavailableError: The thread cannot begin.
    """

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self.steps = 0
        self._settings = settings
        self._requests = Requests(self._use, settings.outage_timeout, self._note_step)
        self.loop: asyncio.AbstractEventLoop
        self._serving: asyncio.Task[None] | None = None
        self._stopping = False
        self._open_for_use: asyncio.Event
        self._in_use = 0
        self._started = threading.Event()
        self._not_started: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="async-task-state", daemon=True)
        try:
            self._thread.start()
            self._started.wait()
        except RuntimeError as error:
            self._not_started = error
        if self._not_started is not None:
            raise StoreUnavailableError(
                f"the thread that saves state cannot begin: {self._not_started}"
            ) from self._not_started

    async def call(self, method: Callable[..., Coroutine[Any, Any, Any]], *args: object) -> Any:
        """Run a method of the store on the writer's thread, again while it is unavailable, and return its answer."""
        watch(self, 0.0)
        return await self._requests.awaited(method, *args)

    async def once(self, method: Callable[..., Coroutine[Any, Any, Any]], *args: object) -> Any:
        """The same for a method that is not run again, and may take as long as it takes."""
        watch(self, 0.0)
        return await self._requests.once(method, *args)

    def ask(self, method: Callable[..., Coroutine[Any, Any, Any]], *args: object) -> Any:
        """As `call` for a thread without an event loop; it is blocked meanwhile."""
        return self._requests.blocking(method, *args)

    def pause(self) -> None:
        """Close the store for as long as a fork takes, at most `exit_timeout` later: see `_before_fork`."""
        self._wait_for(self._paused)

    def resume(self) -> None:
        """Use the store again."""
        self._post(self._open_for_use.set)

    @property
    @abstractmethod
    def wants_lock_at(self) -> float:
        """When the thread has something to do, for event loops that give it the interpreter's lock: see `handover`."""

    @abstractmethod
    async def _serve_once(self) -> None:
        """Do what is to be done now, or wait until something is."""

    @abstractmethod
    def _retry_round(self, fault: Exception) -> None:
        """Let `_serve_once`, which has raised, do all of it again."""

    @abstractmethod
    def _note_end(self, error: BaseException | None) -> None:
        """Release whoever waits for this thread, which does nothing any more; called at least once."""

    def _wait_for(self, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run something on the loop and block, at most `exit_timeout`; return at once where there is no loop any more."""
        if threading.current_thread() is self._thread:
            return
        with contextlib.suppress(AsyncTaskStateError):
            future = self._requests.submit(call)
            concurrent.futures.wait([future], self._settings.exit_timeout)
            self._requests.dismiss(future)

    def _main(self) -> None:
        error: BaseException | None = None
        try:
            with contextlib.suppress(asyncio.CancelledError):
                asyncio.run(self._serve())
        except BaseException as raised:  # noqa: BLE001 - whoever waits must hear of it
            error = raised
        if not self._started.is_set():
            # There is no event loop, as where files may not be opened any more.
            self._not_started = error
            self._started.set()
            return
        if error is not None:
            log.error("the thread that saves has ended", exc_info=error)
        self._note_end(error)

    async def _serve(self) -> None:
        self.loop = self._requests.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(_report)
        _resolve_to_the_end(self.loop)
        self._serving = asyncio.current_task()
        self._open_for_use = asyncio.Event()
        self._open_for_use.set()
        self._started.set()
        error: BaseException | None = None
        try:
            while not self._stopping:
                try:
                    await self._serve_once()
                except Exception as fault:  # noqa: BLE001 - whatever it is, what was recorded must not be lost
                    try:
                        self._retry_round(fault)
                    except Exception as another:
                        log.error(  # noqa: TRY400 - it has no exception()
                            "a round that has failed could not be prepared for its repetition",
                            exc_info=another,
                        )
                    # What fails at once must leave the loop time for other work.
                    await asyncio.sleep(FIRST_RETRY_SECONDS)
        except BaseException as raised:
            error = raised
            raise
        finally:
            # Before the store is closed, which may take long or never end.
            self._note_end(error)
            await asyncio.wait_for(self.store.close(), self._settings.exit_timeout)

    def _post(self, call: Callable[..., None], *args: object) -> None:
        # The loop is gone only when the process is on its way out; what was recorded is then drain()'s to report.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(call, *args)

    def _note_step(self) -> None:
        self.steps += 1

    async def _use(self, method: Callable[..., Coroutine[Any, Any, T]], *args: object) -> T:
        """Call the store; not while the process forks."""
        await self._open_for_use.wait()
        self._in_use += 1
        try:
            return await method(*args)
        finally:
            self._in_use -= 1

    async def _paused(self) -> None:
        self._open_for_use.clear()
        while self._in_use:  # noqa: ASYNC110 - a fork is rare, and a commit is not to pay for it
            await asyncio.sleep(0.001)
        await self.store.close()


def _resolve_to_the_end(loop: asyncio.AbstractEventLoop) -> None:
    """Let a loop resolve names even while Python ends, when no executor takes work: then it blocks meanwhile."""
    resolve = loop.getaddrinfo

    async def getaddrinfo(host: Any, port: Any, **options: Any) -> list[Any]:
        try:
            return await resolve(host, port, **options)
        except RuntimeError:
            return socket.getaddrinfo(host, port, **options)

    loop.getaddrinfo = getaddrinfo  # type: ignore[method-assign]


def _report(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what a callback of the loop has raised; asyncio's own handler ends the loop where logging raises."""
    log.error("on the thread that saves: %s", context["message"], exc_info=context.get("exception"))
