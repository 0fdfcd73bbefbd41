"""Whose state it is in a region of Airflow 3.4: an iteration of a loop, or an instance of a mapped task."""

from __future__ import annotations

from types import SimpleNamespace
from uuid import UUID

import pytest
from airflow.sdk.api.datamodels._generated import TaskInstance
from airflow.sdk.definitions.context import Context
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.context import set_current_context
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.triggers.base import TriggerEvent

from async_task_state import TaskScope, task_state
from async_task_state.instances import state_in_airflow
from async_task_state.testing import run_trigger
from async_task_state.triggers import CheckpointTrigger

INSTANCE = UUID("01990000-0000-7000-8000-000000000001")
REGION = UUID("01990000-0000-7000-8000-000000000002")
IDS = {"dag_id": "dag", "run_id": "run", "task_id": "task"}
LOOPED = {"map_index": -1, "region_id": REGION, "region_index": 2}
MAPPED = {"map_index": 2, "region_id": REGION, "region_index": 2}
TASK = SimpleNamespace(on_kill=None)
DAG_RUN = SimpleNamespace(start_date=None)

of_airflow_3_4 = pytest.mark.skipif(
    "region_index" not in TaskInstance.model_fields, reason="regions have come with Airflow 3.4"
)
pytestmark = pytest.mark.usefixtures("_settings_read_anew", "_airflow_imported")


class SaysWhere(CheckpointTrigger):
    def serialize(self):
        return f"{__name__}.SaysWhere", {}

    async def run_with_state(self, state):
        given = self.task_instance
        await state.set("mine", given.region_index)
        yield TriggerEvent([given.map_index, str(given.region_id), given.region_index])


def of_trigger(**where):
    from airflow.executors.workloads.task import TaskInstanceDTO  # noqa: PLC0415 - elsewhere in Airflow 3.1

    return TaskInstanceDTO(
        id=INSTANCE,
        dag_version_id=INSTANCE,
        try_number=1,
        pool_slots=1,
        queue="q",
        priority_weight=1,
        **IDS,
        **where,
    )


def of_worker(**where):
    made = RuntimeTaskInstance.model_construct(id=INSTANCE, try_number=1, max_tries=0, **IDS, **where)
    made.model_post_init(None)
    return made


@pytest.mark.parametrize("where", [LOOPED, MAPPED], ids=["looped", "mapped"])
def test_in_a_region_the_index_in_it_tells_task_instances_apart(where):
    assert TaskScope.from_airflow(SimpleNamespace(**IDS, **where)) == TaskScope(
        "dag", "run", "task", 2, REGION
    )


@of_airflow_3_4
@pytest.mark.parametrize(
    "where", [LOOPED, MAPPED, {"map_index": 2}, {}], ids=["looped", "mapped", "before", "plain"]
)
def test_worker_and_triggerer_and_airflows_accessor_name_the_same_scope(where):
    index, region = (2 if where else -1), where.get("region_id")
    scope = TaskScope("dag", "run", "task", index, region)
    worker = of_worker(**{"map_index": -1, "region_id": None, "region_index": None, **where})
    assert TaskScope.from_airflow(worker) == scope
    assert TaskScope.from_airflow(of_trigger(**where)) == scope


@of_airflow_3_4
@pytest.mark.parametrize("where", [LOOPED, MAPPED], ids=["looped", "mapped"])
def test_airflows_own_scope_is_the_same(where):
    from airflow.sdk.state import TaskScope as WorkerScope  # noqa: PLC0415 - takes a second
    from airflow.state import TaskScope as ServerScope  # noqa: PLC0415 - of Airflow 3.3

    for kind in (WorkerScope, ServerScope):
        theirs = kind(**IDS, map_index=where["region_index"], region_id=where["region_id"])
        assert TaskScope.from_airflow(theirs) == TaskScope("dag", "run", "task", 2, REGION)


@of_airflow_3_4
@pytest.mark.asyncio
async def test_g2_each_iteration_of_a_loop_has_a_state_of_its_own(dsn):
    for index in range(3):
        task_instance = of_worker(map_index=-1, region_id=REGION, region_index=index)
        with set_current_context(Context(ti=task_instance, dag_run=DAG_RUN, task=TASK)):
            async with task_state(store=dsn) as state:
                assert not state.resumed
                await state.set("mine", index)


@pytest.mark.asyncio
@pytest.mark.parametrize("stop", [None, "move", "clear", "crash"])
async def test_run_trigger_makes_the_task_instance_of_an_iteration(stop):
    trigger = SaysWhere()
    scope = TaskScope("dag", "run", "task", 2, REGION)
    if stop is not None:
        await run_trigger(trigger, stop=stop, scope=scope)
    run = await run_trigger(trigger, scope=scope, attempt=2)
    assert [event.payload for event in run.events] == [[-1, str(REGION), 2]]
    assert run.values == {"mine": 2}
    other = await run_trigger(trigger, scope=TaskScope("dag", "run", "task", 1, REGION))
    assert other.values == {"mine": 1}


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ({"run": {"task": "deferred"}}, "deferred"),
        ({"run": {"task_0": "failed", "task_2": "running"}}, "running"),
        ({"run": {"task": None}}, "none"),
        ({"run": {"task_0": "failed"}}, "removed"),
        ({}, "removed"),
    ],
)
async def test_in_a_region_airflow_is_asked_for_the_task_without_an_index(monkeypatch, answer, state):
    asked = []

    async def asend(question):
        asked.append(question)
        return SimpleNamespace(task_states=answer)

    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", SimpleNamespace(asend=asend), raising=False)
    assert await state_in_airflow(TaskScope("dag", "run", "task", 2, REGION), patience=1.0) == state
    [question] = asked
    assert (question.dag_id, question.run_ids, question.task_ids) == ("dag", ["run"], ["task"])
    assert question.map_index is None
