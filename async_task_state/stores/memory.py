"""State in this process's memory: for tests, and for a user's tests."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from async_task_state.codec import KILL_PREFIX, MAX_TRIES, RESERVED_PREFIX
from async_task_state.room import check_write, entry_bytes
from async_task_state.scopes import TaskScope
from async_task_state.stores import EVERYTHING, Lease, Position, ScopeInfo, Snapshot, new_token
from async_task_state.stores.admission import Held, admit, admit_write
from async_task_state.stores.holders import Holder

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from async_task_state.runs import Run
    from async_task_state.scopes import Scope
    from async_task_state.stores import Batch, Change, Wanted
    from async_task_state.stores.admission import Admission

__all__ = ["MemoryStore"]


@dataclass(slots=True)
class _Entry:
    value: str
    expires_at: float | None


@dataclass(slots=True)
class _Record:
    lease: Lease
    touched_at: float
    run: str = ""
    holder: Holder | None = None
    saved_at: float | None = None
    entries: dict[str, _Entry] = field(default_factory=dict)

    @property
    def held(self) -> Held:
        return Held(self.lease.attempt, self.run)

    def hand_over(self, attempt: int, run: str) -> None:
        self.lease = replace(self.lease, attempt=attempt, epoch=self.lease.epoch + 1, token=new_token())
        self.run, self.holder = run, None

    def change(self, changes: Mapping[str, Change], now: float, *, cleared: bool) -> None:
        if cleared:
            self.entries = {key: entry for key, entry in self.entries.items() if key.startswith(KILL_PREFIX)}
        for key, (value, retention) in changes.items():
            if value is None:
                self.entries.pop(key, None)
            else:
                self.entries[key] = _Entry(value, None if retention is None else now + retention)
        self.touched_at = self.saved_at = now

    def go(self) -> None:
        """Lose what lives with the state, and with it the holder."""
        kept = {key: entry for key, entry in self.entries.items() if entry.expires_at is not None}
        if MAX_TRIES in self.entries and any(not key.startswith(RESERVED_PREFIX) for key in kept):
            kept[MAX_TRIES] = self.entries[MAX_TRIES]
        if len(kept) < len(self.entries):
            self.entries = kept
            self.hand_over(self.lease.attempt, self.run)

    def info(self, scope: Scope) -> ScopeInfo:
        live, lease = self.live(), self.lease
        own = {key: len(str(text)) for key, text in live.items() if key.startswith(RESERVED_PREFIX)}
        return ScopeInfo(
            scope,
            lease.attempt,
            lease.epoch,
            len(live) - len(own),
            self.touched_at,
            lease.scope_id,
            own,
            self.holder,
        )

    def ends(self) -> dict[str, float]:
        ago = time.time() - time.monotonic()
        return {
            key: entry.expires_at - ago
            for key, entry in self.entries.items()
            if entry.expires_at is not None and entry.expires_at < math.inf
        }

    def live(self) -> dict[str, str]:
        now = time.time()
        return {key: entry.value for key, entry in self.entries.items() if not _expired(entry, now)}


class MemoryStore:
    """Keeps every promise that does not need to outlive the process.

    Args:
        default_retention: Seconds that `purge` keeps a state that is not in use; None is for ever.
    """

    _shared: ClassVar[dict[str, MemoryStore]] = {}

    def __init__(self, *, default_retention: float | None = None) -> None:
        self._default_retention = default_retention
        self._records: dict[Scope, _Record] = {}
        self._ids = itertools.count(1)

    @classmethod
    def shared(cls, name: str, *, default_retention: float | None = None) -> MemoryStore:
        """The store that everybody in this process who gives this name sees, with the last retention that one gave."""
        store = cls._shared.setdefault(name, cls())
        if default_retention is not None:
            store._default_retention = default_retention  # noqa: SLF001 - its own class
        return store

    async def acquire(self, scope: Scope, attempt: int | None, run: Run | None = None) -> Snapshot:
        """See `Store.acquire`."""
        record = self._records.get(scope)
        admitted = admit(scope, attempt, run, None if record is None else record.held)
        if record is None:
            record = self._make(scope, admitted)
        if admitted.fresh:
            record.entries.clear()
        now = time.time()
        saved_ago = None if record.saved_at is None else max(0.0, now - record.saved_at)
        record.hand_over(admitted.attempt, admitted.run)
        record.holder = Holder.here(admitted.attempt, now)
        record.touched_at = now
        return Snapshot(
            record.lease, record.live(), record.run, admitted.fresh, saved_ago=saved_ago, ends=record.ends()
        )

    async def commit(self, batches: Sequence[Batch]) -> Collection[Lease]:
        """See `Store.commit`."""
        # A store that never suspends would starve whatever else runs on the writer's loop.
        await asyncio.sleep(0)
        fenced = set()
        now = time.time()
        for batch in batches:
            record = self._records.get(batch.lease.scope)
            if record is None or record.lease != batch.lease:
                fenced.add(batch.lease)
            else:
                record.change(batch.changes, now, cleared=batch.cleared)
        return fenced

    async def read(self, scope: Scope) -> Snapshot | None:
        """See `Store.read`."""
        record = self._records.get(scope)
        return (
            None
            if record is None
            else Snapshot(record.lease, record.live(), record.run, holder=record.holder, ends=record.ends())
        )

    async def scopes(self, wanted: Wanted = EVERYTHING) -> list[ScopeInfo]:
        """See `Store.scopes`."""
        found = [record.info(scope) for scope, record in self._records.items() if wanted.takes(scope)]
        found.sort(key=_position, reverse=True)
        after = wanted.after
        return [info for info in found if after is None or _position(info) < after][: wanted.limit]

    async def count_scopes(self, wanted: Wanted = EVERYTHING) -> int:
        """See `Store.count_scopes`."""
        return sum(map(wanted.takes, self._records))

    async def write(
        self,
        scope: Scope,
        changes: Mapping[str, Change],
        *,
        cleared: bool = False,
        run: Run | None = None,
        expected: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> bool:
        """See `Store.write`."""
        record = self._records.get(scope)
        if expected and (record is None or not expected.items() <= record.live().items()):
            return False
        admitted = admit_write(scope, run, None if record is None else record.held)
        if limit is not None and not cleared:
            live = {} if record is None or admitted.fresh else record.live()
            held = sum(entry_bytes(key, text) for key, text in live.items())
            replaced = sum(entry_bytes(key, live[key]) for key in changes if key in live)
            check_write(scope, changes, held, replaced, limit)
        if record is None:
            record = self._make(scope, admitted)
        elif admitted.fresh:
            record.entries.clear()
            record.hand_over(admitted.attempt, admitted.run)
        record.change(changes, time.time(), cleared=cleared)
        return True

    async def clear(self, scope: Scope) -> int | None:
        """See `Store.clear`."""
        record = self._records.get(scope)
        if record is None:
            return None
        count = len(record.entries)
        record.entries.clear()
        record.hand_over(1, "")
        record.touched_at = time.time()
        return count

    async def purge(self, now: float | None = None) -> int:
        """See `Store.purge`."""
        now = time.time() if now is None else now
        count = 0
        for scope, record in list(self._records.items()):
            held = len(record.entries)
            record.entries = {key: entry for key, entry in record.entries.items() if not _expired(entry, now)}
            if self._default_retention is not None and record.touched_at + self._default_retention <= now:
                if isinstance(scope, TaskScope):
                    record.go()
                if not record.entries:
                    del self._records[scope]
            count += held - len(record.entries)
        return count

    async def close(self) -> None:
        """See `Store.close`; what is stored stays."""

    def _make(self, scope: Scope, admitted: Admission) -> _Record:
        lease = Lease(scope, next(self._ids), admitted.attempt, 0, new_token())
        record = self._records[scope] = _Record(lease, time.time(), admitted.run)
        return record


def _expired(entry: _Entry, now: float) -> bool:
    return entry.expires_at is not None and entry.expires_at <= now


def _position(info: ScopeInfo) -> Position:
    return Position(info.updated_at, info.scope_id)
