"""Running a function over what is left: bounded, fair, each item recorded when it is done."""

from __future__ import annotations

import functools
import threading

import anyio
import anyio.lowlevel
import pytest

from async_task_state import (
    WorkCounts,
)

pytestmark = pytest.mark.anyio

NOT_SOON = 3600.0


async def nothing(item):
    pass


def failing(*bad, times=10**9):
    """A function that raises for some items, a number of times each, and the list of its calls."""
    calls = []

    async def fn(item):
        calls.append(item)
        if item in bad and calls.count(item) <= times:
            raise ValueError(f"no {item}")

    return fn, calls


def outcome(summary):
    return summary.done, summary.skipped, summary.failed


async def test_every_item_is_done_once(make_state):
    fn, calls = failing()
    items = [str(number) for number in range(100)]
    async with make_state() as state:
        work = state.work("files")
        assert outcome(await work.process(items, fn)) == (100, 0, 0)
        assert sorted(calls) == sorted(items)
        assert outcome(await work.process([*items, "more"], fn)) == (1, 100, 0)
    async with make_state() as state:
        summary = await state.work("files").process(items, fn)
        assert outcome(summary) == (0, 100, 0)
        assert summary.elapsed > 0
        assert len(calls) == 101


async def test_an_item_is_done_only_after_its_call_returned(make_state):
    async with make_state() as state:
        work = state.work("files")

        async def fn(item):
            await anyio.lowlevel.checkpoint()
            assert not work.is_done(item)

        await work.process(list("abc"), fn, concurrency=2)
        assert work.counts.done == 3


async def test_items_may_be_any_iterable(make_state):
    async def awaited():
        for item in "abc":
            await anyio.lowlevel.checkpoint()
            yield item

    async with make_state() as state:
        for number, items in enumerate(
            (iter("abc"), ["a", "b", "c"], dict.fromkeys("abc"), (c for c in "abc"), awaited())
        ):
            assert outcome(await state.work(f"w{number}").process(items, nothing)) == (3, 0, 0)
        assert outcome(await state.work("none").process([], nothing)) == (0, 0, 0)


async def test_the_function_may_be_any_callable(make_state):
    threads = set()

    class Async:
        async def __call__(self, item):
            threads.add(threading.get_ident())

        async def method(self, item):
            await self(item)

    class Plain:
        def __call__(self, item):
            threads.add(threading.get_ident())

    async def two(prefix, item):
        threads.add(threading.get_ident())

    def plain(item):
        threads.add(threading.get_ident())

    here = {threading.get_ident()}
    async with make_state() as state:
        run = state.work("files").process
        done = 0
        for on_loop, fns in (
            (True, [Async(), Async().method, functools.partial(two, "x")]),
            (False, [plain, Plain(), Plain().__call__, functools.partial(plain)]),
        ):
            for fn in fns:
                threads.clear()
                assert outcome(await run([str(done)], fn)) == (1, 0, 0)
                assert (threads == here) == on_loop
                done += 1


async def test_a_lambda_may_return_an_awaitable(make_state):
    called = []

    async def fn(item, number):
        called.append((item, number, threading.get_ident()))

    async with make_state() as state:
        assert outcome(await state.work("files").process(list("a"), lambda item: fn(item, 1))) == (1, 0, 0)
    assert called == [("a", 1, threading.get_ident())]


async def test_a_plain_function_does_not_block_the_loop(make_state):
    turn = threading.Event()

    def fn(item):
        assert turn.wait(30)

    async def other():
        turn.set()

    async with make_state() as state, anyio.create_task_group() as group:
        group.start_soon(other)
        assert outcome(await state.work("files").process(list("abc"), fn, concurrency=2)) == (3, 0, 0)


@pytest.mark.parametrize("concurrency", [1, 3, 16])
async def test_so_many_calls_run_at_once_and_no_more(make_state, concurrency):
    running = peak = 0
    full = anyio.Event()

    async def fn(item):
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        if running == concurrency:
            full.set()
        await full.wait()
        await anyio.lowlevel.checkpoint()
        running -= 1

    async with make_state() as state:
        await state.work("files").process(map(str, range(50)), fn, concurrency=concurrency)
    assert peak == concurrency


async def test_so_many_threads_run_at_once_and_no_more(make_state):
    full = threading.Barrier(3)
    running = []
    peaks = []

    def fn(item):
        running.append(item)
        peaks.append(len(running))
        full.wait(30)
        running.remove(item)

    async with make_state() as state:
        await state.work("files").process(map(str, range(12)), fn, concurrency=3)
    assert max(peaks) == 3


async def test_items_are_taken_no_faster_than_they_are_processed(make_state):
    taken = 0

    def items():
        nonlocal taken
        for number in range(100):
            taken += 1
            yield str(number)

    async with make_state() as state:
        work = state.work("files")

        async def fn(item):
            await anyio.lowlevel.checkpoint()
            assert taken <= work.counts.done + 4

        await work.process(items(), fn, concurrency=4)


async def test_a_duplicate_is_processed_once(make_state):
    fn, calls = failing()
    async with make_state() as state:
        assert outcome(await state.work("files").process(list("abcabca"), fn)) == (3, 4, 0)
        assert sorted(calls) == list("abc")


async def test_others_get_their_turns(make_state):
    """A function that never waits does not keep the loop to itself."""
    turns = 0

    async def other():
        nonlocal turns
        while turns < 3:
            turns += 1
            await anyio.lowlevel.checkpoint()

    def items():
        number = 0
        while turns < 3:
            number += 1
            yield str(number)

    async with make_state() as state, anyio.create_task_group() as group:
        group.start_soon(other)
        work = state.work("files")
        await work.process(items(), nothing)
        turns = 0
        group.start_soon(other)
        # Items that are done already take no time to skip, but there may be a million.
        while turns < 3:
            await work.process(map(str, range(1, 1 + work.counts.done)), nothing)


async def test_g6_a_cancelled_run_keeps_what_is_done(make_state):
    async with make_state(max_delay=NOT_SOON) as state:
        work = state.work("files")
        with anyio.CancelScope() as cancelled:

            async def fn(item):
                if item == "c":
                    cancelled.cancel()
                    await anyio.sleep_forever()

            await work.process(list("abcd"), fn, concurrency=1)
        assert cancelled.cancelled_caught
        assert work.counts == WorkCounts(2, 0)
    async with make_state() as state:
        assert list(state.work("files").remaining("abcd")) == ["c", "d"]
