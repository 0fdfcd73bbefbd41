"""Watching a source of real files: what leads to an event, and what a restart finds."""

from __future__ import annotations

import json
from contextlib import aclosing
from dataclasses import replace

import anyio
import pytest
from watchkit import put, until

from async_task_state import InvalidArgumentError, StaleWriterError
from async_task_state.arrivals import UNCONFIRMED, Watch

pytestmark = pytest.mark.anyio

EVENT_KEYS = {"event_id", "count", "bytes", "files", "first_modified", "last_modified"}


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
