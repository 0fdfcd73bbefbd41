"""Leaving a state where no task of its author's leaves it: a generator that is closed, a loop that ends, the sync door."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import pytest
from faulty import PATIENCE, until
from leavekit import NEVER, cancel_while_leaving, ends_cancelled

from async_task_state import SyncTaskState
from async_task_state.leaving import to_its_end

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("wrapped", [False, True], ids=["itself", "in a stack"])
async def test_g6_g9_a_generator_that_is_closed_is_left_saved(handle, store, scope, wrapped):
    async def events():
        async with AsyncExitStack() as stack:
            state = await stack.enter_async_context(handle())
            await state.checkpoint(n=1)
            store.hanging = True
            yield 1

    async def events_too():
        async with handle() as state:
            await state.checkpoint(n=1)
            store.hanging = True
            yield 1

    generator = (events if wrapped else events_too)()
    assert await anext(generator) == 1
    closing = asyncio.create_task(generator.aclose())
    await cancel_while_leaving(store, closing)
    await ends_cancelled(closing)
    assert store.saved(scope) == {"n": 1}


async def test_g6_g9_a_context_manager_of_ones_own_is_left_saved(handle, store, scope):
    @asynccontextmanager
    async def mine():
        async with handle() as state:
            yield state

    async def author():
        async with mine() as state:
            await state.checkpoint(n=1)
            store.hanging = True

    task = asyncio.create_task(author())
    await cancel_while_leaving(store, task)
    await ends_cancelled(task)
    assert store.saved(scope) == {"n": 1}


async def test_g6_a_generator_is_closed_though_the_store_does_not_answer(handle, store, scope):
    async def events():
        async with handle(exit_timeout=0.1) as state:
            await state.checkpoint(n=1)
            store.hanging = True
            yield 1

    async def author():
        async with aclosing(events()) as generator:
            async for _ in generator:
                break

    # aclose() lets nothing but GeneratorExit out that closes it.
    await asyncio.wait_for(author(), PATIENCE)
    store.mend()
    await until(lambda: store.saved(scope) == {"n": 1})


def test_g6_a_loop_that_ends_every_task_lets_a_state_be_left(handle, store, scope):
    """As `asyncio.run` does when its main coroutine has ended: it cancels what a flush waits for, too."""

    async def author():
        async with handle() as state:
            await state.checkpoint(n=1)
            store.hanging = True

    async def main():
        tasks.append(asyncio.create_task(author()))
        await until(lambda: store.calls_waiting)
        threading.Timer(0.2, store.mend).start()

    tasks = []
    asyncio.run(main())
    assert store.saved(scope) == {"n": 1}


def test_a_coroutine_of_a_loop_that_is_gone_is_left_without_waiting(handle, store, scope, recwarn):
    """It is thrown away, and may await nothing: pytest takes what it complains of for a failure."""

    async def author():
        async with handle() as state:
            await state.checkpoint(n=1)
            inside.append(state)
            await asyncio.sleep(NEVER)

    async def elsewhere():
        nonlocal task
        del task
        gc.collect()
        await until(lambda: store.saved(scope) == {"n": 1})

    inside = []
    loop = asyncio.new_event_loop()
    task = loop.create_task(author())
    task._log_destroy_pending = False
    loop.run_until_complete(until(lambda: inside))
    loop.close()
    asyncio.run(elsewhere())
    assert not inside[0].is_open


class AlarmError(BaseException):
    """As Airflow's own."""


@pytest.fixture
def _alarms():
    def raise_alarm(number, frame):
        raise AlarmError

    handler = signal.signal(signal.SIGALRM, raise_alarm)
    yield
    signal.signal(signal.SIGALRM, handler)


@pytest.mark.usefixtures("_alarms")
def test_g6_the_sync_door_is_left_saved_when_an_alarm_comes_meanwhile(handle, store, scope):
    def mend_later():
        while not store.calls_waiting:
            pass
        signal.pthread_kill(main, signal.SIGALRM)
        threading.Timer(0.2, store.mend).start()

    main = threading.get_ident()

    def author():
        with SyncTaskState(handle()) as state:
            state.checkpoint(n=1)
            store.hanging = True
            threading.Thread(target=mend_later).start()

    with pytest.raises(AlarmError):
        author()
    assert store.saved(scope) == {"n": 1}


@pytest.mark.parametrize("again", [True, False])
def test_g6_an_alarm_in_the_last_flush_is_raised_when_that_is_done(again):
    """It may go off in the step of the flush and not in that of the task that leaves."""
    calls = []

    async def flush():
        calls.append("begun")
        if len(calls) == 1:
            raise AlarmError
        calls.append("done")

    async def leave():
        return await to_its_end(flush, PATIENCE, again=again)

    if again:
        outcome = asyncio.run(leave())
        assert isinstance(outcome.cancelled, AlarmError)
        assert outcome.ended
        assert calls == ["begun", "begun", "done"]
    else:
        with pytest.raises(AlarmError):
            asyncio.run(leave())
