"""What `watch` shows of a mapped task."""

from __future__ import annotations

import asyncio
import json

import pytest
from clikit import rest_of
from rich.console import Console

from async_task_state import TaskScope
from async_task_state.cli_progress import WatchedMany
from async_task_state.cli_watch_views import watch_view
from async_task_state.stores import Wanted, open_store
from async_task_state.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.usefixtures("without_airflow")

IDS = ("dag", "run", "task")
MANY = ("dag", "run", "many")


def test_watch_of_a_mapped_task_shows_all_map_indexes(run, states):
    code, out, err = run("watch", *MANY, "--until", "14")
    assert (code, err) == (0, "")
    assert [line.split("  ")[1:] for line in out.splitlines()] == [
        ["0", "attempt 1, opened or cleared 1 time", "files: 10 done, 0 failed"],
        ["1", "attempt 1, opened or cleared 1 time", "files: 4 done, 0 failed"],
        ["2", "attempt 1, opened or cleared 1 time", "no work set, 1 key"],
        ["all 3 map indexes", "files: 14 done, 0 failed"],
    ]


@pytest.mark.parametrize("total", ["expected", "10"])
def test_each_map_index_has_a_total_and_so_have_all(run, states, fill, total):
    out = run("watch", *MANY, "--until", "14", "--total", total)[1]
    assert "files: 10 of 10 (100%) done, 0 failed, complete\n" in out
    assert "all 3 map indexes  files: 14 of 20 (70%) done, 0 failed\n" in out


def test_a_mapped_task_as_json_is_an_object_for_each_state(run, states):
    lines = list(map(json.loads, run("watch", *MANY, "--until", "14", "--json")[1].splitlines()))
    assert [(line["map_index"], line["state"], line["values"]) for line in lines] == [
        (index, None, None) for index in range(3)
    ]
    assert [[work["done"] for work in line["work"]] for line in lines] == [[10], [4], []]


def test_of_a_mapped_task_only_what_changed_has_a_line_again(start, states, fill):
    watch = start("watch", *MANY, "--interval", "0.02", "--until", "15")
    for _ in range(5):
        watch.stdout.readline()
    fill(TaskScope(*MANY, 1), attempt=2, done=5)
    out, _ = rest_of(watch)
    indexes = [line.split("  ")[1] for line in out.splitlines()]
    assert (indexes.count("0"), indexes.count("2")) == (0, 0)
    assert (watch.returncode, indexes[-2:]) == (0, ["1", "all 3 map indexes"])


def test_a_map_index_alone_is_watched_by_its_number(run, states):
    out = run("watch", *MANY, "--map-index", "1", "--until", "4")[1]
    assert [line.split("  ")[-1] for line in out.splitlines()] == ["files: 4 done, 0 failed"]


@pytest.mark.parametrize("command", [("show",), ("watch", "--until", "4")])
def test_of_one_map_index_the_others_are_not_read(run, states, monkeypatch, command):
    scopes, asked = SQLiteStore.scopes, []

    async def noting(self, wanted):
        asked.append((wanted, len(await scopes(self, wanted))))
        return await scopes(self, wanted)

    monkeypatch.setattr(SQLiteStore, "scopes", noting)
    command, *options = command
    assert run(command, *MANY, "--map-index", "1", *options)[0] == 0
    assert asked == ([(Wanted(*MANY, 1), 1)] if command == "show" else [])


def test_a_look_at_a_mapped_task_is_one_query(run, states, monkeypatch):
    async def read(self, scope):
        seen.append(scope)

    seen = []
    monkeypatch.setattr(SQLiteStore, "read", read)
    assert run("watch", *MANY, "--until", "14")[0] == 0
    # What is named may have a state itself, or be in a region.
    assert set(seen) == {TaskScope(*MANY)}


def test_a_terminal_has_a_row_for_each_map_index_that_it_has_room_for(states, fill, dsn):
    async def look():
        store = open_store(dsn)
        view.take_listing(await store.scopes(Wanted(*MANY)))
        await store.close()

    def seen(height):
        asyncio.run(look())
        with console.capture() as captured:
            console.print(watch_view(view, "a note", height))
        return [line.rstrip() for line in captured.get().splitlines()]

    view, console = WatchedMany(TaskScope(*MANY), total=10), Console(width=120)
    view.instances = [(0, "success"), (1, "deferred"), (2, "running")]
    head, titles, *rows, together, note = seen(40)
    assert head == (
        "dag/run/many  state of 3 map indexes, no change seen for 0:00:00, in Airflow: 1 success, 1 deferred, 1 running"
    )
    assert titles.split() == ["map", "in", "Airflow", "attempt", "work", "set", "done", "pace", "failed"]
    assert [row.split()[:4] for row in rows] == [
        ["0", "success", "1", "files"],
        ["1", "deferred", "1", "files"],
        ["2", "running", "1", "1"],
    ]
    assert rows[0].endswith("10 of 10 (100%)  complete       0")
    assert (together.split()[0], "14 of 30 (47%)" in together, note) == ("all", True, "a note")
    for index in range(3, 20):
        fill(TaskScope(*MANY, index), done=1)
    seen(40)
    fill(TaskScope(*MANY, 11), done=2)
    lines = seen(10)
    assert "and 15 more, which changed before these" in lines
    assert "11" in [line.split()[0] for line in lines]


@pytest.mark.parametrize("width", [120, 80])
def test_a_narrow_terminal_has_room_for_all_map_indexes_together(fill, dsn, width):
    async def look():
        store = open_store(dsn)
        view.take_listing(await store.scopes(Wanted(*MANY)))
        await store.close()

    for index in range(20):
        fill(TaskScope(*MANY, index), done=1)
    view, console = WatchedMany(TaskScope(*MANY), total=1000), Console(width=width)
    view.instances = [(index, "up_for_retry") for index in range(20)]
    asyncio.run(look())
    with console.capture() as captured:
        console.print(watch_view(view, "a note", 24))
    lines = captured.get().splitlines()
    assert len(lines) <= 24
    assert [line.split()[0] for line in lines[-3:]] == ["all", "and", "a"]
