"""What the log says of a state while it is held, and what a holder is told that its own process has fenced."""

from __future__ import annotations

import asyncio
import logging

import pytest

from async_task_state import StaleWriterError, story
from async_task_state.waiting import turn_at_each_call

pytestmark = pytest.mark.anyio


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name == story.__name__]


async def test_the_log_says_what_is_resumed_and_what_came_of_it(make_state, caplog, scope):
    caplog.set_level(logging.INFO, story.__name__)
    async with make_state(attempt=1) as state:
        await state.checkpoint(a=1, b=2)
        for n in range(300):
            await state.work("files").done(n)
        await state.work("files").failed("bad", "why")
    assert lines(caplog)[0] == f"{scope}: attempt 1 begins with an empty state"
    assert len(lines(caplog)) == 2
    assert lines(caplog)[1].startswith(f"{scope}: left after ")
    assert "s: 'files' 300 done, 1 failed; 302 calls recorded, " in lines(caplog)[1]
    caplog.clear()
    async with make_state(attempt=2):
        assert lines(caplog) == [f"{scope}: attempt 2 resumes: 'files' 300 done, 1 failed; 2 keys"]
    caplog.clear()
    async with make_state(read_only=True):
        pass
    assert lines(caplog) == []


async def test_the_log_says_how_far_it_is(make_state, caplog, monkeypatch, scope):
    caplog.set_level(logging.INFO, story.__name__)
    async with make_state() as state:
        caplog.clear()
        with turn_at_each_call():
            await state.checkpoint(n=0)
            assert lines(caplog) == []
            monkeypatch.setattr(state._pending.story, "_next", 0.0)
            for n in range(10):
                await state.work("files").done(n)
        [line] = lines(caplog)
        assert line.startswith(f"{scope}: after ")
        assert "'files' 1 done, 0 failed; 2 calls recorded" in line


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_that_fences_itself_is_told_so(make_state):
    opened = asyncio.Event()

    async def first():
        async with make_state(attempt=1) as state:
            opened.set()
            await fenced.wait()
            await state.set("a", 1)

    async def second():
        await opened.wait()
        async with make_state(attempt=1):
            fenced.set()

    fenced = asyncio.Event()
    answers = await asyncio.gather(first(), second(), return_exceptions=True)
    assert isinstance(answers[0], StaleWriterError)
    assert "this very process has opened the state of the same attempt again" in str(answers[0])
    assert "Open it once" in str(answers[0])
    assert answers[1] is None


async def test_a_later_attempt_is_another_holder(make_state):
    async def be_fenced():
        async with make_state(attempt=1) as state:
            async with make_state(attempt=2):
                pass
            await state.set("a", 1)

    with pytest.raises(StaleWriterError, match="another one has opened or cleared"):
        await be_fenced()
