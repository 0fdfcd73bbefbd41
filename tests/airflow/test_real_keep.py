"""What users choose at a clear in a real Airflow 3.4, for every store: to keep what the task has left, or not."""

from __future__ import annotations

from pathlib import Path

import airflow.sdk
import pytest
from journal import Journal

from async_task_state.sandbox import Sandbox

if not hasattr(airflow.sdk, "LoopDecision"):
    pytest.skip("Airflow asks at a clear since 3.4", allow_module_level=True)

HERE = Path(__file__).parent
STEPS = 5
DAGS = ("keep_task", "keep_deferred")
BEGINNINGS = ("at first", "kept", "discarded", "kept again", "run cleared")
RESUMED = [False, True, False, True, False]

pytestmark = pytest.mark.timeout(400)


class Lives:
    """Runs whose only task is cleared once and again, all of them at once.

    Args:
        airflow: Runs them.
        folder: Of their journals.
        stores: The stores that they name, by what the test calls them.
    """

    def __init__(self, airflow, folder, stores):
        self.airflow = airflow
        self.journals = {
            (dag_id, name): Journal(folder / f"{dag_id}-{name}")
            for dag_id in DAGS
            for name in stores
            # A trigger cannot reach Airflow's own store.
            if (dag_id, name) != ("keep_deferred", "airflow")
        }
        self.runs = {}
        for (dag_id, name), journal in self.journals.items():
            conf = {"journal": str(journal.path), "steps": STEPS, "store": stores[name]}
            self.runs[dag_id, name] = airflow.trigger(dag_id, conf)

    def live(self):
        for of, run in self.runs.items():
            self.wait(of, run, 1)
        # One by one: with SQLite Airflow may stand still for half a minute where a user's request meets another write.
        for of, run in self.runs.items():
            for number, kept in enumerate([True, False, True], 2):
                clear(self.airflow, of[0], run, keep_task_state=kept)
                self.wait(of, run, number)
            self.airflow.rest("POST", f"/dags/{of[0]}/dagRuns/{run}/clear", {"dry_run": False})
            self.wait(of, run, len(BEGINNINGS))

    def wait(self, of, run, number):
        begun = lambda: len(self.journals[of].having("begun")) == number  # noqa: E731
        self.airflow.wait(begun, f"{of} has not begun", 120)
        self.airflow.wait_for_run(of[0], run)


def clear(airflow, dag_id, run, **options):
    """What a user's click on "clear" does."""
    body = {"dry_run": False, "dag_run_id": run, "task_ids": ["steps"], "only_failed": False, **options}
    airflow.rest("POST", f"/dags/{dag_id}/clearTaskInstances", body)


def check(journal):
    begun = journal.having("begun")
    assert dict(zip(BEGINNINGS, [line["resumed"] for line in begun], strict=True)) == dict(
        zip(BEGINNINGS, RESUMED, strict=True)
    )
    # What was kept is not done again.
    assert [line["step"] for line in journal.having("step")] == RESUMED.count(False) * [*range(STEPS)]
    return begun


@pytest.fixture(scope="module")
def postgres_dsn(postgres):
    return postgres.dsn()


@pytest.fixture(scope="module")
def lives(airflow, tmp_path_factory, postgres_dsn):
    stores = {"sqlite": None, "postgres": postgres_dsn, "airflow": "airflow:"}
    lives = Lives(airflow, tmp_path_factory.mktemp("keep"), stores)
    lives.live()
    return lives


@pytest.mark.parametrize(
    "of", [(dag_id, name) for dag_id in DAGS for name in ("sqlite", "postgres")] + [("keep_task", "airflow")]
)
def test_g4_a_clear_keeps_what_the_user_keeps_and_nothing_else(lives, of):
    check(lives.journals[of])


@pytest.mark.parametrize("dag_id", DAGS)
def test_a_clear_of_the_run_leaves_what_airflow_keeps_and_the_note_of_the_clear_before(lives, dag_id):
    run = lives.runs[dag_id, "sqlite"]
    path = f"/dags/{dag_id}/dagRuns/{run}/taskInstances/steps/state-store"
    left = lives.airflow.rest("GET", path)["task_state_store"]
    note = {"attempt": 4, "kept": True, "at_work": False}
    assert [(entry["key"], entry["value"]) for entry in left] == [("__ats:clear", note)]


def test_g4_the_same_with_our_backend_in_which_the_accessor_agrees(dags, tmp_path):
    config = {"state_store": {"backend": "async_task_state.backend.StateStoreBackend"}}
    with Sandbox(*dags, config=config, report=print) as sandbox:
        lives = Lives(sandbox, tmp_path, {"backend": None})
        lives.live()
        for journal in lives.journals.values():
            begun = check(journal)
        begun = lives.journals["keep_task", "backend"].having("begun")
        assert [line["accessor"] for line in begun] == [
            sum(range(STEPS)) if resumed else None for resumed in RESUMED
        ]


def test_g4_a_task_that_is_cleared_and_kept_while_it_waits_for_its_trigger_goes_on(airflow, tmp_path):
    journal = Journal(tmp_path / "journal")
    run = airflow.trigger("keep_deferred", {"journal": str(journal.path), "steps": 100, "seconds": 0.1})
    journal.wait_for("step", 15)
    clear(airflow, "keep_deferred", run, keep_task_state=True)
    journal.wait_for("begun", 2)
    airflow.wait_for_run("keep_deferred", run)
    assert [line["resumed"] for line in journal.having("begun")] == [False, True]
    assert airflow.result("keep_deferred", run, "steps")["done"] == 100
    steps = [line["step"] for line in journal.having("step")]
    # A second of steps may not have been durable when the other opened the state.
    assert len(steps) < 100 + 15
    assert sorted(set(steps)) == [*range(100)]
