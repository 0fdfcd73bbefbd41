"""Remote jobs of a real Airflow, whose processes die and whose users change their minds."""

from __future__ import annotations

import os
import signal
from itertools import count

import pytest
from jobserver import JobServer
from journal import says_moved

EVERYWHERE = pytest.mark.parametrize("dag_id", ["job_deferred", "job_here"])

pytestmark = pytest.mark.timeout(240)

numbers = count(1)


@pytest.fixture(scope="module")
def server():
    with JobServer() as server:
        yield server


class Run:
    """A run of one of the DAGs, and its jobs on the server."""

    def __init__(self, airflow, server, dag_id):
        self.airflow, self.server, self.dag_id = airflow, server, dag_id
        self.name = f"{dag_id}-{next(numbers)}"
        self.id = airflow.trigger(dag_id, {"service": server.url, "name": self.name})

    @property
    def jobs(self):
        return self.server.jobs(self.name)

    @property
    def pid(self):
        return self.airflow.task_pid(self.dag_id, self.id, "job")

    def calls(self, call):
        return self.server.calls[call, self.name]

    def wait_for(self, call, times=1):
        before = self.calls(call)
        self.airflow.wait(lambda: self.calls(call) >= before + times, f"no {call} of {self.name}", 60)

    def wait_for_end(self, state="success"):
        return self.airflow.wait_for_run(self.dag_id, self.id, state=state)

    def clear(self):
        """What a user's click on "clear" does."""
        self.airflow.rest(
            "POST",
            f"/dags/{self.dag_id}/clearTaskInstances",
            {"dry_run": False, "dag_run_id": self.id, "task_ids": ["job"], "only_failed": False},
        )

    def mark(self, state):
        """What a user's click on "mark as" does."""
        path = f"/dags/{self.dag_id}/dagRuns/{self.id}/taskInstances/job"
        self.airflow.rest("PATCH", path, {"new_state": state})

    def kill_worker(self):
        os.kill(self.pid, signal.SIGKILL)

    def check_result(self):
        assert self.airflow.result(self.dag_id, self.id, "job")["job"].startswith(f"{self.server.url}/jobs/")


@pytest.fixture
def begin(airflow, server):
    return lambda dag_id: Run(airflow, server, dag_id)


def test_g1_a_triggerer_that_is_killed_while_it_polls_costs_no_second_job(airflow, server, begin):
    run = begin("job_deferred")
    run.wait_for("poll", 3)
    [triggerer] = airflow.triggerers
    triggerer.kill()
    airflow.start_triggerer()
    run.wait_for("poll", 3)
    server.end(run.name)
    run.wait_for_end()
    run.check_result()
    assert (run.jobs, run.calls("submit"), run.calls("cancel")) == (["SUCCEEDED"], 1, 0)


def test_g4_a_trigger_that_was_moved_does_not_cancel_its_job(airflow, server, begin):
    run = begin("job_deferred")
    run.wait_for("poll", 3)
    [frozen] = airflow.triggerers
    frozen.freeze()
    airflow.start_triggerer()
    run.wait_for("poll", 3)
    frozen.thaw()
    airflow.wait(
        lambda: says_moved(airflow.task_log("job_deferred", run.id)), "the first one has not noticed", 60
    )
    server.end(run.name)
    run.wait_for_end()
    run.check_result()
    assert (run.jobs, run.calls("submit"), run.calls("cancel")) == (["SUCCEEDED"], 1, 0)
    frozen.terminate()


def test_g1_a_worker_that_is_killed_between_submit_and_poll_costs_no_second_job(server, begin):
    server.hold("poll")
    run = begin("job_here")
    run.wait_for("poll")
    run.kill_worker()
    server.answer("poll")
    run.wait_for("poll", 2)
    server.end(run.name)
    run.wait_for_end()
    run.check_result()
    assert (run.jobs, run.calls("submit"), run.calls("cancel")) == (["SUCCEEDED"], 1, 0)


def test_g1_a_worker_that_is_killed_before_its_submission_is_answered_sends_the_same_key_again(server, begin):
    server.hold("submit")
    run = begin("job_here")
    run.wait_for("submit")
    run.kill_worker()
    server.answer("submit")
    run.wait_for("poll", 2)
    server.end(run.name)
    run.wait_for_end()
    assert (run.jobs, run.calls("submit")) == (["SUCCEEDED"], 2)


@EVERYWHERE
def test_a_failed_job_is_submitted_anew_by_the_retry(server, begin, dag_id):
    run = begin(dag_id)
    run.wait_for("poll")
    server.end(run.name, "FAILED")
    run.wait_for("submit")
    run.wait_for("poll")
    server.end(run.name)
    run.wait_for_end()
    assert (run.jobs, run.calls("submit"), run.calls("cancel")) == (["FAILED", "SUCCEEDED"], 2, 0)


@EVERYWHERE
def test_a_job_that_its_service_has_lost_is_replaced_by_retries_and_clears(server, begin, dag_id):
    run = begin(dag_id)
    run.wait_for("poll")
    server.lose(run.name)
    run.wait_for("submit")
    run.wait_for("poll")
    server.lose(run.name)
    run.wait_for_end("failed")
    run.clear()
    run.wait_for("poll")
    server.end(run.name)
    run.wait_for_end()
    run.check_result()
    assert (run.jobs, run.calls("submit"), run.calls("cancel")) == (["SUCCEEDED"], 3, 0)


def test_a_clear_goes_on_where_the_job_is_gone(airflow, server, begin):
    run = begin("job_deferred")
    run.wait_for("poll", 2)
    [triggerer] = airflow.triggerers
    triggerer.kill()
    server.lose(run.name)
    run.clear()
    airflow.start_triggerer()
    run.wait_for("submit")
    run.wait_for("poll")
    server.end(run.name)
    run.wait_for_end()
    run.check_result()
    assert (run.jobs, run.calls("submit"), run.calls("cancel")) == (["SUCCEEDED"], 2, 1)


@EVERYWHERE
def test_g4_a_user_who_clears_the_task_has_its_job_cancelled_and_one_new_submitted(server, begin, dag_id):
    run = begin(dag_id)
    run.wait_for("poll", 2)
    run.clear()
    run.wait_for("submit")
    assert run.jobs == ["CANCELLED", "RUNNING"]
    server.end(run.name)
    run.wait_for_end()
    run.check_result()
    assert (run.jobs, run.calls("submit")) == (["CANCELLED", "SUCCEEDED"], 2)


@EVERYWHERE
def test_g4_a_user_who_fails_the_task_has_its_job_cancelled(begin, dag_id):
    run = begin(dag_id)
    run.wait_for("poll", 2)
    run.mark("failed")
    run.wait_for("cancel")
    run.wait_for_end("failed")
    assert (run.jobs, run.calls("submit")) == (["CANCELLED"], 1)


def test_g4_a_worker_that_is_asked_to_end_leaves_its_job_alone(airflow, server, begin):
    run = begin("job_here")
    run.wait_for("poll", 2)
    os.kill(run.pid, signal.SIGTERM)
    airflow.wait(lambda: "the job goes on" in airflow.task_log("job_here", run.id), "nothing was asked", 30)
    server.end(run.name)
    run.wait_for_end()
    run.check_result()
    assert (run.jobs, run.calls("submit"), run.calls("cancel")) == (["SUCCEEDED"], 1, 0)
