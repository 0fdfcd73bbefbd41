"""What ends a run early, and what does not: an item that is cancelled, the caller that is, and an alarm."""

from __future__ import annotations

import asyncio
import signal

import anyio
import anyio.lowlevel
import pytest

from async_task_state import Settings, TaskScope, TaskState, WorkCounts, WorkFailedError
from async_task_state.processing import COUNTS_CANCELLATIONS
from async_task_state.sync import SyncTaskState

SETTINGS = Settings(dsn="memory:")
ITEMS = [str(number) for number in range(100)]


class Timeout(BaseException):
    """As Airflow's own is: no `Exception`."""


async def what_was_cancelled():
    task = asyncio.ensure_future(asyncio.Event().wait())
    task.cancel()
    await task


async def cancelled_at_7(item):
    await anyio.lowlevel.checkpoint()
    if item == "7":
        await what_was_cancelled()


@pytest.mark.asyncio
async def test_an_item_that_awaits_what_was_cancelled_has_failed(make_state):
    async with make_state() as state:
        if not COUNTS_CANCELLATIONS:
            with pytest.raises(asyncio.CancelledError):
                await state.work("files").process(ITEMS, cancelled_at_7, on_error="collect")
            assert not state.work("files").failures
            return
        collected = state.work("collected")
        summary = await collected.process(ITEMS, cancelled_at_7, on_error="collect")
        assert (summary.done, summary.failed) == (99, 1)
        [failure] = collected.failures
        assert (failure.item, failure.error) == ("7", "CancelledError: ")
        with pytest.raises(WorkFailedError, match="'7' failed: CancelledError"):
            await state.work("raised").process(ITEMS, cancelled_at_7)
        assert not state.work("raised").is_done("7")


@pytest.mark.asyncio
async def test_items_that_end_as_cancelled_end_the_run_so(make_state):
    async def items():
        yield "1"
        await what_was_cancelled()

    async with make_state() as state:
        with pytest.raises(asyncio.CancelledError):
            await state.work("files").process(items(), cancelled_at_7)


@pytest.mark.asyncio
async def test_a_task_that_is_cancelled_has_no_failures(make_state):
    begun = asyncio.Event()

    async def endless(item):
        begun.set()
        await asyncio.Event().wait()

    async with make_state() as state:
        work = state.work("files")
        running = asyncio.ensure_future(work.process(ITEMS, endless, on_error="collect"))
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert work.counts == WorkCounts(0, 0)


@pytest.mark.anyio
async def test_a_scope_that_is_cancelled_has_no_failures(make_state):
    async def cancelling(item):
        if item == "7":
            scope.cancel()
        await anyio.lowlevel.checkpoint()

    async with make_state() as state:
        work = state.work("files")
        with anyio.CancelScope() as scope:
            await work.process(ITEMS, cancelling, on_error="collect", concurrency=1)
        assert scope.cancelled_caught
        assert work.counts.failed == 0


@pytest.mark.anyio
async def test_what_an_alarm_raises_in_an_item_is_raised_alone(make_state):
    async def late(item):
        await anyio.lowlevel.checkpoint()
        if item == "7":
            raise Timeout("execution_timeout")

    async with make_state() as state:
        work = state.work("files")
        with pytest.raises(Timeout, match="execution_timeout"):
            await work.process(ITEMS, late, on_error="collect")
        assert not work.failures


def test_after_an_alarm_a_sync_state_begins_no_item_and_ends_those_that_had_begun():
    begun, ended = [], []

    async def endless(item):
        begun.append(item)
        if len(begun) == 4:
            # Comes while the event loop waits.
            signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(item)

    def alarm(*_):
        raise Timeout

    state = SyncTaskState(TaskState(TaskScope("dag", "run", "task"), store="memory:", settings=SETTINGS))
    handler = signal.signal(signal.SIGALRM, alarm)
    try:
        with state, pytest.raises(Timeout):
            state.work("files").process(ITEMS, endless, concurrency=4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert (begun, sorted(ended)) == (ITEMS[:4], ITEMS[:4])


def test_a_loop_that_ends_with_items_under_way_has_no_failures():
    begun = []

    async def endless(item):
        begun.append(item)
        await asyncio.Event().wait()

    async def main():
        async with TaskState(TaskScope("dag", "run", "task"), store="memory:", settings=SETTINGS) as state:
            works.append(state.work("files"))
            # A callback of the loop that raises ends it, as Ctrl-C does.
            asyncio.get_running_loop().call_later(0.05, interrupt)
            await works[0].process(ITEMS, endless, on_error="collect")

    def interrupt():
        raise KeyboardInterrupt

    works = []
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert begun
    assert not works[0]._failures


def test_a_sync_state_does_not_wait_for_what_goes_on_in_the_background():
    async def start(item):
        running.append(asyncio.ensure_future(asyncio.Event().wait()))

    running, settings = [], Settings(dsn="memory:", exit_timeout=3600.0)
    with SyncTaskState(
        TaskState(TaskScope("dag", "run", "task"), store="memory:", settings=settings)
    ) as state:
        state.work("files").process(["1"], start)
        loop = state._loop
    assert loop.is_closed()
    # As asyncio does not like to be left with.
    running[0]._log_destroy_pending = False
