"""Coalescing and group commit: one thread a process and store, which owns the connection and its own event loop.

A thread, because a caller's loop may be blocked, abandoned by a timeout, or trio's, and what it has recorded must be
saved all the same. Recording is a dict update under a lock; the thread swaps the pending changes of all scopes out,
commits them in one transaction, and puts them back under anything newer when that fails. While a commit is under way
the next batch gathers, as in a database's own group commit, so load makes batches larger and not queues longer.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import random
import socket
import threading
import time
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakValueDictionary

from async_task_state.deadline import NEVER, Deadline
from async_task_state.errors import StaleWriterError, StateNotOpenError, StoreError, StoreUnavailableError
from async_task_state.handover import watch
from async_task_state.pending import Flight, Pending
from async_task_state.stores.progress import Patience, listening
from async_task_state.waiting import Waiter, wake

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from async_task_state.runs import Run
    from async_task_state.scopes import Scope
    from async_task_state.settings import Settings
    from async_task_state.stores import Snapshot, Store

__all__ = ["Writer"]

T = TypeVar("T")

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS: Final = 0.05
LAST_RETRY_SECONDS: Final = 5.0
SCOPES_AT_ONCE: Final = 1000
FLUSH_AT: Final = 0.75
"""The part of `max_delay` after which a flush starts; the rest is for the commit itself."""


class Writer:
    """Commits what the states of this process record, to one store.

    Args:
        store: Used by the writer's thread alone from here on.
        settings: For the timeouts.
    """

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self.trouble: Callable[[Pending], Exception] | None = None
        self.gone = False
        self.steps = 0
        self._asking: set[Waiter] = set()
        self._settings = settings
        self._gate = threading.Lock()
        # In order, and each once: a step that an alarm cut short is taken again.
        self._queue: dict[Pending, None] = {}
        self._due = NEVER
        self._round = 0
        self._not_before = 0.0
        self._retry_after = FIRST_RETRY_SECONDS
        self._saving: list[Flight] = []
        self._watchdog = Deadline(self._declare_outage)
        self._alarm = Deadline(self._wake_up)
        self._away_because: Exception | None = None
        self._bell: asyncio.Future[None] | None = None
        self._tasks: dict[Waiter, asyncio.Task[None]] = {}
        self._holders: WeakValueDictionary[Scope, Pending] = WeakValueDictionary()
        self.loop: asyncio.AbstractEventLoop
        self._serving: asyncio.Task[None] | None = None
        self._open_for_use: asyncio.Event
        self._in_use = 0
        self._started = threading.Event()
        self._not_started: Exception | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="async-task-state", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._not_started is not None:
            raise StoreUnavailableError(
                f"the thread that saves state cannot begin: {self._not_started}"
            ) from self._not_started

    async def open(self, scope: Scope, attempt: int | None, run: Run | None, max_delay: float) -> Pending:
        """Take the lease of a scope.

        Raises:
            StaleAttemptError: A later attempt or a newer run has held the scope.
            StoreError: The store cannot serve, or has not answered for `outage_timeout`.
        """
        earlier = self._holders.get(scope)
        if earlier is not None and earlier.unsettled:
            # A handle that this process abandoned may hold what is not saved yet; the lease must not overtake it.
            with contextlib.suppress(StaleWriterError):
                await earlier.flush()
        snapshot: Snapshot = await self.call(self.store.acquire, scope, attempt, run)
        if snapshot.fresh:
            log.info("the state of %s starts over: its run was deleted and made again", scope)
        pending = Pending(self, snapshot.lease, snapshot.entries, max_delay * FLUSH_AT)
        self._holders[scope] = pending
        return pending

    async def call(self, method: Callable[..., Coroutine[Any, Any, Any]], *args: object) -> Any:
        """Run a method of the store on the writer's thread, again while it is unavailable, and return its answer."""
        waiter = Waiter()
        self._asking.add(waiter)
        self.loop.call_soon_threadsafe(self._spawn, waiter, method, args)
        watch(self, 0.0, waiter.loop)
        try:
            return await waiter.wait()
        except BaseException:
            # A caller that has gone must not take a lease later, from whoever has it then.
            self._post(self._dismiss, waiter)
            raise

    def ask(self, method: Callable[..., Coroutine[Any, Any, Any]], *args: object) -> Any:
        """The same for a thread without an event loop; it is blocked meanwhile."""
        return asyncio.run_coroutine_threadsafe(self._until_available(method, args), self.loop).result()

    def enqueue(self, pending: Pending) -> None:
        """Commit a holder's changes when they are due. Its lock is held."""
        with self._gate:
            self._queue[pending] = None
            earlier = pending.due < self._due
            if earlier:
                self._due = pending.due
        if earlier:
            self._ring()
        watch(self, pending.due)

    @property
    def wants_lock_at(self) -> float:
        """When the thread has something to do, for event loops that give it the interpreter's lock: see `handover`."""
        if self.gone:
            return NEVER
        return max(0.0 if self._saving or self._asking else self._due, self._not_before)

    def hurry(self, *, again: bool = False) -> None:
        """Commit everything in the queue now; `again` where an earlier call may not have come to its end."""
        with self._gate:
            if not self._queue or (self._due <= 0 and not again):
                return
            self._due = 0
        self._ring()
        watch(self, 0.0)

    async def settled(self, waiter: Waiter) -> None:
        """Return when a waiter has its answer, or raise it."""
        await waiter.wait()

    def drain(self) -> None:
        """Block this thread until everything is saved, at most `exit_timeout`; log what is not."""
        future = asyncio.run_coroutine_threadsafe(self._drained(), self.loop)
        concurrent.futures.wait([future], self._settings.exit_timeout)
        future.cancel()
        with self._gate:
            left = dict.fromkeys([*self._queue, *(flight.pending for flight in self._saving)])
        for pending in left:
            log.error(
                "not saved within [async_task_state] exit_timeout = %g s: %s",
                self._settings.exit_timeout,
                pending.unsaved(),
            )

    def stop(self) -> None:
        """Drain, close the store and end the thread."""
        self.disown(_stopped)
        for pending in list(self._holders.values()):
            # Whoever found the writer there has come to the queue once the lock is free.
            with pending.lock:
                pass
        self.drain()
        self._post(self._end)
        self._thread.join(self._settings.exit_timeout)

    def pause(self) -> None:
        """Close the store for as long as a fork takes, at most `exit_timeout` later: see `_before_fork`."""
        if threading.current_thread() is not self._thread:
            future = asyncio.run_coroutine_threadsafe(self._paused(), self.loop)
            concurrent.futures.wait([future], self._settings.exit_timeout)
            future.cancel()

    def resume(self) -> None:
        """Use the store again."""
        self.loop.call_soon_threadsafe(self._open_for_use.set)

    def disown(self, trouble: Callable[[Pending], Exception]) -> None:
        """Make every handle of this writer raise `trouble`, for there is no thread any more that could save it."""
        self.gone, self.trouble = True, trouble

    def _main(self) -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError):
                asyncio.run(self._serve())
        except Exception as error:
            if self._started.is_set():
                raise
            # There is no event loop, as where files may not be opened any more; whoever waits for one must hear of it.
            self._not_started = error
            self._started.set()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        _resolve_to_the_end(self.loop)
        self._serving = asyncio.current_task()
        self._open_for_use = asyncio.Event()
        self._open_for_use.set()
        self._started.set()
        try:
            while not self._stopping:
                wake_at = max(0 if self._round else self._next_due(), self._not_before)
                if wake_at > time.monotonic():
                    await self._sleep_until(wake_at)
                else:
                    await self._save(self._take())
        finally:
            await self.store.close()

    def _end(self) -> None:
        """Let everybody go who still waits, and then the thread."""
        self._stopping = True
        self._fail_waiters(_stopped)
        for task in self._tasks.values():
            task.cancel()
        self._wake_up()
        if self._saving and self._serving is not None:
            self._serving.cancel()

    def _next_due(self) -> float:
        with self._gate:
            if 0 < self._due <= time.monotonic():
                self._due = min((pending.due for pending in self._queue), default=NEVER)
            return self._due

    def _ring(self) -> None:
        self._post(self._wake_up)

    def _post(self, call: Callable[..., None], *args: object) -> None:
        # The loop is gone only when the process is on its way out; what was recorded is then drain()'s to report.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(call, *args)

    def _wake_up(self) -> None:
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)

    async def _sleep_until(self, moment: float) -> None:
        self._bell = self.loop.create_future()
        self._alarm.set(moment)
        try:
            await self._bell
        finally:
            self._bell = None

    def _take(self) -> list[Flight]:
        """Swap out what a thousand scopes have pending, of all that were in the queue when this round began.

        More at once would keep others from the GIL, and what it makes would grow old enough to cost the garbage
        collector a walk through everything.
        """
        with self._gate:
            begins = not self._round
            self._round = self._round or len(self._queue)
            taken = list(islice(self._queue, min(self._round, SCOPES_AT_ONCE)))
            for pending in taken:
                del self._queue[pending]
            self._round -= len(taken)
            if begins or not self._queue:
                # Until then nobody need ring who is in no hurry: the thread looks at the queue by itself. Not anew within
                # a round, whose newcomers may be in a hurry.
                self._due = time.monotonic() + self._settings.max_delay * FLUSH_AT
        self.steps += 1
        # Outside the gate: a recording thread holds its own lock when it comes to the gate.
        self._saving = [pending.take() for pending in taken]
        return self._saving

    async def _save(self, flights: list[Flight]) -> None:
        if self._watchdog.moment == NEVER:
            self._watchdog.set(time.monotonic() + self._settings.outage_timeout)
        try:
            with listening(self._put_off_outage):
                fenced = await self._use(self.store.commit, [flight.batch for flight in flights])
        except Exception as error:  # noqa: BLE001 - whatever it is, what was recorded must not be lost
            self._retry(flights, error)
            return
        self._watchdog.clear()
        self._retry_after = FIRST_RETRY_SECONDS
        self._not_before = 0.0
        if self.trouble == self._outage:
            log.warning("the store is back: what was not saved now is")
            self.trouble = None
        self._away_because = None
        waiters: list[Waiter] = []
        for flight in flights:
            waiters += flight.pending.settle(fenced=bool(fenced) and flight.batch.lease in fenced)
        self._saving = []
        self.steps += 1
        wake(waiters)

    def _retry(self, flights: list[Flight], error: Exception) -> None:
        if not isinstance(error, StoreError):
            log.error("the store raised what a store must not raise", exc_info=error)
        elif self._away_because is None:
            log.warning("could not save, will try again: %s", error)
        self._away_because = error
        for flight in flights:
            flight.pending.put_back()
        self._saving = []
        self._round = 0
        self._not_before = time.monotonic() + self._retry_after * random.uniform(0.5, 1)  # noqa: S311 - jitter
        self._retry_after = min(self._retry_after * 2, LAST_RETRY_SECONDS)
        self.hurry()
        # Waiting mends an outage; it does not mend a corrupt file.
        if self.trouble == self._outage or not isinstance(error, StoreUnavailableError):
            self._declare_outage()

    def _put_off_outage(self) -> None:
        """A commit that makes progress, as a large one does over a slow line, is no outage."""
        if self._watchdog.moment != NEVER:
            self._watchdog.set(time.monotonic() + self._settings.outage_timeout)

    def _declare_outage(self) -> None:
        if self.trouble is None:
            log.error("saving has failed for good or for too long; still trying: %s", self._why_away())
            self.trouble = self._outage
        self._fail_waiters(self._outage)

    def _fail_waiters(self, error: Callable[[Pending], Exception]) -> None:
        with self._gate:
            holders = [*self._queue, *(flight.pending for flight in self._saving)]
        wake(waiter for pending in holders for waiter in pending.fail_waiters(error))

    def _outage(self, pending: Pending) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"{self._why_away()}; not saved, and still being tried: {pending.unsaved()}"
        )

    def _why_away(self) -> str:
        if self._away_because is not None and not isinstance(self._away_because, StoreUnavailableError):
            return str(self._away_because)
        cause = "it does not answer" if self._away_because is None else str(self._away_because)
        return f"the store has been away for [async_task_state] outage_timeout = {self._settings.outage_timeout:g} s ({cause})"

    def _spawn(
        self, waiter: Waiter, method: Callable[..., Coroutine[Any, Any, Any]], args: tuple[object, ...]
    ) -> None:
        task = self._tasks[waiter] = self.loop.create_task(self._answer(waiter, method, args))
        task.add_done_callback(lambda _: self._tasks.pop(waiter))

    def _dismiss(self, waiter: Waiter) -> None:
        self._asking.discard(waiter)
        task = self._tasks.get(waiter)
        if task is not None:
            task.cancel()

    async def _answer(
        self, waiter: Waiter, method: Callable[..., Coroutine[Any, Any, Any]], args: tuple[object, ...]
    ) -> None:
        # What the caller hears when this is cancelled.
        waiter.error = StateNotOpenError("this process has shut its stores down")
        try:
            waiter.result = await self._until_available(method, args)
            waiter.error = None
        except Exception as error:  # noqa: BLE001 - the caller's to handle
            waiter.error = error
        finally:
            self.steps += 1
            self._asking.discard(waiter)
            wake([waiter])

    async def _until_available(
        self, method: Callable[..., Coroutine[Any, Any, Any]], args: tuple[object, ...]
    ) -> Any:
        timeout = self._settings.outage_timeout
        patience = Patience(timeout)
        delay = FIRST_RETRY_SECONDS
        why = ""
        while True:
            try:
                return await patience.wait_for(self._use(method, *args))
            except asyncio.TimeoutError:
                raise StoreUnavailableError(
                    f"the store has not answered for [async_task_state] outage_timeout = {timeout:g} s{why}"
                ) from None
            except StoreUnavailableError as error:
                if time.monotonic() + delay >= patience.ends:
                    raise
                why = f" ({error})"
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - jitter
            delay = min(delay * 2, LAST_RETRY_SECONDS)

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

    async def _drained(self) -> None:
        while self._queue or self._saving:
            self._not_before = 0.0
            self.hurry()
            self._wake_up()
            await asyncio.sleep(0.001)


def _resolve_to_the_end(loop: asyncio.AbstractEventLoop) -> None:
    """Let a loop resolve names even while Python ends, when no executor takes work: then it blocks meanwhile."""
    resolve = loop.getaddrinfo

    async def getaddrinfo(host: Any, port: Any, **options: Any) -> list[Any]:
        try:
            return await resolve(host, port, **options)
        except RuntimeError:
            return socket.getaddrinfo(host, port, **options)

    loop.getaddrinfo = getaddrinfo  # type: ignore[method-assign]


def _stopped(pending: Pending) -> StateNotOpenError:
    return StateNotOpenError(
        f"the state of {pending.lease.scope} was opened before this process shut its stores down"
    )
