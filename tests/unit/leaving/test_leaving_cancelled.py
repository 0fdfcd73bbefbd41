"""Leaving a state while asyncio cancels the task, once or again and again: what was recorded is saved all the same."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from faulty import until
from leavekit import COUNTS, NEVER, cancel_while_leaving, ends_cancelled, turns

from async_task_state import Settings, TaskState

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("body", ["returns", "raises", "is cancelled"])
async def test_g6_cancelled_again_and_again_a_state_is_left_saved(handle, store, scope, body):
    counted = []

    async def author():
        try:
            async with handle() as state:
                await state.checkpoint(n=1)
                await state.work("files").done("x")
                store.hanging = True
                if body == "raises":
                    raise ZeroDivisionError
                if body == "is cancelled":
                    await asyncio.sleep(NEVER)
        except asyncio.CancelledError as error:
            counted.append(asyncio.current_task().cancelling() if COUNTS else 11)
            counted.append(error)
            raise

    task = asyncio.create_task(author())
    if body == "is cancelled":
        await until(lambda: store.hanging)
        task.cancel("first")
    await cancel_while_leaving(store, task)
    await ends_cancelled(task)
    number, error = counted
    assert not COUNTS or number == (11 if body == "is cancelled" else 10)
    # As asyncio would have it: the last one replaces what was raised before.
    assert error.args == ("number 9",)
    assert isinstance(error.__context__, ZeroDivisionError) == (body == "raises")
    assert store.saved(scope)["n"] == 1
    async with handle(read_only=True) as state:
        assert state.work("files").is_done("x")


async def test_g6_a_scope_and_asyncio_cancel_at_once_and_the_state_is_saved(handle, store, scope):
    async def author():
        with anyio.CancelScope() as cancelled:
            async with handle() as state:
                await state.checkpoint(n=1)
                store.hanging = True
                cancelled.cancel()
                await asyncio.sleep(NEVER)
        await asyncio.sleep(NEVER)

    task = asyncio.create_task(author())
    await cancel_while_leaving(store, task)
    await until(lambda: store.saved(scope) == {"n": 1})
    if not COUNTS:
        # There a scope cannot tell its own cancellation from the task's, and swallows both.
        task.cancel()
    await ends_cancelled(task)


async def test_g6_the_deadline_holds_however_often_the_task_is_cancelled(handle, store, scope, caplog):
    async def author():
        async with handle(exit_timeout=0.1) as state:
            await state.checkpoint(n=1)
            store.hanging = True

    task = asyncio.create_task(author())
    await until(lambda: store.calls_waiting)
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    await ends_cancelled(task)
    assert "on leaving: not saved within [async_task_state] exit_timeout = 0.1 s" in caplog.text
    store.mend()
    await until(lambda: store.saved(scope) == {"n": 1})


async def test_g6_a_last_flush_that_fails_is_logged_and_the_task_is_cancelled(store, scope, caplog):
    settings = Settings(dsn="memory:", max_delay=NEVER, outage_timeout=0.1)

    async def author():
        async with TaskState(scope, store=store, settings=settings) as state:
            await state.checkpoint(n=1)
            store.down = True

    task = asyncio.create_task(author())
    await until(lambda: store.commits)
    task.cancel()
    await ends_cancelled(task)
    assert "on leaving: the store has been away" in caplog.text
    assert "'n'" in caplog.text


@pytest.mark.skipif(not COUNTS, reason="asyncio.timeout is of Python 3.11")
@pytest.mark.parametrize("cancelled", [False, True], ids=["alone", "and a cancellation"])
async def test_g6_a_timeout_around_a_state_is_a_timeout(handle, store, scope, cancelled):
    later = []

    async def author():
        try:
            async with asyncio.timeout(NEVER) as limit:
                async with handle() as state:
                    await state.checkpoint(n=1)
                    store.hanging = True
                    limit.reschedule(asyncio.get_running_loop().time())
        except TimeoutError:
            later.append(asyncio.current_task().cancelling())

    task = asyncio.create_task(author())
    await until(lambda: store.calls_waiting)
    await turns()
    await cancel_while_leaving(store, task, times=1 if cancelled else 0)
    if cancelled:
        await ends_cancelled(task)
    else:
        await task
        assert later == [0]
    assert store.saved(scope) == {"n": 1}


async def test_g6_wait_for_around_a_state_is_a_timeout_when_it_is_saved(handle, store, scope):
    async def author():
        async with handle() as state:
            await state.checkpoint(n=1)
            store.hanging = True

    waiting = asyncio.create_task(asyncio.wait_for(author(), 0.05))
    await until(lambda: store.calls_waiting)
    await asyncio.sleep(0.1)
    assert not waiting.done()
    store.hanging = False
    with pytest.raises(asyncio.TimeoutError):
        await waiting
    assert store.saved(scope) == {"n": 1}


@pytest.mark.skipif(not COUNTS, reason="asyncio.TaskGroup is of Python 3.11")
@pytest.mark.parametrize("where", ["in its body", "in a task of it"])
async def test_g6_a_task_group_that_fails_around_a_state_saves_it(handle, store, scope, where):
    async def keep():
        async with handle() as state:
            await state.checkpoint(n=1)
            store.hanging = True

    async def fail():
        await until(lambda: store.calls_waiting)
        raise ZeroDivisionError

    async def mend():
        await until(lambda: store.calls_waiting)
        await turns()
        store.hanging = False

    async def author():
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            if where == "in its body":
                await keep()
            else:
                group.create_task(keep())

    mending = asyncio.create_task(mend())
    with pytest.raises(BaseException, match="TaskGroup") as group:
        await author()
    assert [type(error) for error in group.value.exceptions] == [ZeroDivisionError]
    if where == "in its body":
        # The group's own cancellation of this task is over with it.
        assert asyncio.current_task().cancelling() == 0
    await mending
    assert store.saved(scope) == {"n": 1}


@pytest.mark.parametrize("leaves", ["inner", "outer"])
async def test_g6_a_state_that_was_joined_is_left_saved(handle, store, scope, leaves):
    async def author():
        async with handle() as outer:
            async with handle() as inner:
                assert inner is outer
                await inner.checkpoint(n=1)
                store.hanging = leaves == "inner"
            await outer.checkpoint(n=2)
            store.hanging = True

    task = asyncio.create_task(author())
    await cancel_while_leaving(store, task)
    await ends_cancelled(task)
    assert store.saved(scope) == {"n": 1 if leaves == "inner" else 2}


async def test_g6_another_task_that_is_cancelled_disturbs_no_leaving(handle, store, scope):
    async with handle() as state:

        async def other():
            await state.set("m", 2)

        async def author():
            async with handle() as same:
                await same.checkpoint(n=1)

        await state.checkpoint(before=0)
        store.hanging = True
        others = [asyncio.create_task(other()) for _ in range(3)]
        task = asyncio.create_task(author())
        await until(lambda: store.calls_waiting)
        for each in others:
            each.cancel()
            await turns()
        store.hanging = False
        await task
        assert store.saved(scope) == {"before": 0, "m": 2, "n": 1}


async def test_g6_a_run_that_is_cancelled_again_and_again_keeps_what_is_done(handle, store):
    done = set()

    async def load(item):
        if item >= 5:
            await asyncio.sleep(NEVER)
        done.add(str(item))

    async def author():
        async with handle() as state:
            await state.work("items").process(range(10), load, concurrency=2)

    task = asyncio.create_task(author())
    await until(lambda: len(done) == 5)
    await turns()
    store.hanging = True
    task.cancel()
    await cancel_while_leaving(store, task)
    await ends_cancelled(task)
    async with handle(read_only=True) as state:
        assert {str(n) for n in range(10) if state.work("items").is_done(n)} == done


async def test_a_state_that_has_nothing_to_save_is_left_without_an_await(handle):
    state = handle()
    await state.__aenter__()
    await state.set("n", 1)
    with pytest.raises(StopIteration):
        state.__aexit__(None, None, None).send(None)
    assert not state.is_open
