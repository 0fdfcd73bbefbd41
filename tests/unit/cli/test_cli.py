"""The commands: what they print, what they return, and what they leave alone."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import sqlite3
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from async_task_state import NEVER_EXPIRE, Settings, StaleAttemptError, StaleWriterError, TaskScope, cli
from async_task_state.lifetime import shutdown
from async_task_state.scopes import AssetScope

IDS = ("dag", "run", "task")
SCOPE_KEYS = {"dag_id", "run_id", "task_id", "map_index", "region_id", "asset", "asset_uri"}
RUN_ID = "manual__2026-01-02T03:04:05.678901+00:00"
SCRIPT = Path(sys.executable).with_name("async-task-state")


def test_options_before_the_command_count(run, fill, dsn, capsys):
    fill(rows=1)
    assert cli.main(["--json", "--dsn", dsn, "list"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["keys"] == 1


# show


def test_show_as_json(run, fill):
    fill(attempt=2, done=300, failed=12, cursor={"page": 3}, text="x" * 5000)
    code, out, err = run("show", *IDS, "--json")
    shown = json.loads(out)
    assert (code, err) == (0, "")
    assert shown.keys() == SCOPE_KEYS | {
        "attempt",
        "epoch",
        "keys",
        "updated_at",
        "holder",
        "values",
        "work",
    }
    assert (shown["attempt"], shown["epoch"], shown["keys"]) == (2, 1, 2)
    assert shown["values"] == {"cursor": {"page": 3}, "text": "x" * 5000}
    (work,) = shown["work"]
    failures = work.pop("failures")
    assert work == {"name": "files", "done": 300, "failed": 12}
    assert len(failures) == 12
    assert failures[0] == {"item": "failed-000", "error": "ValueError: bad row 0", "tries": 1, "attempt": 2}


def test_show_is_bounded(run, fill):
    fill(attempt=2, done=1500, failed=12, text="x" * 5000, **{f"key-{n}": n for n in range(200)})
    code, out, _ = run("show", *IDS)
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "dag/run/task"
    assert lines[1].startswith("attempt 2, opened or cleared 1 time, changed ")
    assert max(map(len, lines)) < 300
    assert sum(line.startswith("key-") for line in lines) == 100
    assert "and 101 more: --json has all of them" in lines
    assert ["files", "1,500", "12"] in [line.split() for line in lines]
    assert sum(line.startswith("failed-") for line in lines) == 10
    assert lines[-1] == "and 2 more: --json has all of them"


def test_show_prints_values_as_json(run, fill):
    fill(marks={"0": 0.25}, on=True, nothing=[None], name="Zoë", path="a\x9b\n'b", many=list(range(500)))
    rows = dict(line.split(maxsplit=1) for line in run("show", *IDS)[1].splitlines()[4:])
    assert rows["marks"] == '{"0": 0.25}'
    assert (rows["on"], rows["nothing"], rows["name"]) == ("true", "[null]", '"Zoë"')
    assert rows["path"] == json.dumps("a\x9b\n'b")
    assert rows["many"].startswith("[0, 1, 2, ")
    assert rows["many"].endswith("… and 2,190 more characters")


def test_show_says_who_opened_a_state_last_and_not_that_it_is_open(run, fill):
    fill(rows=1)
    line = run("show", *IDS)[1].splitlines()[2]
    assert line.startswith(f"last opened by process {os.getpid()} on host {socket.gethostname()}, ")
    assert "since" not in line


def test_what_was_cleared_is_of_no_attempt_and_changed_then(run, fill):
    fill(attempt=2, rows=1)
    fill(attempt=2, rows=2)
    before = json.loads(run("show", *IDS, "--json")[1])
    run("clear", *IDS, "--yes")
    after = json.loads(run("show", *IDS, "--json")[1])
    assert after["updated_at"] >= before["updated_at"]
    assert (before["attempt"], after["attempt"], after["epoch"], after["holder"]) == (2, None, 3, None)
    _, line, *rest = run("show", *IDS)[1].splitlines()
    assert line.startswith("opened or cleared 3 times, changed ")
    assert rest == ["", "no keys"]
    assert json.loads(run("list", "--json")[1])[0]["attempt"] is None
    assert run("list")[1].splitlines()[1].split()[3:5] == ["0", after["updated_at"][:10]]


def test_show_says_that_tries_are_those_of_all_attempts(run, fill):
    fill(attempt=1, failed=1)
    fill(attempt=2, failed=1)
    *_, header, failure = run("show", *IDS)[1].splitlines()
    assert header.split("  ")[0] == "failed in files"
    assert "tries, all attempts  error" in header
    assert failure.split()[:2] == ["failed-000", "2"]


def test_show_names_the_mapped_ones(run, fill):
    fill(TaskScope(*IDS, 7), rows=7)
    code, out, err = run("show", *IDS)
    assert (code, out) == (1, "")
    assert (
        err == "error: nothing is stored for dag/run/task; there is for dag/run/task[7] (say --map-index)\n"
    )
    assert json.loads(run("show", *IDS, "--map-index", "7", "--json")[1])["values"] == {"rows": 7}


def test_work_sets_are_apart_whose_names_begin_alike(run, fill, make_state):
    fill(done=1, work="a:b")
    fill(done=2, failed=1, work="a")

    async def reopen():
        async with make_state(TaskScope(*IDS)) as state:
            return state.work("a").counts, state.work("a:b").counts

    counts = [(count.done, count.failed) for count in asyncio.run(reopen())]
    shown = json.loads(run("show", *IDS, "--json")[1])["work"]
    assert counts == [(2, 1), (1, 0)]
    assert sorted((work["name"], work["done"], work["failed"]) for work in shown) == [
        ("a", 2, 1),
        ("a:b", 1, 0),
    ]


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("command", [["show"], ["watch", "--until", "1"]])
def test_nothing_stored_can_command_the_terminal(run, make_state, monkeypatch, command, terminal):
    evil = "\x1b[2J\x9b31m\r\n[red]"

    async def store():
        async with make_state(TaskScope(*IDS)) as state:
            await state.set("key" + evil, evil)
            await state.work("work" + evil).done("done")
            await state.work("work" + evil).failed("item" + evil, "error" + evil)

    asyncio.run(store())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(*command, *IDS)
    assert code == 0
    assert not any(raw in out for raw in ("\x1b[2J", "\x9b", "\r\n[red]"))
    assert "work\\x1b[2J\\x9b31m\\r\\n[red]" in out


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("command", [["show"], ["watch", "--until", "1"]])
def test_a_file_that_failed_is_shown_by_its_path_and_told_to_programs_by_its_key(
    run, make_state, monkeypatch, command, terminal
):
    async def store():
        async with make_state(TaskScope(*IDS)) as state:
            await state.work("files").done("/in/b.csv#3,1.5")
            await state.work("files").failed("/in/a.csv#12,1764180000.5", ValueError("no"))

    asyncio.run(store())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run(*command, *IDS)
    assert "#12," not in out
    assert ("/in/a.csv" in out) == (terminal or command == ["show"])
    shown = json.loads(run("show", *IDS, "--json")[1])
    assert shown["work"][0]["failures"][0]["item"] == "/in/a.csv#12,1764180000.5"


# no database


@pytest.mark.parametrize(
    ("command", "expected"),
    [(["list"], 0), (["list", "--json"], 0), (["show", *IDS], 1), (["clear", *IDS, "--yes"], 1)],
)
def test_looking_makes_no_database(run, tmp_path, command, expected):
    code, out, err = run(*command)
    assert (code, out) == (expected, "[]\n" if "--json" in command else "")
    assert err.removeprefix("error: ") == f"there is no database yet at {tmp_path}/state.db\n"
    assert not any(tmp_path.iterdir())


# clear


def test_clear_fences_the_holder(run, make_state):
    async def hold():
        async with make_state(TaskScope(*IDS), attempt=1) as state:
            await state.work("files").done("a")
            await state.set("rows", 1)
            nonlocal cleared
            cleared = await asyncio.to_thread(run, "clear", *IDS, "--yes")
            await state.set("rows", 2)

    cleared = None
    with pytest.raises(StaleWriterError):
        asyncio.run(hold())
    code, out, err = cleared
    assert (code, err) == (0, "")
    assert out == (
        "cleared dag/run/task: removed 1 key, work set 'files' (1 done, 0 failed); whoever was writing it is fenced\n"
    )
    shown = json.loads(run("show", *IDS, "--json")[1])
    assert (shown["values"], shown["work"]) == ({}, [])


def test_clear_lets_a_task_in_that_was_locked_out(run, fill):
    fill(attempt=1_000_000, n=1)
    with pytest.raises(StaleAttemptError, match="remove it: async-task-state clear dag run task"):
        fill(attempt=2, n=2)
    assert run("clear", *IDS, "--yes")[0] == 0
    fill(attempt=2, n=2)
    assert json.loads(run("show", *IDS, "--json")[1])["values"] == {"n": 2}


def test_clear_as_json(run, fill):
    fill(TaskScope(*IDS, 2), rows=1, bytes=2)
    code, out, _ = run("clear", *IDS, "--map-index", "2", "--yes", "--json")
    assert code == 0
    assert json.loads(out) == {
        "dag_id": "dag",
        "run_id": "run",
        "task_id": "task",
        "map_index": 2,
        "region_id": None,
        "asset": None,
        "asset_uri": None,
        "removed": 2,
    }


def test_clear_asks_nobody_when_there_is_nobody(run, fill, epoch_of):
    fill(rows=1)
    code, out, err = run("clear", *IDS)
    assert (code, out, err) == (2, "", "error: there is no terminal to ask on: say --yes\n")
    assert epoch_of() == 1


@pytest.mark.parametrize(("answer", "cleared"), [("y\n", True), ("YES\n", True), ("n\n", False), ("", False)])
def test_clear_asks(run, fill, epoch_of, monkeypatch, answer, cleared):
    fill(attempt=4, rows=1)
    stdin = io.StringIO(answer)
    monkeypatch.setattr(stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", stdin)
    code, out, err = run("clear", *IDS, "--json")
    assert code == (0 if cleared else 1)
    assert "dag/run/task holds 1 key." in err
    assert "its attempt 4 is still at work it is fenced" in err
    assert "[y/N]" in err
    assert bool(out) is cleared
    assert epoch_of() == (2 if cleared else 1)


# purge


def test_purge(run, make_state, fill, write, dsn, tmp_path, monkeypatch):
    async def expire():
        async with make_state(TaskScope(*IDS)) as state:
            await state.set("gone", 1, retention=timedelta(microseconds=1))
            await state.set("kept", 2, retention=NEVER_EXPIRE)

    asyncio.run(expire())
    fill(TaskScope("untouched", "run", "task"))
    write(AssetScope("untouched"))
    monkeypatch.setattr(cli, "load_settings", lambda: Settings(dsn=dsn))
    assert run("purge") == (
        0,
        "purged 1 key that had expired, or whose states were not in use for 30 days\n",
        "",
    )
    assert json.loads(run("purge", "--json")[1]) == {"purged": 0}
    assert len(json.loads(run("list", "--json")[1])) == 3
    # An untouched state goes with the default retention, and one that still holds a key does not.
    with closing(sqlite3.connect(tmp_path / "state.db")) as db, db:
        db.execute("UPDATE scope SET touched_at = touched_at - 31 * 86400")
    run("purge")
    assert [info["dag_id"] for info in json.loads(run("list", "--json")[1])] == ["dag"]


def test_purge_leaves_what_is_kept_for_ever(run, fill, dsn, tmp_path, monkeypatch):
    fill(done=1)
    # The settings are those of a process, and so is the writer that was made with others.
    shutdown()
    monkeypatch.setattr(cli, "load_settings", lambda: Settings(dsn=dsn, default_retention_days=0))
    with closing(sqlite3.connect(tmp_path / "state.db")) as db, db:
        db.execute("UPDATE scope SET touched_at = 0")
    assert run("purge") == (0, "purged 0 keys that had expired\n", "")
    assert len(json.loads(run("list", "--json")[1])) == 1


def test_purge_makes_no_database(run, dsn, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "load_settings", lambda: Settings(dsn=dsn))
    code, out, err = run("purge")
    assert (code, out.startswith("purged 0 keys"), "no database yet" in err) == (0, True, True)
    assert not any(tmp_path.iterdir())
