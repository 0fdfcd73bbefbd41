"""The promises of `async_task_state.stores.Store` that are about how long it keeps what."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from async_task_state.codec import MAX_TRIES, RESERVED_PREFIX
from async_task_state.scopes import AssetScope
from async_task_state.stores import Batch, Snapshot
from async_task_state.testing.storekit import (
    AT_ONCE,
    DAY,
    RETENTION,
    SCOPE,
    StoreTests,
    entries,
    hold,
    on_its_own,
    put,
    until_gone,
)

if TYPE_CHECKING:
    from async_task_state.stores import Store

__all__ = ["RetentionTests"]


class RetentionTests(StoreTests):
    """A part of `StoreConformance`."""

    @on_its_own
    async def test_an_expired_key_is_not_read(self, store: Store) -> None:
        """A key whose time is over is gone for every reader, purged or not."""
        lease = await hold(store, {"a": "1"})
        await store.commit([Batch(lease, {"gone": ("1", AT_ONCE), "later": ("2", DAY)})])
        await until_gone(store, "gone")
        assert await entries(store) == {"a": "1", "later": "2"}
        assert (await store.acquire(SCOPE, None)).entries == {"a": "1", "later": "2"}

    @on_its_own
    async def test_purge_deletes_what_expired_and_nothing_else(self, store: Store) -> None:
        """It counts what it deletes; what never expires stays, however long ago."""
        lease = await hold(store, {"ever": "0"})
        await store.commit([Batch(lease, {"a": ("1", DAY), "b": ("2", DAY), "c": ("3", 10 * DAY)})])
        assert await store.purge(time.time() + DAY / 2) == 0
        assert await store.purge(time.time() + 2 * DAY) == 2
        assert await entries(store) == {"ever": "0", "c": "3"}
        assert await store.purge(time.time() + 100 * 365 * DAY) == 1
        assert await entries(store) == {"ever": "0"}
        assert await put(store, lease, {"ever": "1"}) == []

    @on_its_own
    async def test_purge_goes_by_the_stores_own_clock(self, store: Store) -> None:
        """Without a time it deletes what has expired now."""
        lease = await hold(store, {})
        await store.commit([Batch(lease, {"a": ("1", AT_ONCE), "b": ("2", DAY)})])
        await until_gone(store, "a")
        assert await store.purge() == 1
        assert await entries(store) == {"b": "2"}

    @on_its_own
    async def test_purge_deletes_thousands(self, store: Store) -> None:
        """Rows beyond one internal batch go too, and are counted."""
        lease = await hold(store, {})
        await store.commit([Batch(lease, {f"k{number}": ("1", DAY) for number in range(2500)})])
        assert await store.purge(time.time() + 2 * DAY) == 2500
        assert await entries(store) == {}

    @on_its_own
    async def test_writing_a_key_again_replaces_its_retention(self, store: Store) -> None:
        """The newest write says how long a key is kept."""
        lease = await hold(store, {"b": "1"})
        await store.commit([Batch(lease, {"a": ("1", DAY)})])
        await store.commit([Batch(lease, {"a": ("1", None), "b": ("1", DAY)})])
        assert await store.purge(time.time() + 2 * DAY) == 1
        assert await entries(store) == {"a": "1"}

    @on_its_own
    async def test_work_progress_goes_only_when_the_scope_is_idle(self, store: Store) -> None:
        """Keys that work sets keep have no expiry of their own: they go when nobody has touched the scope for long."""
        work = f"{RESERVED_PREFIX}work:x:0000000000"
        await hold(store, {"ever": "0", work: "1"})
        assert await store.purge(time.time() + RETENTION - DAY) == 0
        assert await entries(store) == {"ever": "0", work: "1"}
        assert await store.purge(time.time() + RETENTION + DAY) == 1
        assert await entries(store) == {"ever": "0"}

    @on_its_own
    async def test_by_what_a_clear_is_known_stays_as_long_as_anything_of_the_authors(
        self, store: Store
    ) -> None:
        """What the author keeps for ever must not look, to a later attempt, as if nobody had cleared the task."""
        work = f"{RESERVED_PREFIX}work:x:0000000000"
        lease = await hold(store, {"ever": "0", MAX_TRIES: "1", work: "1"})
        assert await store.purge(time.time() + RETENTION + DAY) == 1
        assert await entries(store) == {"ever": "0", MAX_TRIES: "1"}
        await store.commit([Batch(lease, {"ever": (None, None)})])
        assert await store.purge(time.time() + RETENTION + DAY) == 1
        assert await store.read(SCOPE) is None

    @on_its_own
    async def test_work_progress_of_an_asset_stays(self, store: Store) -> None:
        """An asset belongs to no run that would ever be over."""
        asset, work = AssetScope("orders"), f"{RESERVED_PREFIX}work:x:0000000000"
        await hold(store, {"ever": "0", work: "1"}, asset)
        assert await store.purge(time.time() + RETENTION + DAY) == 0
        assert await entries(store, asset) == {"ever": "0", work: "1"}

    @on_its_own
    async def test_g4_a_purged_scope_does_not_revive_an_old_lease(self, store: Store) -> None:
        """An empty scope goes when it is idle; whoever held it stays fenced when the scope is made anew."""
        old = (await store.acquire(SCOPE, 1)).lease
        assert await store.purge(time.time() + RETENTION - DAY) == 0
        assert await store.read(SCOPE) == Snapshot(old, {})
        assert await store.purge(time.time() + RETENTION + DAY) == 0
        assert await store.read(SCOPE) is None
        assert await put(store, old, {"a": "1"}) == [old]
        new = (await store.acquire(SCOPE, 1)).lease
        assert await put(store, old, {"a": "1"}) == [old]
        assert await store.read(SCOPE) == Snapshot(new, {})
