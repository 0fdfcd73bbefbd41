"""A run that is deleted and made again under the same id starts over, in a real Airflow; a retry and a clear are no such."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from journal import Journal

STEPS = 20
FILES = 40
RUN = "made_again"

pytestmark = pytest.mark.timeout(280)


@pytest.fixture
def make(airflow):
    """Makes the run, and waits until it has ended."""

    def heard_of(dag_id, task_id):
        """How often the scheduler has heard from its executor that a task of the run has ended well."""
        said = rf"TaskInstance Finished: dag_id={dag_id}, task_id={task_id}, run_id={RUN}, .* state=success, "
        return len(re.findall(said, (airflow.home / "scheduler.log").read_text()))

    def make(dag_id, conf, tasks):
        airflow.wait_for_dag(dag_id)
        before = {task_id: heard_of(dag_id, task_id) for task_id in tasks}
        body = {"dag_run_id": RUN, "logical_date": None, "conf": conf}
        airflow.rest("POST", f"/dags/{dag_id}/dagRuns", body)
        airflow.wait_for_run(dag_id, RUN)
        # Or it would take that for the end of the attempt of the same number in the next run, and give that up.
        for task_id, count in before.items():
            airflow.wait(lambda: heard_of(dag_id, task_id) > count, "the scheduler has not heard of the end")  # noqa: B023

    return make


@pytest.fixture
def delete(airflow):
    """Deletes the run, or the DAG with all that Airflow has of it."""

    def delete(dag_id, what):
        if what == "run":
            airflow.rest("DELETE", f"/dags/{dag_id}/dagRuns/{RUN}")
        else:
            airflow.rest("DELETE", f"/dags/{dag_id}")
            # What has changed is parsed again at once.
            (airflow.dags / "runs_dags.py").touch()

    return delete


def starts_over(airflow, dag_id):
    return airflow.task_log(dag_id, RUN, "steps").count("starts over: its run was deleted and made again")


def test_an_async_task_of_a_run_that_was_made_again_starts_over(airflow, make, delete, tmp_path):
    journal = Journal(tmp_path / "journal")
    (tmp_path / "go").touch()
    conf = {"journal": str(journal.path), "steps": STEPS, "go": str(tmp_path / "go")}
    make("runs_async", conf, ["steps", "holds"])
    for times, what in ((2, "run"), (3, "dag")):
        # What it has left is of its second attempt.
        delete("runs_async", what)
        make("runs_async", conf, ["steps", "holds"])
        assert Counter(line["step"] for line in journal.having("step")) == dict.fromkeys(range(STEPS), times)
        begun = [(line["begun"], line["resumed"], line["cleared"]) for line in journal.having("begun")]
        assert begun == times * [(1, False, False), (2, True, False)]
        assert starts_over(airflow, "runs_async") == times - 1


def test_a_trigger_of_a_run_that_was_made_again_starts_over(airflow, make, delete, tmp_path):
    for number in range(FILES):
        (tmp_path / f"{number}.txt").touch()
    journal = Journal(airflow.home / "files.journal")

    def done():
        files = [Path(line["file"]) for line in journal.having("file")]
        return Counter(file.name for file in files if file.parent == tmp_path)

    make("runs_deferred", {"source": str(tmp_path)}, ["steps"])
    for times, what in ((2, "run"), (3, "dag")):
        delete("runs_deferred", what)
        make("runs_deferred", {"source": str(tmp_path)}, ["steps"])
        assert done() == {f"{number}.txt": times for number in range(FILES)}
        result = airflow.result("runs_deferred", RUN, "steps")
        assert (result["done"], result["skipped"]) == (FILES, 0)
        assert starts_over(airflow, "runs_deferred") == times - 1


@pytest.mark.parametrize("on_clear", ["restart", "resume"])
def test_a_clear_while_the_run_goes_on_is_no_other_run(airflow, tmp_path, on_clear):
    journal = Journal(tmp_path / "journal")
    conf = {"journal": str(journal.path), "steps": STEPS, "go": str(tmp_path / "go"), "on_clear": on_clear}
    run = airflow.trigger("runs_async", conf)
    airflow.wait_for_task("runs_async", run, "holds", state="running")
    clear = {"dry_run": False, "dag_run_id": run, "task_ids": ["steps"], "only_failed": False}
    airflow.rest("POST", "/dags/runs_async/clearTaskInstances", clear)
    journal.wait_for("begun", 3)
    (tmp_path / "go").touch()
    airflow.wait_for_run("runs_async", run)
    assert len(journal.having("step")) == (2 * STEPS if on_clear == "restart" else STEPS)
    begun = [(line["resumed"], line["cleared"]) for line in journal.having("begun")]
    assert begun == [(False, False), (True, False), (on_clear == "resume", True)]
