"""Several event loops and threads on one writer, some of them gone; draining and shutting down."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import anyio
import faulty
import pytest
from faulty import PATIENCE

from async_task_state import Settings, StateNotOpenError, StoreUnavailableError, TaskScope, TaskState
from async_task_state.lifetime import drain, shutdown

NEVER = 3600.0
SCOPES = [TaskScope("dag", "run", "task", index) for index in range(4)]


@pytest.fixture
def handle(store):
    """Makes handles whose checkpoints only a flush can save."""

    def handle(scope, *, exit_timeout=20.0, **options):
        settings = Settings(dsn="memory:", max_delay=NEVER, exit_timeout=exit_timeout)
        return TaskState(scope, store=store, settings=settings, **options)

    return handle


def until(condition):
    """As `faulty.until`, without an event loop."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_g1_asyncio_and_trio_in_several_threads_share_one_writer(store, handle):
    start = threading.Barrier(len(SCOPES))

    async def save(scope):
        async with handle(scope) as state:
            start.wait()
            for n in range(50):
                await state.set("n", n)
                assert store.saved(scope) == {"n": n}

    with ThreadPoolExecutor(len(SCOPES)) as threads:
        backends = ["asyncio", "trio", "asyncio", "trio"]
        running = [
            threads.submit(anyio.run, save, scope, backend=backend)
            for scope, backend in zip(SCOPES, backends, strict=True)
        ]
        for future in running:
            future.result()
    assert sum(thread.name == "async-task-state" for thread in threading.enumerate()) == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_g2_waiters_on_a_loop_that_is_gone_do_not_disturb_others(store, handle, backend):
    gone, live = SCOPES[:2]

    async def abandon():
        state = await handle(gone).__aenter__()
        store.hanging = True
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(state.set, "n", 1)
                await anyio.to_thread.run_sync(until, lambda: store.calls_waiting)
                scope.cancel()

    async def save():
        async with handle(live) as state:
            await state.set("n", 2)

    anyio.run(abandon, backend=backend)
    store.hanging = False
    asyncio.run(save())
    assert store.saved(gone) == {"n": 1}
    assert store.saved(live) == {"n": 2}


def test_g2_a_loop_closed_with_a_waiter_still_on_it_does_not_disturb_others(store, handle):
    gone, live = SCOPES[:2]
    loop = asyncio.new_event_loop()
    one, other = handle(gone), handle(live)
    loop.run_until_complete(one.__aenter__())
    store.hanging = True
    task = loop.create_task(one.set("n", 1))
    task._log_destroy_pending = False
    loop.run_until_complete(faulty.until(lambda: store.calls_waiting))
    loop.close()
    store.hanging = False

    async def save():
        async with other as state:
            await state.set("n", 2)

    asyncio.run(save())
    assert store.saved(gone) == {"n": 1}
    assert store.saved(live) == {"n": 2}


def test_g2_a_closed_loop_leaves_what_it_recorded_to_the_timer(store, handle):
    (scope,) = SCOPES[:1]

    async def record():
        state = await handle(scope, max_delay=0.05).__aenter__()
        await state.checkpoint(n=1)

    asyncio.run(record())
    until(lambda: store.saved(scope) == {"n": 1})


def test_g6_drain_saves_what_every_loop_has_recorded(store, handle):
    async def record(scope):
        state = await handle(scope).__aenter__()
        await state.checkpoint(n=1)

    for scope in SCOPES:
        asyncio.run(record(scope))
    assert not store.commits
    drain()
    assert all(store.saved(scope) == {"n": 1} for scope in SCOPES)
    assert len(store.commits) == 1


def test_g5_drain_ends_at_its_deadline_and_logs_what_is_not_saved(store, handle, caplog):
    (scope,) = SCOPES[:1]

    async def record():
        state = await handle(scope, exit_timeout=0.1).__aenter__()
        await state.checkpoint(n=1)

    asyncio.run(record())
    store.hanging = True
    with caplog.at_level(logging.ERROR):
        drain()
    assert f"not saved within [async_task_state] exit_timeout = 0.1 s: {scope}: 'n'" in caplog.text
    store.hanging = False
    drain()
    assert store.saved(scope) == {"n": 1}


def test_g5_drain_does_not_wait_for_the_next_retry(store, handle):
    (scope,) = SCOPES[:1]

    async def record():
        state = await handle(scope).__aenter__()
        store.down = True
        async with anyio.create_task_group() as group:
            group.start_soon(state.set, "n", 1)
            await faulty.until(lambda: len(store.commits) > 3)
            group.cancel_scope.cancel()

    asyncio.run(record())
    store.mend()
    tried = len(store.commits)
    drain()
    assert store.saved(scope) == {"n": 1}
    assert len(store.commits) <= tried + 1


def test_g5_a_state_says_so_after_the_stores_were_shut_down(store, handle):
    (scope,) = SCOPES[:1]

    async def main():
        async with handle(scope) as state:
            await state.checkpoint(n=1)
            shutdown()
            assert store.saved(scope) == {"n": 1}
            with pytest.raises(StateNotOpenError, match="before this process shut its stores down"):
                await state.checkpoint(n=2)
            with pytest.raises(StateNotOpenError, match="before this process shut its stores down"):
                async with state:
                    pass
            async with handle(scope) as anew:
                assert anew is not state
                assert await anew.get_all() == {"n": 1}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())


def test_g5_what_is_recorded_while_the_stores_are_shut_down_is_saved_or_refused(store, handle):
    accepted = []

    async def record(scope):
        state = await handle(scope).__aenter__()
        n = 0
        try:
            while True:
                n += 1
                await state.checkpoint(n=n)
        except StateNotOpenError:
            accepted.append((scope, n - 1))

    threads = [threading.Thread(target=asyncio.run, args=(record(scope),)) for scope in SCOPES]
    for thread in threads:
        thread.start()
    until(lambda: len(store.inner._records) == len(SCOPES))
    shutdown()
    for thread in threads:
        thread.join()
    assert [(scope, store.saved(scope).get("n", 0)) for scope, _ in accepted] == accepted


@pytest.mark.parametrize("call", ["set", "open"])
def test_g5_shutting_down_releases_whoever_waits_for_a_store_that_hangs(store, handle, call):
    waits, opens = SCOPES[:2]
    heard = []

    async def wait():
        async with handle(waits, exit_timeout=0.1) as state:
            store.hanging = True
            with pytest.raises(StateNotOpenError) as error:
                await (state.set("n", 1) if call == "set" else handle(opens).__aenter__())
            heard.append(str(error.value))

    def run():
        # Leaving says it, too.
        with pytest.raises(StateNotOpenError):
            asyncio.run(wait())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    until(lambda: store.calls_waiting)
    shutdown()
    thread.join(PATIENCE)
    assert "shut its stores down" in heard[0]


@pytest.mark.anyio
async def test_g5_a_thread_that_cannot_begin_is_an_error_and_tried_again(handle, store, monkeypatch):
    def out_of_files(main):
        main.close()
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "run", out_of_files)
        with pytest.raises(StoreUnavailableError, match=r"cannot begin: .*Too many open files"):
            await handle(SCOPES[0]).__aenter__()
    async with handle(SCOPES[0]) as state:
        await state.set("n", 1)
    assert store.saved(SCOPES[0]) == {"n": 1}
