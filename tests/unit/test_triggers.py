"""CheckpointTrigger, run as the triggerer runs it and ended in every way it can be."""

from __future__ import annotations

import asyncio
from contextvars import Context
from datetime import datetime, timedelta, timezone
from typing import Any

import anyio
import pytest
from airflow.triggers.base import TriggerEvent
from airflow.version import version as airflow_version

from async_task_state import (
    InvalidArgumentError,
    NoScopeError,
    StaleWriterError,
    TaskScope,
    asset_state,
    asset_state_sync,
)
from async_task_state.compat import releases_moved_triggers
from async_task_state.testing import run_trigger
from async_task_state.triggers import CheckpointTrigger

pytestmark = pytest.mark.asyncio

STEPS = 10
SUM = sum(range(STEPS))

killed: list[dict[str, Any]] = []


class Count(CheckpointTrigger):
    """Takes ten steps; subclasses do something else with the state, or after the steps."""

    def serialize(self):
        return f"{__name__}.{type(self).__name__}", {}

    async def run_with_state(self, state):
        work = state.work("steps")
        for step in work.remaining(range(STEPS)):
            await asyncio.sleep(0)
            await work.done(step, sum=await state.get("sum", 0) + step)
        await self.at_the_end(state)
        yield TriggerEvent({"sum": await state.get("sum"), "resumed": state.resumed})
        await self.after_the_event(state)

    async def at_the_end(self, state):
        pass

    async def after_the_event(self, state):
        pass

    async def on_user_kill(self, state):
        killed.append(await state.get_all())


class Parks(Count):
    async def at_the_end(self, state):
        await state.flush()
        await state.checkpoint(recorded=1)
        await asyncio.sleep(3600)


class Fails(Count):
    async def at_the_end(self, state):
        raise ValueError("the author's own")


class GoesOn(Count):
    async def after_the_event(self, state):
        await state.checkpoint(fired=1)
        await asyncio.sleep(3600)


class IsReplaced(Count):
    """Somebody else opens its state; what it does then, subclasses say."""

    async def at_the_end(self, state):
        await state._pending._writer.store.acquire(state.scope, state.attempt)
        await self.notice(state)

    async def notice(self, state):
        await state.set("late", 1)


class IsReplacedUnknowing(IsReplaced):
    async def notice(self, state):
        pass


class IsReplacedAndFails(IsReplaced):
    async def notice(self, state):
        raise TimeoutError("a connection that died while the process was frozen")


class IsReplacedInAGroup(IsReplaced):
    async def notice(self, state):
        async with anyio.create_task_group() as group:
            group.start_soon(state.set, "late", 1)


class ByHand(CheckpointTrigger):
    def serialize(self):
        return f"{__name__}.ByHand", {}

    async def run(self):
        async with self.task_state() as state:
            await state.checkpoint(runs=await state.get("runs", 0) + 1)
            yield TriggerEvent(await state.get("runs"))

    async def run_with_state(self, state):
        yield


class TidiesUpByHand(ByHand):
    def serialize(self):
        return f"{__name__}.TidiesUpByHand", {}

    async def run(self):
        async for event in super().run():
            yield event
            await self._state.checkpoint(tidying=True)
            await asyncio.Event().wait()

    async def on_user_kill(self, state):
        await state.set("killed", True)


class IsCancelledAnew(Count):
    """Airflow cancels it again while it is being killed."""

    async def on_kill(self):
        self.driving = asyncio.current_task()
        await super().on_kill()

    async def on_user_kill(self, state):
        self.driving.cancel()
        await asyncio.wait([self.driving])
        await super().on_user_kill(state)


class Poll:
    """What has a `run` and is no trigger."""

    async def run(self):
        async with self.task_state() as state:
            yield TriggerEvent(1)
            await state.checkpoint(tidying=True)
            await asyncio.Event().wait()


class Inherits(Poll, TidiesUpByHand):
    def serialize(self):
        return f"{__name__}.Inherits", {}


class Iterator:
    """An asynchronous iterator that is no generator."""

    def __init__(self, payloads):
        self.payloads = iter(payloads)

    def __aiter__(self):
        return self

    async def __anext__(self):
        for payload in self.payloads:
            return TriggerEvent(payload)
        raise StopAsyncIteration


class Iterates(CheckpointTrigger):
    def serialize(self):
        return f"{__name__}.Iterates", {}

    def run(self):
        return Iterator([1, 2])

    async def run_with_state(self, state):
        yield


class HasNotFiredByHand(TidiesUpByHand):
    def serialize(self):
        return f"{__name__}.HasNotFiredByHand", {}

    async def run(self):
        async with self.task_state() as state:
            await state.checkpoint(tidying=True)
            await asyncio.Event().wait()
            yield


def at(count):
    return lambda state: state.work("steps").counts.done == count


@pytest.fixture(autouse=True)
def _nobody_killed():
    killed.clear()


async def test_g3_a_crash_loses_at_most_what_was_not_durable_and_never_a_part_of_a_step():
    trigger = Count()
    crashed = await run_trigger(trigger, stop="crash", when=at(7))
    done = crashed.work["steps"].done if crashed.work else 0
    assert crashed.events == []
    assert crashed.values.get("sum", 0) == sum(range(done))
    resumed = await run_trigger(trigger)
    assert (resumed.values, resumed.work["steps"].done) == ({"sum": SUM}, STEPS)


async def test_g1_a_crash_loses_nothing_that_was_flushed():
    crashed = await run_trigger(Parks(), stop="crash", when=lambda state: state.stats.recorded == STEPS + 1)
    assert (crashed.values, crashed.work["steps"].done) == ({"sum": SUM}, STEPS)


async def test_g6_a_shutdown_loses_nothing_and_does_not_call_the_kill_hook():
    trigger = Count()
    ended = await run_trigger(trigger, stop="shutdown", when=at(7))
    assert (ended.events, ended.values, ended.work["steps"].done) == ([], {"sum": 21}, 7)
    resumed = await run_trigger(trigger)
    assert [event.payload for event in resumed.events] == [{"sum": SUM, "resumed": True}]
    assert killed == []


async def test_g4_a_trigger_that_was_moved_to_nobody_yet_is_not_killed_by_a_user(monkeypatch):
    async def deferred(scope, *, patience):
        return "deferred"

    monkeypatch.setattr("async_task_state.triggers.checkpoint.state_in_airflow", deferred)
    monkeypatch.setattr("async_task_state.triggers.checkpoint.releases_moved_triggers", lambda: False)
    await run_trigger(Count(), stop="user_kill", when=at(7))
    assert killed == []


async def test_g4_silence_of_airflow_is_no_users_kill(monkeypatch):
    given = []

    async def silent(scope, *, patience):
        given.append(patience)

    monkeypatch.setattr("async_task_state.triggers.checkpoint.state_in_airflow", silent)
    monkeypatch.setattr("async_task_state.triggers.checkpoint.releases_moved_triggers", lambda: False)
    await run_trigger(Count(), stop="user_kill", when=at(7))
    assert killed == []
    # A triggerer's first request takes up to nine seconds.
    assert 20 <= given[0] < 30


@pytest.mark.parametrize(
    ("seconds", "on_clear", "asks"), [(None, None, 0), (30, None, 1), (600, None, 0), (None, "resume", 1)]
)
async def test_airflow_is_asked_only_where_a_kill_does_not_say_whose_it_is(
    monkeypatch, seconds, on_clear, asks
):
    asked = []

    async def failed(scope, *, patience):
        asked.append(scope)
        return "failed"

    monkeypatch.setattr("async_task_state.triggers.checkpoint.state_in_airflow", failed)
    monkeypatch.setattr("async_task_state.triggers.checkpoint.releases_moved_triggers", lambda: True)
    monkeypatch.setattr(Count, "on_clear", on_clear)
    if seconds is not None:
        over = datetime.now(timezone.utc) + timedelta(seconds=seconds)
        monkeypatch.setattr(Count, "timeout_after", over, raising=False)
    await run_trigger(Count(), stop="user_kill", when=at(7))
    assert (killed, len(asked)) == ([{"sum": 21}], asks)


async def test_a_triggerer_knows_whether_it_releases_moved_triggers():
    import airflow.jobs.triggerer_job_runner  # noqa: F401, PLC0415 - a triggerer has it

    later = tuple(map(int, airflow_version.split(".")[:2])) >= (3, 4)
    assert releases_moved_triggers() == later


async def test_g4_a_user_kill_calls_the_hook_with_the_state():
    await run_trigger(Count(), stop="user_kill", when=at(7))
    assert killed == [{"sum": 21}]


async def test_g4_a_hook_that_takes_longer_is_not_cut_short():
    await run_trigger(IsCancelledAnew(), stop="user_kill", when=at(7))
    with anyio.fail_after(30):
        while not killed:  # noqa: ASYNC110 - it is on its own
            await asyncio.sleep(0.001)
    assert killed == [{"sum": 21}]


async def test_g4_a_trigger_that_was_moved_ends_quietly_and_its_hook_is_not_called():
    moved = await run_trigger(Count(), stop="move", when=at(7))
    assert moved.events == []
    assert killed == []


@pytest.mark.parametrize(
    ("state", "seconds", "calls"), [("scheduled", 30, 0), ("scheduled", 600, 1), ("failed", 30, 1)]
)
async def test_the_hook_is_not_called_when_only_the_schedulers_clock_says_that_time_is_up(
    monkeypatch, state, seconds, calls
):
    async def says(scope, *, patience):
        return state

    monkeypatch.setattr("async_task_state.triggers.checkpoint.state_in_airflow", says)
    monkeypatch.setattr("async_task_state.triggers.checkpoint.releases_moved_triggers", lambda: False)
    over = datetime.now(timezone.utc) + timedelta(seconds=seconds)
    monkeypatch.setattr(Count, "timeout_after", over, raising=False)
    await run_trigger(Count(), stop="user_kill", when=at(3))
    assert len(killed) == calls


async def test_the_hook_is_not_called_once_an_event_has_resumed_the_task():
    run = await run_trigger(GoesOn(), stop="user_kill", when=lambda state: state.stats.recorded == STEPS + 1)
    assert len(run.events) == 1
    assert killed == []


@pytest.mark.parametrize(
    "replaced", [IsReplaced, IsReplacedUnknowing, IsReplacedAndFails, IsReplacedInAGroup]
)
async def test_g4_a_replaced_trigger_ends_as_cancelled_whatever_it_does_then(replaced):
    run = await run_trigger(replaced())
    assert run.events == []
    assert "late" not in run.values


async def test_g4_the_trigger_of_an_older_attempt_ends_as_cancelled():
    trigger = Count()
    await run_trigger(trigger, attempt=2)
    older = await run_trigger(trigger, attempt=1)
    assert older.events == []


async def test_a_trigger_of_a_run_that_was_made_again_starts_over():
    trigger = Count()
    await run_trigger(trigger, stop="shutdown", when=at(4), attempt=2)
    again = await run_trigger(trigger, run=2)
    assert (again.events[0].payload, again.recorded) == ({"sum": SUM, "resumed": False}, STEPS)


async def test_g4_the_trigger_of_a_deleted_run_ends_as_cancelled():
    trigger = Count()
    await run_trigger(trigger, run=2)
    late = await run_trigger(trigger, run=1, attempt=5)
    assert (late.events, late.recorded) == ([], 0)


async def test_g1_what_was_recorded_is_durable_before_an_event_leaves():
    running = Count()
    running.store = "memory:before-an-event"
    running.task_instance = Instance()
    run = running.run()
    await anext(run)
    store = running._state._pending._writer.store
    snapshot = await store.read(running._state.scope)
    assert snapshot.entries["sum"] == str(SUM)
    await run.aclose()


class Instance:
    dag_id, run_id, task_id, map_index, try_number = "d", "r", "t", 3, 2


async def test_a_trigger_takes_scope_and_attempt_from_its_task_instance():
    trigger = Count()
    trigger.store = "memory:"
    trigger.task_instance = Instance()
    async with trigger.task_state() as state:
        assert (state.scope, state.attempt) == (TaskScope("d", "r", "t", 3), 2)


async def test_the_authors_own_errors_are_raised():
    with pytest.raises(ValueError, match="the author's own"):
        await run_trigger(Fails())


async def test_a_trigger_that_writes_run_by_hand_resumes_too():
    trigger = ByHand()
    assert [(await run_trigger(trigger)).events[0].payload for _ in range(3)] == [1, 2, 3]


async def test_a_trigger_that_writes_run_by_hand_is_not_killed_by_a_user_when_it_has_fired():
    trigger = TidiesUpByHand()
    when = lambda state: "tidying" in state._pending.values  # noqa: E731 - one line
    run = await run_trigger(trigger, stop="user_kill", when=when)
    assert (len(run.events), run.values) == (1, {"runs": 1, "tidying": True})
    run = await run_trigger(Inherits(), stop="user_kill", when=when)
    assert (len(run.events), run.values) == (1, {"tidying": True})
    run = await run_trigger(HasNotFiredByHand(), stop="user_kill", when=when)
    assert (len(run.events), run.values) == (0, {"tidying": True, "killed": True})


async def test_a_run_by_hand_need_not_be_a_generator():
    trigger = Iterates()
    assert [event.payload async for event in trigger.run()] == [1, 2]
    assert trigger._fired


async def test_a_trigger_without_a_task_says_so(monkeypatch):
    monkeypatch.setattr(CheckpointTrigger, "_deferring", None)
    with pytest.raises(NoScopeError, match="no task instance"):
        await anext(Count().run())


async def test_run_trigger_refuses_what_it_does_not_know():
    with pytest.raises(InvalidArgumentError, match="'shutdown'"):
        await run_trigger(Count(), stop="explode")
    with pytest.raises(AssertionError, match="ended before"):
        await run_trigger(Count(), stop="crash", when=lambda _: False)
    with pytest.raises(TimeoutError, match="not ended within"):
        await run_trigger(GoesOn(), timeout=0.2)


class UsesAnAsset(Count):
    """Of which another holder has opened the state meanwhile."""

    async def at_the_end(self, state):
        async with asset_state("cursor", store="memory:cursors") as cursor:
            # In a context of its own, where it finds no state to join.
            await anyio.to_thread.run_sync(Context().run, move_on)
            await cursor.set("n", 1)


def move_on():
    with asset_state_sync("cursor", store="memory:cursors") as cursor:
        cursor.set("n", 2)


async def test_g4_a_trigger_is_not_replaced_when_another_state_that_it_uses_is():
    with pytest.raises(StaleWriterError, match="asset"):
        await run_trigger(UsesAnAsset())


class ProcessesWithAnAsset(Count):
    async def run_with_state(self, state):
        async def use_it(item):
            await UsesAnAsset().at_the_end(state)

        summary = await state.work("items").process(["a", "b"], use_it, on_error="collect", concurrency=1)
        yield TriggerEvent(summary.as_event())


async def test_an_item_that_uses_another_state_which_is_lost_has_failed_alone():
    [event] = (await run_trigger(ProcessesWithAnAsset())).events
    assert event.payload["failed"] == 2
