"""A retry resumes, a clear starts over, and what succeeded is cleaned up, in a real Airflow."""

from __future__ import annotations

import pytest
from journal import Journal

from async_task_state import Settings, TaskScope, TaskState

STEPS = 20

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal")


def clear(airflow, dag_id, run):
    """What a user's click on "clear" does."""
    airflow.rest(
        "POST",
        f"/dags/{dag_id}/clearTaskInstances",
        {"dry_run": False, "dag_run_id": run, "task_ids": ["steps"], "only_failed": False},
    )


def steps_of(journal):
    return [line["step"] for line in journal.having("step")]


@pytest.mark.parametrize("dag_id", ["lifecycle_async", "lifecycle_deferred"])
def test_a_retry_resumes_and_a_clear_starts_over(airflow, journal, dag_id):
    run = airflow.trigger(dag_id, {"journal": str(journal.path), "steps": STEPS})
    airflow.wait_for_run(dag_id, run)
    assert steps_of(journal) == list(range(STEPS))
    assert [line["resumed"] for line in journal.having("begun")] == [False, True]
    clear(airflow, dag_id, run)
    airflow.wait(lambda: len(steps_of(journal)) >= 2 * STEPS, "the task has not started over")
    airflow.wait_for_run(dag_id, run)
    assert steps_of(journal) == 2 * list(range(STEPS))
    assert [line["resumed"] for line in journal.having("begun")] == [False, True, False]


@pytest.mark.parametrize("dag_id", ["lifecycle_async", "lifecycle_deferred"])
def test_a_cleared_task_goes_on_where_it_is_told_to(airflow, journal, dag_id):
    run = airflow.trigger(dag_id, {"journal": str(journal.path), "steps": STEPS, "on_clear": "resume"})
    airflow.wait_for_run(dag_id, run)
    clear(airflow, dag_id, run)
    airflow.wait(lambda: len(journal.having("begun")) == 3, "the task has not begun again")
    airflow.wait_for_run(dag_id, run)
    assert steps_of(journal) == list(range(STEPS))
    assert [line["resumed"] for line in journal.having("begun")] == [False, True, True]


@pytest.mark.asyncio
async def test_what_succeeded_is_cleaned_up_where_that_is_wanted(airflow):
    run = airflow.trigger("lifecycle_success", {})
    airflow.wait_for_run("lifecycle_success", run, state="failed")
    settings = Settings(dsn=airflow.dsn)
    left = {}
    for task_id in ("succeeds", "fails"):
        scope = TaskScope("lifecycle_success", run, task_id)
        async with TaskState(scope, store=airflow.dsn, settings=settings, read_only=True) as state:
            left[task_id] = await state.get_all(), state.work("files").counts.done
    assert left == {"succeeds": ({}, 0), "fails": ({"n": 1}, 0)}
