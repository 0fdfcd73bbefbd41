"""What a watch makes of its sources: failures, file systems, names, times."""

from __future__ import annotations

import json
import logging
import os
import threading
from dataclasses import replace
from datetime import datetime

import anyio
import fsspec
import pytest
from watchkit import put, until

pytestmark = pytest.mark.anyio


async def test_a_source_that_cannot_be_listed_is_tried_again(
    watching, folder, watch, monkeypatch, caplog, allow
):
    allow("memory")
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


async def test_a_file_whose_name_chains_is_logged_once_and_hides_no_other(watching, folder, caplog):
    put(folder, "seen", "a::b")
    caplog.set_level(logging.WARNING)
    async with watching() as events:
        assert await events.files() == ["seen"]
        await events.stays_quiet()
        put(folder, "later")
        assert await events.files() == ["later"]
    [told] = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert "1 file is left out, the first: the source" in told
    assert "chains file systems" in told


async def test_a_source_that_is_not_allowed_where_it_runs_is_logged(watching, folder, watch, caplog):
    put(folder, "seen")
    async with watching(replace(watch, source=["sftp://127.0.0.1/x", str(folder)])) as events:
        await until(lambda: "'sftp' is none of [async_task_state] allowed_protocols" in caplog.text)
        assert events.fired == []


async def test_globs_files_lists_and_urls(watching, folder, watch):
    put(folder, "a.csv", "b.txt", "deep/c.csv")
    put(folder.parent, "single")
    sources = [f"{folder}/**/*.csv", f"file://{folder.parent}/single", str(folder.parent / "not there")]
    async with watching(replace(watch, source=sources)) as events:
        assert await events.files() == ["a.csv", "c.csv", "single"]
        put(folder.parent, "not there")
        assert await events.files() == ["not there"]


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
