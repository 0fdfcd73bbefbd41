"""The thread of an SQLite connection ends by a fault: whoever waits goes on with a new one."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from async_task_state import Settings, TaskScope, TaskState
from async_task_state.lifetime import writer_for

SCOPE = TaskScope("dag", "run", "task")
PATIENCE = 20.0


class Ends(logging.Filter):
    """Raises once in each step of aiosqlite's thread, which ends it: the second time nothing catches it."""

    left = 2
    skip = 0

    def filter(self, record):
        if threading.current_thread().name != "MainThread" and self.skip:
            self.skip -= 1
        elif threading.current_thread().name != "MainThread" and self.left:
            self.left -= 1
            raise MemoryError
        return True


@pytest.fixture
def settings(tmp_path):
    return Settings(dsn=f"sqlite:///{tmp_path}/state.db", outage_timeout=3600.0)


def make_state(settings, **options):
    return TaskState(SCOPE, store=settings.dsn, settings=settings, **options)


async def look(settings):
    async with make_state(settings, read_only=True) as state:
        return await state.get_all()


@pytest.fixture
def noisy():
    logger = logging.getLogger("aiosqlite")
    level, ends = logger.level, Ends()
    logger.setLevel(logging.DEBUG)

    def begin(skip=0):
        ends.skip = skip
        logger.addFilter(ends)

    yield begin
    logger.removeFilter(ends)
    logger.setLevel(level)


def test_g5_a_set_under_way_is_saved_by_a_new_thread(settings, noisy):
    async def work():
        async with make_state(settings) as state:
            await state.set("a", 1)
            noisy()
            await asyncio.wait_for(state.set("b", 2), PATIENCE)
        assert await look(settings) == {"a": 1, "b": 2}

    asyncio.run(work())


def test_g5_what_comes_after_the_threads_end_has_a_new_one(settings):
    async def work():
        async with make_state(settings) as state:
            await state.set("a", 1)
            db = writer_for(settings.dsn, settings).store._db
            thread = getattr(db, "_thread", db)
            # No call: it cannot be taken apart.
            db._tx.put_nowait(None)
            await asyncio.to_thread(thread.join, PATIENCE)
            assert not thread.is_alive()
            await asyncio.wait_for(state.set("b", 2), PATIENCE)
            assert await asyncio.wait_for(state.is_current(), PATIENCE)
        assert await asyncio.wait_for(look(settings), PATIENCE) == {"a": 1, "b": 2}

    asyncio.run(work())


def test_g5_a_thread_that_ends_as_it_connects_is_followed_by_a_new_one(settings, noisy):
    async def work():
        noisy()
        async with make_state(settings) as state:
            await asyncio.wait_for(state.set("a", 1), PATIENCE)
        assert await look(settings) == {"a": 1}

    asyncio.run(asyncio.wait_for(work(), PATIENCE))


@pytest.mark.parametrize("steps", [1, 2])
def test_g1_a_thread_that_ends_as_it_closes_leaves_the_database_to_others(settings, noisy, steps):
    """At its first step it closes the database, at its second it stops."""

    async def work():
        async with make_state(settings) as state:
            await state.set("a", 1)
        store = writer_for(settings.dsn, settings).store
        noisy(skip=2 * (steps - 1))
        await asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(store.close(), writer_for(settings.dsn, settings).loop)
        )
        async with make_state(settings) as state:
            assert await state.get("a") == 1
            await state.set("b", 2)

    asyncio.run(asyncio.wait_for(work(), PATIENCE))
