"""Coalescing and group commit: one thread a process and store, which owns the connection and its own event loop.

A thread, because a caller's loop may be blocked, abandoned by a timeout, or trio's, and what it has recorded must be
saved all the same. Recording is a dict update under a lock; the thread swaps the pending changes of all scopes out,
commits them in one transaction, and puts them back under anything newer when that fails. While a commit is under way
the next batch gathers, as in a database's own group commit, so load makes batches larger and not queues longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final, Literal
from weakref import WeakValueDictionary

from async_task_state.deadline import NEVER, Deadline
from async_task_state.errors import StaleWriterError, StoreError, StoreUnavailableError
from async_task_state.handover import watch
from async_task_state.logs import Log
from async_task_state.pending import Pending
from async_task_state.requests import FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS
from async_task_state.store_thread import StoreThread
from async_task_state.stores import Wanted
from async_task_state.stores.progress import Patience, listening
from async_task_state.takeover import DELETED, fate_of
from async_task_state.trouble import ended, lasts, stopped, why_away
from async_task_state.waiting import wake

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_task_state.flight import Flight
    from async_task_state.runs import Run
    from async_task_state.scopes import Scope
    from async_task_state.settings import Settings
    from async_task_state.stores import Snapshot, Store
    from async_task_state.waiting import Waiter

__all__ = ["Writer"]

log = Log(__name__)

SCOPES_AT_ONCE: Final = 1000
TOUCH_SECONDS: Final = 1200.0
"""How often the store is told that a state is in use which saves nothing, or more seldom where it is kept for long."""
TOUCHES: Final = 8
"""How often within the time that a state is kept, at most."""
LOOK_SECONDS: Final = 1.0
"""How long a holder that was fenced waits to be told by whom."""
FLUSH_AT: Final = 0.75
"""The part of `max_delay` after which a flush starts; the rest is for the commit itself."""


class Writer(StoreThread):
    """Commits what the states of this process record, to one store.

    Args:
        store: Used by the writer's thread alone from here on.
        settings: For the timeouts.
    """

    inline: Literal[False] = False
    """Saves on a thread of its own, not within its callers' calls."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self.trouble: Callable[[Pending], Exception] | None = None
        self.gone = False
        self._reason: Callable[[str], Exception] | None = None
        self._gate = threading.Lock()
        # In order, and each once: a step that an alarm cut short is taken again.
        self._queue: dict[Pending, None] = {}
        self._due = NEVER
        self._round = 0
        self._not_before = 0.0
        self._retry_after = FIRST_RETRY_SECONDS
        # What the round under way has taken out of the queue, and what of that is on its way.
        self._saving: list[Pending] = []
        self._flights: list[Flight] = []
        self._watchdog = Deadline(self._declare_outage)
        # From the first commit of which it is not known that it succeeded until one has.
        self._patience: Patience | None = None
        self._alarm = Deadline(self._wake_up)
        self._away_because: Exception | None = None
        self._faulty_since: float | None = None
        self._bell: asyncio.Future[None] | None = None
        self._holders: WeakValueDictionary[Scope, Pending] = WeakValueDictionary()
        self._ended = False
        self._touch_at = 0.0
        super().__init__(store, settings)

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
        if earlier is not None and earlier.lease.attempt == snapshot.lease.attempt:
            earlier.reopened_here = True
        pending = Pending(self, snapshot.lease, snapshot.entries, max_delay * FLUSH_AT, snapshot.ends)
        pending.saved_ago = snapshot.saved_ago
        self._holders[scope] = pending
        return pending

    def enqueue(self, pending: Pending) -> None:
        """Commit a holder's changes when they are due. Its lock is held."""
        with self._gate:
            if self._ended and self.trouble is not None:
                raise self.trouble(pending)
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
        return max(0.0 if self._saving or self._requests.waiting else self._due, self._not_before)

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
        self._wait_for(self._drained)
        with self._gate:
            left = dict.fromkeys([*self._queue, *self._saving])
        for pending in left:
            log.error(
                "not saved within [async_task_state] exit_timeout = %g s: %s",
                self._settings.exit_timeout,
                pending.unsaved(),
            )

    def stop(self) -> None:
        """Drain, close the store and end the thread."""
        self._refuse_changes(stopped)
        for pending in list(self._holders.values()):
            # Whoever found the writer there has come to the queue once the lock is free.
            with pending.lock:
                pass
        self.drain()
        self.disown(stopped)
        self._post(self._end)
        self._thread.join(self._settings.exit_timeout)

    def disown(self, reason: Callable[[str], Exception]) -> None:
        """Raise from here on `reason` of whatever is asked for, because there is no thread any more that could do it."""
        self._refuse_changes(reason)
        self._requests.refuse(lambda: reason("the store"))

    def check(self, scope: Scope) -> None:
        """Raise why this can serve nobody any more, if that is so."""
        if self._reason is not None:
            raise self._reason(f"the state of {scope}")

    def _refuse_changes(self, reason: Callable[[str], Exception]) -> None:
        self.gone, self._reason = True, reason
        self.trouble = lambda pending: reason(_of(pending))

    async def _serve_once(self) -> None:
        """Commit what is due, or else wait until something is."""
        if self._saving:
            self._recover()
        if self._touch_at <= time.monotonic():
            self._touch()
        wake_at = min(max(0 if self._round else self._next_due(), self._not_before), self._touch_at)
        if wake_at > time.monotonic():
            await self._sleep_until(wake_at)
        else:
            self._take()
            await self._save()

    def _touch(self) -> None:
        """Keep what is open from being purged, by commits that change nothing."""
        kept = self._settings.default_retention
        if self._touch_at:
            for holder in self._holders.valuerefs():
                pending = holder()
                if pending is not None:
                    pending.touch()
        self._touch_at = NEVER if kept is None else time.monotonic() + max(TOUCH_SECONDS, kept / TOUCHES)

    def _end(self) -> None:
        """Release whoever still waits, and then end the thread."""
        self._stopping = True
        if self._saving and self._serving is not None:
            self._serving.cancel()
        self._note_end(None)
        self._wake_up()

    def _note_end(self, error: BaseException | None) -> None:
        """Release whoever waits for this thread, and refuse what comes: it saves nothing any more."""
        lost = not self.gone
        if lost:
            # A cancellation is the loop's own, for what has stopped it.
            cause = "it was stopped" if error is None else repr(error.__context__ or error)
            self.disown(lambda what: ended(what, cause))
            self.trouble = lambda pending: ended(_of(pending), f"{cause}; not saved: {pending.unsaved()}")
        trouble = self.trouble or self._outage
        with self._gate:
            self._ended = True
            holders = dict.fromkeys([*self._queue, *self._saving, *self._holders.values()])
            self._queue = {}
        self._saving = []
        for pending in holders:
            if lost and pending.unsettled:
                log.error("%s", trouble(pending))
            wake(pending.fail_waiters(trouble))
        self._requests.end()

    def _next_due(self) -> float:
        with self._gate:
            if 0 < self._due <= time.monotonic():
                self._due = min((pending.due for pending in self._queue), default=NEVER)
            return self._due

    def _ring(self) -> None:
        self._post(self._wake_up)

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

    def _take(self) -> None:
        """Swap out what a thousand scopes have pending, of all that were in the queue when this round began.

        More at once would keep others from the GIL, and what it makes would grow old enough to cost the garbage
        collector a walk through everything.
        """
        with self._gate:
            begins = not self._round
            self._round = self._round or len(self._queue)
            self._saving = list(islice(self._queue, min(self._round, SCOPES_AT_ONCE)))
            for pending in self._saving:
                del self._queue[pending]
            self._round -= len(self._saving)
            if begins or not self._queue:
                # Until then nobody need ring who is in no hurry: the thread looks at the queue by itself. Not anew within
                # a round, whose newcomers may be in a hurry.
                self._due = time.monotonic() + self._settings.max_delay * FLUSH_AT
        self.steps += 1
        # Outside the gate: a recording thread holds its own lock when it comes to the gate.
        self._flights = [pending.take() for pending in self._saving]

    async def _save(self) -> None:
        patience = self._patience or Patience(self._settings.outage_timeout)
        if self._patience is None or self._watchdog.moment != NEVER:
            self._watchdog.set(patience.ends)
        self._patience = patience
        patience.begin()
        flights = self._flights
        try:
            with listening(self._put_off_outage):
                fenced = await self._use(self.store.commit, [flight.batch for flight in flights])
        except Exception as error:  # noqa: BLE001 - whatever it is, what was recorded must not be lost
            self._recover()
            self._retry(error)
            return
        self._watchdog.clear()
        self._patience = None
        self._retry_after = FIRST_RETRY_SECONDS
        self._not_before = 0.0
        if self.trouble == self._outage:
            log.warning("the store is back: what was not saved now is")
            self.trouble = None
        self._away_because = self._faulty_since = None
        lost = [flight for flight in flights if flight.batch.lease in fenced] if fenced else []
        for flight in flights:
            if not lost or flight.batch.lease not in fenced:
                flight.pending.settle(fenced=False)
        if lost:
            # Who has lost nothing does not wait for what those who have are told.
            wake(
                waiter for flight in flights if flight.batch.lease not in fenced for waiter in flight.waiters
            )
            await self._look_who_holds(lost)
            for flight in lost:
                flight.pending.settle(fenced=True)
        self.steps += 1
        self._wake_settled()

    async def _look_who_holds(self, lost: list[Flight]) -> None:
        """Ask who has taken the leases, for the messages; a store that does not say it soon is not waited for."""
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._note_holders(lost), min(LOOK_SECONDS, self._settings.outage_timeout))

    async def _note_holders(self, lost: list[Flight]) -> None:
        for pending in (flight.pending for flight in lost):
            lease = pending.lease
            infos = await self._use(partial(self.store.scopes, Wanted(scope=lease.scope)))
            pending.fate = DELETED
            for info in infos:
                pending.fate = fate_of(lease, info.scope_id, info.epoch, info.holder)

    def _wake_settled(self) -> None:
        wake(waiter for flight in self._flights for waiter in flight.waiters)
        self._saving, self._flights = [], []

    def _recover(self) -> None:
        """Put back what a round has taken out, wherever it stopped, and wake whom it has settled."""
        for pending in self._saving:
            pending.put_back()
        self._wake_settled()

    def _retry(self, error: Exception) -> None:
        """Save later, because the store cannot serve."""
        if self._patience is not None:
            self._patience.fail()
        if not isinstance(error, StoreError):
            log.error("the store raised what a store must not raise", exc_info=error)
        elif self._away_because is None:
            log.warning("could not save, will try again: %s", error)
        self._away_because = error
        self._round = 0
        self._not_before = time.monotonic() + self._retry_after * random.uniform(0.5, 1)  # noqa: S311 - jitter
        self._retry_after = min(self._retry_after * 2, LAST_RETRY_SECONDS)
        self.hurry()
        if self.trouble == self._outage or lasts(error):
            self._declare_outage()

    def _retry_round(self, fault: Exception) -> None:
        """Save later, because a round has raised: what it has taken out is put back by the next one."""
        now = time.monotonic()
        if self._faulty_since is None:
            log.error("saving has failed in this process", exc_info=fault)
            self._faulty_since = now
        self._retry(StoreUnavailableError(f"saving has failed in this process: {fault!r}"))
        if now - self._faulty_since >= self._settings.outage_timeout:
            self._declare_outage()

    def _put_off_outage(self) -> None:
        """A commit that makes progress, as a large one does over a slow line, is no outage."""
        if self._patience is not None and self._watchdog.moment != NEVER:
            self._patience.renew()
            self._watchdog.set(self._patience.ends)

    def _declare_outage(self) -> None:
        if self.trouble is None:
            log.error("saving has failed for good or for too long; still trying: %s", self._why_away())
            self.trouble = self._outage
        self._fail_waiters(self._outage)

    def _fail_waiters(self, error: Callable[[Pending], Exception]) -> None:
        with self._gate:
            holders = [*self._queue, *self._saving]
        wake(waiter for pending in holders for waiter in pending.fail_waiters(error))

    def _outage(self, pending: Pending) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"{self._why_away()}; not saved, and still being tried: {pending.unsaved()}"
        )

    def _why_away(self) -> str:
        return why_away(self._away_because, self._settings.outage_timeout)

    async def _drained(self) -> None:
        while self._queue or self._saving:
            self._not_before = 0.0
            self.hurry()
            self._wake_up()
            await asyncio.sleep(0.001)


def _of(pending: Pending) -> str:
    return f"the state of {pending.lease.scope}"
