"""What goes wrong on the way to such a store: crashes, outages, refusals, processes that end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from types import SimpleNamespace

import anyio
import anyio.lowlevel
import pytest
from channel import NOT_SOON, SCOPE, ProcessDiesError

from async_task_state import (
    AssetScope,
    AssetState,
    InvalidValueError,
    Settings,
    SettingsError,
    StaleWriterError,
    StoreError,
    StoreUnavailableError,
    TaskState,
)
from async_task_state.lifetime import drain
from async_task_state.stores import airflow as airflow_store

pytestmark = pytest.mark.anyio


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
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_request_gets_its_turn_among_those_that_are_awaited(monkeypatch):
    """Airflow 3.4 refuses a blocking request while anyone has the lock for which awaited ones queue, this one too."""
    from airflow.sdk.execution_time import task_runner  # noqa: PLC0415 - takes a second
    from airflow.sdk.execution_time.comms import DeadlockImminentError  # noqa: PLC0415

    queue = asyncio.Lock()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", SimpleNamespace(_async_lock=queue), raising=False)
    done = False

    def get(key):
        if queue.locked():
            raise DeadlockImminentError("busy")
        return key

    async def ask():
        while not done:
            async with queue:
                await anyio.sleep(0.001)

    async with anyio.create_task_group() as others:
        for _ in range(3):
            others.start_soon(ask)
        channel = airflow_store.TaskChannel(SimpleNamespace(get=get), expires=True)
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
            assert await channel.get("n") == "n"
        done = True


@pytest.mark.usefixtures("_airflow_imported")
@pytest.mark.parametrize("way", [airflow_store.TaskChannel, airflow_store.TriggererChannel])
async def test_g6_leaving_has_an_end_though_a_request_never_has(monkeypatch, way):
    from airflow.sdk.execution_time import task_runner  # noqa: PLC0415 - takes a second
    from airflow.sdk.execution_time.comms import DeadlockImminentError  # noqa: PLC0415

    def busy(*_, **__):
        raise DeadlockImminentError("busy")

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


@pytest.mark.parametrize("value", [2**70, [{"a": -(2**63) - 1}], "caf\udce9.csv", {"caf\udce9.csv": 1}])
async def test_g8_a_value_that_airflow_cannot_send_is_refused_at_the_call(make_state, airflow, value):
    async with make_state(max_delay=0.01) as state:
        files = state.work("files")
        for call in (
            lambda: state.set("k", value),
            lambda: state.checkpoint(k=value, other=1),
            lambda: files.done("a", k=value),
        ):
            with pytest.raises(InvalidValueError, match=r"value of 'k'.*Airflow cannot send"):
                await call()
        assert not files.is_done("a")
        # What has been refused is in nobody's way.
        await state.set("fits", [2**64 - 1, -(2**63), "é🎉\x00", 12345678901234567890.5])
        await files.done("b")
        await files.failed("caf\udce9.csv", "no")
    assert airflow.users == {"fits": [2**64 - 1, -(2**63), "é🎉\x00", 12345678901234567890.5]}


async def test_g8_what_a_clear_keeps_and_airflow_cannot_send_is_refused(make_state, airflow):
    async with make_state(max_tries=0) as state:
        await state.set("k", 1)
    with pytest.raises(InvalidValueError, match="value of 'k'"):
        async with make_state(attempt=2, max_tries=2, on_clear=lambda _: {"k": 2**70}):
            pass
