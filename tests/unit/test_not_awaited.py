"""A forgotten `await`: what the call records is saved all the same, and whoever leaves the state is told."""

from __future__ import annotations

import asyncio
import warnings

import anyio
import anyio.to_thread
import pytest

from async_task_state import InvalidValueError, NotAwaitedError, StateNotOpenError, SyncTaskState, WorkSummary

pytestmark = pytest.mark.anyio

NOT_SOON = 3600.0


@pytest.fixture
def _forgetful():
    """Python's own warning is one of those that this is about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* was never awaited", category=RuntimeWarning)
        yield


def told(caplog):
    return [record.getMessage() for record in caplog.records if "never awaited" in record.getMessage()]


@pytest.mark.usefixtures("_forgetful")
async def test_what_was_not_awaited_is_recorded_and_told(make_state, saved, caplog):
    async with make_state(max_delay=NOT_SOON) as state:
        await state.set("old", 1)
        files = state.work("files")
        for n in range(3):
            state.checkpoint(rows=n)
            assert await state.get("rows") == n
        state.set("job", "j-1")
        state.delete("old")
        files.done("a", bytes=7)
        files.failed("b", "why")
        state.flush()
        assert files.is_done("a")
        assert files.counts.failed == 1
        await state.checkpoint(last=True)
    assert await saved() == {"rows": 2, "job": "j-1", "bytes": 7, "last": True}
    [line] = told(caplog)
    never = line.partition("never awaited: ")[2].partition(". ")[0].split(", ")
    assert sorted(never) == [
        "1 of delete()",
        "1 of flush()",
        "1 of set()",
        "1 of work('files').done()",
        "1 of work('files').failed()",
        "3 of checkpoint()",
    ]
    assert str(state.scope) in line


@pytest.mark.usefixtures("_forgetful")
async def test_a_clear_that_was_not_awaited_is_recorded(make_state, saved, caplog):
    async with make_state() as state:
        await state.set("a", 1)
        state.clear()
        assert await state.get_all() == {}
    assert await saved() == {}
    assert len(told(caplog)) == 1


@pytest.mark.usefixtures("_forgetful")
async def test_work_that_was_never_begun_is_an_error(make_state):
    async def fn(item):
        raise AssertionError(item)

    with pytest.raises(NotAwaitedError, match=r"so never done: work\('files'\).process\(\)"):
        async with make_state() as state:
            state.work("files").process(["a"], fn)


@pytest.mark.usefixtures("_forgetful")
async def test_an_error_of_the_body_is_not_replaced(make_state, caplog):
    async def forget_and_fail():
        async with make_state() as state:
            state.work("files").process(["a"], print)
            raise KeyError

    with pytest.raises(KeyError):
        await forget_and_fail()
    [line] = told(caplog)
    assert "never done: work('files').process()" in line


@pytest.mark.usefixtures("_forgetful")
async def test_whoever_joined_leaves_it_to_the_outermost(make_state, caplog):
    async with make_state() as state:
        async with make_state() as joined:
            joined.checkpoint(a=1)
        assert told(caplog) == []
        await state.checkpoint(b=1)
    assert len(told(caplog)) == 1


async def test_python_names_the_line(make_state):
    async with make_state() as state:
        with pytest.warns(RuntimeWarning, match="coroutine 'checkpoint' was never awaited") as seen:
            state.checkpoint(a=1)
        assert seen[0].filename == __file__
        with pytest.warns(RuntimeWarning, match=r"coroutine 'work\('files'\)\.done' was never awaited"):
            state.work("files").done("a")
        with pytest.warns(RuntimeWarning, match="coroutine 'set' was never awaited"):
            state.set("a", 1)


async def test_what_was_awaited_in_any_way_is_not_told(make_state, caplog):
    async def fn(item):
        return item

    async with make_state() as state:
        files = state.work("files")
        async with anyio.create_task_group() as group:
            group.start_soon(state.checkpoint, {"a": 1})
            group.start_soon(files.done, "a")
            group.start_soon(state.set, "b", 2)
        later = state.checkpoint(c=3)
        assert await state.get("c") == 3
        await later
        await files.process(["b", "c"], fn)
        for n in range(20_000):
            await state.checkpoint(n=n)
        await files.failed("d", "why")
        await state.delete("b")
        await state.clear()
        await state.flush()
    assert told(caplog) == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncios_own_ways_take_them(make_state, saved, caplog):
    async with make_state() as state:
        files = state.work("files")
        await asyncio.gather(*(files.done(n) for n in range(100)), state.checkpoint(a=1), state.set("b", 2))
        await asyncio.create_task(state.checkpoint(c=3))
        await asyncio.wait_for(state.flush(), 30)
        await asyncio.shield(state.checkpoint(d=4))
        running = asyncio.create_task(files.process(range(200), anyio.sleep))
        running.cancel()
        await asyncio.wait([running])
        summary = await asyncio.create_task(files.process(range(100), anyio.sleep))
        assert isinstance(summary, WorkSummary)
    assert await saved() == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert told(caplog) == []


async def test_a_bad_call_raises_at_once(make_state):
    async with make_state() as state:
        with pytest.raises(InvalidValueError):
            state.checkpoint(a=object())
        with pytest.raises(InvalidValueError):
            state.set("a", None)
        with pytest.raises(ValueError, match="concurrency"):
            state.work("files").process([], print, concurrency=0)
    with pytest.raises(StateNotOpenError):
        state.checkpoint(a=1)


async def test_the_sync_door_has_nothing_to_await(make_state, caplog):
    def in_a_thread():
        with SyncTaskState(make_state()) as state:
            state.checkpoint(a=1)
            state.work("files").done("a")
            state.work("files").process(["b"], str)
            state.delete("a")

    await anyio.to_thread.run_sync(in_a_thread)
    assert told(caplog) == []
