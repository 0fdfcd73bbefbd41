"""Every log line about a state is one line, whatever its ids, keys, work sets, items and errors are."""

from __future__ import annotations

import logging

import pytest

from async_task_state import AssetScope, NotAwaitedError, StaleWriterError, TaskScope, WorkFailedError
from async_task_state.state import AssetState
from async_task_state.story import PROGRESS_SECONDS

pytestmark = pytest.mark.anyio

HOSTILE = "a\nERROR forged\r\x1b[31m\u202egnp\u2028\x85"
SHOWN = r"a\nERROR forged\r\x1b[31m\u202egnp\u2028\x85"


@pytest.fixture(params=["task", "asset"])
def open_hostile(request, make_state, settings):
    if request.param == "task":
        return lambda **options: make_state(TaskScope(HOSTILE, HOSTILE, HOSTILE), **options)
    return lambda **options: AssetState(AssetScope(HOSTILE), store=settings.dsn, settings=settings, **options)


async def fail(item):
    raise ValueError(item)


async def be_fenced(open_hostile):
    async with open_hostile() as state:
        async with AnotherHolder(open_hostile):
            pass
        await state.set("n", 1)


async def test_each_line_of_the_life_of_a_state_is_one_line(open_hostile, caplog):
    caplog.set_level(logging.INFO, logger="async_task_state")
    for _ in range(2):
        async with open_hostile() as state:
            await state.set(HOSTILE, HOSTILE)
            await state.work(HOSTILE).process([HOSTILE], fail, on_error="collect")
            await state.work(HOSTILE).process(
                [HOSTILE + str(number) for number in range(30)], fail, on_error="collect"
            )
            state._pending.story._next -= PROGRESS_SECONDS
            state._pending.story.go_on()
    with pytest.raises(WorkFailedError) as failed:
        async with open_hostile() as state:
            await state.work(HOSTILE).process([HOSTILE + "x"], fail)
    assert str(failed.value).isprintable()
    with pytest.raises(NotAwaitedError) as left:
        async with open_hostile() as state:
            state.work(HOSTILE).process([1], fail)
    assert str(left.value).isprintable()
    with pytest.raises(StaleWriterError) as fenced:
        await be_fenced(open_hostile)
    assert str(fenced.value).isprintable()
    # Not what asyncio's debug mode says of slow callbacks.
    messages = [
        record.getMessage() for record in caplog.records if record.name.startswith("async_task_state")
    ]
    assert len(messages) > 20
    assert all(message.isprintable() for message in messages)
    assert all(SHOWN in message for message in messages)
    assert not {"\x1b", "\r", "\u202e", "\u2028", "\x85"} & set(caplog.text), "nor has a traceback any"


class AnotherHolder:
    """Another holder of the state, which does not join the one that is open here."""

    def __init__(self, opener):
        self._state = opener()
        self._state._joins = lambda _: False

    async def __aenter__(self):
        return await self._state.__aenter__()

    async def __aexit__(self, *error):
        return await self._state.__aexit__(*error)
