"""The promises of `async_task_state.stores.Store` that are about whose state it is: tasks and assets."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Final
from uuid import UUID

from async_task_state.codec import RESERVED_PREFIX
from async_task_state.scopes import MAX_NUMBER, AssetScope, TaskScope
from async_task_state.stores import Batch, Position, Snapshot, Wanted
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
    until_gone,
)

if TYPE_CHECKING:
    from async_task_state.scopes import Scope
    from async_task_state.stores import Store

__all__ = ["ScopeTests"]

_chance = random.Random(0)  # noqa: S311 - it makes names
# What cannot be compressed, for that is what an index has to take: the most characters, and the most bytes.
LONG_NAME: Final = "".join(_chance.choices([chr(code) for code in range(33, 127)], k=1500))
WIDE_NAME: Final = "".join(_chance.choices([chr(code) for code in range(0x4E00, 0x9FFF)], k=866)) + "xx"
WIDE_IDS: Final = "".join(_chance.choices([chr(code) for code in range(0x10000, 0x1FFFF)], k=650))
SCOPES: Final[tuple[Scope, ...]] = (
    SCOPE,
    TaskScope("dag", "run", "task", 0),
    TaskScope("dag", "run", "task", 1),
    TaskScope("dag", "run", "task", region_id=UUID(int=1)),
    TaskScope("dag", "run", "task", region_id=UUID(int=2)),
    TaskScope("dag", "run", "task", 0, UUID(int=1)),
    TaskScope("dag", "run", "task "),
    TaskScope("dag", "run", "TASK"),
    TaskScope("dag", "run/task", "t"),
    TaskScope("dag/run", "task", "t"),
    TaskScope("dag", "manual__2026-01-01T00:00:00+00:00", "group.task"),
    TaskScope("d\N{ROCKET}g", "é", "'; --"),
    TaskScope("d" * 250, "r" * 250, "t" * 250),
    TaskScope(WIDE_IDS[:250], WIDE_IDS[250:500], WIDE_IDS[500:], MAX_NUMBER - 1, UUID(int=2**128 - 1)),
    *(AssetScope(name) for name in ("dag", "task", "asset", "uri", "s3://bucket/a/b", "s3://bucket/a_b")),
    *(AssetScope(uri=uri) for uri in ("dag", "task", "asset", "uri", "s3://bucket/a/b", "s3://bucket/a_b")),
    *(AssetScope(name) for name in (" ", "\N{ROCKET}", "é", "e\u0301", "'; --", LONG_NAME, WIDE_NAME)),
    *(AssetScope(uri=uri) for uri in (" ", "\N{ROCKET}", LONG_NAME, WIDE_NAME)),
)


class ScopeTests(StoreTests):
    """A part of `StoreConformance`."""

    @on_its_own
    async def test_scopes_are_told_apart(self, store: Store) -> None:
        """Runs, tasks, map indexes, regions and assets each have a state of their own, however alike their names."""
        leases = {scope: await hold(store, {"who": str(n)}, scope) for n, scope in enumerate(SCOPES)}
        assert len({lease.scope_id for lease in leases.values()}) == len(SCOPES)
        for number, scope in enumerate(SCOPES):
            assert await store.read(scope) == Snapshot(leases[scope], {"who": str(number)})
        assert {info.scope for info in await store.scopes()} == set(SCOPES)

    @on_its_own
    async def test_scopes_filters_by_any_of_the_ids(self, store: Store) -> None:
        """Each id narrows the list down, alone or with the others."""
        ids = [(dag, run, task) for dag in "ab" for run in "cd" for task in "ef"]
        for one in ids:
            await store.acquire(TaskScope(*one), 1)
        for dag, run, task in [
            (None, None, None),
            ("a", None, None),
            (None, "d", None),
            ("a", "c", "e"),
            ("x", "c", None),
        ]:
            found = {info.scope.row[:3] for info in await store.scopes(Wanted(dag, run, task))}
            assert found == {
                i for i in ids if dag in (None, i[0]) and run in (None, i[1]) and task in (None, i[2])
            }

    @on_its_own
    async def test_scopes_shows_the_lease_and_counts_visible_keys(self, store: Store) -> None:
        """Keys that work sets keep for themselves, or that have expired, are not counted."""
        await store.acquire(SCOPE, 4)
        lease = await hold(store, {"a": "1", "b": "2", f"{RESERVED_PREFIX}work:x:0000000000": "3"})
        await store.commit([Batch(lease, {"gone": ("4", AT_ONCE)})])
        await until_gone(store, "gone")
        (info,) = await store.scopes()
        assert (info.scope, info.attempt, info.epoch, info.keys) == (SCOPE, 4, lease.epoch, 2)
        assert abs(info.updated_at - time.time()) < DAY

    @on_its_own
    async def test_scopes_lists_the_most_recently_changed_first(self, store: Store) -> None:
        """What was changed last comes first, whichever was made first."""
        leases = [await hold(store, {"a": "1"}, scope) for scope in (SCOPE, OTHER)]
        for lease in leases:
            # Again until the store's clock has moved on.
            while (await store.scopes())[0].scope != lease.scope:
                await put(store, lease, {"a": "2"})
            updated = [info.updated_at for info in await store.scopes()]
            assert updated == sorted(updated, reverse=True)

    @on_its_own
    async def test_assets_are_listed_and_no_id_matches_them(self, store: Store) -> None:
        """Who asks for a DAG's states, a run's or a task's, gets none of an asset, whatever its name is."""
        assets = [scope for scope in SCOPES if isinstance(scope, AssetScope)]
        for asset in assets:
            await hold(store, {"a": "1"}, asset)
        assert {info.scope for info in await store.scopes()} == set(assets)
        for of in ("", "asset", "uri", "dag", "task"):
            assert (
                await store.scopes(Wanted(of))
                == await store.scopes(Wanted(None, of))
                == await store.scopes(Wanted(None, None, of))
                == []
            )

    @on_its_own
    async def test_a_listing_comes_in_pages(self, store: Store) -> None:
        """Each page goes on where the one before has ended, whatever was changed at one moment."""
        scopes: list[Scope] = [TaskScope("dag", "run", "mapped", index) for index in range(7)]
        scopes += [AssetScope("x"), AssetScope("y")]
        for scope in scopes:
            await store.acquire(scope, None)
        whole = await store.scopes()
        assert {info.scope for info in whole} == set(scopes)
        assert [(info.updated_at, info.scope_id) for info in whole] == sorted(
            ((info.updated_at, info.scope_id) for info in whole), reverse=True
        )
        for limit in (1, 4, 9):
            listed = await store.scopes(Wanted(limit=limit))
            while page := await store.scopes(
                Wanted(limit=limit, after=Position(listed[-1].updated_at, listed[-1].scope_id))
            ):
                assert len(page) <= limit
                listed += page
            assert listed == whole

    @on_its_own
    async def test_what_changes_between_pages_stands_at_the_front(self, store: Store) -> None:
        """The pages that follow show neither it nor anything twice."""
        leases = [await hold(store, {"a": "1"}, TaskScope("dag", "run", "mapped", n)) for n in range(6)]
        whole = await store.scopes()
        first = await store.scopes(Wanted(limit=2))
        last = whole[-1].scope
        while (await store.scopes(Wanted(limit=1)))[0].scope != last:
            assert await put(store, next(held for held in leases if held.scope == last), {"a": "2"}) == []
        rest = await store.scopes(Wanted(after=Position(first[-1].updated_at, first[-1].scope_id)))
        assert first + rest == whole[:-1]

    @on_its_own
    async def test_a_page_is_of_what_matches(self, store: Store) -> None:
        """Filters and pages go together, and so do filters and counts."""
        for index in range(3):
            for dag in "ab":
                await store.acquire(TaskScope(dag, "run", "mapped", index), 1)
        for name in ("dag", "x"):
            await hold(store, {"a": "1"}, AssetScope(name))
        tasks = await store.scopes(Wanted(assets=False))
        of_a = [info for info in tasks if info.scope.row[0] == "a"]
        assert len(tasks) == 6
        assert await store.scopes(Wanted("a", limit=2)) == of_a[:2]
        assert (
            await store.scopes(Wanted("a", after=Position(of_a[1].updated_at, of_a[1].scope_id))) == of_a[2:]
        )
        assert {info.scope for info in await store.scopes(Wanted(assets=True))} == {
            AssetScope("dag"),
            AssetScope("x"),
        }
        assert len(await store.scopes(Wanted(assets=True, limit=1))) == 1
        assert (
            await store.scopes(Wanted("a", assets=True))
            == await store.scopes(Wanted(run_id="asset", assets=True))
            == []
        )
        assert [
            await store.count_scopes(),
            await store.count_scopes(Wanted("a")),
            await store.count_scopes(Wanted("a", "run", "mapped")),
            await store.count_scopes(Wanted(task_id="other")),
            await store.count_scopes(Wanted(assets=True)),
            await store.count_scopes(Wanted(assets=False)),
            await store.count_scopes(Wanted("a", assets=True)),
            await store.count_scopes(Wanted("a", limit=1)),
        ] == [8, 3, 3, 0, 2, 6, 0, 3]

    @on_its_own
    async def test_one_scope_is_listed(self, store: Store) -> None:
        """Exactly that one, a task's or an asset's, and nothing where there is none."""
        for scope in SCOPES:
            await hold(store, {"a": "1"}, scope)
        for scope in SCOPES:
            [info] = await store.scopes(Wanted(scope=scope))
            assert (info.scope, info.keys) == (scope, 1)
            assert await store.scopes(Wanted("no such DAG", scope=scope)) == []
        for scope in (TaskScope("dag", "run", "task", 2), AssetScope("none"), AssetScope(uri="none")):
            assert await store.scopes(Wanted(scope=scope)) == []
        assert await store.scopes(Wanted(scope=SCOPE, assets=True)) == []
        assert len(await store.scopes(Wanted(scope=SCOPE, assets=False))) == 1

    @on_its_own
    async def test_a_map_index_is_listed_in_each_region(self, store: Store) -> None:
        """Those of one index, without the others of a mapped task, and no asset, which has none."""
        in_region = TaskScope("dag", "run", "mapped", 1, UUID(int=7))
        indexes = [TaskScope("dag", "run", "mapped", index) for index in (-1, 0, 1)]
        scopes: list[Scope] = [*indexes, in_region, AssetScope("mapped")]
        for scope in scopes:
            await hold(store, {"a": "1"}, scope)
        for index, found in ((1, {indexes[2], in_region}), (-1, {indexes[0]}), (2, set())):
            wanted = Wanted("dag", "run", "mapped", index)
            assert {info.scope for info in await store.scopes(wanted)} == found
            assert await store.count_scopes(wanted) == len(found)
        assert {info.scope for info in await store.scopes(Wanted(map_index=-1))} == {indexes[0]}
        assert {info.scope for info in await store.scopes(Wanted(scope=in_region, map_index=1))} == {
            in_region
        }
        assert await store.scopes(Wanted(scope=in_region, map_index=0)) == []

    @on_its_own
    async def test_a_listing_has_the_sizes_of_our_own_keys(self, store: Store) -> None:
        """They say how much of a work set is done, without what has expired."""
        own = f"{RESERVED_PREFIX}work:x:0000000000"
        lease = await hold(store, {"a": "1", own: '"abc"', f"{RESERVED_PREFIX}x": "12"})
        await store.commit([Batch(lease, {f"{RESERVED_PREFIX}gone": ("4", AT_ONCE)})])
        await until_gone(store, f"{RESERVED_PREFIX}gone")
        await hold(store, {"a": "1"}, OTHER)
        other, [info] = (await store.scopes(Wanted(scope=OTHER)))[0], await store.scopes(Wanted(scope=SCOPE))
        assert (dict(info.own), info.scope_id) == ({own: 5, f"{RESERVED_PREFIX}x": 2}, lease.scope_id)
        assert dict(other.own) == {}

    @on_its_own
    async def test_an_asset_with_a_name_is_known_by_it(self, store: Store) -> None:
        """Its URI makes no difference then."""
        await hold(store, {"a": "1"}, AssetScope("x", "file:///x"))
        assert await entries(store, AssetScope("x")) == {"a": "1"}
        assert await store.read(AssetScope(uri="file:///x")) is None

    @on_its_own
    async def test_assets_are_held_cleared_and_purged_as_tasks_are(self, store: Store) -> None:
        """They have leases, retention, and a way to be deleted; their neighbours stay as they are."""
        asset, namesake = AssetScope("x"), AssetScope(uri="x")
        first = await hold(store, {"a": "1"}, asset)
        other = await hold(store, {"a": "2"}, namesake)
        second = await hold(store, {"b": "1"}, asset)
        assert await put(store, first, {"a": "9"}) == [first]
        assert await store.clear(asset) == 2
        assert await put(store, second, {"a": "9"}) == [second]
        assert await store.read(namesake) == Snapshot(other, {"a": "2"})
        third = (await store.acquire(asset, None)).lease
        await store.commit([Batch(third, {"c": ("1", DAY)})])
        assert await store.purge(time.time() + 2 * DAY) == 1
        assert await store.purge(time.time() + RETENTION + DAY) == 0
        assert await store.read(asset) is None
        assert await store.read(namesake) == Snapshot(other, {"a": "2"})
