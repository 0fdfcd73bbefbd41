"""Watching a source of real files: what leads to an event, and what a restart finds."""

from __future__ import annotations

import json
import logging
import os
import threading
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import datetime

import anyio
import fsspec
import pytest

from async_task_state import AssetScope, InvalidArgumentError, Settings, StaleWriterError
from async_task_state.arrivals import UNCONFIRMED, Arrivals, Watch
from async_task_state.state import AssetState

pytestmark = pytest.mark.anyio

EVENT_KEYS = {"event_id", "count", "bytes", "files", "first_modified", "last_modified"}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


@pytest.fixture
def watch(folder):
    return Watch(source=str(folder), poll_interval=0.01, settle=0, sample=100)


@pytest.fixture
def open_state(tmp_path):
    def open_state(**options):
        dsn = f"memory:{tmp_path}"
        return AssetState(AssetScope("orders"), store=dsn, settings=Settings(dsn=dsn), **options)

    return open_state


@pytest.fixture
def looks(monkeypatch):
    """What every look of every watch has found."""
    looks = []
    see = Arrivals.see

    def noting(self, *args, **options):
        found = see(self, *args, **options)
        looks.append(found)
        return found

    monkeypatch.setattr(Arrivals, "see", noting)
    return looks


class Watching:
    """A watch at work in a task of its own, and the events that it has fired."""

    def __init__(self, looks):
        self.fired = []
        self.error = None
        self.looks = looks

    async def run(self, opened, watch):
        try:
            async with opened as state, aclosing(watch.events(state)) as events:
                async for event in events:
                    self.fired.append(event)
        except StaleWriterError as error:
            self.error = error

    async def next(self):
        await until(lambda: self.fired)
        return self.fired.pop(0)

    async def files(self):
        """The names in the next event."""
        event = await self.next()
        assert event["count"] == len(event["files"])
        return sorted(os.path.basename(file) for file in event["files"])  # noqa: PTH119

    async def stays_quiet(self):
        seen = len(self.looks)
        await until(lambda: len(self.looks) > seen + 4)
        assert self.fired == []


async def until(condition):
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - conditions are of all kinds
            await anyio.sleep(0.001)


@pytest.fixture
def watching(open_state, watch, looks):
    """Starts a watch, and ends it as a shutdown does."""

    @asynccontextmanager
    async def watching(watch=watch):
        async with anyio.create_task_group() as group:
            watching = Watching(looks)
            group.start_soon(watching.run, open_state(), watch)
            yield watching
            group.cancel_scope.cancel()

    return watching


@pytest.fixture
def by_hand(open_state, watch):
    """A watch whose events are confirmed by asking for the next."""

    @asynccontextmanager
    async def by_hand():
        async with open_state() as state, aclosing(watch.events(state)) as events:
            yield events

    return by_hand


def put(folder, *names, text="text", modified=None):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if modified is not None:
            os.utime(path, (modified, modified))


async def test_many_new_files_are_one_event(watching, folder, watch):
    put(folder, *(f"{number:04d}" for number in range(500)), text="12345", modified=1_700_000_000)
    put(folder, "deep/last", text="", modified=1_700_000_001.5)
    async with watching(replace(watch, sample=3)) as events:
        event = await events.next()
    assert set(event) == EVENT_KEYS
    assert (event["count"], event["bytes"]) == (501, 2500)
    assert event["files"] == [str(folder / f"{number:04d}") for number in range(3)]
    assert event["first_modified"] == "2023-11-14T22:13:20+00:00"
    assert event["last_modified"] == "2023-11-14T22:13:21.500000+00:00"
    assert len(json.dumps(event)) < 1000


async def test_each_file_is_in_one_event_and_each_event_has_an_id(watching, folder):
    put(folder, "a", "b")
    async with watching() as events:
        first = await events.next()
        put(folder, "c", modified=1)
        second = await events.next()
    assert (first["count"], second["count"]) == (2, 1)
    assert first["event_id"] != second["event_id"]


async def test_late_files_ties_and_wrong_clocks(watching, folder):
    put(folder, "future", modified=4_000_000_000)
    async with watching() as events:
        assert await events.files() == ["future"]
        put(folder, "tie", modified=4_000_000_000)
        assert await events.files() == ["tie"]
        put(folder, "late", modified=1)
        assert await events.files() == ["late"]
        put(folder, "before 1970", modified=-5)
        assert await events.files() == ["before 1970"]


async def test_changes_are_reported_again_and_deletions_never(watching, folder):
    put(folder, "a", "b")
    async with watching() as events:
        assert await events.files() == ["a", "b"]
        put(folder, "a", text="longer than it was")
        assert await events.files() == ["a"]
        (folder / "a").unlink()
        (folder / "b").rename(folder / "c")
        assert await events.files() == ["c"]


async def test_a_file_that_is_being_written_waits_until_it_has_settled(watching, folder, watch):
    async with watching(replace(watch, settle=0.5)) as events, anyio.create_task_group() as group:
        written = anyio.Event()

        async def write():
            with (folder / "a").open("w") as file:
                for _ in range(10):
                    file.write("part")
                    file.flush()
                    await anyio.sleep(0.1)
            written.set()

        group.start_soon(write)
        event = await events.next()
        assert written.is_set()
        assert (event["count"], event["bytes"]) == (1, 40)


async def test_what_is_there_at_first_is_news_or_not(watching, folder, watch):
    put(folder, "a", "b")
    skipping = replace(watch, initial="skip", settle=0.05)
    async with watching(skipping) as events:
        await events.stays_quiet()
    put(folder, "c")
    async with watching(skipping) as events:
        assert await events.files() == ["c"]
        put(folder, "a", text="changed")
        assert await events.files() == ["a"]


async def test_a_source_that_is_empty_at_first_is_begun_all_the_same(watching, folder, watch):
    skipping = replace(watch, initial="skip")
    async with watching(skipping) as events:
        await events.stays_quiet()
    put(folder, "while it was down")
    async with watching(skipping) as events:
        assert await events.files() == ["while it was down"]


async def test_a_confirmed_event_is_never_fired_again(watching, folder):
    put(folder, "a")
    async with watching() as events:
        await events.next()
        await events.stays_quiet()
    async with watching() as events:
        await events.stays_quiet()


async def test_an_event_that_nobody_confirmed_is_fired_again_as_it_was(watching, by_hand, folder):
    put(folder, "a")
    async with by_hand() as events:
        first = await anext(events)
    (folder / "a").unlink()
    put(folder, "b")
    for _ in range(2):
        async with by_hand() as events:
            assert await anext(events) == first
    async with watching() as events:
        assert await events.next() == first
        assert await events.files() == ["b"]
        await events.stays_quiet()


async def test_g1_what_an_event_reports_is_durable_before_it_is_fired(by_hand, folder, open_state):
    put(folder, "a")
    async with by_hand() as events:
        event = await anext(events)
        async with open_state(read_only=True) as saved:
            assert await saved.get(UNCONFIRMED) == event
            assert (await saved.get("watermark"))["files"] == 1


async def test_g4_a_watch_that_was_replaced_ends_even_when_nothing_happens(watching, folder):
    async with watching() as older:
        await older.stays_quiet()
        async with watching() as newer:
            await until(lambda: older.error)
            put(folder, "a")
            assert await newer.files() == ["a"]
    assert older.fired == []


async def test_g4_a_watch_that_is_replaced_while_it_looks_fires_nothing(open_state, watch, folder):
    put(folder, "a")
    state = open_state()
    with pytest.raises(StaleWriterError):  # noqa: PT012 - it is raised where the state is left, too
        async with state, aclosing(watch.events(state)) as events:
            await state._pending._writer.store.acquire(state.scope, None)
            pytest.fail(f"an event: {await anext(events)}")
    async with open_state(read_only=True) as saved:
        assert await saved.get_all() == {}


async def test_a_source_that_cannot_be_listed_is_tried_again(watching, folder, watch, monkeypatch, caplog):
    put(folder, "a")
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/b", b"b")
    failures = iter([ConnectionError("no route"), TimeoutError("too slow")])
    listing = type(memory).info

    def info(self, path, **options):
        for error in failures:
            raise error
        return listing(self, path, **options)

    monkeypatch.setattr(type(memory), "info", info)
    try:
        async with watching(replace(watch, source=["memory://bucket", str(folder)])) as events:
            assert await events.files() == ["a", "b"]
    finally:
        memory.rm("/bucket", recursive=True)
    retries = [record.getMessage() for record in caplog.records if "cannot be listed" in record.getMessage()]
    assert [text.partition("(")[2] for text in retries] == [
        "ConnectionError: no route)",
        "TimeoutError: too slow)",
    ]
    assert "0.02 s" in retries[0]
    assert "0.04 s" in retries[1]


async def test_a_folder_that_cannot_be_listed_is_logged_once_and_hides_no_other(
    watching, folder, monkeypatch, caplog
):
    put(folder, "deep/hidden", "open/seen")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("deep"):
            raise PermissionError(f"not allowed: {path}")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    caplog.set_level(logging.WARNING)
    async with watching() as events:
        assert await events.files() == ["seen"]
        await events.stays_quiet()
        assert sum("cannot be listed" in record.getMessage() for record in caplog.records) == 1
        monkeypatch.undo()
        assert await events.files() == ["hidden"]


async def test_globs_files_lists_and_urls(watching, folder, watch):
    put(folder, "a.csv", "b.txt", "deep/c.csv")
    put(folder.parent, "single")
    sources = [f"{folder}/**/*.csv", f"file://{folder.parent}/single", str(folder.parent / "not there")]
    async with watching(replace(watch, source=sources)) as events:
        assert await events.files() == ["a.csv", "c.csv", "single"]
        put(folder.parent, "not there")
        assert await events.files() == ["not there"]


class Remembers(fsspec.AbstractFileSystem):
    """Keeps every listing for ever, as those of object stores do."""

    protocol = "remembers"
    root_marker = "/"
    sizes: dict[str, int]
    modified: object

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("remembers://").strip("/")

    def info(self, path, **_):
        return {"name": path, "type": "directory", "size": 0}

    def ls(self, path, detail=True, **_):
        if path not in self.dircache:
            self.dircache[path] = [
                {"name": name, "type": "file", "size": size, "updated": self.modified}
                for name, size in self.sizes.items()
            ]
        return self.dircache[path]

    def invalidate_cache(self, path=None):
        self.dircache.clear()


@pytest.fixture
def remembers():
    fsspec.register_implementation("remembers", Remembers, clobber=True)
    Remembers.sizes, Remembers.modified = {"/x": 1}, None
    return Remembers


async def test_a_listing_that_a_file_system_remembers_is_made_anew(watching, watch, remembers):
    async with watching(replace(watch, source="remembers:///")) as events:
        assert (await events.next())["files"] == ["remembers:///x"]
        remembers.sizes = {"/x": 1, "/y": 2}
        assert (await events.next())["files"] == ["remembers:///y"]


async def test_names_that_are_no_text(watching, folder):
    try:
        with open(os.fsencode(folder) + b"/\xff\xe9", "w"):  # noqa: ASYNC230, PTH123 - pathlib takes no bytes
            pass
    except OSError:
        pytest.skip("this file system takes no such name")
    async with watching() as events:
        event = await events.next()
    assert event["files"] == [f"{folder}/\\udcff\\udce9"]
    json.dumps(event).encode()


@pytest.mark.parametrize(
    ("modified", "text"),
    [
        ("2024-05-06T07:08:09Z", "2024-05-06T07:08:09+00:00"),
        ("2024-05-06T09:08:09+02:00", "2024-05-06T07:08:09+00:00"),
        (datetime(2024, 5, 6, 7, 8, 9), "2024-05-06T07:08:09+00:00"),  # noqa: DTZ001 - as some file systems give it
        (1714979289, "2024-05-06T07:08:09+00:00"),
        ("an ETag", None),
        (1e18, None),
        (None, None),
    ],
)
async def test_times_as_file_systems_give_them(watching, watch, remembers, modified, text):
    remembers.modified = modified
    async with watching(replace(watch, source="remembers:///")) as events:
        event = await events.next()
    assert (event["first_modified"], event["last_modified"]) == (text, text)


async def test_a_watch_that_ends_does_not_wait_for_a_listing_that_hangs(watching, folder, monkeypatch):
    hangs, released = threading.Event(), threading.Event()
    stat = os.stat

    def hanging(path, **options):
        if str(path) == str(folder):
            hangs.set()
            released.wait()
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", hanging)
    try:
        with anyio.fail_after(20):
            async with watching():
                await until(hangs.is_set)
    finally:
        released.set()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("source", ""),
        ("source", []),
        ("source", 7),
        ("source", ["a", ""]),
        ("poll_interval", 0),
        ("poll_interval", None),
        ("poll_interval", "60"),
        ("settle", -1),
        ("settle", None),
        ("settle", True),
        ("initial", "all"),
        ("sample", 101),
        ("sample", -1),
        ("sample", True),
    ],
)
async def test_g8_a_bad_argument_raises_where_it_is_given(argument, value):
    with pytest.raises(InvalidArgumentError, match=argument):
        Watch(**{"source": "/tmp", argument: value})
