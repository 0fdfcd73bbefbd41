"""Which states a command is about: those of tasks and of assets, one or many."""

from __future__ import annotations

import io
import json
import re
import sys
from uuid import UUID

import pytest

from async_task_state import TaskScope
from async_task_state.scopes import AssetScope

IDS = ("dag", "run", "task")
NO_TASK = dict.fromkeys(("dag_id", "run_id", "task_id", "map_index", "region_id"))


@pytest.fixture
def states(fill):
    """Two runs with tasks that are mapped and not, one in a region, and an asset that is named as they are."""
    fill(TaskScope("dag", "run", "one"), rows=1, bytes=2, done=3)
    for index in range(3):
        fill(TaskScope("dag", "run", "many", index), rows=index)
    fill(TaskScope("dag", "run", "many", 0, UUID(int=7)), rows=7)
    fill(TaskScope("dag", "other", "one"), rows=1)


@pytest.fixture
def left(run):
    """Whose states still hold something."""

    def left():
        found = json.loads(run("list", "--json")[1])
        return sorted(
            [info["run_id"], info["task_id"], info["map_index"], info["region_id"] is not None]
            for info in found
            if info["keys"] and info["asset"] is None
        )

    return left


@pytest.fixture
def answer(monkeypatch):
    """Answers a question."""

    def answer(text):
        stdin = io.StringIO(text)
        monkeypatch.setattr(stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr(sys, "stdin", stdin)

    return answer


MANY = [
    ["run", "many", 0, False],
    ["run", "many", 0, True],
    ["run", "many", 1, False],
    ["run", "many", 2, False],
]
ONE = [["run", "one", -1, False]]
OTHER = [["other", "one", -1, False]]


# assets


def test_assets_are_listed_below_the_tasks(run, fill, write):
    write(AssetScope("orders"), watermark=1)
    fill(TaskScope(*IDS), rows=1)
    code, out, err = run("list")
    tasks, task, blank, assets, asset = out.splitlines()
    assert (code, err, blank) == (0, "", "")
    assert tasks.split()[:7] == ["dag", "run", "task", "map", "attempt", "keys", "changed"]
    assert task.split()[:5] == [*IDS, "1", "1"]
    assert assets.split() == ["asset", "keys", "changed"]
    assert asset.split()[:2] == ["orders", "1"]
    assert asset.endswith(" UTC")
    code, out, err = run("list", "--assets")
    assert out.splitlines() == [assets, asset]


def test_the_list_says_by_what_assets_are_known(run, write):
    write(AssetScope(uri="s3://b/x"), a=1)
    write(AssetScope("s3://b/x"), a=1)
    header, *rows = run("list")[1].splitlines()
    assert header.split() == ["asset", "known", "by", "keys", "changed"]
    assert sorted(row.split()[:3] for row in rows) == [["s3://b/x", "name", "1"], ["s3://b/x", "uri", "1"]]


def test_assets_as_json(run, fill, write):
    fill(TaskScope(*IDS), rows=1)
    write(AssetScope("orders"), watermark=[1, 2])
    write(AssetScope(uri="s3://b/x"))
    by_uri, by_name, task = json.loads(run("list", "--json")[1])
    assert (task["dag_id"], task["asset"], task["asset_uri"]) == ("dag", None, None)
    assert by_name.items() >= {**NO_TASK, "asset": "orders", "asset_uri": None, "keys": 1, "epoch": 0}.items()
    assert by_uri.items() >= {**NO_TASK, "asset": None, "asset_uri": "s3://b/x", "keys": 0}.items()
    assert json.loads(run("list", "--assets", "--json")[1]) == [by_uri, by_name]
    assert by_name.pop("position") != by_uri.pop("position")
    assert json.loads(run("show", "--asset", "orders", "--json")[1]) == {
        **by_name,
        "values": {"watermark": [1, 2]},
        "work": [],
    }


def test_an_asset_is_shown(run, fill, write):
    write(AssetScope("orders"), watermark=12345)
    write(AssetScope(uri="orders"), other=1)
    code, out, err = run("show", "--asset", "orders")
    lines = out.splitlines()
    assert (code, err, lines[0]) == (0, "", "asset orders")
    assert lines[1].startswith("opened by nobody yet, changed ")
    assert ["watermark", "12345"] in [line.split() for line in lines]
    assert json.loads(run("show", "--asset-uri", "orders", "--json")[1])["values"] == {"other": 1}
    assert run("show", "--asset", "nope")[::2] == (
        1,
        "error: nothing is stored for asset nope: see async-task-state list\n",
    )


def test_an_asset_is_watched(start, write):
    write(AssetScope("orders"), a=1)
    watch = start("watch", "--asset", "orders")
    assert watch.stdout.readline().endswith("opened by nobody yet  no work set, 1 key\n")


def test_an_asset_is_cleared(run, fill, write, answer, epoch_of):
    for scope in (AssetScope("orders"), AssetScope(uri="orders")):
        write(scope, a=1, b=2)
    answer("n\n")
    code, out, err = run("clear", "--asset", "orders")
    assert (code, out) == (1, "")
    assert err.startswith("asset orders holds 2 keys.\nWhoever is still at work on it is fenced")
    code, out, err = run("clear", "--asset", "orders", "--yes")
    assert (code, err) == (0, "")
    assert out == "cleared asset orders: removed 2 keys; whoever was writing it is fenced\n"
    by_uri = json.loads(run("clear", "--asset-uri", "orders", "--yes", "--json")[1])
    assert by_uri == {**NO_TASK, "asset": None, "asset_uri": "orders", "removed": 2}
    assert epoch_of(AssetScope("orders")) == 1


def test_what_was_only_written_shows_no_attempt(run, write):
    write(TaskScope(*IDS), cursor=1)
    assert run("list")[1].splitlines()[1].split()[:4] == [*IDS, "1"]
    assert run("show", *IDS)[1].splitlines()[1].startswith("opened by nobody yet, changed ")


# many at once


def test_a_run_is_cleared(run, states, left, epoch_of, write):
    write(AssetScope("one"), a=1)
    code, out, err = run("clear", "dag", "run", "--yes")
    assert (code, err) == (0, "")
    assert out == (
        "cleared dag/run: removed 6 keys and 1 work set in 5 states of 2 tasks; whoever was writing it is fenced\n"
    )
    assert left() == OTHER
    assert epoch_of(TaskScope("dag", "run", "many", 2)) == 2
    assert epoch_of(TaskScope("dag", "other", "one")) == 1
    assert json.loads(run("show", "dag", "run", "one", "--json")[1])["work"] == []
    assert json.loads(run("show", "--asset", "one", "--json")[1])["values"] == {"a": 1}


def test_many_as_json(run, states):
    of_task = json.loads(run("clear", "dag", "run", "many", "--all-map-indexes", "--yes", "--json")[1])
    assert of_task == {"dag_id": "dag", "run_id": "run", "task_id": "many", "states": 4, "removed": 4}
    # The rows of work sets are counted, too.
    of_run = json.loads(run("clear", "dag", "run", "--yes", "--json")[1])
    assert of_run.pop("removed") > 2
    assert of_run == {"dag_id": "dag", "run_id": "run", "task_id": None, "states": 5}


def test_all_indexes_of_a_mapped_task_are_cleared(run, states, left):
    code, out, _ = run("clear", "dag", "run", "many", "--all-map-indexes", "--yes")
    assert (code, "removed 4 keys in 4 states;" in out) == (0, True)
    assert left() == OTHER + ONE


def test_a_region_narrows_it(run, states, left):
    region = str(UUID(int=7))
    assert run("clear", "dag", "run", "--region-id", region, "--yes")[0] == 0
    assert left() == sorted(OTHER + ONE + [state for state in MANY if not state[3]])
    assert run("clear", "dag", "run", "one", "--all-map-indexes", "--region-id", region, "--yes")[0] == 1


@pytest.fixture
def in_regions(fill):
    """What Airflow 3.4 has of two mapped tasks, of which one is in a loop."""
    for index in range(2):
        fill(TaskScope("dag", "run", "mapped", index, UUID(int=1)), rows=index, done=1)
        for region in (2, 3):
            fill(TaskScope("dag", "run", "looped", index, UUID(int=region)), rows=region)


def test_a_state_in_a_region_is_shown_without_naming_it(run, in_regions):
    shown = json.loads(run("show", "dag", "run", "mapped", "--map-index", "1", "--json")[1])
    assert (shown["values"], shown["region_id"]) == ({"rows": 1}, str(UUID(int=1)))
    code, _, err = run("show", "dag", "run", "mapped")
    assert (code, "there is for dag/run/mapped[0]@" in err, "(say --map-index)" in err) == (1, True, True)


def test_a_state_in_a_region_is_watched_without_naming_it(run, in_regions):
    out = run("watch", "dag", "run", "mapped", "--map-index", "1", "--until", "1", "--json")[1]
    assert json.loads(out)["region_id"] == str(UUID(int=1))


def test_a_state_in_a_region_is_cleared_without_naming_it(run, in_regions, left):
    assert run("clear", "dag", "run", "mapped", "--map-index", "1", "--yes")[0] == 0
    assert [task for _, task, _, _ in left()] == 4 * ["looped"] + ["mapped"]


@pytest.mark.parametrize("command", [("show",), ("watch", "--until", "1"), ("clear", "--yes")])
def test_g8_of_several_regions_one_is_to_be_named(run, in_regions, left, command):
    command, *options = command
    ids = ("dag", "run", "looped", "--map-index", "1")
    code, _, err = run(command, *ids, *options)
    named = ", ".join(f"dag/run/looped[1]@{UUID(int=region)}" for region in (2, 3))
    assert (code, err) == (
        1,
        f"error: dag/run/looped[1] is in several regions: {named} (say --region-id)\n",
    )
    assert len(left()) == 6
    shown = json.loads(run("show", *ids, "--region-id", str(UUID(int=3)), "--json")[1])
    assert shown["values"] == {"rows": 3}


def test_one_index_is_cleared_alone(run, states, left):
    assert run("clear", "dag", "run", "many", "--map-index", "1", "--yes")[0] == 0
    assert left() == sorted(OTHER + ONE + [state for state in MANY if state[2] != 1])


def test_a_mapped_task_is_not_cleared_by_its_name_alone(run, states, left):
    code, out, err = run("clear", "dag", "run", "many", "--yes")
    assert (code, out) == (1, "")
    assert "there is for dag/run/many[0], " in err
    assert "(say --map-index, or --all-map-indexes for all of them)" in err
    assert left() == sorted(OTHER + ONE + MANY)


@pytest.mark.parametrize(("said", "cleared"), [("y\n", True), ("n\n", False), ("", False)])
def test_a_run_is_cleared_after_saying_how_much_it_holds(run, states, left, answer, said, cleared):
    answer(said)
    code, out, err = run("clear", "dag", "run")
    assert code == (0 if cleared else 1)
    assert err.startswith(
        "dag/run holds 6 keys and 1 work set in 5 states of 2 tasks.\nWhoever is still at work"
    )
    assert bool(out) is cleared
    assert left() == (OTHER if cleared else sorted(OTHER + ONE + MANY))


def test_nobody_is_asked_where_there_is_nobody(run, states, left):
    assert run("clear", "dag", "run") == (2, "", "error: there is no terminal to ask on: say --yes\n")
    assert left() == sorted(OTHER + ONE + MANY)


@pytest.mark.parametrize(
    "ids", [("dag", "nope"), ("nope", "run"), ("dag", "run", "nope", "--all-map-indexes")]
)
def test_what_is_not_there_is_named(run, states, ids):
    code, out, err = run("clear", *ids, "--yes")
    assert (code, out) == (1, "")
    assert err == f"error: nothing is stored for {'/'.join(ids[:3])}: see async-task-state list\n".replace(
        "/--all-map-indexes", ""
    )


def test_nothing_is_cleared_where_there_is_no_database(run, tmp_path):
    assert run("clear", "dag", "run", "--yes")[0] == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("terminal", ["80", "120"])
def test_a_terminal_shows_names_whole(run, fill, write, monkeypatch, terminal):
    fill(TaskScope("ingest_orders", "scheduled__2026-11-22T00:00:00+00:00", "load_files", 3), rows=1)
    write(AssetScope("s3://warehouse/" + "part/" * 30 + "end"), a=1)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    lines = re.sub("\x1b\\[[0-9]*m", "", run("list")[1]).splitlines()
    assert max(map(len, lines)) <= int(terminal)
    assert "…" not in "".join(lines)
    assert "part/" * 30 + "end" in "".join(line.split()[0] for line in lines if line.strip())
