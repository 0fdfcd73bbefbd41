"""Async tasks in a real Airflow, whose processes die, raise and time out."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest
from journal import Journal

STEPS = 300

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal")


def begin(airflow, dag_id, journal, steps=STEPS, **conf):
    return airflow.trigger(dag_id, {"journal": str(journal.path), "steps": steps, **conf})


def total(steps):
    return sum(range(steps))


@pytest.mark.parametrize("dag_id", ["async_task", "plain_task"])
def test_g2_a_killed_task_resumes_in_its_retry(airflow, journal, dag_id):
    run = begin(airflow, dag_id, journal)
    journal.wait_for("step", STEPS // 2)
    os.kill(airflow.task_pid(dag_id, run, "steps"), signal.SIGKILL)
    killed_at = time.time()
    airflow.wait_for_run(dag_id, run)
    assert airflow.result(dag_id, run, "steps") == total(STEPS)
    journal.check_rework("step", set(range(STEPS)), killed_at)
    assert {line["attempt"] for line in journal.having("step")} == {1, 2}


def test_g6_a_task_that_raises_loses_nothing(airflow, journal):
    run = begin(airflow, "raises", journal)
    airflow.wait_for_run("raises", run)
    assert [line["step"] for line in journal.having("step")] == list(range(STEPS))
    assert airflow.result("raises", run, "raising") == total(STEPS)


def test_g2_a_task_that_times_out_without_unwinding_loses_nothing(airflow, journal):
    run = begin(airflow, "times_out", journal)
    airflow.wait_for_run("times_out", run)
    assert [line["blocked"] for line in journal.having("blocked")] == [1]
    assert [line["step"] for line in journal.having("step")] == list(range(STEPS))
    assert airflow.result("times_out", run, "timing_out") == total(STEPS)


def test_every_index_of_a_mapped_task_has_its_own_state(airflow, journal):
    run = begin(airflow, "mapped", journal)
    airflow.wait_for_run("mapped", run)
    for index, steps in enumerate([10, 20, 30]):
        taken = [line["step"] for line in journal.having("step") if line["index"] == index]
        assert taken == list(range(steps))
        assert airflow.result("mapped", run, "each", index) == total(steps)


def test_dag_test_runs_a_trigger_on_the_state_of_its_task(airflow, journal, tmp_path):
    # A database of its own, or the scheduler would run its tasks, too.
    original, copy = airflow.home / "airflow.db", tmp_path / "airflow.db"
    with closing(sqlite3.connect(original)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    database = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{copy}"}
    conf = {"journal": str(journal.path), "steps": 20}
    # Each run of a date replaces the one before it, under the same id.
    code = (
        "from datetime import datetime, timezone; from crash_dags import deferred_twice;"
        " at = datetime(2026, 1, 1, tzinfo=timezone.utc);"
        f" runs = [deferred_twice.test(run_conf={conf!r}, logical_date=at, run_after=at) for _ in range(2)];"
        " print(*[run.state for run in runs], len({run.run_id for run in runs}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**airflow.environment, **database},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Airflow 3.4 complains of a connection of its own when the process ends.
    assert "success success 1" in done.stdout.splitlines(), done.stdout + done.stderr
    assert [line["step"] for line in journal.having("step")] == 2 * list(range(40))
