"""The store of a writer, for those of its process that would else open the same one a second time."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from async_task_state.runs import Run
    from async_task_state.scopes import Scope
    from async_task_state.stores import Batch, Change, Lease, Position, ScopeInfo, Snapshot
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

    async def scopes(
        self,
        dag_id: str | None = None,
        run_id: str | None = None,
        task_id: str | None = None,
        *,
        scope: Scope | None = None,
        assets: bool | None = None,
        limit: int | None = None,
        after: Position | None = None,
    ) -> list[ScopeInfo]:
        """See `Store.scopes`."""
        scopes = partial(self._store.scopes, scope=scope, assets=assets, limit=limit, after=after)
        infos: list[ScopeInfo] = await self._once(scopes, dag_id, run_id, task_id)
        return infos

    async def count_scopes(
        self,
        dag_id: str | None = None,
        run_id: str | None = None,
        task_id: str | None = None,
        *,
        assets: bool | None = None,
    ) -> int:
        """See `Store.count_scopes`."""
        count_scopes = partial(self._store.count_scopes, assets=assets)
        count: int = await self._once(count_scopes, dag_id, run_id, task_id)
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
