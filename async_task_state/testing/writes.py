"""The promises of `async_task_state.stores.Store` that are about writing without the lease."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from async_task_state.codec import KILL_PREFIX, RESERVED_PREFIX
from async_task_state.errors import StateTooLargeError
from async_task_state.scopes import AssetScope, TaskScope
from async_task_state.stores import Batch, Snapshot
from async_task_state.testing.storekit import (
    AT_ONCE,
    DAY,
    OTHER,
    RETENTION,
    SCOPE,
    StoreTests,
    entries,
    hold,
    on_its_own,
    put,
    raises_too_large,
    until_gone,
)

if TYPE_CHECKING:
    from async_task_state.stores import Change, Store

__all__ = ["WriteTests"]


class WriteTests(StoreTests):
    """A part of `StoreConformance`."""

    @on_its_own
    async def test_a_write_makes_a_scope_that_any_attempt_may_open(self, store: Store) -> None:
        """Where nobody has held it, whoever comes next finds what was written, as attempt 1 or any later one."""
        for attempt in (1, 7, None):
            for scope in (TaskScope("dag", "run", f"attempt {attempt}"), AssetScope(f"attempt {attempt}")):
                await store.write(scope, {"a": ("1", None)})
                seen = await store.read(scope)
                assert seen is not None
                assert seen.entries == {"a": "1"}
                taken = await store.acquire(scope, attempt)
                assert taken.entries == {"a": "1"}
                assert taken.lease.attempt == (attempt or 1)
                assert taken.lease.epoch > seen.lease.epoch
                assert taken.lease.scope_id == seen.lease.scope_id
                assert await put(store, seen.lease, {"a": "9"}) == [seen.lease]
                assert await put(store, taken.lease, {"a": "2"}) == []

    @on_its_own
    async def test_a_write_of_nothing_makes_the_scope_too(self, store: Store) -> None:
        """It is then there, without keys."""
        await store.write(SCOPE, {})
        assert await entries(store) == {}
        assert [(info.scope, info.keys) for info in await store.scopes()] == [(SCOPE, 0)]

    @on_its_own
    async def test_g4_a_write_leaves_the_lease_whose_it_is(self, store: Store) -> None:
        """Neither attempt nor epoch change, and who holds it goes on; who does not stays fenced."""
        old = await hold(store, {"a": "1"})
        held = (await store.acquire(SCOPE, 3)).lease
        await store.write(SCOPE, {"b": ("2", None)})
        await store.write(SCOPE, {"c": ("3", None)}, cleared=True)
        assert await store.read(SCOPE) == Snapshot(held, {"c": "3"})
        assert await put(store, old, {"a": "9"}) == [old]
        assert await put(store, held, {"d": "4"}) == []
        assert await entries(store) == {"c": "3", "d": "4"}

    @on_its_own
    async def test_the_newest_write_of_a_key_counts_whoever_made_it(self, store: Store) -> None:
        """Holders and others replace what was there key by key."""
        held = await hold(store, {"a": "1", "b": "1", "c": "1"})
        await store.write(SCOPE, {"a": ("2", None), "b": ("2", None), "d": ("2", None)})
        assert await put(store, held, {"a": "3"}) == []
        assert await entries(store) == {"a": "3", "b": "2", "c": "1", "d": "2"}
        assert (await store.acquire(SCOPE, None)).entries == {"a": "3", "b": "2", "c": "1", "d": "2"}

    @on_its_own
    async def test_a_write_deletes_and_clears(self, store: Store) -> None:
        """Deleting what is not there is no error; clearing takes the keys of work sets too."""
        await hold(store, {"a": "1", "b": "2", f"{RESERVED_PREFIX}x": "3"})
        await hold(store, {"a": "1"}, OTHER)
        await store.write(SCOPE, {"a": (None, None), "c": ("4", None), "nowhere": (None, None)})
        assert await entries(store) == {"b": "2", "c": "4", f"{RESERVED_PREFIX}x": "3"}
        await store.write(SCOPE, {"b": ("5", None), "c": (None, None)}, cleared=True)
        assert await entries(store) == {"b": "5"}
        await store.write(SCOPE, {}, cleared=True)
        assert await entries(store) == {}
        assert await entries(store, OTHER) == {"a": "1"}

    @on_its_own
    async def test_a_write_spares_what_is_owed_after_a_clear(self, store: Store) -> None:
        """A clear leaves the keys that others than the holder change, of a batch and of a write; `Store.clear` does not."""
        owed = {f"{KILL_PREFIX}{number}": str(number) for number in range(3)}
        held = await hold(store, {"a": "1", f"{RESERVED_PREFIX}x": "3", **owed})
        await hold(store, {"a": "1", **owed}, OTHER)
        assert list(await store.commit([Batch(held, {"b": ("2", None)}, cleared=True)])) == []
        assert await entries(store) == {"b": "2", **owed}
        first = f"{KILL_PREFIX}0"
        assert await store.write(SCOPE, {first: (None, None)}, cleared=True)
        del owed[first]
        assert await entries(store) == owed
        assert list(await store.commit([Batch(held, dict.fromkeys(owed, (None, None)), cleared=True)])) == []
        assert await entries(store) == {}
        assert await store.clear(OTHER) == 4
        assert await entries(store, OTHER) == {}

    @on_its_own
    async def test_a_write_that_expects_something_is_made_where_it_is_so(self, store: Store) -> None:
        """Every text has to be as expected, or nothing is written and no scope is made."""
        held = await hold(store, {"a": "1", "b": "2"})
        await store.write(SCOPE, {"gone": ("1", AT_ONCE)})
        await until_gone(store, "gone")
        wrong: list[dict[str, str]] = [{"a": "2"}, {"a": "1", "b": "1"}, {"a": "1", "c": "1"}, {"gone": "1"}]
        for expected in wrong:
            assert not await store.write(SCOPE, {"a": ("9", None)}, cleared=True, expected=expected)
        assert await store.read(SCOPE) == Snapshot(held, {"a": "1", "b": "2"})
        assert not await store.write(OTHER, {"a": ("9", None)}, expected={"a": "1"})
        assert await store.read(OTHER) is None
        assert await store.write(SCOPE, {"a": ("3", None), "b": (None, None)}, expected={"a": "1", "b": "2"})
        assert await store.read(SCOPE) == Snapshot(held, {"a": "3"})

    @on_its_own
    async def test_of_many_who_expect_the_same_at_once_one_writes(self, store: Store) -> None:
        """However many processes claim a key, one of them gets it."""
        elsewhere = self.reopen(store) or store
        try:
            for number in range(20):
                await hold(store, {"a": '"free"'})
                claims = [f'"{number} {index}"' for index in range(4)]
                made = await asyncio.gather(
                    *(
                        (store, elsewhere)[index % 2].write(
                            SCOPE, {"a": (claim, None)}, expected={"a": '"free"'}
                        )
                        for index, claim in enumerate(claims)
                    )
                )
                assert sorted(made) == [False, False, False, True]
                assert await entries(store) == {"a": claims[made.index(True)]}
        finally:
            if elsewhere is not store:
                await elsewhere.close()

    @on_its_own
    async def test_g8_a_write_that_makes_the_scope_too_large_is_refused(self, store: Store) -> None:
        """Keys in UTF-8 and texts count, as they are when it is made; nothing is written, and no scope is made."""
        for scope in (SCOPE, AssetScope("full")):
            with raises_too_large("would hold 11 with key 'a'; "):
                await store.write(scope, {"a": ("1" * 10, None)}, limit=10)
            assert await store.read(scope) is None
            await store.write(scope, {"a": ("1" * 9, None), "gone": ("1", None)}, limit=15)
            await store.write(scope, {"gone": ("1" * 90, AT_ONCE)}, limit=104)
            await until_gone(store, "gone", scope)
            # One replaced, one that is new, and one that has expired.
            await store.write(scope, {"a": ("1" * 4, None), "\N{ROCKET}": ("1", None)}, limit=10)
            with raises_too_large("holds 10 bytes, and would hold 13 with key 'gone'; "):
                await store.write(scope, {"a": ("1", None), "gone": ("11", None)}, limit=10)
            await store.write(scope, {"a": (None, None), "gone": ("1", None)}, limit=10)
            assert await entries(store, scope) == {"\N{ROCKET}": "1", "gone": "1"}

    @on_its_own
    async def test_a_write_that_makes_a_scope_smaller_is_made_however_large_it_is(self, store: Store) -> None:
        """A limit that was lowered keeps nobody from making room, nor from clearing."""
        await hold(store, {"a": "1" * 50, "b": "1" * 50})
        for changes in ({"a": ("1" * 50, None)}, {"a": ("1" * 40, None), "c": ("1" * 9, None)}):
            assert await store.write(SCOPE, changes, limit=10)
        with raises_too_large("holds 102 bytes, and would hold 103 with key 'c'; "):
            await store.write(SCOPE, {"c": ("1" * 10, None)}, limit=10)
        assert await store.write(SCOPE, {"b": (None, None), "nowhere": (None, None)}, limit=10)
        assert await store.write(SCOPE, {"d": ("1" * 20, None)}, cleared=True, limit=10)
        assert await entries(store) == {"d": "1" * 20}

    @on_its_own
    async def test_g8_writes_at_once_hold_no_more_than_the_limit(self, store: Store) -> None:
        """However many processes write, as many are refused as do not fit, also beside a holder."""
        elsewhere = self.reopen(store) or store
        held = (await store.acquire(SCOPE, 1)).lease
        try:
            for number in range(10):
                await put(store, held, {"k": "1" * 17, **{f"{key:02}": "1" * 8 for key in range(10, 16)}})
                writes = [
                    (store, elsewhere)[key % 2].write(SCOPE, {f"{key:02}": ("1" * 8, None)}, limit=200)
                    for key in range(10, 50)
                ]
                made = await asyncio.gather(*writes, put(store, held, {"k": "2" * 7}), return_exceptions=True)
                assert {type(each) for each in made} == {bool, StateTooLargeError, list}
                left = await entries(store)
                # As many as there was room for while the holder's key had 17 bytes, or once it had 7.
                assert len(left) - 1 in (18, 19), number
                assert sum(map(len, [*left, *left.values()])) <= 200
                await store.write(SCOPE, {}, cleared=True)
        finally:
            if elsewhere is not store:
                await elsewhere.close()

    @on_its_own
    async def test_a_write_sent_twice_leaves_what_it_left_once(self, store: Store) -> None:
        """A write of which nobody knows whether it happened is sent again."""
        changes: dict[str, Change] = {"a": ("1", None), "b": (None, None)}
        for cleared in (False, True):
            await store.write(SCOPE, changes, cleared=cleared)
            once = await store.read(SCOPE)
            await store.write(SCOPE, changes, cleared=cleared)
            assert await store.read(SCOPE) == once

    @on_its_own
    async def test_a_write_takes_many_rows(self, store: Store) -> None:
        """Thousands at once, to set or to delete."""
        rows = {f"key {number}": str(number) for number in range(2500)}
        await store.write(SCOPE, {key: (value, None) for key, value in rows.items()})
        assert await entries(store) == rows
        await store.write(SCOPE, dict.fromkeys(rows, (None, None)))
        assert await entries(store) == {}

    @on_its_own
    async def test_what_is_written_expires(self, store: Store) -> None:
        """Its retention is that of the newest write, and purge deletes it."""
        await hold(store, {"a": "1", "b": "1"})
        await store.write(SCOPE, {"a": ("2", DAY), "c": ("2", AT_ONCE), "d": ("2", DAY)})
        await store.write(SCOPE, {"d": ("3", None)})
        await until_gone(store, "c")
        assert await entries(store) == {"a": "2", "b": "1", "d": "3"}
        assert await store.purge(time.time() + 2 * DAY) == 2
        assert await entries(store) == {"b": "1", "d": "3"}

    @on_its_own
    async def test_a_scope_that_was_only_written_goes_when_it_is_idle(self, store: Store) -> None:
        """It needs no holder to be cleared or purged."""
        await store.write(SCOPE, {"a": ("1", DAY)})
        assert await store.purge(time.time() + RETENTION - DAY) == 1
        assert await entries(store) == {}
        await store.purge(time.time() + RETENTION + DAY)
        assert await store.read(SCOPE) is None
        await store.write(OTHER, {"a": ("1", None)})
        assert await store.clear(OTHER) == 1
        assert (await store.acquire(OTHER, 1)).entries == {}

    @on_its_own
    async def test_g4_a_write_revives_no_lease(self, store: Store) -> None:
        """Who was fenced by a clear, or by a purge of the empty scope, stays so."""
        cleared = await hold(store, {"a": "1"})
        await store.clear(SCOPE)
        purged = (await store.acquire(OTHER, 1)).lease
        await store.purge(time.time() + RETENTION + DAY)
        for lease in (cleared, purged):
            await store.write(lease.scope, {"b": ("2", None)})
            assert await put(store, lease, {"a": "9"}) == [lease]
            assert await entries(store, lease.scope) == {"b": "2"}

    @on_its_own
    async def test_a_purge_at_the_same_time_loses_no_write(self, store: Store) -> None:
        """Whether the empty scope goes before the write or stays: what was written is there."""
        elsewhere = self.reopen(store) or store
        try:
            for number in range(50):
                scope = TaskScope("dag", "run", "task", number)
                await store.acquire(scope, 1)
                future = time.time() + RETENTION + DAY
                await asyncio.gather(elsewhere.purge(future), store.write(scope, {"a": ("1", None)}))
                assert await entries(store, scope) == {"a": "1"}
        finally:
            if elsewhere is not store:
                await elsewhere.close()

    @on_its_own
    async def test_writers_holders_and_openers_at_once_do_not_hinder_each_other(self, store: Store) -> None:
        """Two processes that write, set and delete the same keys in opposite orders: each call is done as a whole."""
        elsewhere = self.reopen(store) or store
        keys = [f"key {number}" for number in range(40)]
        held = (await store.acquire(SCOPE, 1)).lease

        def sides(number: int) -> list[dict[str, Change]]:
            one: dict[str, Change] = {}
            other: dict[str, Change] = {}
            for place, key in enumerate(keys):
                one[key], other[key] = (f"{number}", None), (None, None)
                if place % 2:
                    one[key], other[key] = other[key], one[key]
            return [one, other]

        try:
            for number in range(1, 50):
                one, other = sides(number)
                assert await put(store, held, dict.fromkeys(keys, "0")) == []
                fenced, *_ = await asyncio.gather(
                    store.commit([Batch(held, one)]),
                    elsewhere.write(SCOPE, other),
                    elsewhere.write(OTHER, one),
                )
                assert list(fenced) == []
                left = {key: value for key, (value, _) in one.items() if value is not None}
                assert await entries(store) in (
                    left,
                    {key: value for key, (value, _) in other.items() if value is not None},
                )
                _, opened = await asyncio.gather(elsewhere.write(OTHER, one), store.acquire(OTHER, None))
                assert opened.entries == left
                assert await entries(store, OTHER) == left
            assert (await store.read(SCOPE) or opened).lease == held
        finally:
            if elsewhere is not store:
                await elsewhere.close()
