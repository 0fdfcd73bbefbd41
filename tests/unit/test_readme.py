"""Every Python example in the README, run; the ones that need an Airflow task are run in tests/airflow."""

from __future__ import annotations

import ast
import asyncio
import builtins
import re
import sys
from types import ModuleType

import pytest
from airflow.sdk.exceptions import TaskDeferred
from airflow.triggers.base import TriggerEvent
from databricks import DatabricksHook
from readme import BLOCKS, block

from async_task_state import TaskScope, task_state
from async_task_state.testing import run_trigger

PROVIDER = "airflow.providers.databricks.hooks.databricks"

YOURS = """
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
    exec(YOURS + block("class WaitForPages"), module.__dict__)
    exec(block("test_resumes"), module.__dict__)
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


def test_the_triggers_operator_defers_to_it(my_triggers):
    operator = my_triggers.PagesOperator(task_id="pages")
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute({})
    assert deferred.value.trigger.serialize() == ("my_triggers.WaitForPages", {"pages": 10})
    assert getattr(operator, deferred.value.method_name)({}, {"pages": 10}) == 10


def test_the_operator():
    assert names_of(block("ProcessFilesOperator("))["load_orders"].deferrable


def test_the_remote_job():
    assert names_of(block("job_service.submit"))["train"].deferrable


@pytest.mark.asyncio
async def test_the_providers_hook(monkeypatch):
    module, provider = ModuleType("my_jobs"), ModuleType(PROVIDER)
    provider.DatabricksHook = DatabricksHook
    monkeypatch.setitem(sys.modules, PROVIDER, provider)
    monkeypatch.setitem(sys.modules, "my_jobs", module)
    exec(block("class NotebookRuns"), module.__dict__)
    operator = names_of(block("my_jobs.NotebookRuns"))["notebook"]
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute({})
    trigger = deferred.value.trigger
    monkeypatch.setattr("async_task_state.jobs.uniform", lambda low, high: 0.001)
    [event] = (await run_trigger(trigger)).events
    assert event.payload["result"]["notebook_output"]["result"] == "the output of /train"
    assert (event.payload["status"], DatabricksHook.entered) == ("success", 0)


def test_the_files_that_arrive():
    [watcher] = names_of(block("AssetWatcher("))["arrivals"].watchers
    assert watcher.trigger.serialize()[1]["source"] == "/var/arrivals/*.csv"


def test_outside_airflow():
    async def read():
        async with task_state(TaskScope("dag", "run", "task"), store="memory:") as state:
            return await state.get_all()

    names_of(block("store="))
    assert asyncio.run(read()) == {"job_id": "j-17", "polls": 1}


def test_a_task_is_made_to_resume_in_twenty_lines():
    assert len((block("rows = 0") + block("files.remaining")).splitlines()) <= 20


def test_no_example_is_left_out():
    assert len(BLOCKS) == 13


@pytest.mark.parametrize("code", [code for code in BLOCKS if "rows = 0" not in code])
def test_each_example_says_where_it_goes_and_imports_what_is_not_yours(code):
    first, *_ = code.splitlines()
    assert re.match(r"# ((dags|plugins|tests)/\w+\.py|any script)", first)
    yours = set(re.findall(r"(\w+)\(\)", first))
    nodes = list(ast.walk(ast.parse(code)))
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    known = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    known |= {alias.name for node in nodes for alias in getattr(node, "names", [])}
    known |= {getattr(node, "name", None) or getattr(node, "arg", None) for node in nodes}
    assert used - known - yours - set(dir(builtins)) == set()


def names_of(code):
    names = {}
    exec(code, names)
    return names
