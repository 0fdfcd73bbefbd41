"""The promises of `async_task_state.stores.Store` that are about how long it keeps what."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from async_task_state.codec import MAX_TRIES, RESERVED_PREFIX
from async_task_state.scopes import AssetScope, TaskScope
from async_task_state.stores import Batch, Snapshot
from async_task_state.testing.storekit import (
    AT_ONCE,
    DAY,
    FOREVER,
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
    from async_task_state.stores import Change, Store

__all__ = ["RetentionTests"]

WORK: Final = f"{RESERVED_PREFIX}work:x:0000000000"
FAILED: Final = f"{RESERVED_PREFIX}fail:x:00"


class RetentionTests(StoreTests):
    """A part of `StoreConformance`."""

    @on_its_own
    async def test_an_expired_key_is_not_read(self, store: Store) -> None:
        """A key whose time is over is gone for every reader, purged or not."""
        lease = await hold(store, {"a": "1"})
        await store.commit(
            [Batch(lease, {"gone": ("1", AT_ONCE), "later": ("2", DAY), "ever": ("3", FOREVER)})]
        )
        await until_gone(store, "gone")
        assert await entries(store) == {"a": "1", "later": "2", "ever": "3"}
        assert (await store.acquire(SCOPE, None)).entries == {"a": "1", "later": "2", "ever": "3"}

    @on_its_own
    async def test_purge_deletes_what_expired_and_nothing_else(self, store: Store) -> None:
        """It counts what it deletes; what never expires stays, however long ago."""
        lease = await hold(store, {"with the state": "0"})
        retentions = {"a": DAY, "b": DAY, "c": 10 * DAY, "ever": FOREVER}
        await store.commit([Batch(lease, {key: ("1", retention) for key, retention in retentions.items()})])
        assert await store.purge(time.time() + DAY / 2) == 0
        assert await store.purge(time.time() + 2 * DAY) == 2
        assert await entries(store) == {"with the state": "0", "c": "1", "ever": "1"}
        assert await put(store, lease, {"with the state": "1"}) == []
        assert await store.purge(time.time() + 11 * DAY) == 1
        assert await entries(store) == {"with the state": "1", "ever": "1"}
        assert await put(store, lease, {"with the state": "2"}) == []
        assert await store.purge(time.time() + 100 * 365 * DAY) == 1
        assert await entries(store) == {"ever": "1"}

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
        """Rows beyond one internal batch go too, and are counted: of one scope, and of many."""
        lease = await hold(store, {})
        await store.commit([Batch(lease, {f"k{number}": ("1", DAY) for number in range(2500)})])
        assert await store.purge(time.time() + 2 * DAY) == 2500
        assert await entries(store) == {}
        await put(store, lease, {f"k{number}": "1" for number in range(2500)})
        for number in range(250):
            await store.write(TaskScope("dag", "run", "mapped", number), {"a": ("1", None), "b": ("1", None)})
        assert await store.purge(time.time() + RETENTION + DAY) == 3000
        assert await store.scopes() == []

    @on_its_own
    async def test_writing_a_key_again_replaces_its_retention(self, store: Store) -> None:
        """The newest write says how long a key is kept."""
        lease = await hold(store, {"b": "1"})
        await store.commit([Batch(lease, {"a": ("1", DAY), "c": ("1", DAY), "d": ("1", FOREVER)})])
        await store.commit(
            [Batch(lease, {"a": ("1", None), "b": ("1", DAY), "c": ("1", FOREVER), "d": ("1", DAY)})]
        )
        assert await store.purge(time.time() + 2 * DAY) == 2
        assert await entries(store) == {"a": "1", "c": "1"}
        assert await store.purge(time.time() + RETENTION + DAY) == 1
        assert await entries(store) == {"c": "1"}

    @on_its_own
    async def test_g3_a_state_goes_as_a_whole_when_it_is_idle(self, store: Store) -> None:
        """Values, what work sets keep, and by what a clear is known have no expiry of their own."""
        whole = {"a": "0", MAX_TRIES: "1", WORK: "1", FAILED: "1"}
        old = await hold(store, whole)
        assert await store.purge(time.time() + RETENTION - DAY) == 0
        assert await entries(store) == whole
        assert await put(store, old, {"a": "0"}) == []
        assert await store.purge(time.time() + RETENTION + DAY) == 4
        assert await store.read(SCOPE) is None
        assert await put(store, old, {"a": "1"}) == [old]
        assert (await store.acquire(SCOPE, 1)).entries == {}

    @on_its_own
    async def test_g3_who_reads_while_an_idle_state_goes_finds_all_of_it_or_nothing(
        self, store: Store
    ) -> None:
        """However many rows it has: a retry must not find items done without the values recorded with them."""
        elsewhere = self.reopen(store) or store
        whole = {f"k{number}": "1" for number in range(1500)}
        future = time.time() + RETENTION + DAY
        try:
            everything: list[dict[str, Change]] = [{}, {"ever": ("2", FOREVER)}]
            for kept in everything:
                lease = await hold(store, whole)
                await store.commit([Batch(lease, kept)])
                left = {key: value for key, (value, _) in kept.items()}
                purge = asyncio.ensure_future(store.purge(future))
                while not purge.done():
                    snapshot = await elsewhere.read(SCOPE)
                    found = {} if snapshot is None else snapshot.entries
                    assert found in ({**whole, **left}, left)
                    await asyncio.sleep(0)
                assert await purge == len(whole)
        finally:
            if elsewhere is not store:
                await elsewhere.close()

    @on_its_own
    async def test_g3_who_opens_an_idle_state_while_it_goes_finds_all_of_it_or_nothing(
        self, store: Store
    ) -> None:
        """What was opened in time stays, and its holder may save; where it was too late, all of it is gone."""
        elsewhere = self.reopen(store) or store
        whole = {f"k{number}": "1" for number in range(500)}
        try:
            for number in range(20):
                scope = TaskScope("dag", "run", "task", number)
                await hold(store, whole, scope)
                future = time.time() + RETENTION + DAY
                purge = asyncio.ensure_future(store.purge(future))
                for _ in range(number):
                    await asyncio.sleep(0)
                opened = await elsewhere.acquire(scope, None)
                assert opened.entries in (whole, {})
                await purge
                if opened.entries and await put(store, opened.lease, {"new": "1"}) == []:
                    assert await entries(store, scope) == {**whole, "new": "1"}
                else:
                    assert await store.read(scope) in (None, Snapshot(opened.lease, {}))
        finally:
            if elsewhere is not store:
                await elsewhere.close()

    @on_its_own
    async def test_g4_who_holds_a_state_of_which_a_part_has_gone_is_fenced(self, store: Store) -> None:
        """A key with a retention of its own outlives the state; a holder that would add to that is refused."""
        lease = (await store.acquire(SCOPE, 3)).lease
        kept: dict[str, Change] = {"ever": ("0", FOREVER), "long": ("1", 2 * RETENTION)}
        await store.commit(
            [Batch(lease, {**kept, "a": ("1", None), WORK: ("1", None), MAX_TRIES: ("1", None)})]
        )
        assert await store.purge(time.time() + RETENTION + DAY) == 2
        snapshot = await store.read(SCOPE)
        assert snapshot is not None
        assert snapshot.entries == {"ever": "0", "long": "1", MAX_TRIES: "1"}
        assert (snapshot.lease.attempt, snapshot.lease.epoch) == (3, lease.epoch + 1)
        assert await put(store, lease, {"a": "2"}) == [lease]
        assert await entries(store) == snapshot.entries
        assert await put(store, snapshot.lease, {}) == []
        assert await store.purge(time.time() + RETENTION + DAY) == 0
        assert await store.read(SCOPE) == snapshot
        assert (await store.acquire(SCOPE, 3)).entries == snapshot.entries
        assert await store.purge(time.time() + 3 * RETENTION) == 1
        assert await entries(store) == {"ever": "0", MAX_TRIES: "1"}

    @on_its_own
    async def test_by_what_a_clear_is_known_stays_as_long_as_anything_of_the_authors(
        self, store: Store
    ) -> None:
        """What the author keeps for ever must not look, to a later attempt, as if nobody had cleared the task."""
        lease = await hold(store, {MAX_TRIES: "1", WORK: "1"})
        await store.commit([Batch(lease, {"ever": ("0", FOREVER)})])
        assert await store.purge(time.time() + RETENTION + DAY) == 1
        assert await entries(store) == {"ever": "0", MAX_TRIES: "1"}
        await store.write(SCOPE, {"ever": (None, None)})
        assert await store.purge(time.time() + RETENTION + DAY) == 1
        assert await store.read(SCOPE) is None

    @on_its_own
    async def test_an_assets_state_stays(self, store: Store) -> None:
        """An asset belongs to no run that would ever be over: what has no retention of its own has no end."""
        asset = AssetScope("orders")
        lease = await hold(store, {"a": "0", WORK: "1"}, asset)
        await store.commit([Batch(lease, {"ever": ("1", FOREVER), "day": ("1", DAY)})])
        assert await store.purge(time.time() + 100 * RETENTION) == 1
        assert await entries(store, asset) == {"a": "0", WORK: "1", "ever": "1"}
        assert await put(store, lease, {"a": "1"}) == []

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
