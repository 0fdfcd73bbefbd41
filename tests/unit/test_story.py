"""What the log says of a state while it is held, and what a holder is told that its own process has fenced."""

from __future__ import annotations

import asyncio
import logging
import re

import pytest

from async_task_state import StaleWriterError, story
from async_task_state.waiting import turn_at_each_call

pytestmark = pytest.mark.anyio


def lines(caplog):
    """What it says, without how long ago was saved what is resumed: see test_holders."""
    texts = [record.getMessage() for record in caplog.records if record.name == story.__name__]
    return [re.sub(r", saved \d+ s ago$", "", text) for text in texts]


async def test_the_log_says_what_is_resumed_and_what_came_of_it(make_state, caplog, scope):
    caplog.set_level(logging.INFO, story.__name__)
    async with make_state(attempt=1) as state:
        await state.checkpoint(a=1, b=2)
        for n in range(300):
            await state.work("files").done(n)
        await state.work("files").failed("bad", "why")
    assert lines(caplog)[0] == f"{scope}: attempt 1 begins with an empty state"
    assert len(lines(caplog)) == 2
    assert lines(caplog)[1].startswith(f"{scope}: closed after ")
    assert "s: 'files' 300 done, 1 failed; a=1, b=2; 302 calls recorded, " in lines(caplog)[1]
    caplog.clear()
    async with make_state(attempt=2):
        [line] = lines(caplog)
        assert line == f"{scope}: attempt 2 resumes: 'files' 300 done, 1 failed; 2 keys"
    caplog.clear()
    async with make_state(read_only=True):
        pass
    assert lines(caplog) == []


async def test_the_log_counts_one_as_one(make_state, caplog, scope):
    caplog.set_level(logging.INFO, story.__name__)
    async with make_state(attempt=1) as state:
        await state.set("a", 1)
    assert lines(caplog)[1].endswith("s: a=1; 1 call recorded, 1 commit")
    caplog.clear()
    async with make_state(attempt=2):
        assert lines(caplog) == [f"{scope}: attempt 2 resumes: 1 key"]


@pytest.mark.parametrize(
    ("on_clear", "says"),
    [
        ("restart", "starts over: cleared by a user"),
        ("resume", "resumes, although a user has cleared it: 'w' 1 done, 0 failed; 2 keys"),
        (lambda values: {"a": values["a"]}, "starts over: cleared by a user: 1 key"),
    ],
    ids=["restart", "resume", "function"],
)
async def test_the_log_says_that_a_user_has_cleared_the_task(make_state, caplog, scope, on_clear, says):
    async with make_state(attempt=1, max_tries=1) as state:
        await state.checkpoint(a=1, b=2)
        await state.work("w").done("x")
    # Whatever the level was before: Airflow sets it where it is loaded.
    caplog.set_level(logging.INFO, story.__name__)
    caplog.clear()
    async with make_state(attempt=2, max_tries=3, on_clear=on_clear):
        assert lines(caplog) == [f"{scope}: attempt 2 {says}"]
    caplog.clear()
    async with make_state(attempt=3, max_tries=3):
        assert "clear" not in lines(caplog)[0]


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
        assert "'files' 1 done, 0 failed; n=0; 2 calls recorded" in line


async def test_the_log_shows_a_few_numbers_and_nothing_long(make_state, caplog):
    caplog.set_level(logging.INFO, story.__name__)
    numbers = {f"n{number}": number for number in range(10)}
    async with make_state() as state:
        await state.checkpoint(
            {"text": "secret", "truth": True, "list": [1], "huge": 10**60, "k" * 50: -1.5e-9}
        )
        await state.checkpoint(numbers)
    told = lines(caplog)[-1]
    assert f"s: {'k' * 40}=-1.5e-09, n0=0, n1=1, n2=2, n3=3; 2 calls recorded, " in told


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

    with pytest.raises(StaleWriterError, match="taken over by attempt 2 on host"):
        await be_fenced()


def test_numbers_are_told_while_another_thread_records_and_of_a_damaged_state():
    values = {}

    class Recorded(str):
        """Something else is recorded as soon as it is looked at."""

        __slots__ = ()

        def __len__(self):
            values[f"more {len(values)}"] = "1"
            return super().__len__()

    values |= {"a": Recorded("1"), "damaged": b"1", "no text": 1, "b": Recorded("2")}
    assert story.numbers_in(values) == ["a=1, b=2"]
