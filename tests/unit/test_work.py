"""Which items are done: what a work set keeps, and for how little."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from async_task_state import (
    Failure,
    InvalidItemError,
    InvalidKeyError,
    InvalidValueError,
    StaleWriterError,
    StoreError,
    WorkCounts,
)
from async_task_state.codec import RESERVED_PREFIX
from async_task_state.digests import SEGMENT_ITEMS

pytestmark = pytest.mark.anyio

NOT_SOON = 3600.0


class Nameless:
    """An object whose text says where it is in memory."""


class Named:
    def __str__(self):
        return "named"


async def reopened(make_state, name="files"):
    """What an attempt after this one finds."""
    async with make_state(read_only=True) as state:
        work = state.work(name)
        return work.counts, sorted(failure.item for failure in work.failures), list(work.remaining("abcdef"))


async def test_what_is_done_is_not_left(make_state):
    async with make_state() as state:
        work = state.work("files")
        assert list(work.remaining("cab")) == ["c", "a", "b"]
        await work.done("a")
        await work.done("a")
        assert work.is_done("a")
        assert not work.is_done("b")
        assert list(work.remaining("cab")) == ["c", "b"]
        assert work.counts == WorkCounts(done=1, failed=0)
        assert (work.name, work.failures) == ("files", [])
    assert await reopened(make_state) == (WorkCounts(1, 0), [], list("bcdef"))


async def test_items_are_known_by_their_text_or_by_a_key(make_state):
    async with make_state() as state:
        work = state.work("files")
        for item in (1, "x", Path("a/b"), Named(), (1, 2), ""):
            await work.done(item)
            assert work.is_done(item)
            assert work.is_done(str(item))
        people = [{"id": "a", "n": 1}, {"id": "1", "n": 2}]
        assert list(work.remaining(people, key=lambda person: person["id"])) == people[:1]
        assert not work.is_done("a_b")
        assert work.counts.done == 6


async def test_remaining_takes_items_one_by_one(make_state):
    taken = []

    def items():
        for item in "abc":
            taken.append(item)
            yield item

    async with make_state() as state:
        remaining = state.work("files").remaining(items())
        assert next(remaining) == "a"
        assert taken == ["a"]


async def test_g3_an_item_is_saved_with_the_values_recorded_with_it(make_state, on_store, scope):
    async with make_state(max_delay=0.001) as state:
        work = state.work("files")
        seen = set()
        while len(seen) < 10:
            number = work.counts.done
            await work.done(str(number), count=number + 1)
            async with make_state(read_only=True) as left:
                assert await left.get("count", 0) == left.work("files").counts.done
                seen.add(left.work("files").counts.done)


async def test_g8_a_bad_value_beside_an_item_records_neither(make_state):
    async with make_state() as state:
        work = state.work("files")
        before = state.stats
        with pytest.raises(InvalidValueError, match="the value of 'rows' at 0"):
            await work.done("a", rows={"0": {1}})
        with pytest.raises(InvalidKeyError, match="reserved"):
            await work.done("a", **{f"{RESERVED_PREFIX}x": 1})
        assert (work.is_done("a"), state.stats) == (False, before)
        await work.done("a", rows=1)
        assert await state.get("rows") == 1


@pytest.mark.parametrize("item", [Nameless(), object()], ids=["instance", "object"])
async def test_g8_an_item_without_a_stable_text_is_refused(make_state, item):
    async with make_state() as state:
        work = state.work("files")
        for call in (
            lambda: work.done(item),
            lambda: work.failed(item, "why"),
            lambda: work.process([item], print),
        ):
            with pytest.raises(InvalidItemError, match="has no string form that stays the same: give key="):
                await call()
        with pytest.raises(InvalidItemError):
            work.is_done(item)
        with pytest.raises(InvalidItemError):
            list(work.remaining([item]))
        assert list(work.remaining([item], key=lambda _: "name")) == [item]
        assert state.stats.recorded == 0


@pytest.mark.parametrize("value", [1, None, b"x"], ids=repr)
async def test_g8_a_key_that_is_no_string_is_refused(make_state, value):
    async with make_state() as state:
        work = state.work("files")
        said = f"the key of a work item must be a string, not {type(value).__name__}: {value!r}"
        with pytest.raises(InvalidItemError, match=said):
            list(work.remaining(["x"], key=lambda _: value))
        with pytest.raises(InvalidItemError, match=said):
            await work.process(["x"], str, key=lambda _: value)
        assert state.stats.recorded == 0


@pytest.mark.parametrize("name", ["", "n" * 201, f"{RESERVED_PREFIX}x", None, "a\0b"], ids=ascii)
async def test_g8_a_name_that_cannot_be_one_is_refused(make_state, name):
    async with make_state() as state:
        with pytest.raises(InvalidKeyError, match="a work set's name"):
            state.work(name)


async def test_work_sets_are_apart_however_alike_their_names(make_state):
    names = ["a", "a:b", "a:", ":a", "A", "a:0000000000", "work:a", "é", "n" * 200, "b:0000000000:c"]
    async with make_state() as state:
        for name in names:
            assert state.work(name) is state.work(name)
            await state.work(name).done(f"in {name}")
            await state.work(name).failed(f"not {name}", "why")
    async with make_state() as state:
        for name in names:
            work = state.work(name)
            assert work.counts == WorkCounts(1, 1)
            assert work.is_done(f"in {name}")
            assert work.failures[0].item == f"not {name}"


async def test_what_failed_is_kept_by_name_and_error(make_state):
    async with make_state(attempt=3) as state:
        work = state.work("files")
        await work.failed("a", ValueError("bad"))
        await work.failed("b", "x" * 2000)
        assert work.failures == [Failure("a", "ValueError: bad", 1, 3, 1), Failure("b", "x" * 1000, 1, 3, 1)]
        await work.failed("a", KeyError("k"))
        assert work.failures[0] == Failure("a", "KeyError: 'k'", 2, 3, 2)
        assert work.counts == WorkCounts(0, 2)
    async with make_state(attempt=4) as state:
        work = state.work("files")
        await work.failed("a", "again")
        assert min(work.failures, key=lambda failure: failure.item) == Failure("a", "again", 3, 4, 1)


async def test_what_failed_is_left_for_the_next_attempt(make_state):
    async with make_state(attempt=1) as state:
        work = state.work("files")
        await work.failed("a", "why")
        assert list(work.remaining("ab")) == ["b"]
    async with make_state(attempt=1) as state:
        assert list(state.work("files").remaining("ab")) == ["b"]
    async with make_state(attempt=2) as state:
        work = state.work("files")
        assert list(work.remaining("ab")) == ["a", "b"]
        await work.done("a")
        assert (work.counts, work.failures) == (WorkCounts(1, 0), [])
    assert await reopened(make_state) == (WorkCounts(1, 0), [], list("bcdef"))


@pytest.mark.parametrize(
    "count", [SEGMENT_ITEMS - 1, SEGMENT_ITEMS, SEGMENT_ITEMS + 1, 2 * SEGMENT_ITEMS, 2 * SEGMENT_ITEMS + 1]
)
async def test_segments_are_sealed_when_they_are_full(make_state, on_store, scope, count):
    items = [f"item {number}" for number in range(count)]
    for half in (items[: count // 2], items[count // 2 :]):
        async with make_state(max_delay=NOT_SOON) as state:
            for item in half:
                await state.work("files").done(item)
            # A flush in the middle of a segment, whose tail is then written again.
            await state.flush()
    async with make_state() as state:
        work = state.work("files")
        assert work.counts.done == count
        assert list(work.remaining([*items, "more"])) == ["more"]
        await work.done("more")
    entries = (await on_store("read", scope)).entries
    assert len(entries) == (count + 1 + SEGMENT_ITEMS - 1) // SEGMENT_ITEMS


async def test_a_sealed_segment_is_not_written_again(make_state):
    async with make_state(max_delay=NOT_SOON) as state:
        work = state.work("files")
        for number in range(SEGMENT_ITEMS):
            await work.done(number)
        await state.flush()
        sealed = state.stats.bytes
        await work.done("one more")
        await state.flush()
        assert state.stats.bytes - sealed < 50


async def test_an_item_takes_at_most_24_bytes(make_state, on_store, scope):
    count = 20_000
    async with make_state() as state:
        work = state.work("files")
        for number in range(count):
            await work.done(f"s3://bucket/a/rather/long/path/to/a/file-{number:09d}.parquet")
    entries = (await on_store("read", scope)).entries
    assert sum(len(key) + len(text) for key, text in entries.items()) <= 24 * count


async def test_items_of_a_newer_version_are_refused(make_state, on_store, scope):
    async with make_state() as state:
        for number in range(300):
            await state.work("files").done(number)
    newer = {f"{RESERVED_PREFIX}work:files:0000000001": ('"AgAA"', None)}
    await on_store("write", scope, newer)
    before = await on_store("read", scope)
    async with make_state() as state:
        for _ in range(2):
            with pytest.raises(StoreError, match=r"work:files:0000000001.* newer version: upgrade"):
                state.work("files")
    assert (await on_store("read", scope)).entries == before.entries


async def test_threads_that_ask_at_once_get_one_whole_set(make_state, scope):
    names = [f"set {number}" for number in range(20)]
    async with make_state() as state:
        for name in names:
            for number in range(600):
                await state.work(name).done(number)

    def look(name):
        try:
            together.wait()
            works.append(state.work(name))
        except BaseException as error:
            works.append(error)
            raise

    interval = sys.getswitchinterval()
    async with make_state() as state:
        sys.setswitchinterval(1e-6)
        try:
            for name in names:
                works, together = [], threading.Barrier(2)
                async with anyio.create_task_group() as group:
                    for _ in range(2):
                        group.start_soon(anyio.to_thread.run_sync, look, name)
                assert works[0] is works[1]
                assert works[0].counts == WorkCounts(600, 0)
        finally:
            sys.setswitchinterval(interval)


async def test_g4_a_fenced_holder_records_nothing(make_state):
    first = make_state(attempt=1, max_delay=NOT_SOON)
    await first.__aenter__()
    work = first.work("files")
    async with make_state(attempt=2) as second:
        await work.done("a", n=1)
        with pytest.raises(StaleWriterError):
            await first.flush()
        for call in (
            lambda: work.done("b"),
            lambda: work.failed("b", "why"),
            lambda: work.process("b", str),
        ):
            with pytest.raises(StaleWriterError):
                await call()
        with pytest.raises(StaleWriterError):
            work.is_done("a")
        assert second.work("files").counts == WorkCounts(0, 0)
    assert await reopened(make_state) == (WorkCounts(0, 0), [], list("abcdef"))
