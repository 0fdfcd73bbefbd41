"""A retry resumes, a user's clear starts over: told apart by how many tries a task may have."""

from __future__ import annotations

import pytest

from async_task_state import InvalidArgumentError, Settings, SettingsError, TaskState

pytestmark = pytest.mark.anyio


async def leave(make_state, **values):
    async with make_state(attempt=1, max_tries=1) as state:
        await state.checkpoint(values)
        await state.work("files").done("a")


async def test_a_retry_goes_on(make_state):
    await leave(make_state, n=1)
    async with make_state(attempt=2, max_tries=1) as state:
        assert (state.cleared, state.resumed) == (False, True)
        assert await state.get_all() == {"n": 1}
        assert state.work("files").is_done("a")


async def test_a_clear_starts_over(make_state, saved):
    await leave(make_state, n=1)
    async with make_state(attempt=2, max_tries=2) as state:
        assert (state.cleared, state.resumed) == (True, False)
        assert await state.get_all() == {}
        assert not state.work("files").is_done("a")
        await state.flush()
        assert await saved() == {}
    async with make_state(attempt=3, max_tries=2) as state:
        assert (state.cleared, state.resumed) == (False, False)


async def test_a_clear_is_known_whoever_emptied_the_state_before(make_state, saved):
    async with make_state(attempt=1, max_tries=1) as state:
        await state.set("n", 1)
        await state.clear()
        assert await saved() == {}
        await state.set("n", 2)
    async with make_state(attempt=2, max_tries=2) as state:
        assert (state.cleared, state.resumed, await state.get_all()) == (True, False, {})
    # A trigger does not know how many tries there are.
    async with make_state(attempt=2) as state:
        await state.clear()
    async with make_state(attempt=3, max_tries=2) as state:
        assert (state.cleared, state.resumed) == (False, False)


@pytest.mark.parametrize("max_tries", [0, 3, 7])
async def test_a_clear_is_known_though_the_task_may_be_tried_less_often_now(make_state, max_tries):
    async with make_state(attempt=1, max_tries=5) as state:
        await state.set("n", 1)
    async with make_state(attempt=2, max_tries=1 + max_tries) as state:
        assert (state.cleared, await state.get_all()) == (True, {})
        await state.set("n", 2)
    async with make_state(attempt=2, max_tries=1 + max_tries) as state:
        assert (state.cleared, await state.get_all()) == (False, {"n": 2})


async def test_an_attempt_beyond_the_last_goes_on(make_state):
    """As Airflow begins one when a scheduler has died with the tasks that it ran."""
    async with make_state(attempt=1, max_tries=0) as state:
        await state.set("n", 1)
    async with make_state(attempt=2, max_tries=0) as state:
        assert (state.cleared, await state.get_all()) == (False, {"n": 1})


async def test_a_clear_goes_on_where_it_is_told_to(make_state):
    await leave(make_state, n=1)
    async with make_state(attempt=2, max_tries=2, on_clear="resume") as state:
        assert (state.cleared, state.resumed) == (True, True)
        assert await state.get_all() == {"n": 1}
        assert state.work("files").is_done("a")
    async with make_state(attempt=3, max_tries=2) as state:
        assert state.cleared is False
        assert await state.get_all() == {"n": 1}


async def test_g3_a_function_says_what_a_clear_leaves(make_state, saved):
    await leave(make_state, job="j-1", n=1)
    seen = []

    def keep(values):
        seen.append(values)
        return {"earlier": values["job"]}

    async with make_state(attempt=2, max_tries=2, on_clear=keep) as state:
        assert seen == [{"job": "j-1", "n": 1}]
        assert (state.cleared, state.resumed) == (True, True)
        assert await state.get_all() == {"earlier": "j-1"}
        await state.flush()
        assert await saved() == {"earlier": "j-1"}


async def test_a_function_that_keeps_what_cannot_be_kept_changes_nothing(make_state, saved):
    await leave(make_state, n=1)
    with pytest.raises(ValueError, match="'n' is None"):
        async with make_state(attempt=2, max_tries=2, on_clear=lambda _: {"n": None}):
            pass
    assert await saved() == {"n": 1}


async def test_a_trigger_that_does_not_know_changes_nothing(make_state):
    await leave(make_state, n=1)
    async with make_state(attempt=2) as state:
        assert state.cleared is False
        assert await state.get_all() == {"n": 1}
    async with make_state(attempt=2, max_tries=2) as state:
        assert state.cleared is True


async def test_a_state_that_was_joined_says_the_same(make_state):
    await leave(make_state, n=1)
    async with make_state(attempt=2, max_tries=2) as state, make_state(attempt=2, max_tries=2) as joined:
        assert joined is state
        assert joined.cleared is True


async def test_reading_decides_nothing(make_state, saved):
    await leave(make_state, n=1)
    async with make_state(max_tries=2, read_only=True) as state:
        assert state.cleared is False
        assert await state.get_all() == {"n": 1}


async def test_g8_what_is_no_answer_to_a_clear(make_state, scope, dsn):
    with pytest.raises(InvalidArgumentError, match="on_clear must be 'restart', 'resume' or a function"):
        make_state(on_clear="forget")
    with pytest.raises(SettingsError, match="on_clear must be 'restart' or 'resume'"):
        Settings(dsn=dsn, on_clear="forget")
    settings = Settings(dsn=dsn, on_clear="resume")
    await leave(make_state, n=1)
    async with TaskState(scope, attempt=2, max_tries=2, store=dsn, settings=settings) as state:
        assert await state.get_all() == {"n": 1}
