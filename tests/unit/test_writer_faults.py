"""Faults on the thread that saves: a round is repeated, and when the thread ends every holder is told."""

from __future__ import annotations

import asyncio
import ctypes
import inspect
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest
from faulty import PATIENCE, until

from async_task_state import Settings, StoreUnavailableError, TaskScope, WriterEndedError
from async_task_state import writer as writer_module
from async_task_state.deadline import Deadline
from async_task_state.lifetime import drain, shutdown, writer_for
from async_task_state.pending import Pending
from async_task_state.stores.progress import Patience
from async_task_state.writer import Writer

pytestmark = pytest.mark.anyio

NEVER = 3600.0
OTHER = TaskScope("dag", "run", "other")
THIRD = TaskScope("dag", "run", "third")


@pytest.fixture
def settings():
    return Settings(dsn="memory:", max_delay=NEVER, outage_timeout=NEVER, exit_timeout=PATIENCE)


@pytest.fixture
def open_state(make_state, store):
    return lambda *args, **options: make_state(*args, store=store, **options)


class RaisesElsewhere(logging.Filter):
    """A filter that works in the thread that made it only, as one that asks a context variable may."""

    def __init__(self):
        super().__init__()
        self.thread = threading.get_ident()

    def filter(self, record):
        if threading.get_ident() != self.thread:
            raise LookupError("no context here")
        return True


@pytest.fixture
def _logging_raises():
    loggers = [logging.getLogger(name) for name in ("async_task_state.writer", "asyncio")]
    raises = RaisesElsewhere()
    for logger in loggers:
        logger.addFilter(raises)
    yield
    for logger in loggers:
        logger.removeFilter(raises)


def failing(method, error, *, times=1, after=False):
    """A method that raises so often, before it does its work or after that."""
    left = times
    if inspect.iscoroutinefunction(method):
        before = failing(str, error, times=times, after=after)

        async def fails_awaited(*args):
            before()
            return await method(*args)

        return fails_awaited

    def fails(*args, **options):
        nonlocal left
        left -= 1
        if left >= 0 and not after:
            raise error
        result = method(*args, **options)
        if left >= 0:
            raise error
        return result

    return fails


STEPS = {
    "take": (Pending, "take"),
    "before the commit": (Deadline, "set"),
    "after the commit": (Deadline, "clear"),
    "settle": (Pending, "settle"),
    "wake": (writer_module, "wake"),
    "look": (Writer, "_next_due"),
    "sleep": (Writer, "_sleep_until"),
}


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("after", [False, True], ids=["at once", "when done"])
@pytest.mark.parametrize("step", STEPS)
async def test_g5_a_fault_in_a_round_loses_no_change_and_no_waiter(
    open_state, store, scope, monkeypatch, step, after, times
):
    """Two states are in the round; of the second the fault knows nothing."""
    async with open_state() as one, open_state(OTHER) as other:
        await one.set("a", 0)
        await one.work("files").done("x")
        place, name = STEPS[step]
        error = MemoryError(step)
        with monkeypatch.context() as patch:
            patch.setattr(place, name, failing(getattr(place, name), error, times=times, after=after))
            async with anyio.create_task_group() as group:
                group.start_soon(one.set, "a", 1)
                group.start_soon(other.set, "b", 2)
            assert store.saved(scope)["a"] == 1
            assert store.saved(OTHER) == {"b": 2}
        assert one.work("files").is_done("x")
        await one.set("c", 3)
        writer = one._pending._writer
    assert writer is writer_for(store, None)
    assert store.saved(scope)["c"] == 3


RETRIES = [(Writer, "_retry"), (Writer, "hurry"), (Patience, "fail"), (writer_module.random, "uniform")]


@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize(("place", "name"), RETRIES, ids=[name for _, name in RETRIES])
async def test_g5_faults_while_a_retry_is_prepared_end_no_writer(
    open_state, store, scope, monkeypatch, place, name, times
):
    async with open_state() as state:
        await state.set("a", 0)
        here, fail = threading.get_ident(), failing(lambda: None, MemoryError(name), times=times)
        method = getattr(place, name)

        def fails_there(*args, **options):
            if threading.get_ident() != here:
                fail()
            return method(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(place, name, fails_there)
            store.down = True
            async with anyio.create_task_group() as group:
                group.start_soon(state.set, "a", 1)
                await until(lambda: len(store.commits) > 1)
                store.mend()
        writer = state._pending._writer
    assert writer is writer_for(store, None)
    assert store.saved(scope) == {"a": 1}


async def test_g5_a_fault_of_the_store_that_passes_is_no_outage(open_state, store, scope, monkeypatch):
    async with open_state() as state:
        with monkeypatch.context() as patch:
            patch.setattr(store, "commit", failing(store.commit, MemoryError("once"), times=2))
            await state.set("a", 1)
    assert store.saved(scope) == {"a": 1}


async def test_g5_a_fault_while_a_batch_is_put_back_loses_nothing(open_state, store, scope, monkeypatch):
    async with open_state() as state:
        put_back = failing(Pending.put_back, MemoryError(), times=2)
        with monkeypatch.context() as patch:
            patch.setattr(Pending, "put_back", put_back)
            store.down = True
            async with anyio.create_task_group() as group:
                group.start_soon(state.set, "a", 1)
                await until(lambda: len(store.commits) > 1)
                store.mend()
    assert store.saved(scope) == {"a": 1}


async def test_g5_a_fault_that_lasts_is_an_outage_and_named(make_state, store, scope, monkeypatch):
    settings = Settings(dsn="memory:", max_delay=NEVER, outage_timeout=0.2)
    async with make_state(store=store, settings=settings) as state:
        with monkeypatch.context() as patch:
            patch.setattr(Pending, "take", failing(Pending.take, MemoryError("no room"), times=10**6))
            with pytest.raises(StoreUnavailableError, match=r"outage_timeout = 0.2 s .*no room.*'a'"):
                await state.set("a", 1)
        await until(lambda: state._pending._writer.trouble is None)
    assert store.saved(scope) == {"a": 1}


@pytest.mark.usefixtures("_logging_raises")
async def test_g5_logging_that_raises_keeps_nothing_from_being_saved(make_state, store, scope, capsys):
    settings = Settings(dsn="memory:", max_delay=NEVER, outage_timeout=0.2)
    async with make_state(store=store, settings=settings) as state:
        store.down = True
        with pytest.raises(StoreUnavailableError, match="the line is broken"):
            await state.set("a", 1)
        store.error = RuntimeError("a fault of the store's")
        tried = len(store.commits)
        await until(lambda: len(store.commits) > tried + 1)
        store.mend()
        await until(lambda: store.saved(scope) == {"a": 1})
        await until(lambda: state._pending._writer.trouble is None)
        await state.set("b", 2)
    errors = capsys.readouterr().err
    assert "could not save, will try again: the line is broken (not logged" in errors
    assert "saving has failed for good or for too long" in errors


@pytest.mark.usefixtures("_logging_raises")
async def test_g5_what_raises_in_the_writers_loop_does_not_end_it(open_state, store, scope):
    """asyncio's own handler would log, and what that raises ends the loop."""
    async with open_state() as state:
        writer = state._pending._writer
        writer.loop.call_soon_threadsafe(failing(print, ZeroDivisionError()))
        await state.set("a", 1)
        assert state._pending._writer is writer_for(store, None)
    assert store.saved(scope) == {"a": 1}


def end_thread(writer, how):
    """End a writer's thread, in a way that it has no answer to."""
    thread = writer._thread
    if how == "killed":
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
        writer.loop.call_soon_threadsafe(lambda: None)
    elif how == "stopped":
        writer.loop.call_soon_threadsafe(writer.loop.stop)
    else:
        writer.loop.call_soon_threadsafe(failing(print, SystemExit("no more")))


ENDS = ["killed", "stopped", "raised"]


@pytest.mark.parametrize("how", ENDS)
async def test_g5_when_the_thread_ends_every_holder_raises(open_state, store, scope, how, caplog):
    one, other, seen = open_state(), open_state(OTHER), open_state(read_only=True)
    for state in (one, other, seen):
        await state.__aenter__()
    await one.set("a", 1)
    await one.checkpoint(lost=2)
    work = one.work("files")
    writer = one._pending._writer
    end_thread(writer, how)
    await until(lambda: not writer._thread.is_alive())
    calls = [
        lambda: one.set("a", 2),
        lambda: one.checkpoint(a=2),
        lambda: one.get("a"),
        one.get_all,
        one.flush,
        one.clear,
        one.refresh,
        one.is_current,
        lambda: one.delete("a"),
        lambda: work.done("x"),
        lambda: work.failed("x", "why"),
        lambda: work.process(["x"], print),
        lambda: one.__aexit__(None, None, None),
    ]
    for call in calls:
        with pytest.raises(WriterEndedError, match=r"thread .* has ended.*dag/run/task: 'lost'"):
            await call()
    for call in (lambda: other.set("b", 1), lambda: other.__aexit__(None, None, None), seen.refresh):
        with pytest.raises(WriterEndedError, match=r"thread .* has ended"):
            await call()
    assert "dag/run/task: 'lost'" in caplog.text
    async with open_state(attempt=2) as anew:
        assert await anew.get_all() == {"a": 1}
        await anew.set("b", 3)
        assert anew._pending._writer is not writer
    assert store.saved(scope) == {"a": 1, "b": 3}
    drain()


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("wait", ["set", "flush", "is_current", "open", "open read-only", "refresh", "leave"])
async def test_g5_when_the_thread_ends_every_waiter_is_released(open_state, store, wait, how):
    state = await open_state().__aenter__()
    seen = await open_state(THIRD, read_only=True).__aenter__()
    await state.checkpoint(lost=1)
    calls = {
        "set": lambda: state.set("b", 2),
        "flush": state.flush,
        "is_current": state.is_current,
        "open": open_state(OTHER).__aenter__,
        "open read-only": open_state(OTHER, read_only=True).__aenter__,
        "refresh": seen.refresh,
        "leave": lambda: state.__aexit__(None, None, None),
    }
    store.hanging = True
    writer = state._pending._writer
    heard = []

    async def call():
        with pytest.raises(WriterEndedError) as error:
            await calls[wait]()
        heard.append(str(error.value))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await until(lambda: store.calls_waiting)
            end_thread(writer, how)
    store.mend()
    assert heard
    assert ("dag/run/task: 'lost'" in heard[0]) == (wait in ("set", "flush", "is_current", "leave"))


@pytest.mark.parametrize("how", ENDS)
def test_g5_when_the_thread_ends_threads_that_are_blocked_are_released(open_state, store, how):
    async def main():
        state = await open_state().__aenter__()
        await state.checkpoint(lost=1)
        store.hanging = True
        return state._pending._writer

    writer = asyncio.run(main())
    with ThreadPoolExecutor(4) as threads:
        asking = threads.submit(writer.ask, store.read, OTHER)
        draining = threads.submit(writer.drain)
        pausing = threads.submit(writer.pause)
        deadline = time.monotonic() + PATIENCE
        while not store.calls_waiting:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        began = time.monotonic()
        end_thread(writer, how)
        with pytest.raises(WriterEndedError, match=r"thread .* has ended"):
            asking.result(PATIENCE)
        draining.result(PATIENCE)
        pausing.result(PATIENCE)
    # Not by their timeout.
    assert time.monotonic() - began < writer._settings.exit_timeout
    store.mend()
    with pytest.raises(WriterEndedError, match=r"thread .* has ended"):
        writer.ask(store.read, OTHER)
    writer.drain()
    writer.stop()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_g5_a_process_whose_writer_has_ended_can_still_fork(open_state, store):
    async def main():
        state = await open_state().__aenter__()
        return state._pending._writer

    writer = asyncio.run(main())
    end_thread(writer, "raised")
    writer._thread.join(PATIENCE)
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    shutdown()


async def test_a_thread_that_cannot_start_is_an_error_of_the_library(open_state, monkeypatch):
    def cannot(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", cannot)
        with pytest.raises(StoreUnavailableError, match=r"cannot begin: can't start new thread"):
            await open_state().__aenter__()
    async with open_state() as state:
        await state.set("a", 1)
