"""Files of any name and numbers of any size, in a real Airflow whose triggerer has other tasks' triggers as well."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from journal import Journal

HUGE = str(2**70)


@pytest.fixture
def other(airflow, tmp_path):
    """Another task's trigger, which is to be left alone: gives its journal."""
    journal, until = Journal(tmp_path / "journal"), tmp_path / "until"
    run = airflow.trigger("ticks", {"journal": str(journal.path), "until": str(until)})
    journal.wait_for("tick", 10)
    before = {pid for triggerer in airflow.triggerers for pid in triggerer.pids}
    yield
    journal.wait_for("tick", len(journal.having("tick")) + 10)
    # In the very same processes.
    assert {pid for triggerer in airflow.triggerers for pid in triggerer.pids} == before
    until.touch()
    airflow.wait_for_run("ticks", run)


@pytest.mark.usefixtures("other")
def test_files_of_any_name_and_results_of_any_size_end_no_triggerer(airflow, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.csv")).touch()
    run = airflow.trigger("wire_ours", {"folder": str(folder)})
    airflow.wait_for_run("wire_ours", run)
    for where in ("here", "deferred"):
        files = airflow.result("wire_ours", run, f"files_{where}")
        error = "ValueError: cannot read caf\\udce9.csv"
        assert files["failures"] == [{"file": f"{folder}/caf\\udce9.csv", "error": error}]
        job = airflow.result("wire_ours", run, f"job_{where}")
        assert job == {"checksum": HUGE, "file": "caf\\udce9.csv"}


@pytest.mark.usefixtures("other")
def test_an_authors_event_that_does_not_fit_fails_its_own_task(airflow):
    run = airflow.trigger("wire_authors")
    airflow.wait_for_run("wire_authors", run, state="failed")
    for task, words in (
        ("number", "payload at ['checksum'] has an integer of more than 64 bits"),
        ("name", "has the character '\\\\udce9'"),
        ("error", "ValueError: cannot read caf"),
    ):
        assert airflow.task_instance("wire_authors", run, task)["state"] == "failed"
        assert words in airflow.task_log("wire_authors", run, task)
