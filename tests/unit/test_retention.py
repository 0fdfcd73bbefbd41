"""How long a state is kept: as a whole, for `default_retention_days` after it was last in use."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

import pytest

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
