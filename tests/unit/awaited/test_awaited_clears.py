"""Clears of Airflow 3.4, which delete what Airflow keeps while the cleared attempt may still be at work."""

from __future__ import annotations

import pytest

FILES = [f"file-{number}" for number in range(6)]
NOTE = "__ats:clear"

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _airflow_3_4(monkeypatch):
    for module in ("state", "clear_choice"):
        monkeypatch.setattr(f"async_task_state.{module}.asks_at_clear", lambda: True)


def note(attempt, *, kept=False, at_work=False):
    """What the API server notes at a clear."""
    return {"attempt": attempt, "kept": kept, "at_work": at_work}


async def work(state, files):
    done = state.work("files")
    for file in done.remaining(files):
        await done.done(file, rows=await state.get("rows", 0) + 1)
        await state.flush()


@pytest.mark.parametrize("new_key", [False, True], ids=["values", "index-too"])
@pytest.mark.parametrize("then", [FILES, []], ids=["works", "looks"])
@pytest.mark.parametrize(
    ("on_clear", "is_noted"),
    [("restart", False), ("restart", True), ("resume", True)],
    ids=["not-noted", "restart", "resume"],
)
async def test_g4_what_a_cleared_attempt_saves_after_the_clear_does_not_count(
    make_state, airflow, new_key, then, on_clear, is_noted
):
    async with make_state(max_tries=0) as state:
        await work(state, FILES[:2])
        # Airflow deletes its rows at a user's clear, and lets the attempt go on for a while.
        airflow.values.clear()
        if is_noted:
            airflow.values[NOTE] = note(2, at_work=True)
        await work(state, FILES[2:4])
        if new_key:
            await state.set("new", 1)
    assert airflow.values
    async with make_state(attempt=2, max_tries=1, begun=2, after_clear=True, on_clear=on_clear) as state:
        assert (state.cleared, state.resumed) == (True, False)
        assert await state.get_all() == {}
        assert await state.get("rows") is None
        assert [*state.work("files").remaining(FILES)] == FILES
        await work(state, then)
    async with make_state(attempt=3, max_tries=1, begun=2, on_clear=on_clear) as state:
        assert not state.cleared
        assert await state.get_all() == ({"rows": len(then)} if then else {})
        assert state.work("files").counts.done == len(then)
        assert (await state.get("rows"), await state.get("new")) == (len(then) or None, None)


@pytest.mark.parametrize("on_clear", ["restart", "resume"])
async def test_g4_it_does_not_count_either_where_an_attempt_has_ended_before_it_opened_the_state(
    make_state, airflow, on_clear
):
    async with make_state(max_tries=0) as state:
        airflow.values[NOTE] = note(2, at_work=True)
        await work(state, FILES[:2])
    airflow.values.pop("__ats:index")
    async with make_state(attempt=3, max_tries=2, begun=2, on_clear=on_clear) as state:
        assert (state.cleared, await state.get("rows"), await state.get_all()) == (True, None, {})


async def test_what_airflow_has_before_a_retry_opens_its_state_is_left(make_state, airflow):
    airflow.values["theirs"] = 1
    async with make_state(attempt=2, max_tries=1, begun=1) as state:
        assert (state.cleared, await state.get("theirs")) == (False, 1)
    airflow.values["theirs"] = 2
    airflow.values.pop("__ats:index")
    async with make_state(attempt=3, max_tries=2, begun=3, after_clear=True, on_clear="resume") as state:
        assert (state.cleared, await state.get("theirs")) == (True, 2)


@pytest.mark.parametrize("on_clear", ["restart", "resume"])
async def test_what_an_attempt_saves_by_airflows_means_before_it_opens_its_state_is_left(
    make_state, airflow, on_clear
):
    async with make_state(max_tries=0) as state:
        await work(state, FILES[:2])
    # The task had ended when it was cleared.
    airflow.values.clear()
    airflow.values[NOTE] = note(2)
    airflow.values["theirs"] = 2
    async with make_state(attempt=2, max_tries=1, begun=2, after_clear=True, on_clear=on_clear) as state:
        assert (state.cleared, await state.get("theirs"), await state.get("rows")) == (True, 2, None)
        await work(state, FILES)
    async with make_state(attempt=3, max_tries=1, begun=2, on_clear=on_clear) as state:
        assert (await state.get("theirs"), await state.get("rows")) == (2, len(FILES))


async def test_a_state_that_was_never_opened_before_3_4_is_left_by_a_clear(make_state, airflow, monkeypatch):
    for module in ("state", "clear_choice"):
        monkeypatch.setattr(f"async_task_state.{module}.asks_at_clear", lambda: False)
    airflow.values["theirs"] = 1
    async with make_state(attempt=2, max_tries=1, begun=2, after_clear=True) as state:
        assert (state.cleared, await state.get("theirs")) == (False, 1)
    assert ("get", NOTE) not in airflow.requests


@pytest.mark.parametrize("on_clear", ["restart", "resume", lambda _: {"n": 0}])
async def test_g4_a_user_who_keeps_the_state_has_it_go_on(make_state, airflow, on_clear):
    airflow.values["theirs"] = 1
    async with make_state(max_tries=0) as state:
        await work(state, FILES[:2])
    airflow.values[NOTE] = note(2, kept=True)
    async with make_state(attempt=2, max_tries=1, begun=2, after_clear=True, on_clear=on_clear) as state:
        assert (state.cleared, state.resumed) == (True, True)
        assert (await state.get("rows"), await state.get("theirs")) == (2, 1)
        assert [*state.work("files").remaining(FILES)] == FILES[2:]
    # The next clear, of the run or by the command line, asks nobody.
    async with make_state(attempt=3, max_tries=2, begun=3, after_clear=True) as state:
        assert (state.cleared, state.resumed, await state.get("rows")) == (True, False, None)


async def test_what_a_user_keeps_is_left_though_the_state_was_never_opened(make_state, airflow):
    airflow.values |= {"theirs": 1, NOTE: note(2, kept=True)}
    async with make_state(attempt=2, max_tries=1, begun=2, after_clear=True) as state:
        assert (state.cleared, await state.get("theirs")) == (True, 1)


async def test_only_an_opening_that_finds_a_clear_asks(make_state, airflow):
    async with make_state(max_tries=0) as state:
        await state.set("n", 1)
    async with make_state(attempt=2, max_tries=0) as state:
        await state.set("n", 2)
    assert ("get", NOTE) not in airflow.requests
    async with make_state(attempt=3, max_tries=2, begun=3, after_clear=True) as state:
        await state.set("n", 3)
    async with make_state(attempt=3, max_tries=2, begun=3, after_clear=True) as state:
        await state.set("n", 4)
    assert airflow.requests.count(("get", NOTE)) == 1


@pytest.mark.parametrize("damaged", ["text", {"attempt": "2", "kept": True, "at_work": False}, {}, [2, True]])
async def test_a_note_that_is_none_decides_nothing(make_state, airflow, damaged):
    async with make_state(max_tries=0) as state:
        await state.set("n", 1)
    airflow.values[NOTE] = damaged
    async with make_state(attempt=2, max_tries=1, begun=2, after_clear=True) as state:
        assert (state.cleared, state.resumed, await state.get("n")) == (True, False, None)
