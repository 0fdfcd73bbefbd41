"""State in a store that only awaited calls may reach, as `airflow:` is: a channel that counts its requests."""

from __future__ import annotations

from datetime import timedelta

import anyio
import anyio.lowlevel
import pytest
from channel import NOT_SOON

from async_task_state import (
    NEVER_EXPIRE,
    AssetScope,
    AssetState,
    Settings,
)

pytestmark = pytest.mark.anyio


async def test_what_one_process_leaves_the_next_one_finds(make_state, airflow):
    values = {"n": 1, "text": "é", "list": [1, {"a": None}], "no": False, "float": 1.5}
    async with make_state() as state:
        assert not state.resumed
        await state.checkpoint(values)
        for file in range(600):
            await state.work("files").done(file, last=file)
        await state.work("files").failed("bad", "why")
    assert airflow.users == {**values, "last": 599}
    async with make_state(attempt=2) as state:
        assert state.resumed
        assert state.attempt == 2
        assert await state.get_all() == {**values, "last": 599}
        assert state.work("files").counts.done == 600
        assert list(state.work("files").remaining(range(602))) == [600, 601]


async def test_ten_thousand_checkpoints_are_one_request(make_state, airflow):
    async with make_state(max_delay=NOT_SOON) as state:
        await state.set("n", 0)
        airflow.requests.clear()
        for n in range(10_000):
            await state.checkpoint(n=n)
        assert airflow.requests == []
    assert airflow.requests == [("set", "n")]
    assert airflow.values["n"] == 9999


async def test_a_checkpoint_is_saved_by_the_first_call_after_it_is_due(make_state, airflow):
    async with make_state(max_delay=0.05) as state:
        with anyio.fail_after(30):
            n = 0
            while airflow.users.get("n", 0) < 3:
                n += 1
                await state.checkpoint(n=n)
                await anyio.sleep(0.006)


async def test_g1_set_is_durable_when_it_returns(make_state, airflow):
    async with make_state(max_delay=NOT_SOON) as state:
        await state.checkpoint(before=1)
        await state.set("job", "j-1")
        assert airflow.users == {"before": 1, "job": "j-1"}
        await state.delete("before")
        assert airflow.users == {"job": "j-1"}
        await state.clear()
        assert airflow.values.keys() <= {"__ats:index"}
        assert await state.get_all() == {}


async def test_retention_is_airflows(make_state, airflow):
    async with make_state() as state:
        await state.set("soon", 1, retention=timedelta(hours=1))
        await state.set("never", 1, retention=NEVER_EXPIRE)
        await state.set("with the state", 1)
        await state.work("files").done("a", rows=1)
        await state.flush()
    assert airflow.kept["soon"] == timedelta(hours=1)
    assert airflow.kept["never"] is NEVER_EXPIRE
    # Airflow deletes them with the run; by days, values would go before the items that were done with them.
    assert {key for key in airflow.kept if airflow.kept[key] is NEVER_EXPIRE} == airflow.kept.keys() - {
        "soon"
    }
    assert {"with the state", "rows"} < airflow.kept.keys()


async def test_what_airflows_accessor_wrote_is_found(make_state, airflow):
    airflow.values["cursor"] = {"page": 7}
    async with make_state() as state:
        assert await state.get("cursor") == {"page": 7}
        assert await state.get("nothing", 3) == 3
        airflow.values["cursor"] = 8
        await state.refresh()
        assert await state.get("cursor") == 8
        await state.delete("cursor")
        assert await state.get("cursor") is None
    assert airflow.users == {}


async def test_what_is_recorded_while_airflow_is_asked_for_the_key_is_newer(make_state, airflow):
    airflow.values["n"] = 1
    async with make_state(max_delay=NOT_SOON) as state:
        async with anyio.create_task_group() as group:
            group.start_soon(state.get, "n")
            await anyio.lowlevel.checkpoint()
            await state.checkpoint(n=5)
        assert await state.get("n") == 5
    assert airflow.users == {"n": 5}


async def test_two_who_save_to_one_asset_keep_each_others_keys(airflow):
    settings = Settings(dsn="airflow:")

    def state():
        return AssetState(AssetScope("orders"), store=airflow, settings=settings)

    one, other = state(), state()
    await one.__aenter__()
    await other.__aenter__()
    await one.set("one", 1)
    await other.set("other", 2)
    await one.work("files").done("a")
    await one.__aexit__(None, None, None)
    await other.set("other", 3)
    await other.__aexit__(None, None, None)
    async with state() as later:
        assert await later.get_all() == {"one": 1, "other": 3}
        assert later.work("files").is_done("a")


@pytest.mark.parametrize("how", ["clear", "delete"])
async def test_what_is_saved_after_another_has_removed_it_is_found(airflow, how):
    settings = Settings(dsn="airflow:")

    def state():
        return AssetState(AssetScope("orders"), store=airflow, settings=settings)

    one, other = state(), state()
    await one.__aenter__()
    await one.set("since", 1)
    await one.work("files").done("a")
    await one.flush()
    await other.__aenter__()
    await (other.clear() if how == "clear" else other.delete("since"))
    await other.__aexit__(None, None, None)
    await one.set("since", 2)
    await one.work("files").done("b")
    await one.__aexit__(None, None, None)
    async with state() as later:
        assert (later.resumed, await later.get_all()) == (True, {"since": 2})
        assert later.work("files").is_done("b")


async def test_what_is_recorded_is_not_looked_for(make_state, airflow):
    airflow.values["n"] = 5
    async with make_state(max_delay=NOT_SOON) as state:
        await state.checkpoint(n=6)
        assert await state.get("n") == 6


async def test_those_who_wait_at_once_share_a_request(make_state, airflow):
    async with make_state() as state:
        await state.set("n", 0)
        airflow.requests.clear()
        async with anyio.create_task_group() as group:
            for n in range(20):
                group.start_soon(state.set, "n", n)
        assert airflow.requests == [("set", "n")]


async def test_a_checkpoint_with_none_removes_the_key(make_state, airflow):
    async with make_state(max_delay=NOT_SOON) as state:
        await state.set("cursor", "p2")
        # What others wrote without a lease goes as well.
        airflow.values["theirs"] = 1
        await state.checkpoint(cursor=None, theirs=None, rows=1)
        assert await state.get("cursor") is None
        assert await state.get("theirs") is None
    assert airflow.users == {"rows": 1}
    async with make_state(attempt=2) as state:
        assert await state.get_all() == {"rows": 1}
