"""Which files there are, how they are recognised, and what processing them gives."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import fsspec
import pytest
from airflow.models.trigger import Trigger
from upath import UPath

from async_task_state import DamagedRecordError, InvalidArgumentError, ProcessorError, SourceError
from async_task_state.files import FileWork, list_files, load_processor
from async_task_state.items import shown_item
from async_task_state.operators import ProcessFilesOperator
from async_task_state.triggers import NewFilesTrigger, ProcessFilesTrigger

seen: list[Any] = []


class LazyRange(Sequence):
    """As Airflow hands over what mapped tasks have returned: neither a list nor a tuple."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index >= self.length:
            raise IndexError(index)
        return f"/in/{index}"


async def note(path, state):
    """A processor."""
    seen.append((str(path), state.attempt))
    return {"bytes": path.stat().st_size, "name": path.name}


def plain(path):
    """A processor that runs in a thread and wants no state."""
    seen.append((path.name, threading.current_thread() is threading.main_thread()))


async def picky(path, state):
    """A processor that fails on some."""
    if "bad" in path.name:
        raise ValueError(f"cannot read {path.name}")


NOT_CALLABLE = 7


@pytest.fixture(autouse=True)
def _nothing_seen():
    seen.clear()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "files"
    for name in ("b.txt", "a.txt", "deep/c.txt", "deep/deeper/d.csv", "e.csv"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


async def names(source, identity="path"):
    return [file.path.name async for file in list_files(source, identity)]


async def run(make_state, attempt=1, **work):
    async with make_state(attempt=attempt) as state:
        return await FileWork(**{"processor": note, **work}).run(state)


@pytest.mark.anyio
async def test_a_directory_gives_all_below_it_in_a_stable_order(folder):
    assert await names(str(folder)) == ["a.txt", "b.txt", "e.csv", "c.txt", "d.csv"]
    assert await names(str(folder)) == await names(f"file://{folder}")


@pytest.mark.anyio
async def test_a_glob_a_file_and_a_list(folder):
    assert await names(f"{folder}/*.txt") == ["a.txt", "b.txt"]
    assert await names(f"{folder}/**/*.csv") == ["e.csv", "d.csv"]
    assert await names(f"{folder}/a.txt") == ["a.txt"]
    assert await names([str(folder / "e.csv"), str(folder / "a.txt")]) == ["e.csv", "a.txt"]


@pytest.mark.anyio
async def test_any_fsspec_url_is_listed_and_read(make_state, allow):
    allow("memory")
    memory = fsspec.filesystem("memory")
    memory.pipe({"/bucket/x.txt": b"12345", "/bucket/y.txt": b"1"})
    try:
        result = await run(make_state, source="memory://bucket")
        assert (result["done"], result["totals"]) == (2, {"bytes": 6})
        assert [path for path, _ in sorted(seen)] == ["memory://bucket/x.txt", "memory://bucket/y.txt"]
    finally:
        memory.rm("/bucket", recursive=True)


@pytest.mark.anyio
async def test_each_file_is_processed_once_over_all_attempts(make_state, folder):
    first = await run(make_state, source=str(folder))
    assert (first["status"], first["done"], first["skipped"], first["failed"]) == ("success", 5, 0, 0)
    assert first["totals"] == {"bytes": sum(path.stat().st_size for path in folder.rglob("*.*"))}
    again = await run(make_state, attempt=2, source=str(folder))
    assert (again["done"], again["skipped"], again["totals"]) == (0, 5, first["totals"])
    assert {attempt for _, attempt in seen} == {1}


@pytest.mark.anyio
@pytest.mark.parametrize(("identity", "processed"), [("stat", ["a.txt", "b.txt"]), ("path", [])])
async def test_a_file_that_changed_is_processed_again_unless_its_path_is_its_identity(
    make_state, folder, identity, processed
):
    await run(make_state, source=str(folder), identity=identity)
    seen.clear()
    (folder / "a.txt").write_text("longer than it was")
    os.utime(folder / "b.txt", (1, 1))
    await run(make_state, source=str(folder), identity=identity)
    assert sorted(Path(path).name for path, _ in seen) == processed


@pytest.mark.anyio
async def test_a_plain_processor_runs_in_a_thread(make_state, folder):
    await run(make_state, source=str(folder), processor=f"{__name__}.plain")
    assert len(seen) == 5
    assert not any(in_main for _, in_main in seen)


@pytest.fixture
def fails(monkeypatch):
    """Makes listing a folder raise, or looking at it."""

    def fails(folder, error, call="scandir"):
        right = getattr(os, call)

        def failing(path, *args, **options):
            if str(path) == str(folder):
                raise error(f"{path}: no")
            return right(path, *args, **options)

        monkeypatch.setattr(os, call, failing)

    return fails


@pytest.mark.anyio
@pytest.mark.parametrize("pattern", ["", "/**/*.txt", "/deep/*"])
async def test_a_folder_that_cannot_be_listed_is_an_error(make_state, folder, fails, pattern):
    fails(folder / "deep", PermissionError)
    with pytest.raises(SourceError, match=r"cannot be listed: .*deep: no"):
        await run(make_state, source=f"{folder}{pattern}")


@pytest.mark.anyio
async def test_a_source_that_cannot_be_asked_for_is_an_error(make_state, folder, fails):
    fails(folder, PermissionError, "stat")
    with pytest.raises(SourceError, match="cannot be listed"):
        await run(make_state, source=str(folder))


@pytest.mark.anyio
async def test_a_folder_that_was_deleted_meanwhile_has_no_files(make_state, folder, fails):
    fails(folder / "deep", FileNotFoundError)
    result = await run(make_state, source=str(folder))
    assert (result["status"], result["done"]) == ("success", 3)


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore:UPath 'remembers' filesystem not explicitly implemented")
@pytest.mark.parametrize("source", ["remembers:///", ["remembers:///x", "remembers:///y"]])
async def test_a_listing_that_a_file_system_remembers_is_made_anew(remembers, source):
    async def sizes():
        return {file.key async for file in list_files(source, "stat")}

    before = await sizes()
    remembers.sizes = {"/x": 3, "/y": 2}
    assert len(await sizes() - before) == 2


async def named_late(path, *, dry_run=False, state):
    seen.append((path.name, dry_run, state.attempt))


async def required(path, whose):
    seen.append((path.name, whose.attempt))


def options(path, dry_run=False):
    seen.append((path.name, dry_run))


async def options_and_state(path, encoding="utf-8", state=None):
    seen.append((path.name, encoding, state.attempt))


def anything(*paths, **options):
    seen.append((*(path.name for path in paths), *options))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("processor", "called"),
    [
        (named_late, ("a.txt", False, 1)),
        (partial(named_late, dry_run=True), ("a.txt", True, 1)),
        (required, ("a.txt", 1)),
        (options, ("a.txt", False)),
        (options_and_state, ("a.txt", "utf-8", 1)),
        (anything, ("a.txt",)),
    ],
    ids=["named", "partial", "required", "option", "option and named", "anything"],
)
async def test_a_processor_is_given_the_state_where_it_asks_for_it(make_state, folder, processor, called):
    result = await run(make_state, source=str(folder / "a.txt"), processor=processor)
    assert (result["status"], seen) == ("success", [called])


@pytest.mark.anyio
async def test_methods_of_paths_are_processors(make_state, folder):
    result = await run(make_state, source=str(folder), processor=Path.unlink)
    assert (result["status"], result["done"]) == ("success", 5)
    assert not [path for path in folder.rglob("*") if path.is_file()]


@Integral.register
class Int64:
    """As a library's own integers are: known as such, and no `int`."""

    def __init__(self, number):
        self.number = number

    def __int__(self):
        return self.number


@pytest.mark.anyio
async def test_totals_add_up_numbers_of_every_kind(make_state, folder):
    async def counts(path):
        return {
            "rows": Int64(3),
            "price": Decimal("2.5"),
            "part": Fraction(1, 4),
            "name": path.name,
        }

    result = await run(make_state, source=str(folder), processor=counts)
    assert result["totals"] == {"rows": 15, "price": 12.5, "part": 1.25}
    assert type(result["totals"]["rows"]) is int


@pytest.mark.parametrize("trigger", [ProcessFilesTrigger, NewFilesTrigger])
@pytest.mark.parametrize(
    ("source", "plain"),
    [
        ("/in", "/in"),
        (Path("/in"), "/in"),
        (UPath("memory://in"), "memory://in"),
        (["/in", Path("/more")], ["/in", "/more"]),
        (LazyRange(2), ["/in/0", "/in/1"]),
    ],
    ids=["text", "path", "upath", "list", "lazy"],
)
def test_a_trigger_is_sent_the_source_as_text(trigger, source, plain, allow):
    allow("memory")
    options = {"processor": "a.b"} if trigger is ProcessFilesTrigger else {"asset": "orders"}
    class_path, arguments = trigger(source, **options).serialize()
    assert arguments["source"] == plain
    assert Trigger._decrypt_kwargs(Trigger.encrypt_kwargs(arguments)) == arguments
    assert class_path.endswith(trigger.__name__)


@pytest.mark.parametrize("source", ["", 7, None, ["/in", 7], ["/in", ""], {"a": 1}, b"/in"])
@pytest.mark.parametrize("trigger", [ProcessFilesTrigger, NewFilesTrigger])
def test_g8_what_is_no_source_is_refused(trigger, source):
    options = {"processor": "a.b"} if trigger is ProcessFilesTrigger else {"asset": "orders"}
    with pytest.raises(InvalidArgumentError, match="source must be a path, a URL or a list of them"):
        trigger(source, **options)


@pytest.mark.anyio
async def test_failures_are_named_by_file_and_error(make_state, folder):
    (folder / "bad#1.txt").write_text("")
    collected = await run(make_state, source=str(folder), processor=picky, on_error="collect", max_attempts=2)
    assert (collected["status"], collected["done"], collected["failed"]) == ("failed", 5, 1)
    assert collected["failures"] == [
        {"file": str(folder / "bad#1.txt"), "error": "ValueError: cannot read bad#1.txt"}
    ]
    raised = await run(make_state, attempt=2, source=str(folder), processor=picky)
    assert (raised["status"], raised["failed"]) == ("failed", 1)


@pytest.mark.anyio
async def test_a_file_is_called_by_its_path_in_the_log(make_state, folder, caplog):
    (folder / "bad#1.txt").write_text("")
    await run(make_state, source=str(folder), processor=picky, on_error="collect", identity="stat")
    [line] = [message for message in caplog.messages if "failed: " in message]
    path = folder / "bad#1.txt"
    assert line == f"dag/run/task: '{path}' of work set 'files' failed: ValueError: cannot read bad#1.txt"


@pytest.mark.parametrize(
    ("work_set", "key", "shown"),
    [
        ("files", "/in/a.csv#12,1764180000.5", "/in/a.csv"),
        ("files", 's3://b/a#b#0,2026-01-01 00:00:00+00:00,"tag"', "s3://b/a#b"),
        ("files", "/in/gone#,", "/in/gone"),
        ("files", "/in/a\n#12,1\n", "/in/a\n"),
        ("files", "/in/a#b.csv", "/in/a#b.csv"),
        ("files", "#1,2", "#1,2"),
        ("pages", "/in/a.csv#12,1", "/in/a.csv#12,1"),
    ],
)
def test_people_are_shown_a_path(work_set, key, shown):
    assert shown_item(work_set, key) == shown


@pytest.mark.anyio
async def test_a_listed_file_that_is_missing_fails_as_a_file(make_state, folder):
    result = await run(make_state, source=[str(folder / "gone"), str(folder / "a.txt")], on_error="collect")
    assert (result["done"], result["failed"]) == (1, 1)
    assert result["failures"][0]["file"] == str(folder / "gone")
    assert "FileNotFoundError" in result["failures"][0]["error"]


@pytest.mark.anyio
@pytest.mark.parametrize("source", ["{}/nowhere", "{}/*.none", []])
async def test_no_files_is_said_and_is_an_error_only_when_files_are_required(
    make_state, tmp_path, source, caplog
):
    source = source and source.format(tmp_path)
    result = await run(make_state, source=source)
    assert (result["status"], result["done"]) == ("success", 0)
    assert "there is no file in" in caplog.text
    with pytest.raises(SourceError, match="require_files"):
        await run(make_state, source=source, require_files=True)


@pytest.mark.parametrize(
    "processor", ["no.such.module", f"{__name__}.no_such", f"{__name__}.NOT_CALLABLE", "os"]
)
def test_g8_a_processor_that_cannot_be_called_is_named(processor):
    with pytest.raises(ProcessorError, match=processor):
        load_processor(processor)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("concurrency", 0),
        ("concurrency", -1),
        ("concurrency", 1.5),
        ("max_attempts", 0),
        ("max_attempts", True),
        ("on_error", "ignore"),
        ("identity", "hash"),
        ("max_delay", -1),
    ],
)
def test_g8_a_bad_argument_raises_where_it_is_given(argument, value):
    for make in (
        lambda: ProcessFilesTrigger("/tmp", f"{__name__}.note", **{argument: value}),
        lambda: ProcessFilesOperator(task_id="t", source="/tmp", processor=note, **{argument: value}),
    ):
        with pytest.raises(InvalidArgumentError, match=argument):
            make()


def test_g8_the_triggerer_takes_no_function():
    with pytest.raises(InvalidArgumentError, match="dotted path"):
        ProcessFilesTrigger("/tmp", note)
    with pytest.raises(InvalidArgumentError, match="deferrable=False"):
        ProcessFilesOperator(task_id="t", source="/tmp", processor=note, deferrable=True)


def test_the_trigger_survives_its_serialization():
    path, arguments = ProcessFilesTrigger(["/a", "/b"], "a.b", concurrency=3, max_delay=0.5).serialize()
    assert path == "async_task_state.triggers.files.ProcessFilesTrigger"
    assert ProcessFilesTrigger(**arguments).serialize() == (path, arguments)


@pytest.mark.anyio
@pytest.mark.parametrize("sums", [7, "x", [{}], {"bytes": "x"}, {"bytes": None}, {"deep": {"bytes": [1]}}])
async def test_g8_damaged_sums_are_named_before_a_file_is_processed(make_state, folder, sums):
    async with make_state() as state:
        await state.set("totals", sums)
    with pytest.raises(
        DamagedRecordError, match=r"key 'totals' in the state of dag/run/task .* async-task-state clear"
    ):
        await run(make_state, source=str(folder))
    assert seen == []
