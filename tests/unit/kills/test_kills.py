"""A user's clear of a deferred task: `on_user_kill` is called once, by whichever process is alive."""

from __future__ import annotations

import asyncio
from functools import partial

import anyio
import pytest
from killkit import Running, Waits, calls, says

from async_task_state import StoreUnavailableError, TaskState
from async_task_state import claims as claims_module
from async_task_state.handle import State
from async_task_state.triggers import checkpoint as checkpoint_module

pytestmark = pytest.mark.asyncio


# Who comes first


async def test_the_next_worker_comes_first_and_the_old_trigger_makes_the_call(task):
    async with Running(await task.defer()) as old:
        await old.trigger._state.checkpoint(page=7)
        task.clear()
        await task.defer()
        await old.be_killed()
    [call] = calls
    assert (call.by, call.values, call.attempt) == (old.trigger, {"job": "j-1", "page": 7}, 1)
    assert await task.owed() == []
    async with task.opened() as state:
        assert await state.get_all() == {}


async def test_an_old_trigger_that_notices_by_itself_makes_the_call_too(task):
    async with Running(await task.defer()) as old:
        task.clear()
        await task.defer()
        assert await old.end() == []
        await old.trigger.on_kill()
    assert [(call.by, call.values["job"]) for call in calls] == [(old.trigger, "j-1")]


async def test_with_no_triggerer_alive_the_next_trigger_makes_the_call_before_it_runs(task):
    old = Running(await task.defer())
    async with old:
        await old.trigger._state.flush()
        await old.die()
    task.clear()
    async with Running(await task.defer()) as new:
        [call] = calls
        assert (call.by, call.values, call.attempt) == (new.trigger, {"job": "j-1", "page": 1}, 1)
        assert await new.end() == [{"cleared": True}]
    assert await task.owed() == []
    assert len(calls) == 1


async def test_a_trigger_that_never_started_is_owed_a_call_of_what_its_worker_left(task):
    async with task.opened() as state:
        await state.set("job", "j-0")
    await task.defer()
    task.clear()
    async with Running(await task.defer()):
        assert [call.values for call in calls] == [{"job": "j-0"}]


async def test_the_old_trigger_comes_first_and_nothing_is_owed_afterwards(task, monkeypatch):
    says(monkeypatch, "scheduled")
    async with Running(await task.defer()) as old:
        task.clear()
        await old.be_killed()
    assert [call.by for call in calls] == [old.trigger]
    async with Running(await task.defer()) as new:
        await new.end()
    assert len(calls) == 1


async def test_the_new_trigger_may_start_before_the_old_one_is_killed(task):
    async with Running(await task.defer()) as old:
        task.clear()
        async with Running(await task.defer()) as new:
            await old.be_killed()
            await new.end()
    assert [(call.by, call.values["job"]) for call in calls] == [(new.trigger, "j-1")]


@pytest.mark.parametrize("times", range(5))
async def test_two_that_come_at_once_make_one_call(task, times):
    async with Running(await task.defer()) as old:
        task.clear()
        new = Running(await task.defer())
        async with new, anyio.create_task_group() as group:
            group.start_soon(old.be_killed)
            await anyio.sleep(0.002 * times)
            group.start_soon(new.end)
    assert [call.values["job"] for call in calls] == ["j-1"]
    assert await task.owed() == []


async def test_a_clear_that_comes_while_the_call_is_being_made_is_the_same_clear(task, monkeypatch):
    says(monkeypatch, "scheduled")
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def kill(self, state):
        begun.set()
        await go_on.wait()

    monkeypatch.setattr(Waits, "kill", kill)
    async with Running(await task.defer()) as old:
        killing = asyncio.create_task(old.be_killed())
        await begun.wait()
        task.clear()
        new = Running(await task.defer())
        starting = asyncio.create_task(new.__aenter__())
        await asyncio.sleep(0)
        assert not starting.done()
        go_on.set()
        await killing
        await starting
        await new.end()
    assert [call.by for call in calls] == [old.trigger]
    assert await task.owed() == []


async def test_a_call_that_a_clear_cuts_short_by_taking_the_lease_is_made(task, monkeypatch):
    says(monkeypatch, "scheduled")

    async def state_is_opened(self, state):
        monkeypatch.setattr(Waits, "kill", lambda self, state: state.set("killed", True))
        task.clear()
        await task.defer()
        await state.set("killing", True)

    monkeypatch.setattr(Waits, "kill", state_is_opened)
    async with Running(await task.defer()) as old:
        await old.be_killed()
    assert [(call.by, call.values["job"]) for call in calls] == [(old.trigger, "j-1")]
    assert await task.owed() == []


# Who dies


async def test_a_call_that_a_crash_cuts_short_is_made_again(task, monkeypatch):
    monkeypatch.setattr(Waits, "_kill_seconds", 0.2)
    monkeypatch.setattr(checkpoint_module, "CLAIM_SECONDS", 0.2)
    begun = asyncio.Event()

    async def hang(self, state):
        begun.set()
        await asyncio.Event().wait()

    async with Running(await task.defer()) as old:
        await old.die()
    task.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Waits, "kill", hang)
        patch.setattr(claims_module, "remove", partial(asyncio.sleep, 3600))
        first = Running(await task.defer())
        starting = asyncio.create_task(first.__aenter__())
        await begun.wait()
        starting.cancel()
        first.task.cancel()
        await asyncio.wait([starting, first.task])
    async with Running(task.trigger()) as second:
        assert [(call.by, call.values["job"]) for call in calls] == [(second.trigger, "j-1")]
    assert await task.owed() == []


async def test_an_opening_that_dies_before_it_has_saved_what_it_found_loses_nothing(task, monkeypatch):
    async with Running(await task.defer()) as old:
        await old.die()
    task.clear()
    with monkeypatch.context() as patch:
        patch.setattr(TaskState, "__aenter__", State.__aenter__)
        with pytest.raises(StoreUnavailableError, match="dead"):
            await task.open_and_die()
    async with Running(await task.defer()):
        assert [call.values["job"] for call in calls] == ["j-1"]


async def test_clears_of_which_no_triggerer_learns_add_up(task):
    for number in (1, 2, 3):
        async with task.opened() as state:
            await state.set("job", number)
        await task.defer()
        task.clear()
    async with Running(await task.defer()):
        assert [call.values for call in calls] == [{"job": 1}, {"job": 2}, {"job": 3}]
    assert await task.owed() == []
