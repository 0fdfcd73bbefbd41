"""What looks like a clear and is none: `on_user_kill` is not called."""

from __future__ import annotations

import pytest
from killkit import SCOPE, Running, calls, says

from async_task_state import TaskState
from async_task_state.testing.runs import run_made

pytestmark = pytest.mark.asyncio


async def test_g4_a_trigger_that_was_moved_is_no_clear(task):
    async with Running(await task.defer()) as old, Running(task.trigger()) as new:
        await old.be_killed()
        await new.end()
    assert calls == []


async def test_g4_of_two_triggers_the_one_that_had_the_lease_makes_the_call(task):
    async with Running(await task.defer()) as frozen, Running(task.trigger()) as running:
        task.clear()
        await task.defer()
        await frozen.be_killed()
        assert calls == []
        await running.be_killed()
    assert [call.by for call in calls] == [running.trigger]


async def test_a_retry_owes_nothing(task):
    async with Running(await task.defer()) as old:
        await old.die()
    task.retry()
    async with task.opened() as state:
        assert await state.get("job") == "j-1"
    task.clear()
    async with Running(await task.defer()):
        assert calls == []


async def test_a_trigger_that_has_fired_is_owed_nothing(task):
    async with Running(await task.defer()) as old:
        await old.end()
    task.clear()
    async with Running(await task.defer()):
        assert calls == []


async def test_where_a_clear_resumes_nothing_is_killed(task, monkeypatch):
    says(monkeypatch, "scheduled")
    async with Running(await task.defer(on_clear="resume")) as old:
        await old.be_killed()
        assert calls == []
    async with Running(task.trigger()) as again:
        task.clear()
        async with Running(await task.defer(on_clear="resume")) as new:
            await again.be_killed()
            assert await new.end() == [{"cleared": True}]
    assert calls == []


async def test_where_a_function_says_what_is_kept_the_call_has_all_there_was(task):
    async with Running(await task.defer()) as old:
        await old.trigger._state.flush()
        await old.die()
    task.clear()
    async with Running(await task.defer(on_clear=lambda values: {"earlier": values["job"]})) as new:
        assert [call.values for call in calls] == [{"job": "j-1", "page": 1}]
        assert await new.trigger._state.get("earlier") == "j-1"


async def test_a_run_that_was_made_again_owes_nothing_of_the_old_one(task):
    async with Running(await task.defer()) as old:
        again = run_made(2, 1)
        state = TaskState(SCOPE, attempt=1, run=again, max_tries=0, store=task.dsn, settings=task.settings)
        async with state:
            await state.flush()
        await old.be_killed()
    assert calls == []
    assert await task.owed() == []


async def test_a_state_that_its_author_clears_owes_what_it_owed(task):
    async with Running(await task.defer()) as old:
        await old.die()
    task.clear()
    async with task.opened() as state:
        await state.set("own", 1)
        await state.clear()
        assert await state.get_all() == {}
    trigger = await task.defer()
    async with Running(trigger):
        assert [call.values["job"] for call in calls] == ["j-1"]


async def test_what_was_called_is_not_owed_again_by_an_author_who_clears(task):
    async with Running(await task.defer()) as old:
        task.clear()
        async with task.opened() as state:
            await old.be_killed()
            await state.clear()
    async with Running(await task.defer()):
        assert len(calls) == 1
