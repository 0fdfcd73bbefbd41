"""When `watch` ends by itself."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sqlite3
from contextlib import closing

import pytest
from airflow.sdk import Asset
from clikit import rest_of
from rich.console import Console

from async_task_state import TaskScope, asset_state
from async_task_state.cli_instances import Instances
from async_task_state.cli_progress import WatchedMany
from async_task_state.cli_watch import follow
from async_task_state.cli_watch_views import watch_view
from async_task_state.stores import open_store

pytestmark = pytest.mark.usefixtures("without_airflow")

IDS = ("dag", "run", "task")
MANY = ("dag", "run", "many")


@pytest.fixture
def airflow_has(tmp_path, monkeypatch):
    """Makes the part of Airflow's database that says in which states task instances are."""
    path = tmp_path / "airflow.db"
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"sqlite:///{path}")

    def has(task_id, *states):
        from airflow.models.taskinstance import TaskInstance  # noqa: PLC0415 - takes two seconds

        keeps_attempts = hasattr(TaskInstance, "working_set")
        with closing(sqlite3.connect(path)) as db, db:
            index = "region_index" if keeps_attempts else "map_index"
            columns = f"dag_id, run_id, task_id, {index}, state, working_set"
            db.execute(f"CREATE TABLE IF NOT EXISTS task_instance ({columns}, id, region_id, operator)")
            db.execute("DELETE FROM task_instance WHERE task_id = ?", (task_id,))
            rows = enumerate(states) if len(states) > 1 else [(-1, states[0])]
            db.executemany(
                f"INSERT INTO task_instance ({columns}) VALUES ('dag', 'run', ?, ?, ?, 1)",
                [(task_id, index, state) for index, state in rows],
            )
            if keeps_attempts:
                over = (
                    f"INSERT INTO task_instance ({columns}) VALUES ('dag', 'run', ?, -1, 'up_for_retry', 0)"
                )
                db.execute(over, (task_id,))

    return has


@pytest.fixture
def clear(dsn):
    """Clears the state."""

    def clear():
        async def clear():
            store = open_store(dsn)
            await store.clear(TaskScope(*IDS))
            await store.close()

        asyncio.run(clear())

    return clear


def test_watch_ends_with_the_task(start, fill, airflow_has):
    airflow_has("task", "running")
    fill(done=3)
    watch = start("watch", *IDS, "--interval", "0.05", "--total", "3")
    first = watch.stdout.readline()
    assert first.endswith("files: 3 of 3 (100%) done, 0 failed, complete\n")
    fill(attempt=1, done=3, failed=1)
    airflow_has("task", "failed")
    out, err = rest_of(watch)
    assert (watch.returncode, err) == (0, "")
    *_, last, end = out.splitlines()
    assert last.endswith("files: 3 of 3 (100%) done, 1 failed, none left")
    assert end == "dag/run/task has ended: failed"


def test_watch_of_a_mapped_task_ends_with_all_of_its_map_indexes(start, states, airflow_has):
    airflow_has("many", "success", "up_for_retry", "skipped", "deferred")
    watch = start("watch", *MANY, "--interval", "0.05", "--total", "10")
    while "files: 14 of 40" not in watch.stdout.readline():
        pass
    airflow_has("many", "success", "failed", "skipped", "success")
    out, err = rest_of(watch)
    assert (watch.returncode, err) == (0, "")
    assert out.splitlines()[-1] == "dag/run/many has ended: 2 success, 1 failed, 1 skipped"


def test_watch_of_one_map_index_ends_with_that_one(run, states, airflow_says):
    airflow_says([(0, "running"), (1, "running")], [(0, "running"), (1, "failed")])
    _, out, err = run("watch", *MANY, "--map-index", "1", "--interval", "0.01", "--json")
    assert json.loads(out.splitlines()[-1])["state"] == "failed"
    assert err == "dag/run/many[1] has ended: failed\n"


def test_watch_of_a_task_in_a_loop_ends_with_its_last_iteration(run, states, airflow_says):
    both = [(0, "success"), (1, "success")]
    airflow_says([(0, "success")], [(0, "success")], both, goes_on=[True, True, False])
    _, out, _ = run("watch", *MANY, "--interval", "0.01")
    assert out.splitlines()[-1] == "dag/run/many has ended: 2 success"


def test_watch_of_one_iteration_ends_with_that_one(run, states, airflow_says):
    airflow_says([(0, "success")], goes_on=[True])
    _, out, _ = run("watch", *MANY, "--map-index", "0", "--interval", "0.01")
    assert out.splitlines()[-1] == "dag/run/many[0] has ended: success"


def test_watch_ends_with_a_task_that_has_stored_nothing(run, fill, airflow_says):
    fill(TaskScope("another", "run", "task"))
    airflow_says([], [(-1, None)], [(-1, "skipped")])
    code, out, err = run("watch", *IDS, "--interval", "0.01")
    waiting = "waiting: nothing is stored yet for dag/run/task"
    assert code == 0
    assert set(err.splitlines()) <= {waiting, f"{waiting}; Airflow knows no such run"}
    assert err.splitlines()[0] == waiting
    assert out == "dag/run/task has ended: skipped\n"


@pytest.mark.parametrize(
    ("ids", "options", "missing"),
    [
        (("nope", "run", "task"), (), "no DAG 'nope'"),
        (("dag", "nope", "task"), ("--json",), "no run 'nope' of DAG 'dag'"),
        (("dag", "run", "nope"), (), "no task 'nope' in run 'run' of DAG 'dag'"),
        (
            ("dag", "run", "task"),
            ("--map-index", "7"),
            "no such task instance: task 'task' has others in that run",
        ),
    ],
)
def test_watch_says_what_airflow_does_not_know_and_waits_on(
    start, fill, airflow_has, tmp_path, ids, options, missing
):
    airflow_has("task", "running")
    with closing(sqlite3.connect(tmp_path / "airflow.db")) as db, db:
        db.execute("CREATE TABLE dag (dag_id)")
        db.execute("CREATE TABLE dag_run (dag_id, run_id, start_date, clear_number, logical_date, run_after)")
        db.execute("INSERT INTO dag VALUES ('dag')")
        db.execute("INSERT INTO dag_run VALUES ('dag', 'run', NULL, 0, NULL, NULL)")
    fill(TaskScope("another", "run", "task"))
    watch = start("watch", *ids, *options, "--interval", "0.05", "--until", "1")
    index = 7 if "--map-index" in options else -1
    waiting = f"waiting: nothing is stored yet for {TaskScope(*ids, index)}"
    assert watch.stderr.readline() == f"{waiting}\n"
    assert watch.stderr.readline() == f"{waiting}; Airflow knows {missing}\n"
    fill(TaskScope(*ids, index), done=1)
    assert "1" in rest_of(watch)[0]
    assert watch.returncode == 0


def test_a_terminal_is_told_what_airflow_does_not_know(airflow_says, dsn, fill):
    class ToldError(Exception):
        """What is waited for was seen."""

    def write(_view, note, _fresh):
        if "Airflow" in note:
            raise ToldError(note)

    async def watch():
        store = open_store(dsn)
        try:
            await follow(dsn, store, view, write, interval=0.01, until=None)
        finally:
            await store.close()

    fill(TaskScope("another", "run", "task"))
    airflow_says([])
    view, console = WatchedMany(TaskScope(*IDS)), Console(width=80)
    with pytest.raises(ToldError) as told:
        asyncio.run(watch())
    with console.capture() as captured:
        console.print(watch_view(view, str(told.value), 24))
    assert "Airflow knows no such run" in " ".join(captured.get().split())


def test_what_airflow_has_not_scheduled_has_no_state_yet(fill, dsn):
    view, console = WatchedMany(TaskScope(*IDS)), Console(width=80)
    view.instances = [(-1, None)]
    with console.capture() as captured:
        console.print(watch_view(view, None, 24))
    assert "in Airflow: no state yet" in captured.get()


@pytest.mark.parametrize("as_json", [True, False])
def test_what_has_ended_has_no_time_left(run, states, airflow_says, monkeypatch, as_json):
    monkeypatch.setattr("async_task_state.cli_progress.Rates.rate", lambda *_: 1.0)
    airflow_says([(0, "running"), (1, "running")], [(0, "success"), (1, "success")])
    options = ["--interval", "0.01", "--total", "100", *(["--json"] if as_json else [])]
    code, out, _ = run("watch", *MANY, *options)
    assert code == 0
    if as_json:
        *_, first, second, _ = map(json.loads, out.splitlines())
        assert (first["state"], second["state"]) == ("success", "success")
        assert (first["work"][0]["seconds_left"], second["work"][0]["seconds_left"]) == (None, None)
    else:
        assert "0:01:30 left" in out
        *_, last, end = out.splitlines()
        assert last.endswith("all 3 map indexes  files: 14 of 200 (7%) done, 0 failed")
        assert end == "dag/run/many has ended: 2 success"


def test_a_map_index_that_stands_still_has_one_line(start, states):
    watch = start("watch", *MANY, "--interval", "0.02", "--total", "10")
    lines = [watch.stdout.readline().split("  ")[1] for _ in range(8)]
    assert lines == ["0", "1", "2", *5 * ["all 3 map indexes"]]


def test_watch_shows_at_last_what_there_was_before_the_task_deleted_it(run, fill, clear, airflow_says):
    fill(done=3)

    def succeed():
        clear()
        return [(-1, "success")]

    airflow_says([(-1, "running")], succeed)
    *_, last, end = run("watch", *IDS, "--interval", "0.01")[1].splitlines()
    assert "files: 3 done, 0 failed" in last
    assert end == "dag/run/task has ended: success; its state was deleted"


def test_watch_ends_where_the_run_is_deleted(run, fill, airflow_says):
    fill(done=3)
    airflow_says([(-1, "running")], [])
    _, out, err = run("watch", *IDS, "--interval", "0.01", "--json")
    assert json.loads(out.splitlines()[-1])["state"] is None
    assert err == "dag/run/task has ended: it is gone from Airflow\n"


def test_watch_goes_on_while_airflows_database_does_not_answer(run, fill, airflow_says):
    def fail():
        raise ConnectionError("postgresql://airflow:secret@db")

    fill(done=3)
    airflow_says(fail, fail, fail, [(-1, "running")], [(-1, "success")])
    code, out, err = run("watch", *IDS, "--interval", "0.001")
    assert (code, out.splitlines()[-1]) == (0, "dag/run/task has ended: success")
    assert set(err.splitlines()) <= {
        "when the task ends is not known here: Airflow's database does not answer (ConnectionError); Ctrl-C ends this"
    }


HANGING = """
import sqlite3, sys, time

connect = sqlite3.connect


def hang(path, **options):
    if "hanging" in str(path):
        print("connecting", file=sys.stderr, flush=True)
        time.sleep(600)
    return connect(path, **options)


sqlite3.connect = sqlite3.dbapi2.connect = hang
"""


def test_watch_ends_quietly_while_airflows_database_hangs(start, fill, tmp_path):
    (tmp_path / "hanging.db").touch()
    (tmp_path / "sitecustomize.py").write_text(HANGING)
    address = f"sqlite:///{tmp_path}/hanging.db"
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": address}
    fill(done=3)
    watch = start("watch", *IDS, "--interval", "0.02", env=env)
    assert watch.stderr.readline() == "connecting\n"
    watch.send_signal(signal.SIGINT)
    assert rest_of(watch)[1] == ""
    assert watch.returncode == 0


# where Airflow's database is not at hand


def test_watch_ends_when_all_items_are_done_where_airflow_cannot_be_asked(start, fill):
    fill(done=3)
    watch = start("watch", *IDS, "--total", "3", "--interval", "0.02")
    out, err = rest_of(watch)
    assert (watch.returncode, err) == (0, "")
    assert out.splitlines()[-1] == "all items of dag/run/task are done"


def test_watch_says_once_that_it_does_not_know_when_the_task_ends(start, fill, without_airflow):
    fill(done=3)
    watch = start("watch", *IDS, "--interval", "0.02")
    assert watch.stderr.readline() == (
        f"when the task ends is not known here: Airflow has no database at {without_airflow}; Ctrl-C ends this\n"
    )
    for _ in range(3):
        watch.stdout.readline()
    watch.kill()
    assert rest_of(watch)[1] == ""
    assert not without_airflow.exists()


def test_watch_of_an_asset_ends_when_all_items_are_done(run, dsn):
    async def fill():
        async with asset_state(Asset("orders"), store=dsn) as state:
            await state.work("files").done("a")

    asyncio.run(fill())
    out = run("watch", "--asset", "orders", "--total", "1", "--interval", "0.02")[1]
    assert out.splitlines()[-1] == "all items of asset orders are done"


def test_watch_ends_where_what_was_stored_is_deleted(start, dsn, fill):
    fill(rows=1)
    watch = start("watch", *IDS, "--interval", "0.02")
    watch.stderr.readline()

    async def delete():
        store = open_store(dsn, default_retention=1)
        await store.purge(1e11)
        await store.close()

    asyncio.run(delete())
    assert rest_of(watch)[0].splitlines()[-1] == "what was stored for dag/run/task was deleted"


def test_no_database_of_airflows_is_made_by_asking_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"sqlite:///{tmp_path}/none.db?timeout=5")
    instances = Instances(TaskScope(*IDS), all_indexes=True, interval=1)
    instances.begin()
    assert instances.unknown == f"Airflow has no database at {tmp_path}/none.db"
    assert not any(tmp_path.iterdir())


def test_a_terminal_keeps_the_end_on_it(start, fill, tmp_path):
    fill(done=3)
    master, slave = pty.openpty()
    with os.fdopen(master, "rb", buffering=0) as terminal:
        env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
        options = ("--total", "3", "--interval", "0.02")
        watch = start("watch", *IDS, *options, stdout=slave, stderr=slave, env=env)
        os.close(slave)
        seen = b""
        while b"are done" not in seen:
            seen += terminal.read(4096)
        assert watch.wait(30) == 0
    text = seen.decode()
    assert "3 of 3 (100%)" in text
    assert "complete" in text
    assert "0:00:00 left" not in text
