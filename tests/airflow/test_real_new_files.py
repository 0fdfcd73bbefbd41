"""NewFilesTrigger in a real Airflow, whose triggerers die while files arrive."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from journal import wait_for

from async_task_state.compat import confirms_events

HERE = Path(__file__).parent
EXAMPLE = Path(__file__).parents[2] / "examples" / "new_files.py"
PAGE = 100


class Arriving:
    """Files that are written one after the other, until told to stop."""

    def __init__(self, folder):
        self.folder = folder
        self.written = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def __enter__(self):
        self.folder.mkdir()
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        self._stopped.set()
        self._thread.join()

    def _write(self):
        while not self._stopped.wait(0.2):
            path = self.folder / f"{len(self.written):06d}"
            path.write_text("text")
            self.written.append(str(path))


def events_of(airflow, name):
    """The payloads of all events of an asset, the oldest first."""
    payloads = []
    while True:
        page = airflow.rest(
            "GET", "/assets/events", name_pattern=name, order_by="timestamp", limit=PAGE, offset=len(payloads)
        )
        payloads += [event["extra"]["payload"] for event in page["asset_events"]]
        if len(page["asset_events"]) < PAGE:
            return payloads


def count_events(airflow, name):
    return airflow.rest("GET", "/assets/events", name_pattern=name, limit=1)["total_entries"]


@pytest.fixture
def dag_file(airflow):
    """Puts a DAG into the dags folder, and takes it away again with its watcher."""
    added = []

    def dag_file(name, text):
        path = airflow.dags / name
        path.write_text(text)
        added.append(path)

    yield dag_file
    for path in added:
        path.unlink()


@pytest.mark.timeout(900)
def test_every_file_is_in_exactly_one_event_though_triggerers_die(airflow, dag_file, request):
    deaths = request.config.getoption("--deaths")
    seed = request.config.getoption("--seed") or random.randrange(2**32)
    chance = random.Random(seed)
    dag_file("arriving_dag.py", (HERE / "watchers" / "arriving_dag.py").read_text())
    airflow.wait_for_dag("arriving")
    with Arriving(airflow.home / "arriving") as arriving:
        for number in range(deaths):
            [working] = airflow.triggerers
            # Stands by, and takes over.
            airflow.start_triggerer()
            known = count_events(airflow, "arriving")
            wait_for(lambda known=known: count_events(airflow, "arriving") > known)
            time.sleep(chance.random() * 2)
            if number % 2:
                working.kill()
            else:
                working.terminate()
        arriving.stop()
        by_id = {}

        def complete():
            by_id.update({event["event_id"]: event for event in events_of(airflow, "arriving")})
            return sum(event["count"] for event in by_id.values()) >= len(arriving.written)

        wait_for(complete)
    events = events_of(airflow, "arriving")
    # An event comes again, with its id and as it was, when the triggerer dies within seconds after it was fired.
    assert all(by_id[event["event_id"]] == event for event in events)
    # Where Airflow does not say that it has arrived, one that was only moved within those seconds fires it again, too.
    assert len(events) - len(by_id) <= deaths or not confirms_events()
    assert Counter(file for event in by_id.values() for file in event["files"]) == Counter(
        arriving.written
    ), f"--seed {seed}"


@pytest.mark.timeout(240)
def test_with_its_state_in_airflows_own_store_a_watcher_goes_on_too(airflow, dag_file):
    folder = airflow.home / "own_store"
    folder.mkdir()
    for name in ("own_store_watch.py", "own_store_dag.py"):
        dag_file(name, (HERE / "watchers" / name).read_text())
    airflow.wait_for_dag("own_store")
    for number, name in enumerate(["a", "b"], 1):
        (folder / name).write_text("text")
        wait_for(lambda number=number: count_events(airflow, "own_store") == number)
        [asset] = airflow.rest("GET", "/assets", name_pattern="own_store")["assets"]
        # Until it is confirmed it would come twice.
        wait_for(
            lambda asset=asset: not any(key.endswith(":unconfirmed") for key in saved_of(airflow, asset))
        )
        [triggerer] = airflow.triggerers
        triggerer.kill()
        airflow.start_triggerer()
    (folder / "c").write_text("text")
    wait_for(lambda: count_events(airflow, "own_store") == 3)
    assert [event["files"] for event in events_of(airflow, "own_store")] == [
        [str(folder / name)] for name in "abc"
    ]


def saved_of(airflow, asset):
    """The keys of an asset that Airflow's own REST API shows."""
    return [
        entry["key"]
        for entry in airflow.rest("GET", f"/assets/{asset['id']}/state-store")["asset_state_store"]
    ]


@pytest.mark.timeout(240)
def test_the_example_runs_when_files_arrive(airflow, dag_file, tmp_path):
    (tmp_path / "old.csv").write_text("1\n2\n")
    text = (
        EXAMPLE.read_text()
        .replace("/var/arrivals", str(tmp_path))
        .replace("poll_interval=10, settle=5", "poll_interval=1, settle=1")
    )
    assert str(tmp_path) in text
    dag_file("new_files.py", text)
    first = result_of_run(airflow, 1)
    assert first == {"files": 1, "lines": 2}
    for number in range(3):
        (tmp_path / f"{number}.csv").write_text("1\n")
    (tmp_path / "other.txt").write_text("1\n")
    second = result_of_run(airflow, 2)
    assert second == {"files": 3, "lines": 3}


def result_of_run(airflow, number):
    """What the number-th run of the example returned."""
    airflow.wait_for_dag("example_new_files")

    def runs():
        runs = airflow.rest("GET", "/dags/example_new_files/dagRuns", order_by="run_after")["dag_runs"]
        return runs[number - 1 :]

    [run] = wait_for(runs, timeout=150)
    airflow.wait_for_run("example_new_files", run["dag_run_id"])
    return airflow.result("example_new_files", run["dag_run_id"], "load")
