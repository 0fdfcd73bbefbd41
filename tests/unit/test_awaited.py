"""State in a store that only awaited calls may reach, as `airflow:` is: a channel that counts its requests."""

from __future__ import annotations

import contextlib
import copy
import gc
import time
from datetime import timedelta
from types import SimpleNamespace

import anyio
import anyio.lowlevel
import pytest

from async_task_state import (
    NEVER_EXPIRE,
    AssetScope,
    AssetState,
    Settings,
    SettingsError,
    StaleWriterError,
    StoreError,
    StoreUnavailableError,
    TaskScope,
    TaskState,
)
from async_task_state.lifetime import drain
from async_task_state.stores import airflow as airflow_store

pytestmark = pytest.mark.anyio

SCOPE = TaskScope("dag", "run", "task")
NOT_SOON = 3600.0


class ProcessDiesError(BaseException):
    """What nobody handles."""


class Airflow:
    """What Airflow has, and a way to it that can be made to fail."""

    def __init__(self):
        self.values = {}
        self.kept = {}
        self.requests = []
        self.broken = None
        self.fail_after = None

    async def _request(self, what, key=None):
        await anyio.lowlevel.checkpoint()
        if self.fail_after is not None:
            self.fail_after -= 1
            if self.fail_after < 0:
                raise ProcessDiesError
        if self.broken is not None:
            raise self.broken
        self.requests.append((what, key))

    async def get(self, key):
        await self._request("get", key)
        return copy.deepcopy(self.values.get(key))

    async def set(self, key, value, retention):
        await self._request("set", key)
        self.values[key] = copy.deepcopy(value)
        self.kept[key] = retention

    async def delete(self, key):
        await self._request("delete", key)
        self.values.pop(key, None)

    async def clear(self):
        await self._request("clear")
        self.values.clear()

    @property
    def users(self):
        return {key: value for key, value in self.values.items() if not key.startswith("__")}


@pytest.fixture
def airflow():
    return Airflow()


@pytest.fixture
def make_state(airflow):
    def make_state(outage_timeout=60.0, **options):
        settings = Settings(dsn="airflow:", outage_timeout=outage_timeout, exit_timeout=1.0)
        return TaskState(SCOPE, store=airflow, settings=settings, **{"attempt": 1, **options})

    return make_state


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
        await state.set("default", 1)
    assert airflow.kept["soon"] == timedelta(hours=1)
    assert airflow.kept["never"] is NEVER_EXPIRE
    assert airflow.kept["default"] == timedelta(days=30)


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


async def test_a_crash_between_two_requests_loses_no_key_that_was_saved(make_state, airflow):
    """Whatever request is the last, the next process opens the state, and finds what was durable."""
    for last in range(60):
        airflow.__init__()
        told = {}

        async def author(told=told):
            async with make_state(max_delay=NOT_SOON) as state:
                for n in range(5):
                    await state.set(f"k{n}", n)
                    told[f"k{n}"] = n
                    await state.work("files").done(n, rows=n)
                    await state.flush()
                    told["done"] = n
                await state.delete("k1")
                told.pop("k1")
                await state.checkpoint(a=1, b=2)
                await state.flush()
                told.update(a=1, b=2)

        airflow.fail_after = last
        with contextlib.suppress(ProcessDiesError):
            await author()
        airflow.fail_after = None
        async with make_state(attempt=2, read_only=True) as state:
            found = await state.get_all()
            done = [n for n in range(5) if state.work("files").is_done(n)]
        assert done == list(range(len(done)))
        assert len(done) > told.pop("done", -1)
        # What is done has been counted.
        assert not done or found["rows"] >= done[-1]
        # A key that was being deleted may be gone already.
        assert found.items() >= {key: n for key, n in told.items() if key != "k1"}.items()


async def test_g5_an_outage_is_sat_out(make_state, airflow):
    async with make_state(max_delay=0.01) as state:
        airflow.broken = OSError("away")
        for n in range(20):
            await state.checkpoint(n=n)
            await anyio.sleep(0.006)
        async with anyio.create_task_group() as group:
            group.start_soon(state.flush)
            await anyio.sleep(0.3)
            airflow.broken = None
        assert airflow.users == {"n": 19}


async def test_g5_after_outage_timeout_calls_raise_and_name_what_is_not_saved(make_state, airflow):
    async with make_state(outage_timeout=0.3) as state:
        airflow.broken = OSError("away")
        await state.checkpoint(n=1)
        with pytest.raises(StoreUnavailableError, match=r"outage_timeout = 0.3 s .*away.*not saved.*'n'"):
            await state.flush()
        with pytest.raises(StoreUnavailableError):
            await state.checkpoint(m=2)
        airflow.broken = None
        with anyio.fail_after(30):
            while airflow.users != {"n": 1}:
                try:
                    await state.flush()
                except StoreUnavailableError:
                    await anyio.sleep(0.01)
        await state.set("m", 2)
    assert airflow.users == {"n": 1, "m": 2}


async def test_g5_opening_waits_for_airflow(make_state, airflow):
    airflow.broken = OSError("away")
    with pytest.raises(StoreUnavailableError, match="away"):
        async with make_state(outage_timeout=0.3):
            pass
    async with anyio.create_task_group() as group:
        group.start_soon(make_state().__aenter__)
        await anyio.sleep(0.1)
        airflow.broken = None


async def test_g4_an_attempt_that_airflow_does_not_know_any_more_hears_it(make_state, airflow):
    error = RuntimeError("not found")
    error.error = SimpleNamespace(detail={"status_code": 404})
    state = make_state()
    await state.__aenter__()
    airflow.broken = error
    with pytest.raises(StaleWriterError, match="no longer its holder"):
        await state.set("n", 1)
    with pytest.raises(StaleWriterError):
        await state.checkpoint(n=2)
    with pytest.raises(StaleWriterError):
        await state.__aexit__(None, None, None)


async def test_g8_an_asset_that_airflow_does_not_know(airflow):
    error = RuntimeError("not found")
    error.error = SimpleNamespace(detail={"status_code": 404})
    settings = Settings(dsn="airflow:")
    state = AssetState(AssetScope("orders"), store=airflow, settings=settings)
    await state.__aenter__()
    airflow.broken = error
    with pytest.raises(StoreError, match="no active asset of that name or URI: asset orders"):
        await state.set("n", 1)
    airflow.broken = None
    await state.__aexit__(None, None, None)
    assert airflow.users == {"n": 1}


async def test_g6_leaving_by_cancellation_saves(make_state, airflow):
    with anyio.move_on_after(0.05):
        async with make_state(max_delay=NOT_SOON) as state:
            await state.checkpoint(n=1)
            await anyio.sleep(60)
    assert airflow.users == {"n": 1}


@pytest.mark.usefixtures("_airflow_imported")
@pytest.mark.parametrize("way", [airflow_store.TaskChannel, airflow_store.TriggererChannel])
async def test_g6_leaving_has_an_end_though_a_request_never_has(monkeypatch, way):
    from airflow.sdk.execution_time import task_runner  # noqa: PLC0415 - takes a second
    from airflow.sdk.execution_time.comms import DeadlockImminentError  # noqa: PLC0415

    def busy(*_, **__):
        raise DeadlockImminentError

    async def answer(*_, **__):
        """Nothing is there."""

    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", SimpleNamespace(), raising=False)
    monkeypatch.setattr(airflow_store, "PATIENCE_SECONDS", 0.05)
    never = anyio.Event()
    accessor = SimpleNamespace(get=lambda _: None, set=busy, aget=answer, aset=lambda *_, **__: never.wait())
    settings = Settings(dsn="airflow:", exit_timeout=0.3)
    state = TaskState(
        SCOPE, attempt=1, store=way(accessor, expires=True), settings=settings, max_delay=NOT_SOON
    )
    await state.__aenter__()
    await state.checkpoint(n=1)
    with anyio.fail_after(10), pytest.raises(StoreUnavailableError, match=r"exit_timeout = 0.3 s.*'n'"):
        await state.__aexit__(None, None, None)
    accessor.set, accessor.aset = lambda *_, **__: None, answer
    assert await state.is_current()


async def test_those_who_wait_at_once_share_a_request(make_state, airflow):
    async with make_state() as state:
        await state.set("n", 0)
        airflow.requests.clear()
        async with anyio.create_task_group() as group:
            for n in range(20):
                group.start_soon(state.set, "n", n)
        assert airflow.requests == [("set", "n")]


def test_what_an_abandoned_loop_left_is_saved_when_the_process_ends(make_state, airflow):
    state = make_state(max_delay=NOT_SOON)

    async def abandoned():
        await state.__aenter__()
        await state.checkpoint(n=1)

    anyio.run(abandoned)
    assert airflow.users == {}
    drain()
    assert airflow.users == {"n": 1}
    began = time.monotonic()
    drain()
    assert time.monotonic() - began < 1


def test_what_is_not_saved_is_kept_though_nobody_holds_the_state_any_more(make_state, airflow):
    async def abandoned():
        state = make_state(max_delay=NOT_SOON)
        await state.__aenter__()
        await state.checkpoint(n=1)

    anyio.run(abandoned)
    gc.collect()
    drain()
    assert airflow.users == {"n": 1}


async def test_a_refresh_that_fails_forgets_no_key(make_state, airflow):
    async with make_state(outage_timeout=0.3) as state:
        await state.set("old", 1)
        airflow.broken = OSError("away")
        with pytest.raises(StoreUnavailableError):
            await state.refresh()
        airflow.broken = None
        await state.set("new", 2)
    async with make_state(attempt=2) as state:
        assert await state.get_all() == {"old": 1, "new": 2}


async def test_g8_outside_of_airflow_it_says_what_to_set_instead():
    with pytest.raises(SettingsError, match=r"Airflow's own processes.*set \[async_task_state\] dsn"):
        async with TaskState(SCOPE, store="airflow:", settings=Settings(dsn="airflow:")):
            pass
