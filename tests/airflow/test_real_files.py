"""ProcessFilesOperator in a real Airflow, on the worker and in the triggerer."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from journal import Journal

FILES = 400

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def folder(tmp_path):
    for number in range(FILES):
        (tmp_path / f"{number:04}.txt").write_text("x" * number)
    return tmp_path


@pytest.fixture
def journal(airflow, folder):
    """The processors of all tests write to one file: this reads what is of this test's folder."""

    class Mine(Journal):
        @property
        def lines(self):
            return [line for line in super().lines if Path(line["file"]).parent == folder]

    return Mine(airflow.home / "files.journal")


def everything(folder):
    return {str(path) for path in folder.iterdir()}


def check_result(result, done_at_most):
    assert result["status"] == "success"
    assert result["done"] + result["skipped"] == FILES
    assert 0 < result["done"] <= done_at_most
    assert result["failed"] == 0
    assert result["failures"] == []
    assert result["totals"] == {"files": FILES, "bytes": sum(range(FILES))}


def test_g3_a_killed_worker_goes_on_with_the_files_that_are_left(airflow, folder, journal):
    run = airflow.trigger("files_here", {"source": str(folder)})
    journal.wait_for("file", FILES // 2)
    os.kill(airflow.task_pid("files_here", run, "files"), signal.SIGKILL)
    killed_at = time.time()
    airflow.wait_for_run("files_here", run)
    repeated = journal.check_rework("file", everything(folder), killed_at)
    check_result(airflow.result("files_here", run, "files"), FILES // 2 + repeated + 16)


def test_g3_a_killed_triggerer_goes_on_with_the_files_that_are_left(airflow, folder, journal):
    run = airflow.trigger("files_deferred", {"source": f"{folder}/*.txt"})
    journal.wait_for("file", FILES // 4)
    [triggerer] = airflow.triggerers
    triggerer.kill()
    killed_at = time.time()
    airflow.start_triggerer()
    airflow.wait_for_run("files_deferred", run)
    repeated = journal.check_rework("file", everything(folder), killed_at)
    check_result(airflow.result("files_deferred", run, "files"), FILES - FILES // 4 + repeated + 16)


@pytest.mark.parametrize("dag_id", ["files_here", "files_deferred"])
def test_a_source_without_files_succeeds_with_zero_and_says_so(airflow, tmp_path, dag_id):
    run = airflow.trigger(dag_id, {"source": str(tmp_path / "nowhere")})
    airflow.wait_for_run(dag_id, run)
    assert airflow.result(dag_id, run, "files")["done"] == 0
    assert "there is no file in" in airflow.task_log(dag_id, run, "files")


def test_what_mapped_tasks_return_is_a_source(airflow, folder):
    run = airflow.trigger("files_of_mapped_tasks", {"folder": str(folder)})
    airflow.wait_for_run("files_of_mapped_tasks", run)
    for task_id in ("here", "deferred"):
        result = airflow.result("files_of_mapped_tasks", run, task_id)
        assert (result["done"], result["totals"]) == (3, {"files": 3, "bytes": 6})
