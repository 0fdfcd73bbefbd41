"""Entering and leaving: leases, joining, exits and generators."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import aclosing

import anyio
import pytest

from async_task_state import NoScopeError, StaleAttemptError, StaleWriterError, TaskScope, task_state
from async_task_state.lifetime import writer_for

pytestmark = pytest.mark.anyio

NOT_SOON = 3600.0


@pytest.fixture
def airflow_settings(dsn, monkeypatch, _settings_read_anew):
    """Airflow's config names the store."""
    monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__DSN", dsn)


async def end(*tasks):
    """Run functions at once, and wait."""
    async with anyio.create_task_group() as group:
        for task in tasks:
            group.start_soon(task)


async def test_resumed_says_whether_there_is_anything(make_state):
    async with make_state() as state:
        assert not state.resumed
        await state.set("a", 1)
        assert not state.resumed
    async with make_state() as state:
        assert state.resumed
        await state.clear()
    async with make_state() as state:
        assert not state.resumed
        await state.work("files").done("x")
    async with make_state() as state:
        assert state.resumed


async def test_the_attempt_is_the_one_asked_for_or_goes_on(make_state):
    for wanted, held in ((None, 1), (1, 1), (4, 4), (None, 4), (5, 5)):
        async with make_state(attempt=wanted) as state:
            assert state.attempt == held


async def test_g4_an_older_attempt_cannot_open(make_state, saved):
    async with make_state(attempt=2, max_delay=NOT_SOON) as state:
        await state.checkpoint(a=1)
        with pytest.raises(StaleAttemptError) as caught:
            await make_state(attempt=1).__aenter__()
        assert str(caught.value).startswith(
            "attempt 1 of dag/run/task may not open its state: attempt 2 has."
        )
        assert "async-task-state clear dag run task" in str(caught.value)
        assert await state.is_current()
    assert await saved() == {"a": 1}


async def test_g4_a_writer_whose_lease_was_taken_cannot_write(make_state, saved):
    first, second = make_state(attempt=1, max_delay=NOT_SOON), make_state(attempt=2)
    await first.__aenter__()
    await first.set("a", 1)
    async with second:
        await first.checkpoint(a=2, b=2)
        for call in (
            first.flush,
            lambda: first.set("a", 3),
            lambda: first.checkpoint(a=3),
            lambda: first.delete("a"),
            first.clear,
            lambda: first.work("files").done("x"),
            lambda: first.get("a"),
        ):
            with pytest.raises(StaleWriterError, match="attempt 1 of dag/run/task is no longer its holder"):
                await call()
        assert not await first.is_current()
        assert await second.is_current()
        assert await second.get_all() == {"a": 1}
    with pytest.raises(StaleWriterError):
        await first.__aexit__(None, None, None)
    assert await saved() == {"a": 1}


async def test_g4_a_cleared_scope_has_no_holder(make_state, settings):
    state = make_state()
    await state.__aenter__()
    await state.set("a", 1)
    writer = writer_for(settings.dsn, settings)
    await writer.call(writer.store.clear, state.scope)
    with pytest.raises(StaleWriterError, match=r"it was cleared, by .* or a purge, and no process is known"):
        await state.set("a", 2)
    with pytest.raises(StaleWriterError):
        await state.__aexit__(None, None, None)


async def test_what_a_handle_of_this_process_has_not_saved_is_not_overtaken(make_state):
    """Whoever opens next in the same process finds what the handle before it recorded, though it never left."""
    first = make_state(attempt=1, max_delay=NOT_SOON)
    await first.__aenter__()
    await first.checkpoint(a=1)
    async with make_state(attempt=2) as second:
        assert await second.get("a") == 1
    assert not await first.is_current()


async def test_opening_it_again_inside_joins(make_state, saved):
    async with make_state(attempt=2, max_delay=NOT_SOON) as outer:
        await outer.checkpoint(a=1)
        for inside in (make_state(), make_state(attempt=2), outer):
            async with inside as state:
                assert state is outer
                assert await inside.get("a") == 1
                await state.checkpoint(b=2)
        assert await saved() == {"a": 1, "b": 2}
        assert await outer.is_current()
        await outer.set("c", 3)
    assert await saved() == {"a": 1, "b": 2, "c": 3}


async def test_a_later_attempt_or_another_scope_does_not_join(make_state):
    outer = make_state(attempt=1)
    await outer.__aenter__()
    async with make_state(TaskScope("dag", "run", "other")) as other:
        assert other is not outer
    assert await outer.is_current()
    async with make_state(attempt=2) as later:
        assert later is not outer
    assert not await outer.is_current()
    with pytest.raises(StaleWriterError):
        await outer.__aexit__(None, None, None)


async def test_a_task_begun_inside_joins_and_may_stay_longer(make_state, saved):
    left = anyio.Event()
    handles = []

    async def stay(inside):
        async with make_state() as state:
            handles.append(state)
            inside.set()
            await left.wait()
            await state.checkpoint(b=2)

    async with anyio.create_task_group() as group:
        async with make_state(max_delay=NOT_SOON) as outer:
            inside = anyio.Event()
            group.start_soon(stay, inside)
            await inside.wait()
            await outer.checkpoint(a=1)
        assert await saved() == {"a": 1}
        left.set()
    assert handles == [outer]
    assert await saved() == {"a": 1, "b": 2}


async def test_a_handle_that_another_task_left_last_is_not_joined(make_state):
    """Whoever opens after everybody has left takes a lease of their own."""
    left = anyio.Event()

    async def stay(inside):
        async with make_state():
            inside.set()
            await left.wait()

    async with anyio.create_task_group() as group:
        async with make_state() as outer:
            inside = anyio.Event()
            group.start_soon(stay, inside)
            await inside.wait()
        left.set()
    async with make_state() as state:
        assert state is not outer
        await state.set("a", 1)


async def test_entered_again_it_goes_on_with_its_lease(make_state):
    state = make_state()
    async with state:
        await state.checkpoint(a=1)
        await state.work("files").done("x")
    assert await state.is_current()
    async with state:
        assert await state.get("a") == 1
        assert state.work("files").is_done("x")
        await state.set("b", 2)
    async with make_state() as other:
        assert await other.get_all() == {"a": 1, "b": 2}
    assert not await state.is_current()
    with pytest.raises(StaleWriterError):
        await state.__aenter__()


async def test_g6_leaving_by_return_or_exception_flushes(make_state, saved):
    async with make_state(max_delay=NOT_SOON) as state:
        await state.checkpoint(a=1)
    assert await saved() == {"a": 1}

    async def fail(error):
        async with make_state(max_delay=NOT_SOON) as state:
            await state.checkpoint(a=2)
            raise error

    error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError) as caught:
        await fail(error)
    assert caught.value is error
    assert await saved() == {"a": 2}


async def test_g6_leaving_by_cancellation_flushes(make_state, saved):
    with anyio.CancelScope() as cancelled:
        async with make_state(max_delay=NOT_SOON) as state:
            await state.checkpoint(a=1)
            await state.work("files").done("x", b=2)
            cancelled.cancel()
            await anyio.sleep_forever()
    assert cancelled.cancelled_caught
    assert await saved() == {"a": 1, "b": 2}


async def test_g6_a_cancelled_set_is_saved_on_leaving(make_state, saved):
    """Nobody's cancellation reaches a flush that others share."""
    with anyio.CancelScope() as cancelled:
        async with make_state(max_delay=NOT_SOON) as state:
            cancelled.cancel()
            await state.set("a", 1)
    assert cancelled.cancelled_caught
    assert await saved() == {"a": 1}


async def test_g6_leaving_a_lost_lease_does_not_hide_what_the_body_raised(make_state, caplog):
    caplog.set_level(logging.INFO, "async_task_state")

    async def fail():
        async with make_state(attempt=1, max_delay=NOT_SOON) as state:
            async with make_state(attempt=2):
                await state.checkpoint(a=2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert [r.levelname for r in caplog.records if "is no longer its holder" in r.getMessage()] == ["INFO"]
    assert {r.levelname for r in caplog.records if r.name.startswith("async_task_state")} == {"INFO"}


async def test_g9_a_generator_may_yield_inside(make_state, saved):
    async def events():
        async with make_state(max_delay=NOT_SOON) as state:
            for number in range(3):
                await state.checkpoint(n=number)
                yield number

    assert [number async for number in events()] == [0, 1, 2]
    assert await saved() == {"n": 2}


async def test_g9_a_generator_may_be_closed_by_another_task(make_state, saved):
    async def events():
        async with make_state(max_delay=NOT_SOON) as state:
            await state.checkpoint(n=1)
            yield 1
            yield 2

    generator = events()
    taken = []

    async def take():
        taken.append(await anext(generator))

    async def close():
        with anyio.CancelScope() as cancelled:
            cancelled.cancel()
            await generator.aclose()

    await end(take)
    await end(close)
    assert taken == [1]
    assert await saved() == {"n": 1}


async def test_g9_a_generator_that_others_closed_leaves_nothing_to_join(make_state):
    async def events():
        async with make_state() as state:
            yield state

    generator = events()
    first = await anext(generator)
    await end(generator.aclose)
    async with make_state(attempt=2) as other:
        await other.set("a", 1)
    async with make_state() as state:
        assert state is not first
        await state.set("a", 2)


async def test_g9_a_timeout_around_a_generator_is_the_generators_alone(make_state, saved):
    async def events():
        async with make_state(max_delay=NOT_SOON) as state:
            await state.checkpoint(n=1)
            yield 1
            await anyio.sleep_forever()

    with anyio.CancelScope() as cancelled:
        async with aclosing(events()) as generator:
            async for _ in generator:
                cancelled.cancel()
    assert cancelled.cancelled_caught
    assert await saved() == {"n": 1}


async def test_g8_without_a_task_or_a_scope_there_is_no_state():
    with pytest.raises(NoScopeError, match="no task is running here, so say whose state it is") as caught:
        task_state()
    assert "task_state(TaskScope(dag_id, run_id, task_id))" in str(caught.value)


async def test_without_a_scope_it_is_the_one_that_is_open(make_state, airflow_settings):
    async with make_state(TaskScope("dag", "run", "outer")), make_state() as inner, task_state() as state:
        assert state is inner


async def test_the_running_task_says_whose_state_and_which_attempt(scope, airflow_settings, in_task):
    with in_task(scope, 3):
        async with task_state() as state:
            assert (state.scope, state.attempt) == (scope, 3)
        async with task_state(scope) as state:
            assert state.attempt == 3
        async with task_state(scope, attempt=4) as state:
            assert state.attempt == 4
        async with task_state(TaskScope("dag", "run", "other")) as state:
            assert state.attempt == 1


async def test_the_store_is_the_one_that_airflows_config_names(scope, make_state, airflow_settings, in_task):
    with in_task(scope):
        async with task_state(scope, max_delay=NOT_SOON) as state:
            await state.set("a", 1)
    async with make_state() as state:
        assert await state.get_all() == {"a": 1}
    async with task_state(scope, store="memory:another") as state:
        assert await state.get_all() == {}


class FencedAtTheDoor:
    """A lock; before the caller's thread gets it, the writer learns that the lease was lost."""

    def __init__(self, pending):
        self.pending, self.lock, self.caller = pending, pending.lock, threading.get_ident()

    def __enter__(self):
        if threading.get_ident() == self.caller:
            self.pending._writer.hurry()
            while self.pending.error is None:
                time.sleep(0.001)
        return self.lock.__enter__()

    def __exit__(self, *error):
        return self.lock.__exit__(*error)


@pytest.mark.parametrize("call", ["flush", "is_current"])
async def test_g4_a_lease_lost_while_a_flush_begins_is_noticed(make_state, settings, call):
    state = make_state(attempt=1, max_delay=NOT_SOON)
    await state.__aenter__()
    await state.checkpoint(a=1)
    writer = writer_for(settings.dsn, settings)
    await writer.call(writer.store.acquire, state.scope, 2)
    state._pending.lock = FencedAtTheDoor(state._pending)
    if call == "flush":
        with pytest.raises(StaleWriterError):
            await state.flush()
    else:
        assert not await state.is_current()
