"""CheckpointTrigger while it is cancelled again and again, as the triggerer does every second, until it has ended."""

from __future__ import annotations

import asyncio

import pytest
from airflow.triggers.base import TriggerEvent
from faulty import FaultyStore, until

from async_task_state.triggers import CheckpointTrigger

pytestmark = pytest.mark.asyncio

STEPS = 10
NEVER = 3600.0


class Instance:
    dag_id, run_id, task_id, map_index, try_number = "d", "r", "t", -1, 1


class Steps(CheckpointTrigger):
    """Takes ten steps, and parks or fires."""

    max_delay = NEVER
    parks = True

    def serialize(self):
        return f"{__name__}.Steps", {}

    async def run_with_state(self, state):
        work = state.work("steps")
        for step in range(STEPS):
            await work.done(step, steps=step + 1)
        if self.parks:
            await asyncio.sleep(NEVER)
        yield TriggerEvent("fired")
        await state.checkpoint(after=True)
        await asyncio.sleep(NEVER)

    async def on_user_kill(self, state):
        await state.checkpoint(killed=True)


@pytest.fixture
def store():
    store = FaultyStore()
    yield store
    store.mend()


@pytest.fixture
def trigger(store):
    trigger = Steps()
    trigger.store = store
    trigger.task_instance = Instance()
    return trigger


async def drive(trigger):
    async for _ in trigger.run():
        pass


async def cancel_until_done(task):
    while not task.done():
        task.cancel("__airflow_user_action__")
        await asyncio.sleep(0)


@pytest.mark.parametrize("parks", [True, False], ids=["while it waits", "after an event"])
async def test_g6_cancelled_again_and_again_a_trigger_loses_nothing(trigger, store, parks):
    trigger.parks = parks
    task = asyncio.create_task(drive(trigger))
    recorded = STEPS if parks else STEPS + 1
    await until(lambda: trigger._state is not None and trigger._state.stats.recorded == recorded)
    store.hanging = True
    cancelling = asyncio.create_task(cancel_until_done(task))
    await until(lambda: store.calls_waiting)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    store.mend()
    await cancelling
    with pytest.raises(asyncio.CancelledError) as error:
        await task
    assert error.value.args == ("__airflow_user_action__",)
    saved = store.saved(trigger._state.scope)
    assert saved["steps"] == STEPS
    assert ("after" in saved) == (not parks)


async def test_g6_what_a_kill_hook_records_is_saved_though_it_is_cancelled(trigger, store):
    task = asyncio.create_task(drive(trigger))
    await until(lambda: trigger._state is not None and trigger._state.stats.recorded == STEPS)
    task.cancel()
    await asyncio.wait([task])
    killing = asyncio.create_task(trigger.on_kill())
    await until(lambda: trigger._killing is not None)
    await cancel_until_done(killing)
    await until(trigger._killing.done)
    assert store.saved(trigger._state.scope)["killed"] is True
