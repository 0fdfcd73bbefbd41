"""`watch`: on a terminal, in a log, as JSON lines."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
from types import SimpleNamespace

import pytest
from rich.console import Console

from async_task_state import StoreUnavailableError, TaskScope, cli
from async_task_state.cli_progress import WatchedMany, WatchedState
from async_task_state.cli_watch_views import watch_view
from async_task_state.stores import open_store

pytestmark = pytest.mark.usefixtures("without_airflow")

IDS = ("dag", "run", "task")
SCOPE_KEYS = {"dag_id", "run_id", "task_id", "map_index", "region_id", "asset", "asset_uri"}


def rest_of(process):
    """What it still says until it ends: not `communicate`, which leaves out what `readline` has read ahead."""
    with process:
        return process.stdout.read(), process.stderr.read()


def test_watch_waits_for_the_database_and_the_state(start, fill, tmp_path):
    watch = start("watch", *IDS, "--interval", "0.02", "--until", "5")
    assert watch.stderr.readline() == f"waiting: there is no database yet at {tmp_path}/state.db\n"
    assert not any(tmp_path.iterdir())
    fill(TaskScope("another", "run", "task"))
    assert watch.stderr.readline() == "waiting: nothing is stored yet for dag/run/task\n"
    fill(done=5)
    out, err = rest_of(watch)
    assert (watch.returncode, err) == (0, "")
    assert "attempt 1, opened or cleared 1 time  files: 5 done, 0 failed" in out.splitlines()[-1]


def test_watch_names_the_map_indexes_that_there_are(start, fill):
    for index in range(2):
        fill(TaskScope(*IDS, index))
    watch = start("watch", *IDS, "--map-index", "7")
    assert watch.stderr.readline() == (
        "waiting: nothing is stored yet for dag/run/task[7]; there is for dag/run/task[0], dag/run/task[1] (say --map-index)\n"
    )


def test_watch_as_json_lines(start, fill):
    fill(attempt=2, done=10, failed=2, expected=40)
    watch = start("watch", *IDS, "--json", "--total", "expected", "--interval", "0.02", "--until", "39")
    first = json.loads(watch.stdout.readline())
    fill(attempt=3, done=40)
    lines = [first, *map(json.loads, watch.stdout)]
    assert watch.wait(30) == 0
    assert all(
        line.keys() == SCOPE_KEYS | {"time", "state", "attempt", "epoch", "values", "work"}
        and line["work"][0].keys() == {"name", "done", "failed", "total", "rate", "seconds_left"}
        for line in lines
    )
    assert first["work"] == [
        {"name": "files", "done": 10, "failed": 2, "total": 40, "rate": None, "seconds_left": None}
    ]
    assert first["values"] == {"expected": 40}
    assert (lines[-1]["attempt"], lines[-1]["epoch"]) == (3, 2)
    assert (lines[-1]["work"][0]["done"], lines[-1]["work"][0]["seconds_left"]) == (40, 0.0)
    assert lines[-1]["work"][0]["rate"] > 0


def test_watch_as_lines(run, fill):
    fill(done=30, failed=1)
    fill(done=20, work="other")
    _, out, _ = run("watch", *IDS, "--work", "files", "--total", "60", "--until", "30")
    (line,) = out.splitlines()
    assert line.split("  ")[1:] == [
        "attempt 1, opened or cleared 2 times",
        "files: 30 of 60 (50%) done, 1 failed",
    ]
    assert len(run("watch", *IDS, "--until", "50")[1].splitlines()) == 2


def test_not_all_is_not_100_percent(run, fill):
    fill(done=999)
    assert "999 of 1,000 (99%) done" in run("watch", *IDS, "--total", "1000", "--until", "1")[1]
    assert "999 of 999 (100%) done" in run("watch", *IDS, "--total", "999", "--until", "1")[1]


def test_watch_ends_well_when_interrupted(start, fill):
    fill(rows=1)
    watch = start("watch", *IDS)
    assert watch.stdout.readline().endswith("attempt 1, opened or cleared 1 time  no work set, 1 key\n")
    watch.send_signal(signal.SIGINT)
    out, err = rest_of(watch)
    assert (watch.returncode, out, err) == (0, "", "")


def test_watch_ends_when_its_reader_does(start, fill):
    fill(rows=1)
    watch = start("watch", *IDS, "--json", "--interval", "0.02", "--until", "9")
    watch.stdout.readline()
    watch.stdout.close()
    assert watch.stderr.read() == ""
    assert watch.wait(30) == 1


def test_watch_draws_on_a_terminal(start, fill):
    fill(done=25, failed=1, bytes=123)
    master, slave = pty.openpty()
    with os.fdopen(master, "rb", buffering=0) as terminal:
        env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
        watch = start(
            "watch", *IDS, "--total", "100", "--interval", "0.02", stdout=slave, stderr=slave, env=env
        )
        os.close(slave)
        seen = b""
        while b"bytes" not in seen:
            seen += terminal.read(4096)
        watch.send_signal(signal.SIGINT)
        assert watch.wait(30) == 0
    text = seen.decode()
    assert "25 of 100 (25%)" in text
    assert "━" in text
    assert "failed: failed-000: ValueError: bad row 0" in text
    assert "\x1b[" in text


@pytest.fixture
def view(monkeypatch, dsn, fill):
    """Takes looks at a state at moments of the test's choosing."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(
        "async_task_state.cli_progress.time",
        SimpleNamespace(monotonic=lambda: clock.now, time=lambda: clock.now),
    )
    view = WatchedState(TaskScope(*IDS), total=300)

    async def read():
        store = open_store(dsn)
        try:
            return await store.read(TaskScope(*IDS))
        finally:
            await store.close()

    def look(at, **filled):
        clock.now = 1000.0 + at
        if filled:
            fill(**filled)
        view.take(asyncio.run(read()))
        return view.now.works[0]

    return look


def test_rate_and_time_left(view):
    assert (view(0, done=100).rate, view(0).seconds_left) == (None, None)
    assert (view(10, done=150).rate, view(10).seconds_left) == (5.0, 30.0)
    assert view(20, done=200, failed=50).rate == 7.5
    assert view(20).seconds_left == pytest.approx(50 / 7.5)
    # What is older than the window does not count.
    assert view(45).rate == 0.0
    assert (view(100).rate, view(100).seconds_left) == (None, None)
    assert view(110).rate == 0.0
    assert view(110).seconds_left is None
    assert view(120, done=400).seconds_left == 0.0


def test_rate_starts_anew_when_the_state_was_cleared(view, run):
    view(0, done=100)
    run("clear", *IDS, "--yes")
    assert view(10, attempt=1, done=20).rate is None
    assert view(20, done=40).rate == 2.0


def test_watch_goes_on_after_an_outage(run, fill, dsn, monkeypatch):
    class Busy:
        """Does not answer at first."""

        def __init__(self):
            self.store, self.asked = open_store(dsn), 0

        async def read(self, scope):
            self.asked += 1
            if self.asked < 3:
                raise StoreUnavailableError("the database is locked")
            return await self.store.read(scope)

        async def close(self):
            await self.store.close()

    fill(done=1)
    monkeypatch.setattr(cli, "lent_store", lambda *_, **__: Busy())
    code, out, err = run("watch", *IDS, "--interval", "0.001", "--until", "1")
    assert (code, err) == (0, "trying again: the database is locked\n")
    assert out.endswith("files: 1 done, 0 failed\n")


def test_a_terminal_is_told_of_changes_that_were_seen_only(fill, dsn):
    def seen():
        async def look():
            store = open_store(dsn)
            view.take(await store.read(TaskScope(*IDS)))
            await store.close()

        asyncio.run(look())
        with console.capture() as captured:
            console.print(watch_view(view, None, 40))
        return captured.get()

    view, console = WatchedMany(TaskScope(*IDS)), Console(width=120)
    fill(rows=1)
    assert "no change seen for 0:00:00" in seen()
    assert "no change seen for 0:00:00" in seen()
    fill(rows=2)
    assert "last change 0:00:00 ago" in seen()
