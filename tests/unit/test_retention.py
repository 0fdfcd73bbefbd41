"""How long a state is kept: as a whole, for `default_retention_days` after it was last in use."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import anyio
import pytest

from async_task_state import NEVER_EXPIRE, Settings, StaleWriterError
from async_task_state.stores import memory

pytestmark = pytest.mark.anyio

DAY = 86400.0
ITEMS = [f"part {number}" for number in range(10)]
ROWS_AN_ITEM = 100


@pytest.fixture
def pass_days(dsn, request, monkeypatch):
    """Lets days pass, as far as the store knows: whatever it has noted is that much older."""

    def pass_in_memory(days):
        now = time.time() + days * DAY
        monkeypatch.setattr(memory.time, "time", lambda: now)

    def pass_in_a_database(days):
        seconds = days * DAY
        if dsn.startswith("sqlite"):
            import sqlite3  # noqa: PLC0415
            from contextlib import closing  # noqa: PLC0415

            with closing(sqlite3.connect(dsn.removeprefix("sqlite:///"))) as db, db:
                db.execute("UPDATE scope SET touched_at = touched_at - ?", (seconds,))
                db.execute(
                    "UPDATE entry SET updated_at = updated_at - ?, expires_at = expires_at - ?",
                    (seconds, seconds),
                )
            return
        schema = dsn.partition("schema=")[2]
        postgres = request.getfixturevalue("postgres")
        interval = timedelta(seconds=seconds)
        postgres.query(f'UPDATE "{schema}".scope SET touched_at = touched_at - $1::interval', interval)
        postgres.query(
            f'UPDATE "{schema}".entry SET updated_at = updated_at - $1::interval, expires_at = expires_at - $1::interval',
            interval,
        )

    async def pass_days(days):
        if dsn.startswith("memory"):
            pass_in_memory(days)
        else:
            await asyncio.to_thread(pass_in_a_database, days)

    return pass_days


async def load(state):
    """Does what is left of the work, an item at a time; how many rows there are then."""
    rows = await state.get("rows", 0)
    work = state.work("parts")
    for item in work.remaining(ITEMS):
        rows += ROWS_AN_ITEM
        await work.done(item, rows=rows)
    return rows


async def leave_one_item(make_state, **options):
    async with make_state(attempt=1, **options) as state:
        work = state.work("parts")
        for number, item in enumerate(ITEMS[:-1], 1):
            await work.done(item, rows=number * ROWS_AN_ITEM)
        await state.work("others").failed("item", "error")


async def rounds(state):
    """Wait until the writer has asked the store once more."""
    writer = state._pending._writer
    # It may be in the middle of one, of two steps.
    enough = writer.steps + 4
    with anyio.fail_after(30):
        while writer.steps < enough:  # noqa: ASYNC110 - what a writer does sets no event
            await anyio.sleep(0.005)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
class TestRetention:
    @pytest.mark.parametrize("days", [29, 31, 300])
    @pytest.mark.parametrize("purged", [False, True])
    async def test_g3_a_retry_after_the_retention_counts_every_row(
        self, make_state, on_store, pass_days, days, purged
    ):
        await leave_one_item(make_state)
        await pass_days(days)
        if purged:
            await on_store("purge")
        async with make_state(attempt=2) as state:
            assert state.resumed is (days < 30 or not purged)
            assert state.work("parts").counts.done in (0, len(ITEMS) - 1)
            assert await load(state) == len(ITEMS) * ROWS_AN_ITEM
            assert len(state.work("others").failures) == state.resumed

    async def test_g3_an_open_state_that_saves_nothing_is_in_use(
        self, make_state, pass_days, on_store, dsn, monkeypatch
    ):
        monkeypatch.setattr("async_task_state.writer.TOUCH_SECONDS", 0.02)
        monkeypatch.setattr("async_task_state.stores.postgres.TOUCH_SECONDS", 0.0)
        settings = Settings(dsn=dsn, default_retention_days=1e-6)
        async with make_state(settings=settings) as state:
            await state.checkpoint(rows=1)
            await state.flush()
            commits = state.stats.commits
            for _ in range(3):
                await pass_days(300)
                await rounds(state)
                assert await on_store("purge") == 0
            assert state.stats.commits == commits
            assert await state.is_current()
            await state.checkpoint(more=2)
        async with make_state(settings=settings) as state:
            assert await state.get_all() == {"rows": 1, "more": 2}

    async def test_g4_a_holder_that_slept_over_the_purge_is_told(self, make_state, pass_days, on_store):
        async def sleep_over():
            async with make_state() as state:
                await state.set("rows", 1)
                await state.set("ever", 1, retention=NEVER_EXPIRE)
                await pass_days(31)
                assert await on_store("purge") == 1
                await state.set("rows", 2)

        with pytest.raises(StaleWriterError, match=r"holder: (it was cleared, by .* or )?a purge"):
            await sleep_over()
        async with make_state(read_only=True) as seen:
            assert await seen.get_all() == {"ever": 1}
