"""Who may open a state in a real Airflow: tasks, their callbacks and triggers of any class, and no DAG file that is parsed."""

from __future__ import annotations

import pytest

from async_task_state import asset_state

pytestmark = pytest.mark.timeout(240)

PARSED = """
from airflow.sdk import DAG
from async_task_state import asset_state_sync

with asset_state_sync("parsed") as state:
    state.set("n", 2)

DAG("whereabouts_parsed", schedule=None)
"""

TRIGGER = """
from airflow.triggers.base import BaseTrigger, TriggerEvent
from async_task_state import asset_state

class Plain(BaseTrigger):
    def serialize(self):
        return "whereabouts_trigger.Plain", {}

    async def run(self):
        async with asset_state("watched") as state:
            await state.set("by", "trigger")
        yield TriggerEvent("fired")
"""

OPENED = """
from airflow.sdk import DAG, BaseOperator
from async_task_state import TaskScope, asset_state_sync
from whereabouts_trigger import Plain

def note(context):
    with asset_state_sync("called_back") as state:
        state.set("by", context["ti"].task_id)

class Defers(BaseOperator):
    def execute(self, context):
        self.defer(trigger=Plain(), method_name="end")

    def end(self, context, event):
        raise RuntimeError(event)

with DAG("whereabouts", schedule=None):
    Defers(task_id="defers", on_failure_callback=note)
"""


@pytest.mark.asyncio
async def test_g8_a_dag_file_that_is_parsed_takes_no_lease(airflow):
    file = airflow.dags / "whereabouts_parsed.py"

    def refused():
        errors = airflow.rest("GET", "/importErrors")["import_errors"]
        return any("OutsideTaskError" in each["stack_trace"] for each in errors)

    async with asset_state("parsed", store=airflow.dsn) as state:
        await state.set("n", 1)
        file.write_text(PARSED)
        try:
            airflow.wait(refused, "the DAG file is not refused", 120)
        finally:
            file.write_text("")
            airflow.wait(lambda: not refused(), "the mended DAG file is still refused", 120)
        assert await state.is_current()
    async with asset_state("parsed", store=airflow.dsn) as state:
        assert await state.get("n") == 1


@pytest.mark.asyncio
async def test_triggers_and_callbacks_open_what_they_want(airflow):
    (airflow.dags / "whereabouts_trigger.py").write_text(TRIGGER)
    (airflow.dags / "whereabouts.py").write_text(OPENED)
    run = airflow.trigger("whereabouts")
    airflow.wait_for_run("whereabouts", run, state="failed")
    for asset, by in (("watched", "trigger"), ("called_back", "defers")):
        async with asset_state(asset, store=airflow.dsn, read_only=True) as state:
            assert await state.get("by") == by, airflow.task_log("whereabouts", run)
