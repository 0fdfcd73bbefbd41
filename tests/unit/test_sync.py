"""The sync door: the same state, not awaited."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from async_task_state import (
    AssetScope,
    EventLoopRunningError,
    InvalidKeyError,
    StaleWriterError,
    StateNotOpenError,
    SyncTaskState,
    WorkFailedError,
    asset_state_sync,
    task_state_sync,
)

NOT_SOON = 3600.0


@pytest.fixture
def open_state(make_state):
    def open_state(**options):
        return SyncTaskState(make_state(**options))

    return open_state


def test_every_method_is_that_of_the_state(open_state, scope):
    with open_state(attempt=3) as state:
        assert (state.scope, state.attempt, state.resumed, state.cleared) == (scope, 3, False, False)
        state.set("job", "j-1")
        state.checkpoint({"a b": 1}, n=2)
        assert state.get("job") == "j-1"
        assert state.get("nothing", 7) == 7
        assert state.get_all() == {"job": "j-1", "a b": 1, "n": 2}
        state.delete("a b")
        state.flush()
        state.refresh()
        assert state.get_all() == {"job": "j-1", "n": 2}
        assert state.is_current()
        assert state.is_open
        assert state.stats.recorded == 3
    assert not state.is_open
    with open_state() as state:
        assert state.resumed
        state.clear()
        assert state.get_all() == {}


def test_work_is_done_and_processed(open_state):
    def size(item):
        if item == 13:
            raise ValueError("unlucky")
        return item

    with open_state(attempt=1) as state:
        files = state.work("files")
        files.done(1, n=1)
        files.failed(2, "why")
        assert files.name == "files"
        assert (files.counts.done, files.counts.failed) == (1, 1)
        assert [failure.item for failure in files.failures] == ["2"]
        assert files.is_done(1)
        assert list(files.remaining(range(1, 4))) == [3]
        summary = files.process(range(3, 20), size, on_error="collect", concurrency=4)
        assert (summary.done, summary.failed) == (16, 1)
        with pytest.raises(WorkFailedError):
            files.process(range(3, 20), size)
        assert state.get("n") == 1


def test_g1_set_is_durable_and_a_checkpoint_soon_is(open_state):
    with open_state(max_delay=NOT_SOON) as state:
        state.checkpoint(n=1)
        with open_state(read_only=True) as other:
            assert other.get_all() == {}
        state.set("m", 2)
        with open_state(read_only=True) as other:
            assert other.get_all() == {"n": 1, "m": 2}


def test_g2_a_checkpoint_is_saved_while_the_caller_is_busy(open_state):
    with open_state(max_delay=0.05) as state, open_state(read_only=True) as other:
        state.checkpoint(n=1)
        deadline = time.monotonic() + 30
        while other.get("n") is None:
            assert time.monotonic() < deadline
            other.refresh()


def test_a_state_that_is_open_is_joined(open_state):
    with open_state() as state, open_state() as joined:
        joined.set("n", 1)
        assert state.get("n") == 1
        assert state.is_current()
    with open_state() as state:
        with open_state():
            pass
        assert state.is_open
        state.set("n", 2)


def test_a_state_may_be_entered_again_within(open_state):
    state = open_state()
    with state:
        with state:
            state.set("n", 1)
        assert state.get("n") == 1
    assert not state.is_open
    with state:
        assert state.get("n") == 1


def test_g4_whoever_was_replaced_hears_it(open_state):
    state = open_state()
    state.__enter__()
    thread = threading.Thread(target=lambda: open_state().__enter__()._close())
    thread.start()
    thread.join()
    with pytest.raises(StaleWriterError):
        state.set("n", 1)
    assert not state.is_current()
    # Leaving says it, too.
    with pytest.raises(StaleWriterError):
        state.__exit__(None, None, None)


def test_g6_leaving_saves_and_an_error_goes_through(open_state):
    def fail(state):
        with state:
            state.checkpoint(n=1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail(open_state(max_delay=NOT_SOON))
    with open_state() as state:
        assert state.get_all() == {"n": 1}


def test_g8_what_cannot_be_is_said(open_state):
    state = open_state()
    with pytest.raises(StateNotOpenError, match="enter it with `with`"):
        state.get("n")
    with state, pytest.raises(InvalidKeyError):
        state.set("", 1)

    async def within_a_loop():
        with pytest.raises(EventLoopRunningError, match="async with"), open_state():
            pass

    asyncio.run(within_a_loop())
    with state:

        async def use():
            with pytest.raises(EventLoopRunningError):
                state.get("n")

        asyncio.run(use())


@pytest.mark.usefixtures("_airflow_imported")
def test_the_functions_take_what_the_async_ones_take(tmp_path, scope):
    store = f"memory:{tmp_path}"
    with task_state_sync(scope, attempt=2, store=store) as state:
        assert (state.scope, state.attempt) == (scope, 2)
    with asset_state_sync("orders", store=store) as asset:
        asset.set("watermark", 5)
        assert asset.scope == AssetScope("orders")
        assert "orders" in repr(asset)
    with asset_state_sync(AssetScope("orders"), store=store, read_only=True) as asset:
        assert asset.get("watermark") == 5
