"""The command `list`."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from async_task_state import TaskScope

IDS = ("dag", "run", "task")
SCOPE_KEYS = {"dag_id", "run_id", "task_id", "map_index", "region_id", "asset", "asset_uri"}
RUN_ID = "manual__2026-01-02T03:04:05.678901+00:00"
SCRIPT = Path(sys.executable).with_name("async-task-state")


def test_list_as_json(run, fill):
    fill(TaskScope("dag", RUN_ID, "task", 3), attempt=2, rows=1, done=1)
    code, out, err = run("list", "--json")
    (listed,) = json.loads(out)
    assert (code, err) == (0, "")
    assert datetime.fromisoformat(listed.pop("updated_at")).utcoffset() == timedelta(0)
    assert listed.pop("position")
    holder = listed.pop("holder")
    assert datetime.fromisoformat(holder.pop("since")).utcoffset() == timedelta(0)
    assert holder == {"host": socket.gethostname(), "pid": os.getpid(), "attempt": 2}
    assert listed == {
        "work": [{"name": "files", "done": 1, "failed": 0}],
        "dag_id": "dag",
        "run_id": RUN_ID,
        "task_id": "task",
        "map_index": 3,
        "region_id": None,
        "asset": None,
        "asset_uri": None,
        "attempt": 2,
        "epoch": 1,
        "keys": 1,
    }


def test_list_as_table(run, fill):
    fill(TaskScope("first", RUN_ID, "task"))
    fill(TaskScope("second", "run", "task", 0), attempt=3, rows=1, bytes=2)
    code, out, err = run("list")
    header, second, first = out.splitlines()
    assert (code, err) == (0, "")
    columns = ["dag", "run", "task", "map", "attempt", "keys", "changed", "host", "process", "last", "opened"]
    assert header.split() == columns
    assert second.split()[:6] == ["second", "run", "task", "0", "3", "2"]
    assert second.split()[9:11] == [socket.gethostname(), str(os.getpid())]
    assert first.split()[:5] == ["first", RUN_ID, "task", "1", "0"]
    assert first.endswith(" UTC")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), 3),
        (("--dag", "a"), 2),
        (("--dag", "a", "--run", "r2"), 1),
        (("--task", "t"), 3),
        (("--task", "x"), 0),
    ],
)
def test_list_narrowed(run, fill, options, expected):
    for ids in (("a", "r1", "t"), ("a", "r2", "t"), ("b", "r1", "t")):
        fill(TaskScope(*ids))
    assert len(json.loads(run("list", "--json", *options)[1])) == expected


@pytest.mark.parametrize("done", [1, 255, 256, 257, 600])
def test_list_counts_what_work_sets_hold(run, fill, done):
    fill(done=done, failed=2)
    fill(TaskScope("other", "run", "task"), done=1, work="a:b")
    fill(TaskScope("third", "run", "task"), rows=1)
    header, third, other, first = run("list")[1].splitlines()
    start = header.index("keys")
    assert header[start:].split()[:3] == ["keys", "done", "failed"]
    assert first.split()[3:7] == ["1", "0", str(done), "2"]
    assert other.split()[3:7] == ["1", "0", "1", "0"]
    assert third.split()[3:6] == ["1", "1", third.split()[5]]
    assert [each["work"] for each in json.loads(run("list", "--json")[1])] == [
        [],
        [{"name": "a:b", "done": 1, "failed": 0}],
        [{"name": "files", "done": done, "failed": 2}],
    ]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_list_fits_a_terminal(run, fill, monkeypatch, width):
    fill(TaskScope("dag", RUN_ID, "task", 3), attempt=2, rows=1, done=1500, failed=2)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    _, out, _ = run("list")
    text = re.sub("\x1b.*?m", "", out)
    assert max(map(len, text.splitlines())) <= width
    where = f"last opened by process {os.getpid()} on {socket.gethostname()}, "
    if width in {60, 200}:
        assert (where in text) == (width == 60)
    assert RUN_ID in text
    assert "1,500" in text


def test_list_in_pages(run, fill):
    for index in range(5):
        fill(TaskScope(*IDS, index))
    fill(TaskScope("other", "run", "task"))
    seen, after, pages = [], [], 0
    while after is not None:
        code, out, err = run("list", "--dag", "dag", "--limit", "2", *after)
        seen += [line.split()[3] for line in out.splitlines()[1:]]
        pages += 1
        after = None
        if err:
            said, position = err.removesuffix("\n").split(" --after ")
            assert (code, said) == (0, "2 of 5 states: go on with")
            after = ["--after", position]
    assert (seen, pages) == (["4", "3", "2", "1", "0"], 3)
    *_, last = listed = json.loads(run("list", "--json", "--limit", "4")[1])
    rest = json.loads(run("list", "--json", "--after", last["position"])[1])
    assert len(listed) == 4
    assert listed + rest == json.loads(run("list", "--json")[1])
    assert run("list", "--after", rest[-1]["position"]) == (0, "", "no state matches\n")


def test_list_shows_a_hundred_and_says_how_many_there_are(run, write):
    for index in range(101):
        write(TaskScope(*IDS, index), a=1)
    code, out, err = run("list")
    assert (code, len(out.splitlines())) == (0, 1 + 100)
    assert err.startswith("100 of 101 states: go on with --after ")
    assert len(json.loads(run("list", "--json")[1])) == 101


def test_list_shows_regions_where_there_are_any(run, fill):
    region = "12345678-1234-5678-1234-567812345678"
    fill(replace(TaskScope(*IDS), region_id=UUID(region)), rows=1)
    assert region in run("list")[1]
    assert json.loads(run("show", *IDS, "--region-id", region, "--json")[1])["values"] == {"rows": 1}


def test_a_list_as_json_has_a_line_for_each_state(run, fill):
    for index in range(3):
        fill(TaskScope(*IDS, index))
    first, *lines, last = run("list", "--json")[1].splitlines()
    assert (first, last) == ("[", "]")
    assert [json.loads(line.removesuffix(","))["map_index"] for line in lines] == [2, 1, 0]


def test_an_empty_list_is_json_too(run):
    assert json.loads(run("list", "--json")[1]) == []
