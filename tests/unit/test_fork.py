"""A state and a fork: the child has a connection of its own, and no handle of its parent's."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

PRELUDE = """
    import asyncio, faulthandler, os, sys, threading
    from async_task_state import Settings, StateNotOpenError, TaskScope, TaskState

    faulthandler.dump_traceback_later(50, exit=True)
    settings = Settings(dsn=sys.argv[1])
    scope = TaskScope("dag", "run", "task")

    def make_state(**options):
        return TaskState(scope, store=settings.dsn, settings=settings, **options)

    def refused(call):
        # Refused at once, with no event loop needed for it.
        try:
            call().send(None)
        except StateNotOpenError as error:
            assert "was opened by the process that this one was forked from" in str(error), error
        else:
            raise AssertionError("the child used its parent's handle")

    def in_child(work):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work()
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
"""


def run(script, dsn):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(script), dsn],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def file_dsn(tmp_path):
    return f"sqlite:///{tmp_path}/state.db"


def test_a_childs_inherited_handle_says_so_and_a_fresh_one_works(file_dsn):
    run(
        """
        async def main():
            async with make_state(max_delay=3600) as state:
                await state.set("a", 1)
                await state.checkpoint(b=2)
                work = state.work("files")

                def child():
                    for call in (
                        lambda: state.get("a"),
                        lambda: state.get_all(),
                        lambda: state.set("a", 9),
                        lambda: state.checkpoint(a=9),
                        lambda: state.flush(),
                        lambda: state.delete("a"),
                        lambda: state.clear(),
                        lambda: state.is_current(),
                        lambda: work.done("x"),
                        lambda: work.failed("x", "y"),
                    ):
                        refused(call)

                    async def fresh():
                        async with make_state() as mine:
                            assert mine is not state
                            # What the parent has not saved is the parent's alone.
                            assert await mine.get_all() == {"a": 1}
                            await mine.set("child", os.getpid())

                    asyncio.run(fresh())

                in_child(child)
                assert not await state.is_current()

        try:
            asyncio.run(main())
        except Exception as error:
            assert type(error).__name__ == "StaleWriterError", error
        else:
            raise AssertionError("the parent was not fenced")

        async def look():
            async with make_state(read_only=True) as state:
                assert set(await state.get_all()) == {"a", "child"}

        asyncio.run(look())
        """,
        file_dsn,
    )


def test_a_child_that_leaves_the_state_alone_does_not_disturb_its_parent(file_dsn):
    run(
        """
        async def main():
            async with make_state(max_delay=3600) as state:
                await state.checkpoint(a=1)
                in_child(lambda: None)
                await state.set("b", 2)
            async with make_state() as state:
                assert await state.get_all() == {"a": 1, "b": 2}

        asyncio.run(main())
        """,
        file_dsn,
    )


def test_a_fork_in_the_middle_of_commits_leaves_no_lock_behind(file_dsn):
    run(
        """
        stop, started = threading.Event(), threading.Event()

        async def write():
            async with make_state(max_delay=0.001) as state:
                await state.set("n", 0)
                # Python's own import locks do not survive a fork: by now all is imported.
                started.set()
                number = 0
                while not stop.is_set():
                    number += 1
                    await state.checkpoint(n=number)
                    await asyncio.sleep(0)
                await state.flush()
                return number

        results = []
        thread = threading.Thread(target=lambda: results.append(asyncio.run(write())))
        thread.start()
        assert started.wait(30)

        def child():
            other = TaskScope("dag", "run", "child")

            async def fresh():
                async with TaskState(other, store=settings.dsn, settings=settings) as mine:
                    await mine.set("pid", os.getpid())

            asyncio.run(fresh())

        for _ in range(20):
            in_child(child)
        stop.set()
        thread.join()
        [number] = results

        async def look():
            async with make_state(read_only=True) as state:
                assert await state.get("n") == number

        asyncio.run(look())
        """,
        file_dsn,
    )


def test_g1_a_childs_data_outlives_its_parents_store(file_dsn):
    run(
        """
        told, tell = os.pipe()
        wait, go_on = os.pipe()
        theirs = TaskScope("dag", "run", "child")

        async def parent():
            state = make_state()
            await state.__aenter__()
            await state.set("a", 1)

        async def child():
            async with TaskState(theirs, store=settings.dsn, settings=settings) as state:
                await state.set("a", 1)
                os.write(tell, b"x")
                os.read(wait, 1)
                await state.set("b", 2)

        asyncio.run(parent())
        pid = os.fork()
        if pid == 0:
            asyncio.run(child())
            os._exit(0)
        os.read(told, 1)
        from async_task_state.lifetime import shutdown

        shutdown()
        os.write(go_on, b"x")
        assert os.waitpid(pid, 0)[1] == 0

        async def look():
            async with TaskState(theirs, store=settings.dsn, settings=settings, read_only=True) as state:
                assert await state.get_all() == {"a": 1, "b": 2}

        asyncio.run(look())
        """,
        file_dsn,
    )


def test_g5_a_child_that_leaves_its_parents_sync_state_takes_nothing_from_it(file_dsn):
    """The loop of a sync state waits with an epoll that a child shares."""
    run(
        """
        from async_task_state.sync import SyncTaskState

        # A child that ends as a program does would wait for the thread that only its parent has.
        faulthandler.cancel_dump_traceback_later()

        def watched(loop):
            with open(f"/proc/self/fdinfo/{loop._selector.fileno()}") as info:
                return [line for line in info if line.startswith("tfd")]

        with SyncTaskState(make_state(max_delay=3600)) as state:
            state.checkpoint(n=1)
            loop = state._loop
            before = watched(loop)
            assert before
            child = os.fork()
            if child == 0:
                for call in (state.flush, state.refresh, lambda: state.get("n"), lambda: state.set("n", 2)):
                    try:
                        call()
                    except StateNotOpenError as error:
                        assert "was opened by the process that this one was forked from" in str(error), error
                    else:
                        raise AssertionError("the child used its parent's handle")
                sys.exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            assert watched(loop) == before
            state.set("m", 2)
        with SyncTaskState(make_state()) as state:
            assert state.get_all() == {"n": 1, "m": 2}
        """,
        file_dsn,
    )


HOLDERS = """
    from contextlib import suppress
    from async_task_state import AssetScope, AsyncTaskStateError
    from async_task_state.lifetime import shutdown
    from async_task_state.state import AssetState
    from async_task_state.sync import SyncAssetState, SyncTaskState

    faulthandler.cancel_dump_traceback_later()

    def handles():
        for read_only in (True, False):
            yield make_state(read_only=read_only), SyncTaskState
            asset = AssetScope("lake")
            yield AssetState(asset, store=settings.dsn, settings=settings, read_only=read_only), SyncAssetState

    def says(call, text):
        try:
            call()
        except AsyncTaskStateError as error:
            assert text in str(error), error
        else:
            raise AssertionError("it was refreshed")
"""


@pytest.mark.timeout(90)
def test_g5_a_refresh_in_a_forked_child_says_that_the_state_is_its_parents(dsn):
    run(
        HOLDERS
        + """
    FORKED = "was opened by the process that this one was forked from"

    async def main():
        for handle, _ in handles():
            async with handle as state:
                in_child(lambda: says(lambda: state.refresh().send(None), FORKED))
                await state.refresh()

    asyncio.run(main())
    for handle, door in handles():
        with door(handle) as state:
            in_child(lambda: says(state.refresh, FORKED))
            state.refresh()
    """,
        dsn,
    )


@pytest.mark.timeout(90)
def test_g5_a_child_that_leaves_what_its_parent_has_not_saved_says_so(dsn):
    """In a coroutine that the child goes on with no event loop runs."""
    run(
        HOLDERS
        + """
    FORKED = "was opened by the process that this one was forked from"

    async def main():
        for handle in (make_state(), AssetState(AssetScope("lake"), store=settings.dsn, settings=settings)):
            async with handle as state:
                await state.checkpoint(n=1)
                await state.work("w").done("i")
                in_child(lambda: says(lambda: state.__aexit__(None, None, None).send(None), FORKED))
                # One that ends by an error of its own ends by that one.
                error = ValueError("the body's")
                in_child(lambda: ended(state.__aexit__(type(error), error, None)))
            async with handle as state:
                assert await state.get_all() == {"n": 1}

    def ended(leaving):
        try:
            leaving.send(None)
        except StopIteration as end:
            assert not end.value
        else:
            raise AssertionError("it waits")

    asyncio.run(main())
    """,
        dsn,
    )


@pytest.mark.timeout(90)
def test_g5_a_refresh_after_the_shutdown_says_so(dsn):
    run(
        HOLDERS
        + """
    SHUT = "before this process shut its stores down"

    async def main(handle):
        with suppress(AsyncTaskStateError):
            async with handle as state:
                await asyncio.to_thread(shutdown)
                try:
                    await state.refresh()
                except AsyncTaskStateError as error:
                    assert SHUT in str(error), error
                else:
                    os._exit(3)

    for handle, _ in handles():
        asyncio.run(main(handle))
    for handle, door in handles():
        with suppress(AsyncTaskStateError), door(handle) as state:
            shutdown()
            says(state.refresh, SHUT)
    """,
        dsn,
    )
