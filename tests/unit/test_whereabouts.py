"""A state is opened for writing by a task or a trigger; elsewhere, as while a DAG file is parsed, only where a store is named."""

from __future__ import annotations

import contextvars
import threading
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


def in_a_thread(made):
    """Opens a state in a plain thread; what that raised."""
    raised = []

    def opens():
        try:
            with made() as state:
                state.set("n", 1)
        except OutsideTaskError as error:
            raised.append(error)

    thread = threading.Thread(target=opens)
    thread.start()
    thread.join()
    return raised


SYNC_OPENERS = [lambda: task_state_sync(SCOPE), lambda: asset_state_sync("orders")]


@pytest.mark.parametrize("opener", SYNC_OPENERS, ids=NAMES)
def test_a_thread_of_a_task_opens_every_state(opener, in_task):
    with in_task(SCOPE):
        assert in_a_thread(opener) == []


@pytest.mark.parametrize("opener", SYNC_OPENERS, ids=NAMES)
def test_a_thread_of_a_callback_opens_every_state(opener):
    runner = ModuleType("airflow.sdk.execution_time.task_runner")
    exec("def finalize(callback, opener):\n    return callback(opener)", runner.__dict__)
    assert runner.finalize(in_a_thread, opener) == []


@pytest.mark.parametrize("opener", SYNC_OPENERS, ids=NAMES)
def test_g8_a_thread_that_a_dag_file_begins_while_it_is_parsed_takes_no_lease(opener):
    runner = ModuleType("airflow.sdk.execution_time.task_runner")
    exec("def parse(step, *args):\n    return step(*args)", runner.__dict__)
    bag = ModuleType("airflow.dag_processing.dagbag")
    exec("def load(step, *args):\n    return step(*args)", bag.__dict__)
    [error] = runner.parse(bag.load, in_a_thread, opener)
    assert isinstance(error, OutsideTaskError)


@pytest.mark.parametrize("opener", SYNC_OPENERS, ids=NAMES)
def test_g8_a_thread_outside_of_tasks_is_told_what_to_do(opener, dsn):
    [error] = in_a_thread(opener)
    assert isinstance(error, OutsideTaskError)
    assert f"({__file__}:" in str(error)
    assert "store='postgresql://...'" in str(error)
    with asset_state_sync("other", store=dsn):
        context = contextvars.copy_context()

        def opens():
            with opener() as state:
                opened.append(state.resumed)

        opened = []
        thread = threading.Thread(target=context.run, args=[opens])
        thread.start()
        thread.join()
        assert opened == [False]


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
    assert f"while a DAG file is parsed ({tmp_path}/its_dag.py:3), because" in error, (
        "Airflow shows no line of it"
    )
    for opener in (asset_state_sync("orders", store=dsn), task_state_sync(SCOPE, store=dsn)):
        with opener as state:
            assert state._handle._pending.lease.epoch == 1
