"""`max_state_bytes` in Airflow's own store, where the caller's own calls save."""

from __future__ import annotations

import pytest
from channel import SCOPE

from async_task_state import AssetScope, AssetState, Settings, StateTooLargeError, TaskState

pytestmark = pytest.mark.anyio


@pytest.fixture
def limited(airflow):
    def limited(limit, attempt=1):
        settings = Settings(dsn="airflow:", exit_timeout=1.0, max_state_bytes=limit)
        return TaskState(SCOPE, store=airflow, settings=settings, attempt=attempt)

    return limited


async def test_g8_a_call_beyond_the_limit_is_refused_and_sends_nothing(limited, airflow):
    async with limited(100) as state:
        await state.set("a", "x" * 90)
        airflow.requests.clear()
        for call in (
            lambda: state.set("b", "x" * 10),
            lambda: state.checkpoint(a="x" * 98),
            lambda: state.work("w").done("i", b=1),
            lambda: state.work("w").failed("i", "why"),
        ):
            with pytest.raises(
                StateTooLargeError,
                match=r"state of dag/run/task holds 93 bytes, .*\[async_task_state\] max_state_bytes allows 100",
            ):
                call()
        await state.flush()
        assert airflow.requests == []
        assert await state.get_all() == {"a": "x" * 90}
        await state.set("b", "x" * 4)
        await state.delete("a")
    assert airflow.users == {"b": "x" * 4}


async def test_an_index_of_keys_takes_no_room_from_an_author(limited, airflow):
    async with limited(100) as state:
        await state.checkpoint({f"key {number}": 1 for number in range(14)})
    async with limited(100, attempt=2) as state:
        with pytest.raises(StateTooLargeError, match="holds 88 bytes"):
            state.checkpoint(b="x" * 20)
    assert len(airflow.users) == 14


async def test_what_somebody_has_written_beside_counts_once_it_is_known(limited, airflow):
    async with limited(100) as state:
        await state.set("a", 1)
        airflow.values["theirs"] = "x" * 80
        await state.checkpoint(b="x" * 10)
        assert await state.get("theirs") == "x" * 80
        with pytest.raises(StateTooLargeError, match="holds 103 bytes"):
            state.checkpoint(c=1)
        await state.delete("b")
        await state.checkpoint(c=1)


@pytest.mark.parametrize("on_error", ["raise", "collect"])
async def test_g8_a_run_over_a_work_set_ends_with_the_error_and_its_items_are_kept(limited, on_error):
    async with limited(1000) as state:
        with pytest.raises(StateTooLargeError, match="max_state_bytes allows 1,000"):
            await state.work("w").process(range(1000), lambda item: item, on_error=on_error)
        counts = state.work("w").counts
        assert 40 < counts.done < 70
        assert counts.failed == 0
    async with limited(100_000, attempt=2) as state:
        summary = await state.work("w").process(range(1000), lambda item: item, on_error=on_error)
        assert (summary.done, summary.skipped) == (1000 - counts.done, counts.done)


async def test_g8_an_asset_has_its_limit(airflow):
    settings = Settings(dsn="airflow:", exit_timeout=1.0, max_state_bytes=10)
    async with AssetState(AssetScope("orders"), store=airflow, settings=settings) as state:
        await state.set("a", 1)
        with pytest.raises(StateTooLargeError, match="the state of asset orders holds 2 bytes, "):
            state.set("b", "x" * 10)
