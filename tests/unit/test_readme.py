"""Every Python example in the README, run; the ones that need an Airflow task are run in tests/airflow."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from airflow.sdk import Asset, AssetWatcher
from airflow.sdk.exceptions import TaskDeferred
from airflow.triggers.base import TriggerEvent
from databricks import DatabricksHook
from readme import BLOCKS, block

from async_task_state import TaskScope, task_state
from async_task_state.operators import ProcessFilesOperator, RemoteJobOperator
from async_task_state.testing import run_trigger
from async_task_state.triggers import NewFilesTrigger

TRIGGER = """
from airflow.triggers.base import TriggerEvent
from async_task_state.testing import run_trigger
from async_task_state.triggers import CheckpointTrigger

fetched, cancelled = [], []

async def fetch(page):
    fetched.append(page)

async def cancel(page):
    cancelled.append(page)
"""


@pytest.fixture
def my_triggers(monkeypatch):
    """The module that the README's trigger says it is in, with the README's test of it."""
    module = ModuleType("my_triggers")
    monkeypatch.setitem(sys.modules, "my_triggers", module)
    exec("import asyncio" + TRIGGER + block("class WaitForPages") + block("test_resumes"), module.__dict__)
    return module


@pytest.mark.asyncio
async def test_the_trigger_resumes(my_triggers):
    await my_triggers.test_resumes()
    assert my_triggers.fetched == list(range(10))


@pytest.mark.asyncio
async def test_a_trigger_that_does_not_resume_is_found_out(my_triggers, monkeypatch):
    async def forgetful(self, state):
        for page in range(self.pages):
            await state.checkpoint(next=page + 1)
        yield TriggerEvent({})

    monkeypatch.setattr(my_triggers.WaitForPages, "run_with_state", forgetful)
    with pytest.raises(AssertionError, match=r"^$"):
        await my_triggers.test_resumes()


@pytest.mark.asyncio
async def test_the_triggers_kill_hook(my_triggers):
    await my_triggers.run_trigger(my_triggers.WaitForPages(10), stop="user_kill")
    assert my_triggers.cancelled == [len(my_triggers.fetched)]


def test_the_operator():
    operator = eval(block("ProcessFilesOperator("), {"ProcessFilesOperator": ProcessFilesOperator})
    assert operator.deferrable


def test_the_remote_job():
    operator = eval(block("job_service.submit"), {"RemoteJobOperator": RemoteJobOperator})
    assert operator.deferrable


@pytest.mark.asyncio
async def test_the_providers_hook(monkeypatch):
    module = ModuleType("my_jobs")
    monkeypatch.setitem(sys.modules, "my_jobs", module)
    hook, _, operator = block("DatabricksHook").partition("\n\n\n")
    exec(hook, module.__dict__ | {"DatabricksHook": DatabricksHook}, module.__dict__)
    operator = eval(operator.strip(), {"RemoteJobOperator": RemoteJobOperator})
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute({})
    trigger = deferred.value.trigger
    monkeypatch.setattr("async_task_state.jobs.uniform", lambda low, high: 0.001)
    [event] = (await run_trigger(trigger)).events
    assert event.payload["result"]["notebook_output"]["result"] == "the output of /train"
    assert (event.payload["status"], DatabricksHook.entered) == ("success", 0)


def test_the_files_that_arrive():
    names = {"Asset": Asset, "AssetWatcher": AssetWatcher, "NewFilesTrigger": NewFilesTrigger}
    exec(block("AssetWatcher("), names)
    [watcher] = names["arrivals"].watchers
    assert watcher.trigger.serialize()[1]["source"] == "/var/arrivals/*.csv"


@pytest.mark.asyncio
async def test_outside_airflow():
    code = "async def run():\n" + "".join(f"    {line}\n" for line in block("store=").splitlines())
    names = {"task_state": task_state, "TaskScope": TaskScope}
    exec(code, names)
    await names["run"]()
    async with task_state(TaskScope("dag", "run", "task"), store="memory:") as state:
        assert await state.get_all() == {"job_id": "j-17", "polls": 1}


def test_a_task_is_made_to_resume_in_twenty_lines():
    assert len((block("rows = 0") + block("files.remaining")).splitlines()) <= 20


def test_no_example_is_left_out():
    assert len(BLOCKS) == 12
