"""Whether a loop of Airflow 3.4 makes another iteration, as its database says."""

from __future__ import annotations

from contextlib import contextmanager
from uuid import UUID, uuid4

import pytest
from airflow.models.taskinstance import TaskInstance
from sqlalchemy import Column, MetaData, Table, create_engine
from sqlalchemy.orm import Session

from async_task_state import TaskScope
from async_task_state.instances import OVER
from async_task_state.metadata import loop_goes_on

if not hasattr(TaskInstance, "region_id"):
    pytest.skip("Airflow has loops since 3.4", allow_module_level=True)

NOWHERE = UUID(int=0)
LOOP = uuid4()
GATE = "LoopGateOperator"


@pytest.fixture
def airflow_has(monkeypatch):
    """Makes a row of Airflow's table of task instances."""
    engine = create_engine("sqlite://")
    columns = [Column(column.name, column.type) for column in TaskInstance.__table__.columns]
    rows = Table("task_instance", MetaData(), *columns)
    rows.create(engine)

    @contextmanager
    def create_session():
        with Session(engine) as session:
            yield session

    monkeypatch.setattr("airflow.utils.session.create_session", create_session)

    def has(task_id, state, *, index=0, region=LOOP, operator="", run_id="run", current=True):
        with engine.begin() as connection:
            values = {"dag_id": "dag", "run_id": run_id, "task_id": task_id, "operator": operator}
            values |= {"region_id": region, "region_index": index, "working_set": current or None}
            connection.execute(rows.insert().values(id=uuid4(), state=state, **values))

    return has


def goes_on(task_id):
    return loop_goes_on(TaskScope("dag", "run", task_id), OVER)


@pytest.mark.parametrize("state", [None, "running", "up_for_retry"])
def test_a_loop_goes_on_until_its_last_gate_has_ended(airflow_has, state):
    airflow_has("work", "success")
    airflow_has("gate", "success", operator=GATE)
    airflow_has("gate", state, index=1, operator=GATE)
    assert goes_on("work")


def test_a_loop_whose_gates_have_ended_is_over(airflow_has):
    airflow_has("work", "success")
    airflow_has("gate", "success", operator=GATE)
    # An earlier attempt, and what is no gate, or of another run.
    airflow_has("gate", "running", operator=GATE, current=False)
    airflow_has("work", "running", index=1)
    airflow_has("gate", "running", operator=GATE, run_id="another")
    assert not goes_on("work")


def test_a_task_beside_a_loop_does_not_wait_for_it(airflow_has):
    airflow_has("plain", "success", index=-1, region=NOWHERE)
    airflow_has("gate", "running", operator=GATE)
    assert not goes_on("plain")
