"""What one holder has recorded and the store does not have yet."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from anyio.lowlevel import checkpoint as give_turn

from async_task_state.codec import KILL_PREFIX
from async_task_state.expiries import NONE, Expiries
from async_task_state.flight import Flight, laid_over
from async_task_state.results import Stats
from async_task_state.room import BYTES_A_KEY_CHAR, FEW, MUST_COUNT
from async_task_state.stores import Batch
from async_task_state.takeover import DELETED, fate_of, stale_error, unsaved_text
from async_task_state.waiting import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from async_task_state.awaited import AwaitedWriter
    from async_task_state.errors import StaleWriterError
    from async_task_state.room import Room
    from async_task_state.stores import Change, Lease, Snapshot
    from async_task_state.story import Story
    from async_task_state.writer import Writer

__all__ = ["Pending"]

MAX_ROWS: Final = 1000
MAX_BYTES: Final = 1024 * 1024
CAP_BYTES: Final = 8 * MAX_BYTES


class Pending:
    """The changes of one lease, the newest of each key only, until the writer takes them.

    Any thread may record; `lock` is held for moments and never across an await. `values` is the scope as its holder
    sees it: what was acquired, with everything recorded since.
    """

    __slots__ = (
        "__weakref__",
        "_batch_bytes",
        "_bytes",
        "_calls",
        "_changes",
        "_cleared",
        "_coalesced",
        "_commits",
        "_due_after",
        "_flight",
        "_lag",
        "_near",
        "_producers",
        "_queued",
        "_recorded",
        "_refreshing",
        "_since",
        "_waiters",
        "_writer",
        "due",
        "error",
        "expiries",
        "fate",
        "lease",
        "lock",
        "reopened_here",
        "room",
        "saved_ago",
        "story",
        "values",
    )  # fmt: skip

    def __init__(
        self,
        writer: Writer | AwaitedWriter,
        lease: Lease,
        values: dict[str, str],
        due_after: float,
        ends: Mapping[str, float] = NONE,
    ) -> None:
        self.lock = threading.Lock()
        self.lease = lease
        self.values = values
        self.error: Exception | None = None
        self.due = 0.0
        self.reopened_here = False
        self.saved_ago: float | None = None
        self.fate = ""
        self.story: Story | None = None
        self.expiries = Expiries(ends)
        self._writer = writer
        self._due_after = due_after
        self._changes: dict[str, Change] = {}
        self._producers: dict[str, Callable[[], str]] = {}
        self._cleared = False
        self._calls = 0
        self._batch_bytes = 0
        # How many bytes the open batch may have for a call of few values to fit for certain.
        self._near = MUST_COUNT
        self.room: Room
        self._since = 0.0
        self._queued = False
        self._recorded = self._coalesced = self._commits = self._bytes = 0
        self._lag = 0.0
        self._flight: Flight | None = None
        self._waiters: list[Waiter] = []
        self._refreshing: list[list[Batch]] = []

    @property
    def stats(self) -> Stats:
        """The counters as they stand."""
        return Stats(self._recorded, self._coalesced, self._commits, self._bytes, self._lag)

    @property
    def orphaned(self) -> bool:
        """Whether nothing recorded here can be saved any more."""
        return self.error is not None or self._writer.gone

    def changes(self, key: str) -> bool:
        """Whether a key was changed and is not saved yet."""
        return (
            key in self._changes
            or self._cleared
            or (
                self._flight is not None and (key in self._flight.batch.changes or self._flight.batch.cleared)
            )
        )

    @property
    def unsettled(self) -> bool:
        """Whether anything recorded here is not saved and still can be."""
        return self.error is None and (self._queued or self._flight is not None)

    def refusal(self) -> Exception | None:
        """What keeps this holder from writing, if anything does."""
        if self.error is not None:
            return type(self.error)(*self.error.args)
        # Once: the writer's thread may take it back meanwhile.
        trouble = self._writer.trouble
        return None if trouble is None else trouble(self)

    def check(self) -> None:
        """Raise what keeps this holder from writing, if anything does."""
        refusal = self.refusal()
        if refusal is not None:
            raise refusal

    @property
    def full(self) -> bool:
        """Whether so much is pending that callers should wait for a flush before they add more."""
        return self._batch_bytes > CAP_BYTES

    def admit(self, changes: Mapping[str, Change]) -> None:
        """Refuse what the store cannot be sent: nothing, where it takes all JSON."""

    def record(self, changes: Mapping[str, Change]) -> None:
        """Add one call's changes.

        Raises:
            StateTooLargeError: The state would hold too much with them.
        """
        if self.error is not None or self._writer.trouble is not None:
            self.check()
        with self.lock:
            if self._batch_bytes > self._near or len(changes) > FEW:
                self.room.admit(self, changes)
            # What `whole` does, without one more call: that is 8 % of a checkpoint.
            try:
                self.add(changes)
            except BaseException:
                self._again(self.add, changes)
                raise

    def note(self, changes: Mapping[str, Change]) -> None:
        """Add changes of the library's own, which are no call of the author's and so are not counted."""
        self.check()
        with self.lock:
            self.whole(self.add, changes)
            self._calls -= 1
            self._recorded -= 1
            self.room.forget(self)

    def whole(self, step: Callable[..., None], *args: Any) -> None:
        """Take a step that may be taken twice, whole; the caller holds the lock.

        A signal handler may raise between any two instructions, and `execution_timeout`'s does: a batch must not
        leave with half a call, nor a writer sleep on what it was half told.
        """
        try:
            step(*args)
        except BaseException:
            self._again(step, *args)
            raise

    def _again(self, step: Callable[..., None], *args: Any) -> None:
        step(*args)
        self._writer.hurry(again=True)

    def add(self, changes: Mapping[str, Change]) -> None:
        """A step: the same for a caller that holds the lock and has called `check`."""
        if self._writer.gone:
            self.check()
        pending, values = self._changes, self.values
        for key, change in changes.items():
            replaced = pending.get(key)
            if replaced is None:
                self._near -= BYTES_A_KEY_CHAR * len(key)
            elif replaced[0] is not None:
                self._batch_bytes -= len(replaced[0])
            pending[key] = change
            text = change[0]
            if text is None:
                values.pop(key, None)
            else:
                values[key] = text
                self._batch_bytes += len(text)
        self._calls += 1
        self._recorded += 1
        if not self._queued:
            self._enqueue(self._due_after)
        if len(pending) >= MAX_ROWS or self._batch_bytes >= MAX_BYTES:
            self._writer.hurry()

    def produce(self, key: str, producer: Callable[[], str]) -> None:
        """Let `producer` give the value of `key` when the batch leaves; the caller holds the lock."""
        self._producers[key] = producer

    def settle_producer(self, key: str) -> None:
        """Forget a producer whose value has become final; the caller holds the lock."""
        self._producers.pop(key, None)

    def clear(
        self, forgetting: Iterable[Callable[[], None]] = (), changes: Mapping[str, Change] | None = None
    ) -> None:
        """A step: delete every key, let those forget who know of some, and add what is to be there instead."""
        self._changes.clear()
        self._producers.clear()
        self.room.forget(self)
        self._batch_bytes = 0
        for key in [key for key in self.values if not key.startswith(KILL_PREFIX)]:
            self.values.pop(key, None)
        self._cleared = True
        for forget in forgetting:
            forget()
        self.add(changes or {})

    @contextmanager
    def refreshing(self) -> Iterator[list[Batch]]:
        """What is saved from here on, for whoever reads the scope meanwhile: it may have been read before that."""
        saved: list[Batch] = []
        with self.lock:
            self._refreshing.append(saved)
        try:
            yield saved
        finally:
            with self.lock:
                self._refreshing = [other for other in self._refreshing if other is not saved]

    def refresh(
        self,
        snapshot: Snapshot | None,
        saved: Iterable[Batch],
        reload: Iterable[Callable[[dict[str, str]], Callable[[], None]]],
    ) -> None:
        """See a scope as it was read, under what was saved since and what is not; the caller holds the lock."""
        if snapshot is None or snapshot.lease != self.lease:
            self.fate = DELETED
            if snapshot is not None:
                self.fate = fate_of(
                    self.lease, snapshot.lease.scope_id, snapshot.lease.epoch, snapshot.holder
                )
            self._lose(self.stale())
            return
        batches = [*saved, *([self._flight.batch] if self._flight is not None else [])]
        produced: dict[str, Change] = {key: (produce(), None) for key, produce in self._producers.items()}
        batches.append(Batch(self.lease, {**self._changes, **produced}, self._cleared))
        values = laid_over(snapshot.entries, batches)
        # All of it can be read, or nothing changes.
        loads = [read(values) for read in reload]
        self.values = values
        self.expiries.note_read(snapshot.ends, saved)
        self.room.forget(self)
        for load in loads:
            load()

    async def flush(self) -> None:
        """Return when everything recorded so far is durable, or raise why it is not."""
        self.check()
        with self.lock:
            # Again, for the writer may have settled the last batch since; and above, for in a forked child the lock
            # may be a parent's thread's.
            self.check()
            if self._queued:
                waiter = self._ask()
            elif self._flight is not None:
                waiter = Waiter()
                self._flight.waiters.append(waiter)
            else:
                return
        await self._hurry(waiter)

    async def confirm(self) -> None:
        """Flush, and ask the store whether the lease still counts even where nothing was recorded.

        Raises:
            StaleWriterError: It does not.
        """
        self.check()
        with self.lock:
            self.check()
            waiter = self._ask()
        await self._hurry(waiter)

    def touch(self) -> None:
        """Have the store asked for the lease soon, by which it knows that the state is in use."""
        with self.lock:
            if not self._queued and not self.orphaned:
                self.whole(self._enqueue, 0)

    def take(self) -> Flight:
        """Swap everything pending out, for the writer to commit: all of it or, where this raises, nothing."""
        with self.lock:
            # Most states that are set one by one have no producers.
            produced: dict[str, Change] = {}
            size = self._batch_bytes
            if self._producers:
                produced = {key: (produce(), None) for key, produce in self._producers.items()}
                size += sum(len(text or "") for text, _ in produced.values())
            batch = Batch(self.lease, self._changes, self._cleared)
            flight = Flight(self, batch, self._waiters, self._calls, size, self._since)
            self._changes.update(produced)
            self._changes, self._producers, self._waiters = {}, {}, []
            self._cleared = self._queued = False
            self._near -= self._batch_bytes
            self._calls = self._batch_bytes = 0
            self._flight = flight
            return flight

    def put_back(self) -> None:
        """Merge a batch that may not have been saved under what is newer; may be done again where it was cut short."""
        with self.lock:
            flight = self._flight
            if flight is None:
                if self._queued:
                    # Not taken, and what had hurried is forgotten.
                    self.due = 0.0
                    self._writer.enqueue(self)
                return
            kept: dict[str, Change] = {}
            if not self._cleared:
                kept = {
                    key: change
                    for key, change in flight.batch.changes.items()
                    if key not in self._changes and key not in self._producers
                }
            if not self._queued:
                self._enqueue(0)
            size = sum(len(text or "") for text, _ in kept.values())
            waiters = flight.waiters + self._waiters
            self._changes.update(kept)
            self._batch_bytes += size
            self._cleared = self._cleared or flight.batch.cleared
            self._calls += flight.calls
            self._waiters, flight.waiters = waiters, []
            self._since = flight.since
            self._flight = None

    def settle(self, *, fenced: bool) -> list[Waiter]:
        """Account for a batch that was saved or refused; the waiters to wake."""
        with self.lock:
            flight = self._flight
            if flight is None:
                return []
            if fenced:
                self._lose(self.stale())
                for waiter in flight.waiters:
                    waiter.error = self.stale()
            elif flight.calls or flight.batch.changes:
                for saved in self._refreshing:
                    saved.append(flight.batch)
                if self.expiries.are_any:
                    self.expiries.note_saved(flight.batch)
                self._coalesced += max(0, flight.calls - 1)
                self._commits += 1
                self._bytes += flight.bytes
                self._lag = time.monotonic() - flight.since
            self._flight = None
            return flight.waiters

    def abandon(self, error: Exception) -> None:
        """Lose what is not durable and refuse everything after it, as the death of the process would."""
        with self.lock:
            self._lose(error)

    def fail_waiters(self, error: Callable[[Pending], Exception]) -> list[Waiter]:
        """Give up on everybody who waits; the changes stay. The waiters to wake."""
        with self.lock:
            waiters, self._waiters = self._waiters, []
            if self._flight is not None:
                waiters += self._flight.waiters
                self._flight.waiters = []
        for waiter in waiters:
            waiter.error = error(self)
        return waiters

    def unsaved(self) -> str:
        """Which keys the store does not have, for a message."""
        changes = {**(self._flight.batch.changes if self._flight else {}), **self._changes, **self._producers}
        return unsaved_text(self.lease.scope, changes)

    def stale(self) -> StaleWriterError:
        """What a holder hears whose lease was taken."""
        return stale_error(self.lease, reopened_here=self.reopened_here, fate=self.fate)

    def _lose(self, error: Exception) -> None:
        self.error = error
        self._changes.clear()
        self._producers.clear()
        self._cleared = False

    def _enqueue(self, delay: float) -> None:
        self._since = time.monotonic()
        self.due = self._since + delay
        self._writer.enqueue(self)
        self._queued = True

    def _ask(self) -> Waiter:
        waiter = Waiter()
        self._waiters.append(waiter)
        if not self._queued:
            self.whole(self._enqueue, 0)
        return waiter

    async def _hurry(self, waiter: Waiter) -> None:
        # Whoever else asks in this turn of the loop comes along in the same commit. From here and not from a callback
        # of the loop, which would swallow the alarm of an execution_timeout.
        try:
            await give_turn()
        finally:
            self.whole(self._writer.hurry)
        await self._writer.settled(waiter)
