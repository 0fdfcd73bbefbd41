"""What a holder of state may do with it, whosever it is: a task's or an asset's."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from async_task_state.calls import Calls
from async_task_state.codec import RESERVED_PREFIX, check_key, encode, encode_changes, kept_by_clear
from async_task_state.errors import (
    AsyncWithNeededError,
    ReadOnlyStateError,
    StaleWriterError,
    StateNotOpenError,
)
from async_task_state.leaving import last_flush, may_await
from async_task_state.logs import Log
from async_task_state.opened import forget_closed, note_open, states_open_here
from async_task_state.pauses import must_pause, pause
from async_task_state.records import author_values, decode_record
from async_task_state.results import Stats
from async_task_state.room import TAIL_BYTES, Room
from async_task_state.scopes import check_attempt
from async_task_state.settings import Dsn, check_seconds, retention_seconds
from async_task_state.stores import is_same_store
from async_task_state.stores.admission import of_run
from async_task_state.story import Story
from async_task_state.waiting import turn_given
from async_task_state.whereabouts import check_may_hold
from async_task_state.work import WorkSet

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from datetime import timedelta
    from types import TracebackType

    from async_task_state.awaited import AwaitedWriter
    from async_task_state.pending import Pending
    from async_task_state.runs import Run
    from async_task_state.scopes import Scope
    from async_task_state.settings import Settings
    from async_task_state.stores import Snapshot, Store
    from async_task_state.stores.airflow import Channel
    from async_task_state.writer import Writer

__all__ = ["State"]

S = TypeVar("S", bound="State")

log = Log(__name__)


class State:
    """One holder's handle on the state of one task or asset.

    Entering it takes the scope's lease, so that every earlier holder is fenced: what it still tries to write is
    refused. Leaving it flushes, shielded from cancellation, for at most `exit_timeout`. A handle that was left can be
    entered again as long as nobody else has opened the scope since; it goes on with the same lease.

    A call that changes the state records at once, and what it returns is awaited for the rest. One that was never
    awaited is named when the state is left: in the log, or as an error if it has so done nothing.

    A loop of checkpoints that awaits nothing else gives the event loop a turn every few milliseconds.

    Every method raises `StateNotOpenError` outside the `async with`, `StaleWriterError` once another holder has
    opened the scope, and `StoreUnavailableError` when the store has been away for `outage_timeout`.
    """

    def __init__(
        self,
        scope: Scope,
        *,
        attempt: int | None = None,
        run: Run | None = None,
        store: str | Store | Channel,
        settings: Settings,
        max_delay: float | None = None,
        read_only: bool = False,
        only_inside: bool = False,
    ) -> None:
        check_attempt(attempt)
        check_seconds("max_delay", max_delay)
        self._scope = scope
        self._wanted_attempt = attempt
        self._run = run
        self._store = Dsn(store) if isinstance(store, str) else store
        self._settings = settings
        self._max_delay = settings.max_delay if max_delay is None else max_delay
        self._read_only = read_only
        self._only_inside = only_inside and not read_only
        self._max_bytes = settings.max_value_bytes
        self._depth = 0
        self._outer: State | None = None
        self._writer: Writer | AwaitedWriter | None = None
        self._pending: Pending | None = None
        self._snapshot: Snapshot | None = None
        self._lock = threading.Lock()
        self._resumed = False
        self._is_told = True
        self._works: dict[str, WorkSet] = {}
        self._calls = Calls()
        self._checkpoints = self._calls.kind("checkpoint")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._scope} {'open' if self._depth else 'closed'}>"

    async def __aenter__(self: S) -> S:  # noqa: PYI019 - joining gives the outer handle
        """Open the state: take the lease and read what earlier holders left.

        Raises:
            OutsideTaskError: No task or trigger runs here, and no store was named.
            StaleAttemptError: A later attempt has opened it.
            StaleWriterError: This handle was left, and another holder has opened the scope since.
            StoreError: The store cannot serve, or has not answered for `outage_timeout`.
        """
        outer = next((handle for handle in reversed(states_open_here()) if self._joins(handle)), None)
        if outer is not None:
            self._outer = outer
            self._pending, self._snapshot, self._works = outer._pending, outer._snapshot, outer._works
            self._writer, self._resumed, self._lock = outer._writer, outer._resumed, outer._lock
            self._calls, self._checkpoints = outer._calls, outer._checkpoints
            outer._depth += 1
            self._depth += outer is not self
            return cast("S", outer)
        if self._pending is not None:
            await self._pending.confirm()
        else:
            if self._only_inside:
                check_may_hold(self._scope, self._store)
            from async_task_state.connections import writer_of  # noqa: PLC0415 - loads asyncio, 50 ms

            self._writer = await writer_of(self._store, self._settings)
            if self._read_only:
                self._snapshot = await self._look_at(self._writer)
                self._works = {}
            else:
                wanted = self._wanted_attempt, self._run
                self._pending = await self._writer.open(self._scope, *wanted, self._max_delay)
                self._pending.room = Room(self._settings, self._works)
            try:
                await self._ask(self._values())
                self._begin(self._values())
            except BaseException:
                self._pending = self._snapshot = None
                raise
            if self._pending is not None:
                self._pending.story = Story(self, self._pending)
                self._pending.story.opened(self._values(), self._beginning(), resumed=self._resumed)
        self._depth = 1
        turn_given()
        self.note()
        return self

    def __enter__(self) -> NoReturn:
        raise AsyncWithNeededError(
            f"the state of {self._scope} is entered with `async with`; task_state_sync() and asset_state_sync() give one for `with`"
        )

    def __exit__(self, *_: object) -> None: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Flush and leave.

        Raises:
            AsyncTaskStateError: The last flush failed, the body raised nothing, and nothing has cancelled this task.
        """
        outer, self._outer = self._outer or self, None
        try:
            if self._pending is not None and self._writer is not None:
                if may_await(error, traceback):
                    await last_flush(self._pending, error, self._settings.exit_timeout)
                else:
                    self._writer.hurry()
        finally:
            outer._depth -= 1
            self._depth -= outer is not self
            not_awaited = None
            if outer._depth == 0:
                forget_closed()
                not_awaited = self._calls.settle(self._scope)
                if self._pending is not None and self._pending.story is not None:
                    self._pending.story.left()
        if not_awaited is not None:
            if error is None:
                raise not_awaited
            log.error("on leaving: %s", not_awaited)

    def note(self) -> None:
        """Let this context know that the state is open, so that it is joined."""
        note_open(self)

    @property
    def resumed(self) -> bool:
        """Whether there was anything in the state when it was opened."""
        self._entered()
        return self._resumed

    @property
    def is_open(self) -> bool:
        """Whether it is entered and not yet left."""
        return self._depth > 0

    @property
    def stats(self) -> Stats:
        """What this handle has recorded and committed so far."""
        return Stats() if self._pending is None else self._pending.stats

    async def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, what was recorded last, saved or not.

        Args:
            key: A key that `set` or `checkpoint` takes.
            default: What to return where there is none.

        Raises:
            InvalidKeyError: `key` cannot be a key.
            DamagedRecordError: Its value cannot be read.
        """
        values = self._readable()
        text = values.get(key) if isinstance(key, str) else None
        if text is None or key.startswith(RESERVED_PREFIX):
            check_key(key)
            if self._writer is not None and self._writer.inline is True:
                text = await self._writer.look_beside(self._pending, self._values, key)
        return default if text is None else decode_record(self._scope, key, text)

    async def get_all(self) -> dict[str, Any]:
        """Every key and its value, without what work sets keep."""
        return author_values(self._scope, self._readable())

    def set(self, key: str, value: Any, *, retention: timedelta | None = None) -> Coroutine[Any, Any, None]:
        """Save a value; it is durable when this returns, and so is everything recorded before it.

        Args:
            key: 1 to 512 characters.
            value: Any JSON value but None at the top.
            retention: How long to keep it, or `NEVER_EXPIRE`; None is as long as the state, which is kept for
                `[async_task_state] default_retention_days` after it was last in use.

        Raises:
            InvalidKeyError: `key` cannot be a key.
            InvalidValueError: `value` is not JSON.
            ValueTooLargeError: Its JSON is longer than `[async_task_state] max_value_bytes`.
            StateTooLargeError: The state would hold more than `[async_task_state] max_state_bytes`.
            InvalidArgumentError: `retention` is not a `timedelta` above 0.
        """
        pending = self._writable()
        check_key(key)
        seconds = retention_seconds(retention)
        if seconds is not None:
            pending.expiries.are_any = True
        pending.record({key: (encode(key, value, self._max_bytes), seconds)})
        return self._calls.kind("set").then(pending.flush)

    def checkpoint(
        self, values: Mapping[str, Any] | None = None, /, **named: Any
    ) -> Coroutine[Any, Any, None]:
        """Record values, together; durable within `max_delay`, or with the next call that waits for durability.

        Costs microseconds: only the newest value of a key is saved, many checkpoints in one commit. What a crash
        leaves is the state as it was after one of the calls, never a part of one.

        Args:
            values: Keys and values, for keys that are no Python names. A value of None removes its key, in the same
                atomic step: the cursor of a last page, for instance.
            **named: More of them.

        Raises:
            InvalidKeyError: A key cannot be one; nothing is recorded.
            InvalidValueError: A value is not JSON; nothing is recorded.
            ValueTooLargeError: A value's JSON is too long; nothing is recorded.
            StateTooLargeError: The state would hold more than `[async_task_state] max_state_bytes`; nothing is recorded.
        """
        pending = self._writable()
        if values is not None:
            named = {**values, **named}
        pending.record(encode_changes(named, pending.values, self._max_bytes))
        calls = self._checkpoints
        if must_pause(pending):
            return calls.then(pause, pending)
        calls.waiting += 1
        return calls.recorded()

    def flush(self) -> Coroutine[Any, Any, None]:
        """Make everything recorded so far durable before returning."""
        return self._calls.kind("flush").then(self._writable().flush)

    def delete(self, key: str) -> Coroutine[Any, Any, None]:
        """Remove a key, durably when this returns; one that is not there is no error.

        Raises:
            InvalidKeyError: `key` cannot be a key.
        """
        pending = self._writable()
        check_key(key)
        # Known here or not, because others may have written it without a lease.
        pending.record({key: (None, None)})
        return self._calls.kind("delete").then(pending.flush)

    def clear(self) -> Coroutine[Any, Any, None]:
        """Remove every key and everything that work sets keep, durably when this returns."""
        pending = self._writable()
        pending.check()
        with pending.lock:
            forgetting = [work._forget for work in list(self._works.values())]
            pending.whole(pending.clear, forgetting, kept_by_clear(pending.values))
        return self._calls.kind("clear").then(pending.flush)

    async def refresh(self) -> None:
        """Flush, and then see what others have written without a lease: Airflow's own accessors, its API, a user.

        What this handle records meanwhile stays; of a key that both have written the store has the later one.
        A read-only state is read anew.
        """
        if self._writer is None or self._depth == 0:
            raise self._not_open()
        works = [work._reload for work in list(self._works.values())]
        if self._pending is None:
            snapshot = await self._look_at(self._writer)
            values = {} if snapshot is None else snapshot.entries
            loads = [reload(values) for reload in works]
            self._snapshot = snapshot
            for load in loads:
                load()
            return
        await self._pending.flush()
        with self._pending.refreshing() as since:
            snapshot = await self._writer.call(self._writer.store.read, self._scope)
            with self._pending.lock:
                self._pending.refresh(snapshot, since, works)
        self._pending.check()

    async def is_current(self) -> bool:
        """Flush, and ask the store whether this handle still holds the lease. May be asked after leaving, too."""
        if self._read_only:
            raise ReadOnlyStateError(
                f"the state of {self._scope} was opened with read_only=True: it holds no lease"
            )
        if self._pending is None:
            raise self._not_open()
        try:
            await self._pending.confirm()
        except StaleWriterError:
            return False
        return True

    def work(self, name: str) -> WorkSet:
        """The set of items of that name that are done; the same object at each call.

        Args:
            name: 1 to 200 characters.

        Raises:
            InvalidKeyError: `name` cannot be part of a key.
            DamagedRecordError: What the state holds of it cannot be read.
        """
        values = self._readable()
        # Another thread may ask for it, too, or record.
        with self._lock if self._pending is None else self._pending.lock:
            work = self._works.get(name)
            if work is None:
                work = self._works[name] = WorkSet(self, name, values)
                work._take_out(values)
                if self._pending is not None:
                    self._pending._near -= TAIL_BYTES
        return work

    async def _ask(self, values: dict[str, str]) -> None:
        """What there is to ask before it is decided what becomes of `values`."""

    def _begin(self, values: dict[str, str]) -> None:
        """What there is to do when a state was opened that holds `values`."""
        self._resumed = bool(values)

    def _beginning(self) -> str:
        """What an attempt does that has opened the state, for the log."""
        return "resumes" if self._resumed else "begins with an empty state"

    async def _look_at(self, writer: Writer | AwaitedWriter) -> Snapshot | None:
        """What the store has, without the lease."""
        return of_run(await writer.call(writer.store.read, self._scope), self._wanted_attempt, self._run)

    def _values(self) -> dict[str, str]:
        if self._pending is not None:
            return self._pending.values
        return {} if self._snapshot is None else self._snapshot.entries

    @property
    def _attempt(self) -> int:
        holder = self._pending or self._snapshot
        return 0 if holder is None else holder.lease.attempt

    @property
    def _turn(self) -> int:
        """Tells this holder's tries of a work item from those of one that shall try it anew."""
        holder = self._pending or self._snapshot
        return 0 if holder is None else holder.lease.epoch

    def _joins(self, handle: State) -> bool:
        """Whether entering this one means to go on with a handle that is open in this context."""
        return handle is self or (
            type(handle) is type(self)
            and handle._scope == self._scope
            and handle._read_only == self._read_only
            and (self._wanted_attempt is None or self._wanted_attempt == handle._attempt)
            and self._pending is None
            and not (handle._pending is not None and handle._pending.orphaned)
            and is_same_store(handle._store, self._store)
        )

    def _entered(self) -> None:
        if self._pending is None and not (self._read_only and self._depth):
            raise self._not_open()

    def _not_open(self) -> StateNotOpenError:
        again = (
            " It was, and has been left." if self._pending is not None or self._snapshot is not None else ""
        )
        return StateNotOpenError(
            f"the state of {self._scope} is not open: enter it with `async with`.{again}"
        )

    def _readable(self) -> dict[str, str]:
        if self._depth == 0:
            raise self._not_open()
        if self._pending is not None:
            self._pending.check()
        return self._values()

    def _writable(self) -> Pending:
        if self._depth == 0:
            raise self._not_open()
        if self._pending is None:
            raise ReadOnlyStateError(f"the state of {self._scope} was opened with read_only=True")
        return self._pending
