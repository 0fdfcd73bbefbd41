"""What other threads ask of a store: each request runs on the writer's loop.

A request is answered once, whatever becomes of that loop: with what the store has returned or raised, or with why there
is no loop any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from async_task_state.errors import StoreUnavailableError
from async_task_state.stores.progress import Patience
from async_task_state.waiting import Waiter, wake

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["FIRST_RETRY_SECONDS", "LAST_RETRY_SECONDS", "Requests"]

Call: TypeAlias = "Callable[..., Coroutine[Any, Any, Any]]"
Asker: TypeAlias = "Waiter | Future[Any]"

FIRST_RETRY_SECONDS: Final = 0.05
LAST_RETRY_SECONDS: Final = 5.0


class Requests:
    """The requests that have no answer yet.

    Args:
        use: Calls a method of the store, on the loop.
        timeout: Seconds after which a request is given up while the store is unavailable.
        answered: Called on the loop for each request that it has answered.

    Attributes:
        loop: Where requests run; set before the first one.
    """

    def __init__(self, use: Call, timeout: float, answered: Callable[[], None]) -> None:
        self.loop: asyncio.AbstractEventLoop
        self._use = use
        self._timeout = timeout
        self._answered = answered
        self._refusal: Callable[[], Exception] | None = None
        self._lock = threading.Lock()
        # None until the loop has begun with it.
        self._tasks: dict[Asker, asyncio.Task[None] | None] = {}

    @property
    def waiting(self) -> bool:
        """Whether there are any."""
        return bool(self._tasks)

    async def awaited(self, method: Call, *args: object) -> Any:
        """What a method of the store returns, called again while the store is unavailable; for a caller that awaits.

        Raises:
            StoreUnavailableError: The store has not answered for the timeout.
            AsyncTaskStateError: What `refuse` was given.
        """
        return await self._wait(self._until_available, method, *args)

    async def once(self, method: Call, *args: object) -> Any:
        """The same for a method that is not called again, and may take as long as it takes."""
        return await self._wait(self._use, method, *args)

    def submit(self, call: Call, *args: object) -> Future[Any]:
        """Run an async function on the loop, for a thread that waits for it without an event loop.

        Raises:
            AsyncTaskStateError: What `refuse` was given.
        """
        future: Future[Any] = Future()
        self._ask(future, call, *args)
        return future

    def blocking(self, method: Call, *args: object) -> Any:
        """The same as `awaited` for a thread without an event loop, which is blocked meanwhile."""
        return self.submit(self._until_available, method, *args).result()

    def dismiss(self, asker: Asker) -> None:
        """Forget a request that nobody waits for any more."""
        self._post(self._dismiss, asker)

    def refuse(self, refusal: Callable[[], Exception]) -> None:
        """Raise from here on at each request."""
        self._refusal = refusal

    def end(self) -> None:
        """Give every request that has no answer the one that `refuse` was given; the loop runs none any more."""
        with self._lock:
            unanswered, self._tasks = self._tasks, {}
        for asker, task in unanswered.items():
            self._answer(asker, None, None if self._refusal is None else self._refusal())
            if task is not None:
                with contextlib.suppress(RuntimeError):
                    task.cancel()

    async def _wait(self, call: Call, *args: object) -> Any:
        # Before a waiter is made: where a child was forked from a coroutine, no event loop runs.
        self._check()
        waiter = Waiter()
        self._ask(waiter, call, *args)
        try:
            return await waiter.wait()
        except BaseException:
            # A caller that has gone must not take a lease later, from whoever has it then.
            self.dismiss(waiter)
            raise

    def _ask(self, asker: Asker, call: Call, *args: object) -> None:
        # Before the lock, too, which in a forked child may be held by a thread that is not there.
        self._check()
        with self._lock:
            self._check()
            self._tasks[asker] = None
        self._post(self._begin, asker, call, args)

    def _check(self) -> None:
        if self._refusal is not None:
            raise self._refusal()

    def _post(self, call: Callable[..., None], *args: object) -> None:
        # A loop that is closed runs nothing: `end` answers.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(call, *args)

    def _begin(self, asker: Asker, call: Call, args: tuple[object, ...]) -> None:
        try:
            self._tasks[asker] = self.loop.create_task(self._run(asker, call, args))
        except Exception as error:  # noqa: BLE001 - the asker's to handle
            self._answer(asker, None, error)

    def _dismiss(self, asker: Asker) -> None:
        task = self._tasks.pop(asker, None)
        if task is not None:
            task.cancel()

    async def _run(self, asker: Asker, call: Call, args: tuple[object, ...]) -> None:
        # Anything but an Exception is the end of this task by the loop's: `end` answers.
        try:
            result, error = await call(*args), None
        except Exception as raised:  # noqa: BLE001 - the asker's to handle
            result, error = None, raised
        self._answered()
        self._answer(asker, result, error)

    def _answer(self, asker: Asker, result: Any, error: Exception | None) -> None:
        if isinstance(asker, Waiter):
            asker.result, asker.error = result, error
            try:
                wake([asker])
            except Exception:  # noqa: BLE001 - no memory for it, as a rule
                self.loop.call_later(FIRST_RETRY_SECONDS, self._answer, asker, result, error)
                return
        else:
            # Whoever waited may have gone.
            with contextlib.suppress(InvalidStateError):
                asker.set_exception(error) if error is not None else asker.set_result(result)
        self._tasks.pop(asker, None)

    async def _until_available(self, method: Call, *args: object) -> Any:
        patience = Patience(self._timeout)
        delay = FIRST_RETRY_SECONDS
        why = ""
        while True:
            try:
                return await patience.wait_for(self._use(method, *args))
            except asyncio.TimeoutError:
                raise StoreUnavailableError(
                    f"the store has not answered for [async_task_state] outage_timeout = {self._timeout:g} s{why}"
                ) from None
            except StoreUnavailableError as error:
                if time.monotonic() + delay >= patience.ends:
                    raise
                why = f" ({error})"
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - jitter
            delay = min(delay * 2, LAST_RETRY_SECONDS)
