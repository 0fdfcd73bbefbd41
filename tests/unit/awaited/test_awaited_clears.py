"""Clears of Airflow 3.4, which delete what Airflow keeps while the cleared attempt may still be at work."""

from __future__ import annotations

import pytest

FILES = [f"file-{number}" for number in range(6)]

pytestmark = pytest.mark.anyio


async def work(state, files):
    done = state.work("files")
    for file in done.remaining(files):
        await done.done(file, rows=await state.get("rows", 0) + 1)
        await state.flush()


@pytest.mark.parametrize("new_key", [False, True], ids=["values", "index-too"])
@pytest.mark.parametrize("then", [FILES, []], ids=["works", "looks"])
async def test_g4_what_a_cleared_attempt_saves_after_the_clear_does_not_count(
    make_state, airflow, new_key, then
):
    async with make_state(max_tries=0) as state:
        await work(state, FILES[:2])
        # Airflow deletes its rows at a user's clear, and lets the attempt go on for a while.
        airflow.values.clear()
        await work(state, FILES[2:4])
        if new_key:
            await state.set("new", 1)
    assert airflow.values
    async with make_state(attempt=2, max_tries=1, after_clear=True) as state:
        assert (state.cleared, state.resumed) == (True, False)
        assert await state.get_all() == {}
        assert await state.get("rows") is None
        assert [*state.work("files").remaining(FILES)] == FILES
        await work(state, then)
    async with make_state(attempt=3, max_tries=1) as state:
        assert not state.cleared
        assert await state.get_all() == ({"rows": len(then)} if then else {})
        assert state.work("files").counts.done == len(then)
        assert (await state.get("rows"), await state.get("new")) == (len(then) or None, None)


async def test_what_airflow_has_before_a_retry_opens_its_state_is_left(make_state, airflow):
    airflow.values["theirs"] = 1
    async with make_state(attempt=2, max_tries=1) as state:
        assert (state.cleared, await state.get("theirs")) == (False, 1)
    airflow.values["theirs"] = 2
    airflow.values.pop("__ats:index")
    async with make_state(attempt=3, max_tries=2, after_clear=True, on_clear="resume") as state:
        assert (state.cleared, await state.get("theirs")) == (True, 2)
