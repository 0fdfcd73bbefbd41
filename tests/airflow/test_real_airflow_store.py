"""State in Airflow's own store, in a real Airflow."""

from __future__ import annotations

import os
import signal

import pytest
from airflow import sdk
from journal import Journal

pytestmark = pytest.mark.timeout(240)

STEPS = 10_000


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal")


def begin(airflow, dag_id, journal, **conf):
    return airflow.trigger(dag_id, {"journal": str(journal.path), **conf})


def stored(airflow, dag_id, run, task_id):
    """What Airflow's public API shows of a task's store."""
    path = f"/dags/{dag_id}/dagRuns/{run}/taskInstances/{task_id}/state-store"
    return {entry["key"]: entry["value"] for entry in airflow.rest("GET", path)["task_state_store"]}


def test_ten_thousand_checkpoints_cost_few_requests_and_survive_a_kill(airflow, journal):
    run = begin(airflow, "airflow_store", journal, steps=STEPS)
    journal.wait_for("step", 20)
    os.kill(airflow.task_pid("airflow_store", run, "checkpoints"), signal.SIGKILL)
    done = journal.having("step")[-1]["step"]
    airflow.wait_for_run("airflow_store", run)
    first, again = journal.having("first")
    assert (first["first"], first["attempt"], again["attempt"]) == (0, 1, 2)
    # Durable after a second of checkpoints, each of which takes a millisecond and more.
    assert done - 1500 < again["first"] <= done + 100
    [end] = journal.having("sent")
    # A key a flush, and a few for the index and for opening and leaving.
    assert end["sent"] <= 8 + end["seconds"] / 0.95
    values = stored(airflow, "airflow_store", run, "checkpoints")
    assert values["n"] == STEPS
    assert values["text"] == "\u00e9"


def test_ten_seconds_of_checkpoints_cost_at_most_fifteen_requests(airflow, journal):
    run = begin(airflow, "airflow_store_ten_seconds", journal)
    airflow.wait_for_run("airflow_store_ten_seconds", run)
    [end] = journal.having("sent")
    assert end["steps"] >= 10_000
    assert end["sent"] <= 15


def test_what_else_the_task_asks_of_airflow_never_fails(airflow, journal):
    run = begin(airflow, "airflow_store_shared", journal)
    airflow.wait_for_run("airflow_store_shared", run)
    for task_id in ("beside_blocking_calls", "beside_awaited_calls"):
        assert airflow.result("airflow_store_shared", run, task_id) == [100, 99, "j-1"]


def test_airflows_accessor_and_the_state_share_their_keys(airflow, journal):
    run = begin(airflow, "airflow_store_accessor", journal)
    airflow.wait_for_run("airflow_store_accessor", run)
    assert airflow.result("airflow_store_accessor", run, "accessor") == [
        {"page": 7},
        [1, 2],
        True,
        True,
        [1, 2],
        None,
    ]


def test_a_task_that_times_out_without_unwinding_loses_nothing(airflow, journal):
    run = begin(airflow, "airflow_store_times_out", journal)
    airflow.wait_for_run("airflow_store_times_out", run)
    done = journal.having("step")[-1]["step"]
    assert airflow.result("airflow_store_times_out", run, "timing_out") in (done, done + 1)


@pytest.mark.skipif(not hasattr(sdk, "LoopDecision"), reason="a clear deletes task state since Airflow 3.4")
@pytest.mark.parametrize(
    ("on_clear", "options"), [("restart", {}), ("resume", {}), ("restart", {"keep_task_state": True})]
)
def test_g4_a_task_that_is_cleared_while_it_runs_starts_over_or_keeps_it_all(
    airflow, journal, on_clear, options
):
    dag_id = "airflow_store_cleared"
    run = begin(airflow, dag_id, journal, on_clear=on_clear)
    journal.wait_for("file", 10)
    body = {"dry_run": False, "dag_run_id": run, "task_ids": ["files"], "only_failed": False, **options}
    airflow.rest("POST", f"/dags/{dag_id}/clearTaskInstances", body)
    journal.wait_for("begun", 2, timeout=150)
    airflow.wait_for_run(dag_id, run)
    first, again = [
        (line["begun"], line["resumed"], line["cleared"], line["rows"]) for line in journal.having("begun")
    ]
    kept = bool(options)
    files = [line["file"] for line in journal.having("file") if line["attempt"] == 1]
    assert first == (1, False, False, None)
    assert again[:3] == (2, kept, True)
    # The flush of the last one may have been cut short.
    assert again[3] in ((len(files), len(files) + 1) if kept else (None,))
    assert [line["file"] for line in journal.having("file") if line["attempt"] == 2] == [
        *range(again[3] or 0, 30)
    ]
    assert airflow.result(dag_id, run, "files") == max(30, again[3] or 0)


def test_g8_a_deferrable_trigger_says_at_once_that_it_cannot(airflow, journal):
    run = begin(airflow, "airflow_store_deferred", journal)
    airflow.wait_for_run("airflow_store_deferred", run, state="failed")
    log = airflow.task_log("airflow_store_deferred", run, "deferring")
    assert "does not let triggers reach the task store" in log
    assert "set [async_task_state] dsn to" in log
    assert not journal.having("begun")
