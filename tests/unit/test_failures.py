"""What is kept and said of items that fail, and of runs that end early."""

from __future__ import annotations

import pickle

import anyio
import anyio.lowlevel
import pytest

from async_task_state import (
    InvalidArgumentError,
    InvalidItemError,
    InvalidValueError,
    StaleWriterError,
    WorkCounts,
    WorkFailedError,
)

pytestmark = pytest.mark.anyio

NOT_SOON = 3600.0
STOPPED = r"^'c' failed: ValueError: no c. The run stopped there, because on_error is 'raise': 3 of 6 items are left$"


async def nothing(item):
    pass


async def test_an_item_that_is_done_again_after_a_failure_has_not_failed(make_state):
    async with make_state() as state:
        work = state.work("files")
        await work.done("x")
        await work.failed("x", "why")
        assert work.counts == WorkCounts(1, 1)
        await work.done("x", n=1)
        assert (work.counts, work.failures) == (WorkCounts(1, 0), [])
    async with make_state() as state:
        assert state.work("files").counts == WorkCounts(1, 0)
        assert await state.get_all() == {"n": 1}


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


async def test_a_failure_is_raised_with_what_was_done(make_state):
    fn, calls = failing("c")
    async with make_state(attempt=1) as state:
        with pytest.raises(WorkFailedError, match=STOPPED) as caught:
            await state.work("files").process(list("abcdef"), fn, concurrency=1)
        assert calls == ["a", "b", "c"]
        assert outcome(caught.value.summary) == (2, 0, 1)
        assert isinstance(caught.value.__cause__, ValueError)
        assert [failure.item for failure in caught.value.summary.failures] == ["c"]
    async with make_state(attempt=2) as state:
        assert outcome(await state.work("files").process(list("abdef"), fn)) == (3, 2, 0)


@pytest.mark.parametrize(
    ("items", "left"),
    [
        (lambda: list("ac"), "0 of 2 items are left"),
        (lambda: list("acb"), "1 of 3 items is left"),
        (lambda: iter("acb"), "the items after it are left"),
    ],
    ids=["none", "one", "unknown"],
)
async def test_a_run_that_stops_at_a_failure_says_how_much_is_left(make_state, items, left):
    fn, _ = failing("c")
    async with make_state() as state:
        with pytest.raises(WorkFailedError) as caught:
            await state.work("files").process(items(), fn, concurrency=1)
    assert str(caught.value).endswith(f". The run stopped there, because on_error is 'raise': {left}")


async def test_a_failure_cancels_the_calls_that_run(make_state):
    waiting = anyio.Event()
    cancelled = []

    async def fn(item):
        if item == "bad":
            await waiting.wait()
            raise ValueError
        waiting.set()
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(item)

    async with make_state() as state:
        work = state.work("files")
        with pytest.raises(WorkFailedError):
            await work.process(["long", "bad"], fn)
        assert cancelled == ["long"]
        # What was cancelled did not fail.
        assert [failure.item for failure in work.failures] == ["bad"]


async def test_failures_are_collected(make_state):
    bad = [f"bad {number}" for number in range(15)]
    fn, _ = failing(*bad)
    async with make_state() as state:
        work = state.work("files")
        summary = await work.process([*bad, "a", "b"], fn, on_error="collect", concurrency=1)
        assert outcome(summary) == (2, 0, 15)
        assert len(summary.failures) == 10
        event = summary.as_event()
        assert (event["status"], event["done"], event["failed"]) == ("failed", 2, 15)
        assert event["failures"][0] == {"item": "bad 0", "error": "ValueError: no bad 0"}
        assert work.counts == WorkCounts(2, 15)
        assert (await work.process(["c"], fn)).as_event()["status"] == "success"


async def test_an_item_is_tried_so_many_times(make_state):
    fn, calls = failing("a", "b", times=2)
    async with make_state() as state:
        work = state.work("files")
        assert outcome(await work.process(list("ab"), fn, max_attempts=3)) == (2, 0, 0)
        assert sorted(calls) == list("aaabbb")
        assert work.failures == []


async def test_an_attempt_gives_an_item_up_once_even_over_processes(make_state):
    """Tries are counted for an attempt of the task, whichever process makes them."""
    fn, calls = failing("a")
    for tries in (2, 2, 3):
        async with make_state(attempt=1) as state:
            summary = await state.work("files").process(list("a"), fn, max_attempts=tries, on_error="collect")
            assert outcome(summary) == (0, 0, 1)
            assert summary.failures[0].error == "ValueError: no a"
    assert calls == ["a"] * 3
    async with make_state(attempt=1) as state:
        with pytest.raises(WorkFailedError, match="'a' failed: ValueError: no a"):
            await state.work("files").process(list("a"), fn)
    assert calls == ["a"] * 3
    async with make_state(attempt=2) as state:
        work = state.work("files")
        await work.process(list("a"), fn, max_attempts=2, on_error="collect")
        assert calls == ["a"] * 5
        assert (work.failures[0].tries, work.failures[0].attempt_tries) == (5, 2)


async def test_g3_record_is_saved_with_its_item(make_state):
    async with make_state(max_delay=0.001) as state:
        total = 0

        def record(item, size):
            nonlocal total
            total += size
            return {"total": total, "last": item}

        async def fn(item):
            await anyio.lowlevel.checkpoint()
            async with make_state(read_only=True) as left:
                assert await left.get("total", 0) == 2 * left.work("files").counts.done
            return 2

        await state.work("files").process(map(str, range(50)), fn, record=record, concurrency=4)
        assert (await state.get("total"), state.work("files").counts.done) == (100, 50)


async def test_what_record_raises_is_not_the_items_failure(make_state):
    async with make_state() as state:
        work = state.work("files")
        with pytest.raises(InvalidValueError, match="the value of 'x'"):
            await work.process(list("a"), nothing, record=lambda item, result: {"x": object()})
        with pytest.raises(ZeroDivisionError):
            await work.process(list("a"), nothing, record=lambda item, result: 1 / 0)
        assert work.counts == WorkCounts(0, 0)


async def test_what_the_items_raise_is_raised_alone(make_state):
    async def items():
        yield "a"
        raise ZeroDivisionError

    async with make_state() as state:
        work = state.work("files")
        with pytest.raises(ZeroDivisionError):
            await work.process(items(), nothing)
        assert work.counts == WorkCounts(1, 0)


async def test_an_async_iterable_that_is_not_taken_to_its_end_is_closed(make_state):
    closed = []

    async def items():
        try:
            for item in "abc":
                yield item
        finally:
            closed.append(True)

    fn, _ = failing("a")
    async with make_state() as state:
        with pytest.raises(WorkFailedError):
            await state.work("files").process(items(), fn, concurrency=1)
        assert closed == [True]


async def test_g4_a_lost_lease_is_not_the_items_failure(make_state):
    first = make_state(attempt=1, max_delay=NOT_SOON)
    await first.__aenter__()
    work = first.work("files")
    calls = []

    async def fn(item):
        calls.append(item)
        if item == "2":
            async with make_state(attempt=2):
                pass
            await first.set("n", 1)

    with pytest.raises(StaleWriterError):
        await work.process(map(str, range(1000)), fn, concurrency=1, max_attempts=3, on_error="collect")
    assert calls == ["0", "1", "2"]
    async with make_state(read_only=True) as left:
        # The two before it were saved, for the newer handle is of the same process.
        assert left.work("files").counts == WorkCounts(2, 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"concurrency": 0}, "concurrency must be an integer of at least 1, not 0"),
        ({"concurrency": -1}, "concurrency must be an integer of at least 1, not -1"),
        ({"concurrency": 1.5}, "concurrency must be an integer of at least 1, not 1.5"),
        ({"concurrency": True}, "concurrency must be an integer of at least 1, not True"),
        ({"max_attempts": 0}, "max_attempts must be an integer of at least 1, not 0"),
        ({"max_attempts": "1"}, "max_attempts must be an integer of at least 1, not '1'"),
        ({"on_error": "ignore"}, "on_error must be 'raise' or 'collect', not 'ignore'"),
        ({"fn": "load"}, "fn must be a function, not str"),
        ({"items": "text"}, "items must be an iterable of items, not one str"),
        ({"items": b"text"}, "items must be an iterable of items, not one bytes"),
        ({"items": 5}, "items must be an iterable, not int"),
    ],
    ids=str,
)
async def test_g8_a_bad_argument_is_named(make_state, arguments, said):
    arguments = {"items": ["a"], "fn": nothing} | arguments
    async with make_state() as state:
        work = state.work("files")
        with pytest.raises(InvalidArgumentError) as caught:
            await work.process(arguments.pop("items"), arguments.pop("fn"), **arguments)
        assert str(caught.value).startswith(said)
        assert work.counts == WorkCounts(0, 0)


async def test_g8_an_item_without_a_stable_text_ends_the_run(make_state):
    async with make_state() as state:
        work = state.work("files")
        with pytest.raises(InvalidItemError):
            await work.process(["a", object(), "b"], nothing, concurrency=1, on_error="collect")
        assert work.counts == WorkCounts(1, 0)


async def test_a_failed_run_can_be_told_to_another_process(make_state):
    fn, _ = failing("b")
    async with make_state() as state:
        with pytest.raises(WorkFailedError) as caught:
            await state.work("files").process(list("ab"), fn, concurrency=1)
    told = pickle.loads(pickle.dumps(caught.value))
    assert (str(told), told.summary) == (str(caught.value), caught.value.summary)
