"""A state is opened for writing by a task or a trigger; elsewhere, as while a DAG file is parsed, only where a store is named."""

from __future__ import annotations

from contextlib import nullcontext
from types import ModuleType

import pytest
from airflow.sdk.execution_time import task_runner

from async_task_state import (
    OutsideTaskError,
    TaskScope,
    asset_state,
    asset_state_sync,
    task_state,
    task_state_sync,
)
from async_task_state.settings import load_settings

try:
    from airflow.dag_processing.dagbag import DagBag
except ImportError:
    from airflow.models.dagbag import DagBag

pytestmark = pytest.mark.anyio

SCOPE = TaskScope("dag", "run", "task")
OPENERS = [lambda **options: task_state(SCOPE, **options), lambda **options: asset_state("orders", **options)]
NAMES = ["task", "asset"]


@pytest.fixture(autouse=True)
def dsn(tmp_path, monkeypatch, _settings_read_anew):
    dsn = f"sqlite:///{tmp_path}/state.db"
    monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__DSN", dsn)
    load_settings.cache_clear()
    return dsn


async def epoch_of(opener, dsn):
    async with opener(store=dsn) as state:
        return state._pending.lease.epoch


@pytest.mark.parametrize("opener", OPENERS, ids=NAMES)
async def test_g8_outside_a_task_no_lease_is_taken(opener, dsn):
    with pytest.raises(OutsideTaskError, match=r"read_only=True.*store='"):
        async with opener():
            pass
    assert await epoch_of(opener, dsn) == 1


@pytest.mark.parametrize("opener", OPENERS, ids=NAMES)
async def test_outside_a_task_it_is_read_or_its_store_is_named(opener, dsn):
    async with opener(store=dsn) as state:
        await state.set("n", 1)
    async with opener(read_only=True) as state:
        assert await state.get("n") == 1


@pytest.mark.parametrize("opener", OPENERS, ids=NAMES)
async def test_memory_is_nobody_elses(opener, tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__DSN", f"memory:{tmp_path}")
    load_settings.cache_clear()
    async with opener() as state:
        await state.set("n", 1)


@pytest.mark.parametrize("opener", OPENERS, ids=NAMES)
async def test_within_a_state_that_is_open_others_are_opened(opener, dsn):
    async with task_state(TaskScope("dag", "run", "outer"), store=dsn), opener() as state:
        await state.set("n", 1)


@pytest.mark.parametrize("named", [{"read_only": True}, {"store": "memory:other"}], ids=str)
@pytest.mark.parametrize("opener", OPENERS, ids=NAMES)
async def test_g8_within_one_that_is_read_or_kept_elsewhere_no_lease_is_taken(opener, named, dsn):
    async with opener(**named):
        with pytest.raises(OutsideTaskError):
            async with opener():
                pass
    assert await epoch_of(opener, dsn) == 1


@pytest.mark.parametrize("opener", OPENERS, ids=NAMES)
async def test_a_running_task_opens_every_state(opener, in_task):
    with in_task(SCOPE):
        async with opener() as state:
            await state.set("n", 1)


@pytest.mark.parametrize("opener", OPENERS, ids=NAMES)
async def test_a_trigger_opens_every_state(opener, monkeypatch):
    comms = type("TriggerCommsDecoder", (), {})()
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", comms, raising=False)
    async with opener() as state:
        await state.set("n", 1)


@pytest.mark.parametrize("opener", OPENERS, ids=NAMES)
async def test_a_callback_opens_every_state(opener):
    runner = ModuleType("airflow.sdk.execution_time.task_runner")
    exec("async def finalize(opener):\n    async with opener() as state:\n        pass", runner.__dict__)
    await runner.finalize(opener)


@pytest.mark.parametrize("within", ["nothing", "a task"])
@pytest.mark.parametrize("made", ["asset_state_sync('orders')", "task_state_sync(SCOPE)"])
def test_g8_a_dag_file_that_is_parsed_takes_no_lease(made, within, tmp_path, dsn, in_task):
    (tmp_path / "its_dag.py").write_text(
        "from async_task_state import TaskScope, asset_state_sync, task_state_sync\n"
        "SCOPE = TaskScope('dag', 'run', 'task')\n"
        f"with {made} as state:\n    state.set('n', 1)\n"
        "from airflow.sdk import DAG\n"
    )
    with nullcontext() if within == "nothing" else in_task(SCOPE):
        bag = DagBag(dag_folder=tmp_path / "its_dag.py", load_op_links=False)
    [error] = bag.import_errors.values()
    assert "OutsideTaskError" in error
    assert "while a DAG file is parsed" in error
    for opener in (asset_state_sync("orders", store=dsn), task_state_sync(SCOPE, store=dsn)):
        with opener as state:
            assert state._handle._pending.lease.epoch == 1
