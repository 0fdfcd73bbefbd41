"""Purging an SQLite file: nobody who saves waits for the lock longer than for another commit."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import time
from contextlib import asynccontextmanager, closing

import pytest
from onestore import SCOPE

from async_task_state import TaskScope
from async_task_state.codec import MAX_TRIES
from async_task_state.stores import Batch, sqlite_purge
from async_task_state.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.asyncio

HOUR = 3600.0
DAY = 24 * HOUR
IDLE = 2 * HOUR
AT_ONCE = 1e-9
STEPS = 100
"""Instructions of SQLite's machine from one count to the next."""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


@asynccontextmanager
async def opened(path, default_retention=60.0):
    store = SQLiteStore(path, default_retention=default_retention)
    try:
        yield store
    finally:
        await store.close()


def age(path, seconds=IDLE):
    """Have every scope be touched so long ago, as far as the database knows."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE scope SET touched_at = ?", (time.time() - seconds,))


def count(path, query):
    with closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchone()[0]


class Transactions:
    """What a store's connection does while it holds the lock: for each transaction its rows, and its instructions."""

    def __init__(self, store):
        self._db = store._db
        self._connection = store._db._conn
        self.begun = 0
        self.rows = []
        self.steps = []
        self._locked = False

    async def __aenter__(self):
        await self._db.set_trace_callback(self._note)
        await self._db.set_progress_handler(self._count, STEPS)
        return self

    async def __aexit__(self, *_):
        await self._db.set_trace_callback(None)
        await self._db.set_progress_handler(None, 0)

    def _note(self, statement):
        if statement == "BEGIN IMMEDIATE":
            self._locked = True
            self.begun += 1
            self.steps.append(0)
            self._before = self._connection.total_changes
        elif statement == "COMMIT" and self._locked:
            self._locked = False
            self.rows.append(self._connection.total_changes - self._before)

    def _count(self):
        if self._locked:
            self.steps[-1] += 1


async def fill(store, rows, retention, scope=SCOPE, value='"x"'):
    await store.write(scope, {f"k{number:06d}": (value, retention) for number in range(rows)})


async def test_g2_a_purge_of_a_file_in_which_nothing_is_due_takes_no_lock(path):
    async with opened(path) as store:
        await fill(store, 20_000, DAY)
        await fill(store, 2_000, None, TaskScope("dag", "run", "in use"))
        await fill(store, 2_000, math.inf, TaskScope("dag", "run", "idle"))
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("UPDATE scope SET touched_at = 0 WHERE task_id = 'idle'")
        async with Transactions(store) as seen:
            assert await store.purge() == 0
        assert seen.begun == 0


@pytest.mark.parametrize("other_rows", [0, 50_000])
async def test_g2_a_purge_holds_the_lock_no_longer_than_a_commit_of_a_thousand_rows(path, other_rows):
    """However large the file is, and whatever goes: keys, states, parts of states."""
    async with opened(path) as store:
        await fill(store, other_rows, DAY, TaskScope("dag", "run", "large"))
        await fill(store, 2_500, AT_ONCE)
        for number in range(500):
            await fill(store, 5, None, TaskScope("dag", "run", "idle", number))
        await fill(store, 2_000, None, TaskScope("dag", "run", "long"))
        await fill(store, 2_000, None, TaskScope("dag", "run", "part"))
        await store.write(TaskScope("dag", "run", "part"), {"ever": ("1", math.inf)})
        age(path)
        await fill(store, 1, DAY, TaskScope("dag", "run", "large"))
        async with Transactions(store) as commit:
            await fill(store, 1_000, None, TaskScope("dag", "run", "new"))
        async with Transactions(store) as purge:
            assert await store.purge() == 2_500 + 500 * 5 + 2_000 + 2_000
        assert max(purge.steps) <= max(commit.steps), "a transaction looks at more than it deletes"
        assert max(purge.rows) == sqlite_purge.ROWS
        left = {info.scope.task_id: info.keys for info in await store.scopes()}
        assert left == {"large": max(1, other_rows), "part": 1, "new": 1_000}


async def test_g2_a_transaction_of_a_purge_has_few_bytes(path):
    value = f'"{"x" * 100_000}"'
    async with opened(path) as store:
        await fill(store, 25, AT_ONCE, value=value)
        await fill(store, 25, None, TaskScope("dag", "run", "idle"), value)
        age(path)
        async with Transactions(store) as purge:
            assert await store.purge() == 50
        assert max(purge.rows) == sqlite_purge.BYTES // len(value)


async def test_what_is_written_again_after_a_look_stays(path):
    async with opened(path) as store:
        await fill(store, 3, AT_ONCE)
        now = time.time()
        rows = await store._run(sqlite_purge.expired_rows, now)
        assert [key for _, key in rows] == ["k000000", "k000001", "k000002"]
        await store.write(SCOPE, {"k000000": ("2", None), "k000001": ("2", DAY)})
        assert await store._run(sqlite_purge.delete_expired, rows, now) == 1
        assert (await store.read(SCOPE)).entries == {"k000000": "2", "k000001": "2"}


@pytest.mark.parametrize("kept", [False, True])
async def test_a_state_that_is_opened_after_a_look_stays(path, kept):
    async with opened(path) as store:
        await fill(store, 3, None)
        if kept:
            await store.write(SCOPE, {"ever": ("1", math.inf)})
        age(path)
        now = time.time()
        [(id_, keeps)] = await store._run(sqlite_purge.due_scopes, 0, now - HOUR, now)
        assert bool(keeps) is kept
        held = await store.acquire(SCOPE, 1)
        if kept:
            await store._run(sqlite_purge.move_kept, id_, now - HOUR, now)
        else:
            await store._run(sqlite_purge.delete_scopes, [id_], now - HOUR, now)
        assert not await store.commit([Batch(held.lease, {"new": ("1", None)})])
        assert (await store.read(SCOPE)).entries == {**held.entries, "new": "1"}


async def test_what_a_purge_that_was_cut_short_has_left_goes_with_the_next_one(path):
    async def run(work, *args):
        if work is sqlite_purge.delete_abandoned:
            raise asyncio.CancelledError
        return await store._run(work, *args)

    async with opened(path) as store:
        await fill(store, 500, None)
        await store.write(SCOPE, {"ever": ("1", math.inf), MAX_TRIES: ("1", None)})
        await fill(store, 700, None, TaskScope("dag", "run", "other"))
        age(path)
        with pytest.raises(asyncio.CancelledError):
            await sqlite_purge.purge(run, time.time(), 60.0)
        # For every reader they have gone already.
        assert [(info.scope, info.keys) for info in await store.scopes()] == [(SCOPE, 1)]
        assert count(path, "SELECT count(*) FROM entry") == 500 + 2 + 700
        assert (await store.acquire(TaskScope("dag", "run", "other"), 1)).entries == {}
        assert await store.purge() == 500 + 700
        assert count(path, "SELECT count(*) FROM entry") == 2
        assert (await store.read(SCOPE)).entries == {"ever": "1", MAX_TRIES: "1"}


async def test_a_scope_that_has_gone_in_part_has_an_id_that_no_other_gets(path):
    async with opened(path) as store:
        await store.write(SCOPE, {"a": ("1", None), "ever": ("1", math.inf)})
        before = (await store.read(SCOPE)).lease.scope_id
        age(path)
        assert await store.purge() == 1
        after = (await store.read(SCOPE)).lease.scope_id
        new = (await store.acquire(TaskScope("dag", "run", "new"), 1)).lease.scope_id
        assert [after, new] == [before + 1, before + 2]
