"""Loops of a real Airflow 3.4: each iteration has a state of its own, however it ends and whatever is cleared."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import airflow.sdk
import pytest
from journal import Journal

from async_task_state.sandbox import Sandbox

if not hasattr(airflow.sdk, "LoopDecision"):
    pytest.skip("Airflow has loops since 3.4", allow_module_level=True)

HERE = Path(__file__).parent
LOOPS = HERE / "loops"
ITERATIONS = 3
FILES = 5
WAYS = ("here", "deferred")

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def looping():
    """A running Airflow whose own task state is kept by our backend."""
    config = {"state_store": {"backend": "async_task_state.backend.StateStoreBackend"}}
    dags = [*LOOPS.glob("*.py"), HERE / "dags" / "crash_helpers.py"]
    with Sandbox(*dags, config=config, report=print) as sandbox:
        yield sandbox


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal")


@pytest.fixture
def calls(looping):
    """What was called outside of tasks' own code."""
    return Journal(looping.home / "files.journal")


@pytest.fixture
def run(looping, journal, tmp_path):
    """Runs a DAG to its end."""

    def run(dag_id, **conf):
        run_id = looping.trigger(dag_id, {"journal": str(journal.path), **conf})
        looping.wait_for_run(dag_id, run_id, timeout=150)
        return run_id

    return run


@pytest.fixture
def clear(looping, journal):
    """Clears executions of a run that has ended, and waits for its end again."""

    def clear(dag_id, run_id, chosen, begun, **options):
        path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances"
        instances = looping.rest("GET", path)["task_instances"]
        body = {"dry_run": False, "dag_run_id": run_id, "only_failed": False, **options}
        ids = [each["id"] for each in instances if chosen(each)]
        assert ids, instances
        looping.rest("POST", f"/dags/{dag_id}/clearTaskInstances", {**body, "task_instance_ids": ids})
        before = len(journal.having("begun"))
        looping.wait(lambda: len(journal.having("begun")) == before + begun, "not begun again", 120)
        looping.wait_for_run(dag_id, run_id, timeout=150)

    return clear


def files_of(journal):
    return Counter((line["iteration"], line["file"]) for line in journal.having("file"))


def times(number):
    return {(iteration, file): number for iteration in range(ITERATIONS) for file in range(FILES)}


def begun(journal):
    return [(line["begun"], line["resumed"], line["cleared"]) for line in journal.having("begun")]


def test_g2_each_iteration_does_all_of_its_work_through_retries_and_clears(looping, run, clear, journal):
    run_id = run("loop_task")
    assert files_of(journal) == times(1)
    first = [(0, False, False), (1, False, False), (1, True, False), (2, False, False)]
    assert begun(journal) == first
    assert [line["seen"] for line in journal.having("agree")] == [[0, 0], [1, -1], [1, -1], [2, -2]]
    # One iteration.
    clear(
        "loop_task",
        run_id,
        lambda each: each["task_id"] == "again.work" and each["region_index"] == 1,
        begun=1,
    )
    assert begun(journal)[len(first) :] == [(1, False, True)]
    assert files_of(journal) == {**times(1), **{(1, file): 2 for file in range(FILES)}}
    # All of them at once.
    clear("loop_task", run_id, lambda each: each["task_id"] == "again.work", begun=ITERATIONS)
    assert sorted(begun(journal)[len(first) + 1 :]) == [(index, False, True) for index in range(ITERATIONS)]
    assert files_of(journal) == {**times(2), **{(1, file): 3 for file in range(FILES)}}


def test_g2_iterations_that_a_cleared_gate_makes_again_start_over(looping, run, clear, journal):
    run_id = run("loop_task")
    clear(
        "loop_task",
        run_id,
        lambda each: each["task_id"] != "again.work" and each["region_index"] == 0,
        begun=2 + 1,
    )
    again = begun(journal)[4:]
    assert [(index, resumed) for index, resumed, _ in again] == [(1, False), (1, True), (2, False)]
    assert files_of(journal) == {**times(2), **{(0, file): 1 for file in range(FILES)}}


def test_g2_a_mapped_task_in_a_loop_has_a_state_for_each_index_of_each_iteration(run, journal):
    run("loop_mapped")
    lines = sorted((line["mapped"], line["resumed"], line["seen"]) for line in journal.having("mapped"))
    assert [(mapped, seen) for mapped, _, seen in lines] == [
        ([iteration, number], number) for iteration in range(2) for number in range(2)
    ]


@pytest.mark.parametrize("where", WAYS)
def test_g2_each_iteration_processes_every_file(run, calls, tmp_path, where):
    source = tmp_path / where
    source.mkdir()
    for number in range(FILES):
        (source / f"{number}").write_text("x")
    run(f"loop_files_{where}", source=str(source))
    done = Counter(line["file"] for line in calls.having("file") if line["of"] == where)
    assert done == {f"{number}": ITERATIONS for number in range(FILES)}


@pytest.mark.parametrize("where", WAYS)
def test_g2_each_iteration_submits_a_job_of_its_own(run, calls, where):
    run(f"loop_jobs_{where}")
    keys = [line["key"] for line in calls.having("submitted") if line["submitted"] == f"loop_jobs_{where}"]
    assert (len(keys), len(set(keys)), calls.having("cancelled")) == (ITERATIONS, ITERATIONS, [])


def test_g4_one_state_is_over_all_iterations_through_a_retry_and_clears(looping, run, clear, journal):
    run_id = run("loop_over")
    first = ["0.1", "1.1", "1.2", "2.1"]
    assert seen(journal) == [(first[: n + 1], n == 2, False) for n in range(4)]
    # A later iteration goes on with it.
    clear(
        "loop_over",
        run_id,
        lambda each: each["task_id"] == "shared.note" and each["region_index"] == 1,
        begun=1,
    )
    assert seen(journal)[4:] == [([*first, "1.3"], False, False)]
    # The first one, of which the others are made again, starts it over.
    clear("loop_over", run_id, lambda each: each["region_index"] == 0, begun=1 + 2 + 1)
    again = seen(journal)[5:]
    assert (again[0], again[-1][0]) == ((["0.2"], False, True), ["0.2", "1.1", "1.2", "2.1"])


def seen(journal):
    return [(line["seen"], line["own"], line["cleared"]) for line in journal.having("seen")]


@pytest.mark.parametrize("where", WAYS)
def test_g2_operators_and_triggers_share_a_state_over_all_iterations(run, calls, where):
    run(f"loop_over_{where}")
    counted = [line["counted"] for line in calls.having("counted") if line["of"] == f"loop_over_{where}"]
    assert counted == [[n, 1, n] for n in range(1, ITERATIONS + 1)]


def test_a_mapped_task_is_found_by_its_index(looping, run, journal):
    run_id = run("mapped_task")
    assert sorted((line["one"], line["theirs"]) for line in journal.having("one")) == [(10, 10), (11, 11)]
    shown = subprocess.run(
        [
            *(sys.executable, "-m", "async_task_state", "show", "mapped_task", run_id, "one"),
            *("--map-index", "1", "--json"),
        ],
        env=looping.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(shown.stdout)["values"] == {"mine": 11}
