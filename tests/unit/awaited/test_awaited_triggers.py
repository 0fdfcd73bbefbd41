"""A deferrable trigger whose state is in Airflow's own store, in an Airflow that lets triggers reach it.

None does yet. What it is to be is taken from the change that is proposed: every trigger has `task_state_store`, which is
None until the triggerer sets it to the accessor that a task has. Accessor and messages here are those of Airflow 3.4.
"""

from __future__ import annotations

from types import SimpleNamespace
from uuid import UUID

import pytest
from airflow.sdk.definitions.context import Context
from airflow.sdk.execution_time import comms, context, task_runner
from airflow.sdk.execution_time.context import set_current_context
from airflow.triggers.base import BaseTrigger, TriggerEvent

from async_task_state import SettingsError
from async_task_state.compat import asks_at_clear
from async_task_state.triggers import CheckpointTrigger

TaskScope = pytest.importorskip("airflow.sdk.state", reason="Airflow has a store since 3.3").TaskScope
if not asks_at_clear():
    pytest.skip("Airflow's accessors can be awaited since 3.4", allow_module_level=True)

INSTANCE = UUID("01234567-89ab-7def-8123-456789abcdef")
DSN = "airflow:"


class Pages(CheckpointTrigger):
    """Turns pages."""

    store = DSN

    def serialize(self):
        return f"{__name__}.Pages", {}

    async def run_with_state(self, state):
        for page in range(await state.get("page", 0), 5):
            await state.checkpoint(page=page + 1)
            if page == 2 and not state.resumed:
                await state.flush()
                raise RuntimeError("the triggerer dies")
        yield TriggerEvent({"page": await state.get("page"), "resumed": state.resumed})


class Supervisor:
    """Answers what it knows, and nothing else."""

    def __init__(self):
        self.values = {}

    def send(self, msg):
        assert msg.ti_id == INSTANCE
        match msg:
            case comms.GetTaskStateStore():
                if msg.key in self.values:
                    return comms.TaskStateStoreResult(value=self.values[msg.key])
                return comms.ErrorResponse(error=comms.ErrorType.TASK_STORE_NOT_FOUND)
            case comms.SetTaskStateStore():
                self.values[msg.key] = msg.value
            case comms.DeleteTaskStateStore():
                self.values.pop(msg.key, None)
            case comms.ClearTaskStateStore():
                self.values.clear()
            case _:
                raise AssertionError(msg)
        return comms.OKResponse(ok=True)

    async def asend(self, msg):
        return self.send(msg)


@pytest.fixture
def supervisor(monkeypatch):
    supervisor = Supervisor()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", supervisor, raising=False)
    return supervisor


@pytest.fixture
def _reaches_triggers(monkeypatch):
    init = BaseTrigger.__init__

    def init_with_store(self, **kwargs):
        init(self, **kwargs)
        self.task_state_store = None

    monkeypatch.setattr(BaseTrigger, "__init__", init_with_store)


def task():
    return SimpleNamespace(
        id=INSTANCE, dag_id="dag", run_id="run", task_id="task", map_index=-1, try_number=1, max_tries=0
    )


def accessor():
    return context.TaskStateStoreAccessor(INSTANCE, TaskScope("dag", "run", "task"))


def defer():
    """What a task's process does, without an event loop."""
    on = Context(ti=task(), task=SimpleNamespace(on_kill=None), task_state_store=accessor())
    with set_current_context(on):
        pages = Pages()
    # Airflow has the task run no more by then.
    pages.serialize()


async def trigger():
    """What a triggerer does."""
    pages = Pages()
    pages.task_instance = task()
    pages.task_state_store = accessor()
    return [event.payload async for event in pages.run()]


@pytest.mark.usefixtures("_reaches_triggers")
def test_g2_a_trigger_resumes_from_airflows_store(supervisor):
    import asyncio  # noqa: PLC0415 - the only loop of a triggerer

    defer()
    assert "__ats:index" in supervisor.values
    with pytest.raises(RuntimeError, match="the triggerer dies"):
        asyncio.run(trigger())
    assert supervisor.values["page"] == 3
    assert asyncio.run(trigger()) == [{"page": 5, "resumed": True}]
    assert supervisor.values["page"] == 5


def test_g8_a_worker_says_at_once_that_triggers_cannot_reach_it(supervisor):
    with pytest.raises(SettingsError, match="does not let triggers reach the task store"):
        defer()
    assert supervisor.values == {}
