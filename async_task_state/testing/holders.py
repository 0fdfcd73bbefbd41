"""What a store says of who holds a scope, if it says anything."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

from async_task_state.scopes import AssetScope
from async_task_state.stores import Wanted
from async_task_state.testing.storekit import DAY, OTHER, SCOPE, StoreTests, hold, on_its_own, put

if TYPE_CHECKING:
    from async_task_state.scopes import Scope
    from async_task_state.stores import Store
    from async_task_state.stores.holders import Holder

__all__ = ["HolderTests"]


class HolderTests(StoreTests):
    """A part of `StoreConformance`: a store need not know holders, and must not name a wrong one."""

    @on_its_own
    async def test_a_holder_is_this_process_or_not_known(self, store: Store) -> None:
        """Whoever reads or lists a scope sees which process took its lease, of which attempt, and when."""
        for scope, attempt in ((SCOPE, 3), (SCOPE, 4), (AssetScope("x"), None)):
            lease = (await store.acquire(scope, attempt)).lease
            assert await put(store, lease, {"a": "1"}) == []
            holder = await _holder(store, scope)
            if holder is not None:
                here = (socket.gethostname(), os.getpid(), lease.attempt)
                assert (holder.host, holder.pid, holder.attempt) == here
                assert abs(holder.since - time.time()) < DAY

    @on_its_own
    async def test_a_scope_without_a_holder_names_none(self, store: Store) -> None:
        """One that was cleared, or only written, is held by nobody, whoever had it before."""
        await store.write(OTHER, {"a": ("1", None)})
        assert await _holder(store, OTHER) is None
        await hold(store, {"a": "1"})
        await store.clear(SCOPE)
        assert await _holder(store, SCOPE) is None
        await store.write(SCOPE, {"a": ("1", None)})
        assert await _holder(store, SCOPE) is None

    @on_its_own
    async def test_since_is_when_the_lease_was_taken(self, store: Store) -> None:
        """Saving does not change it, and the next holder has a later one."""
        lease = await hold(store, {"a": "1"})
        first = await _holder(store, SCOPE)
        assert await put(store, lease, {"a": "2"}) == []
        assert await _holder(store, SCOPE) == first
        await store.acquire(SCOPE, None)
        second = await _holder(store, SCOPE)
        if first is not None:
            assert second is not None
            assert second.since >= first.since

    @on_its_own
    async def test_a_new_holder_is_told_how_long_ago_was_saved(self, store: Store) -> None:
        """Or nothing; and nothing where nothing was saved."""
        assert (await store.acquire(SCOPE, None)).saved_ago is None
        assert (await store.acquire(SCOPE, None)).saved_ago is None
        await hold(store, {"a": "1"})
        ago = (await store.acquire(SCOPE, None)).saved_ago
        assert ago is None or 0 <= ago < DAY


async def _holder(store: Store, scope: Scope) -> Holder | None:
    """Who has it, as both ways to look say."""
    snapshot, [info] = await store.read(scope), await store.scopes(Wanted(scope=scope))
    assert snapshot is not None
    assert snapshot.holder == info.holder
    return snapshot.holder
