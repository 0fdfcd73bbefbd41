"""The store of a writer, for those of its process that would else open the same one a second time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from async_task_state.stores import EVERYTHING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from async_task_state.runs import Run
    from async_task_state.scopes import Scope
    from async_task_state.stores import Batch, Change, Lease, ScopeInfo, Snapshot, Wanted
    from async_task_state.writer import Writer

__all__ = ["LentStore"]


class LentStore:
    """A store for any event loop: each call is made on the thread of the writer whose store it is, once.

    Args:
        writer: Whose store.
    """

    def __init__(self, writer: Writer) -> None:
        self._once = writer.once
        self._store = writer.store

    async def acquire(self, scope: Scope, attempt: int | None, run: Run | None = None) -> Snapshot:
        """See `Store.acquire`."""
        snapshot: Snapshot = await self._once(self._store.acquire, scope, attempt, run)
        return snapshot

    async def commit(self, batches: Sequence[Batch]) -> Collection[Lease]:
        """See `Store.commit`."""
        fenced: Collection[Lease] = await self._once(self._store.commit, batches)
        return fenced

    async def read(self, scope: Scope) -> Snapshot | None:
        """See `Store.read`."""
        snapshot: Snapshot | None = await self._once(self._store.read, scope)
        return snapshot

    async def scopes(self, wanted: Wanted = EVERYTHING) -> list[ScopeInfo]:
        """See `Store.scopes`."""
        infos: list[ScopeInfo] = await self._once(self._store.scopes, wanted)
        return infos

    async def count_scopes(self, wanted: Wanted = EVERYTHING) -> int:
        """See `Store.count_scopes`."""
        count: int = await self._once(self._store.count_scopes, wanted)
        return count

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
        write = partial(self._store.write, cleared=cleared, run=run, expected=expected, limit=limit)
        made: bool = await self._once(write, scope, changes)
        return made

    async def clear(self, scope: Scope) -> int | None:
        """See `Store.clear`."""
        count: int | None = await self._once(self._store.clear, scope)
        return count

    async def purge(self, now: float | None = None) -> int:
        """See `Store.purge`."""
        count: int = await self._once(self._store.purge, now)
        return count

    async def close(self) -> None:
        """See `Store.close`; the writer goes on with it."""
