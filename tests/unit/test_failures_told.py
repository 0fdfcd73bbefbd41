"""Items that fail are counted with what else is recorded, and have a line each in the log."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from async_task_state import WorkFailedError
from async_task_state.waiting import turn_at_each_call

pytestmark = pytest.mark.anyio


async def test_what_was_recorded_before_a_failure_is_counted(make_state):
    async def fn(item):
        await anyio.lowlevel.checkpoint()
        if item == 40:
            raise ValueError(item)

    async with make_state() as state:
        work = state.work("files")
        # Every call that records is at an await when the failure cancels it.
        with turn_at_each_call(), pytest.raises(WorkFailedError) as raised:
            await work.process(range(100), fn, concurrency=16)
        summary = raised.value.summary
        assert (summary.done, summary.failed) == (work.counts.done, work.counts.failed)


async def test_failures_of_others_that_were_cancelled_are_counted(make_state):
    async def fn(item):
        raise ValueError(item)

    async with make_state() as state:
        work = state.work("files")
        with turn_at_each_call(), pytest.raises(WorkFailedError) as raised:
            await work.process(range(100), fn, concurrency=16)
        assert raised.value.summary.failed == work.counts.failed
        assert len(raised.value.summary.failures) == min(10, work.counts.failed)


def lines(caplog):
    return [record for record in caplog.records if record.name == "async_task_state.processing"]


async def test_each_failure_has_a_line_with_its_traceback(make_state, caplog):
    async def fn(item):
        raise ValueError(f"no\n{item}")

    async with make_state() as state:
        await state.work("files").process(["a", "b"], fn, on_error="collect", max_attempts=3, concurrency=1)
    assert [record.getMessage() for record in lines(caplog)] == [
        f"{state.scope}: '{item}' of work set 'files' failed: ValueError: no\\n{item}" for item in "ab"
    ]
    for record in lines(caplog):
        assert record.levelname == "WARNING"
        assert record.exc_info[2].tb_next is not None


async def test_after_twenty_failures_they_are_counted(make_state, caplog):
    async def fn(item):
        raise ValueError(item)

    async with make_state() as state:
        await state.work("files").process(range(123), fn, on_error="collect")
    assert len(lines(caplog)) == 21
    assert lines(caplog)[-1].getMessage() == f"{state.scope}: 103 more items of work set 'files' failed"
