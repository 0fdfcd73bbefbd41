"""Triggers in a real Airflow, whose triggerers die, end and freeze."""

from __future__ import annotations

import time

import pytest
from journal import Journal, says_moved, wait_for

STEPS = 250

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal")


def begin(airflow, dag_id, journal, steps=STEPS, **conf):
    return airflow.trigger(dag_id, {"journal": str(journal.path), "steps": steps, **conf})


def total(steps):
    return sum(range(steps))


def test_g2_a_killed_triggerer_costs_no_more_than_max_delay(airflow, journal):
    run = begin(airflow, "deferred", journal)
    journal.wait_for("step", STEPS // 2)
    [triggerer] = airflow.triggerers
    triggerer.kill()
    killed_at = time.time()
    airflow.start_triggerer()
    airflow.wait_for_run("deferred", run)
    assert airflow.result("deferred", run, "steps") == {"sum": total(STEPS), "done": STEPS, "leg": 1}
    journal.check_rework("step", set(range(STEPS)), killed_at)
    assert [line["resumed"] for line in journal.having("begun")] == [False, True]


def test_g6_a_terminated_triggerer_costs_nothing(airflow, journal):
    run = begin(airflow, "deferred", journal)
    journal.wait_for("step", STEPS // 2)
    [triggerer] = airflow.triggerers
    triggerer.terminate()
    airflow.start_triggerer()
    airflow.wait_for_run("deferred", run)
    assert [line["step"] for line in journal.having("step")] == list(range(STEPS))
    assert airflow.result("deferred", run, "steps") == {"sum": total(STEPS), "done": STEPS, "leg": 1}


def test_two_deferrals_of_a_task_share_its_state(airflow, journal):
    run = begin(airflow, "deferred_twice", journal, steps=40)
    airflow.wait_for_run("deferred_twice", run)
    steps = [(line["leg"], line["step"]) for line in journal.having("step")]
    assert steps == [(1, step) for step in range(40)] + [(2, step) for step in range(40, 80)]
    assert airflow.result("deferred_twice", run, "steps") == {"sum": total(80), "done": 80, "leg": 2}


def test_g4_a_frozen_triggerer_that_comes_back_does_no_harm(airflow, journal):
    run = begin(airflow, "deferred", journal, steps=600)
    journal.wait_for("step", 50)
    [frozen] = airflow.triggerers
    frozen.freeze()
    frozen_at = time.time()
    second = airflow.start_triggerer()
    wait_for(lambda: any(line["pid"] in second.pids for line in journal.having("step")))
    frozen.thaw()
    airflow.wait_for_run("deferred", run)
    assert airflow.result("deferred", run, "steps") == {"sum": total(600), "done": 600, "leg": 1}
    # What the frozen one did after it came back and before it noticed is done twice, and changes nothing.
    assert {line["step"] for line in journal.having("step")} == set(range(600))
    assert sum(line["at"] < frozen_at for line in journal.having("begun")) == 1
    wait_for(lambda: says_moved(airflow.task_log("deferred", run, "steps")))
    assert not journal.having("killed"), "the author's kill hook was called though nobody killed the task"
    frozen.terminate()


def test_g4_a_user_who_fails_the_task_reaches_the_kill_hook(airflow, journal):
    run = begin(airflow, "deferred", journal, steps=2000)
    journal.wait_for("step", 20)
    airflow.rest("PATCH", f"/dags/deferred/dagRuns/{run}/taskInstances/steps", {"new_state": "failed"})
    [killed] = journal.wait_for("killed", 1)
    done = max(line["step"] for line in journal.having("step")) + 1
    assert killed["killed"] == total(done)
    airflow.wait_for_run("deferred", run, state="failed")
