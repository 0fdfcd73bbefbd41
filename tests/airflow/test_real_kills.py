"""Users who clear and mark deferred tasks of a real Airflow: each reaches the author's hook once."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from journal import Journal

pytestmark = pytest.mark.timeout(420)

PAUSE = 8
"""Seconds: until then the triggerer has heard of the clear."""


class Jobs:
    """A run of the DAG: its jobs, and what is done to them."""

    def __init__(self, airflow, folder, count, pause):
        self.airflow, self.count = airflow, count
        self.journal = Journal(folder / "journal")
        self.end_file = folder / "journal.end"
        conf = {"journal": str(self.journal.path), "jobs": count, "pause": pause}
        self.id = airflow.trigger("killed", conf)
        self.wait_for_begun(1)

    def wait_for_begun(self, attempt):
        self.airflow.wait(
            lambda: len(self.begun(attempt)) >= self.count, f"attempt {attempt} has not begun", 240
        )

    def wait_for_killed(self):
        self.airflow.wait(lambda: len(self.killed) >= self.count, "the hook was not called", 60)

    def wait_for_deferred(self, attempt):
        def deferred():
            found = [self.instance(index) for index in range(self.count)]
            return all(each["state"] == "deferred" and each["try_number"] == attempt for each in found)

        self.airflow.wait(deferred, "the tasks are not deferred", 240)

    def instance(self, index):
        return self.airflow.task_instance("killed", self.id, "job", index)

    def begun(self, attempt):
        return [line for line in self.journal.having("begun") if line["attempt"] == attempt]

    @property
    def killed(self):
        return Counter(line["killed"] for line in self.journal.having("killed"))

    def clear(self):
        body = {"dry_run": False, "dag_run_id": self.id, "task_ids": ["job"], "only_failed": False}
        self.airflow.rest("POST", "/dags/killed/clearTaskInstances", body)

    def mark_failed(self):
        for index in range(self.count):
            path = f"/dags/killed/dagRuns/{self.id}/taskInstances/job/{index}"
            self.airflow.rest("PATCH", path, {"new_state": "failed"})

    def wait_for_workers(self):
        """Wait until the scheduler has seen each process end that has deferred.

        A trigger that fires before that has Airflow queue the task under the same key as the process that ends, whose success
        is then taken for the end of the one that is queued: the scheduler marks that as failed.
        """
        said = re.compile(
            rf"TaskInstance Finished: .*task_id=job, run_id={re.escape(self.id)}, .* try_number=2,"
        )
        log = self.airflow.home / "scheduler.log"
        self.airflow.wait(
            lambda: len(said.findall(log.read_text())) >= self.count, "the workers have not ended", 120
        )

    def finish(self):
        self.wait_for_workers()
        self.end_file.touch()
        self.airflow.wait_for_run("killed", self.id)
        assert all(line["cleared"] for line in self.begun(2))
        assert self.killed == {f"job {number} of 1": 1 for number in range(self.count)}

    def clear_without_triggerer(self):
        """The hook is called by the next attempt's trigger, before that begins."""
        self.clear()
        self.wait_for_deferred(2)
        assert self.killed == {}
        self.airflow.start_triggerer()
        self.wait_for_begun(2)
        self.check_order()
        self.finish()

    def check_order(self):
        """A job was cancelled before the next one was begun."""
        killed = {line["killed"]: line["at"] for line in self.journal.having("killed")}
        for line in self.begun(2):
            assert killed[line["begun"].replace("of 2", "of 1")] < line["at"]


@pytest.fixture
def begin(airflow, tmp_path, request):
    count = request.config.getoption("--clears")
    return lambda pause=0: Jobs(airflow, tmp_path, count, pause)


@pytest.mark.parametrize("pause", [0, PAUSE], ids=["fast-worker", "slow-worker"])
def test_g4_a_clear_reaches_the_hook_once(begin, pause):
    jobs = begin(pause)
    jobs.clear()
    jobs.wait_for_begun(2)
    jobs.wait_for_killed()
    jobs.finish()


def test_g4_a_clear_reaches_the_hook_once_where_no_triggerer_is_alive(airflow, begin):
    jobs = begin()
    [triggerer] = airflow.triggerers
    triggerer.kill()
    jobs.clear_without_triggerer()


def test_g4_a_task_that_is_marked_as_failed_reaches_the_hook_once(airflow, begin):
    jobs = begin()
    jobs.mark_failed()
    jobs.wait_for_killed()
    airflow.wait_for_run("killed", jobs.id, state="failed")
    jobs.clear()
    jobs.wait_for_begun(2)
    jobs.finish()


def test_g4_a_mark_of_which_no_triggerer_hears_is_delivered_after_the_next_clear(airflow, begin):
    jobs = begin()
    [triggerer] = airflow.triggerers
    triggerer.kill()
    jobs.mark_failed()
    airflow.wait_for_run("killed", jobs.id, state="failed")
    jobs.clear_without_triggerer()
