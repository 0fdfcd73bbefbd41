"""A user's clear of a deferred task: `on_user_kill` is called once, by whichever process is alive."""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace

import anyio
import pytest
from airflow.triggers.base import TriggerEvent

from async_task_state import Settings, StoreUnavailableError, TaskScope, TaskState
from async_task_state import claims as claims_module
from async_task_state.handle import State
from async_task_state.lifetime import writer_for
from async_task_state.scopes import RunningTask
from async_task_state.testing import run_trigger
from async_task_state.testing.runs import run_made
from async_task_state.triggers import CheckpointTrigger
from async_task_state.triggers import checkpoint as checkpoint_module

pytestmark = pytest.mark.asyncio

SCOPE = TaskScope("dag", "run", "task")

calls: list[SimpleNamespace] = []


class Waits(CheckpointTrigger):
    """Begins remote work, and waits for it."""

    begun = ended = None

    def serialize(self):
        return f"{__name__}.{type(self).__name__}", {}

    async def run_with_state(self, state):
        await state.set("job", f"j-{state.attempt}")
        await state.checkpoint(page=1)
        if self.begun is not None:
            self.begun.set()
        await (self.ended or asyncio.Event()).wait()
        yield TriggerEvent({"cleared": state.cleared})

    async def on_user_kill(self, state):
        values = await state.get_all()
        await self.kill(state)
        calls.append(SimpleNamespace(by=self, values=values, attempt=state.attempt))

    async def kill(self, state):
        await state.set("killed", True)


class WaitsForPages(Waits):
    """Another class."""


class KillFails(Waits):
    async def kill(self, state):
        calls.append(SimpleNamespace(by=self, values=await state.get_all(), attempt=state.attempt))
        raise ConnectionError("no answer")


class HasNoHook(CheckpointTrigger):
    def serialize(self):
        return f"{__name__}.HasNoHook", {}

    async def run_with_state(self, state):
        yield TriggerEvent(1)


@pytest.fixture(autouse=True)
def _no_calls(_settings_read_anew):
    calls.clear()


class Task:
    """One task, its attempts and its clears, as Airflow's processes see them."""

    def __init__(self, dsn):
        self.dsn = dsn
        self.settings = Settings(dsn=dsn)
        self.attempt = 1
        self.max_tries = 0

    def clear(self):
        self.attempt += 1
        self.max_tries = self.attempt

    def retry(self):
        self.attempt += 1

    def trigger(self, kind=Waits):
        trigger = kind()
        trigger.store = self.dsn
        run = run_made(1, self.attempt)
        row = dict(zip(("dag_id", "run_id", "task_id", "map_index"), SCOPE.row, strict=False))
        trigger.task_instance = SimpleNamespace(id=run.instance, try_number=self.attempt, **row)
        return trigger

    def opened(self, **options):
        run = run_made(1, self.attempt)
        whose = {"attempt": self.attempt, "run": run, "max_tries": self.max_tries}
        return TaskState(SCOPE, store=self.dsn, settings=self.settings, **whose, **options)

    async def open_and_die(self):
        async with self.opened() as state:
            assert state.cleared
            state._pending.abandon(StoreUnavailableError("dead"))

    async def defer(self, kind=Waits, on_clear=None):
        """What the worker does; the trigger of the attempt."""
        trigger = self.trigger(kind)
        trigger.on_clear = on_clear
        task = RunningTask(SCOPE, self.attempt, self.max_tries, run_made(1, self.attempt))
        await asyncio.to_thread(trigger._begin, task, trigger.serialize()[0])
        return trigger

    async def owed(self):
        writer = writer_for(self.dsn, self.settings)
        snapshot = await writer.call(writer.store.read, SCOPE)
        return [key for key in snapshot.entries if "kill:after" in key]


@pytest.fixture
def task(dsn):
    return Task(dsn)


class Running:
    """A trigger in a triggerer."""

    def __init__(self, trigger):
        self.trigger = trigger
        self.events = []
        self.task = None

    async def __aenter__(self):
        self.trigger.begun, self.trigger.ended = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self.drive())
        begun = asyncio.create_task(self.trigger.begun.wait())
        await asyncio.wait([self.task, begun], return_when=asyncio.FIRST_COMPLETED, timeout=30)
        begun.cancel()
        return self

    async def drive(self):
        async for event in self.trigger.run():
            self.events.append(event.payload)

    async def __aexit__(self, *_):
        self.task.cancel()
        await asyncio.wait([self.task])

    async def die(self):
        """What SIGKILL leaves."""
        self.trigger._state._pending.abandon(StoreUnavailableError("dead"))
        await self.__aexit__()

    async def be_killed(self):
        """What Airflow does when it learns of a user's action."""
        await self.__aexit__()
        await self.trigger.on_kill()

    async def end(self):
        self.trigger.ended.set()
        await asyncio.wait([self.task])
        return self.events


def says(monkeypatch, state):
    async def state_in_airflow(scope):
        return state

    monkeypatch.setattr(checkpoint_module, "state_in_airflow", state_in_airflow)


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


# What is no clear


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


# What the author's call does


async def test_a_call_that_raises_was_made(task, caplog):
    async with Running(await task.defer(KillFails)) as old:
        task.clear()
        await task.defer(KillFails)
        with pytest.raises(ConnectionError):
            await old.be_killed()
    async with Running(task.trigger(KillFails)):
        pass
    assert len(calls) == 1


async def test_an_error_of_a_call_that_was_owed_does_not_keep_the_next_trigger(task):
    async with Running(await task.defer(KillFails)) as old:
        await old.die()
    task.clear()
    async with Running(await task.defer(KillFails)) as new:
        assert await new.end() == [{"cleared": True}]
    assert len(calls) == 1


async def test_a_call_that_hangs_is_bounded(task, monkeypatch):
    monkeypatch.setattr(Waits, "_kill_seconds", 0.05)
    monkeypatch.setattr(Waits, "kill", lambda self, state: asyncio.sleep(3600))
    async with Running(await task.defer()) as old:
        await old.die()
    task.clear()
    async with Running(await task.defer()) as new:
        assert await new.end() == [{"cleared": True}]
    assert await task.owed() == []


async def test_a_trigger_of_another_class_leaves_the_call_and_says_so(task, capsys):
    async with Running(await task.defer()) as old:
        await old.die()
    task.clear()
    async with Running(await task.defer(WaitsForPages)) as other:
        await other.end()
    assert calls == []
    assert "owes on_user_kill to test_kills.Waits" in capsys.readouterr().out
    assert len(await task.owed()) == 1
    task.retry()
    async with Running(await task.defer()):
        assert [call.values["job"] for call in calls] == ["j-1"]


async def test_a_trigger_without_the_hook_keeps_nothing(task):
    trigger = await task.defer(HasNoHook)
    async for _ in trigger.run():
        break
    writer = writer_for(task.dsn, task.settings)
    snapshot = await writer.call(writer.store.read, SCOPE)
    assert not [key for key in snapshot.entries if "kill" in key]


# In a unit test


async def test_run_trigger_clears(dsn):
    trigger = Waits()
    when = lambda state: "page" in state._pending.values  # noqa: E731 - one line
    cleared = await run_trigger(trigger, stop="clear", when=when)
    assert [call.values for call in calls] == [{"job": "j-1", "page": 1}]
    assert (cleared.events, cleared.values) == ([], {})
    again = await run_trigger(trigger, attempt=2, stop="clear", when=when)
    assert [call.values["job"] for call in calls] == ["j-1", "j-2"]
    assert again.values == {}


async def test_a_trigger_knows_that_its_attempt_began_with_a_clear(task):
    await task.defer()
    task.clear()
    await task.defer()
    for _ in range(2):
        async with task.trigger().task_state() as state:
            assert state.cleared
            await state.clear()
    task.retry()
    await task.defer()
    async with task.trigger().task_state() as state:
        assert not state.cleared
