"""The tables in SQLite: brought up to date once, under load, with what is in them."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from threading import Thread

import firstversion
import pytest
from firstversion import OldSQLite
from onestore import SCOPE, using

from async_task_state import TaskScope
from async_task_state.codec import MAX_TRIES, RESERVED_PREFIX
from async_task_state.scopes import AssetScope
from async_task_state.stores import Batch
from async_task_state.stores.sqlite import SQLiteStore
from async_task_state.stores.sqlite_schema import SCHEMA_VERSION

HERE = Path(firstversion.__file__)
HOLDERS = 3
SAVES = 30
ROWS = 50_000
LATER = 4e9


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


@pytest.fixture
def old(path):
    """A database of version 1, open in a process that knows no other."""
    old = OldSQLite(path)
    yield old
    old.db.close()


def tables(path):
    """All that SQLite says of a database but rows."""
    with closing(sqlite3.connect(path)) as db:
        parts = [
            db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("user_version", "application_id", "journal_mode")
        ]
        for table in ("scope", "entry"):
            parts += [
                db.execute(f"PRAGMA {part}({table})").fetchall() for part in ("table_xinfo", "index_list")
            ]
        return [*parts, db.execute("PRAGMA index_xinfo(entry_expires_at)").fetchall()]


def test_a_file_of_version_1_becomes_what_a_new_one_is(path, old, tmp_path):
    lease = old.acquire(SCOPE, 3)
    other = TaskScope("dag", "run", "other")
    assert old.commit(lease, {"a": "1"}, LATER)
    assert old.commit(old.acquire(other, 1), {"b": "2"}, LATER)

    async def look(store):
        snapshot = await store.read(SCOPE)
        assert (snapshot.lease.scope_id, snapshot.lease.attempt, snapshot.lease.epoch) == lease
        assert snapshot.entries == {"a": "1"}
        assert [info.scope for info in await store.scopes()] == [other, SCOPE]
        assert (await store.acquire(other, 1)).entries == {"b": "2"}
        return (await store.acquire(TaskScope("dag", "run", "new"), 1)).lease.scope_id

    assert using(path, look) == lease[0] + 2
    using(tmp_path / "new.db", lambda store: store.acquire(SCOPE, 1))
    assert tables(path) == tables(tmp_path / "new.db")
    assert tables(path)[0] == SCHEMA_VERSION


def test_what_version_1_kept_for_ever_is_kept_for_ever(path, old):
    """No expiry meant for ever, but for our own keys, which went with the state; an asset's stay as they are."""
    work = f"{RESERVED_PREFIX}work:x:0000000000"
    asset = AssetScope("orders")
    assert old.commit(old.acquire(SCOPE, 1), {"ever": "1", work: "1", MAX_TRIES: "1"})
    assert old.commit(old.acquire(SCOPE, 1), {"later": "1"}, LATER)
    assert old.commit(old.acquire(asset, 1), {"ever": "1", work: "1"})

    async def purge():
        store = SQLiteStore(path, default_retention=86400.0)
        try:
            assert await store.purge(time.time() + 30 * 86400) == 1
            assert (await store.read(SCOPE)).entries == {"ever": "1", "later": "1", MAX_TRIES: "1"}
            assert (await store.read(asset)).entries == {"ever": "1", work: "1"}
            assert await store.purge(LATER) == 1
            assert (await store.read(SCOPE)).entries == {"ever": "1", MAX_TRIES: "1"}
        finally:
            await store.close()

    asyncio.run(purge())


def test_the_index_on_the_expiry_is_what_finds_what_has_expired(path):
    using(path, lambda store: store.acquire(SCOPE, 1))
    with closing(sqlite3.connect(path)) as db:
        plan = db.execute("EXPLAIN QUERY PLAN SELECT scope_id, key FROM entry WHERE expires_at <= ?", (1.0,))
        assert "USING COVERING INDEX entry_expires_at" in plan.fetchone()[3]


def test_g4_holders_of_both_versions_fence_each_other(path, old):
    first = old.acquire(SCOPE, 1)
    values = {"a": ("1", None)}

    async def play(new):
        nonlocal first
        for attempt in (1, 1, 2):
            second = (await new.acquire(SCOPE, attempt)).lease
            assert not old.commit(first, {"a": "9"})
            assert not await new.commit([Batch(second, values)])
            first = old.acquire(SCOPE, attempt)
            assert list(await new.commit([Batch(second, values)])) == [second]
            assert list(await new.commit([Batch(second)])) == [second]
            assert old.commit(first, {"a": "2"})
        await new.clear(SCOPE)
        assert not old.commit(first, {"a": "9"})
        assert (await new.read(SCOPE)).entries == {}

    using(path, play)


def test_g1_g4_a_migration_under_load_loses_nothing_of_who_knows_version_1(path, old):
    old.db.execute("BEGIN")
    old.db.executemany(
        firstversion.UPSERT, [(-1, f"k{number}", "1", time.time(), LATER) for number in range(ROWS)]
    )
    old.db.execute("COMMIT")
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    command = [sys.executable, str(HERE), str(path)]
    holders = [Holder(subprocess.Popen(command, text=True, env=environment, **pipes)) for _ in range(HOLDERS)]
    scopes = [TaskScope("dag", "run", f"of {number}") for number in range(HOLDERS)]
    try:
        for holder, scope in zip(holders, scopes, strict=True):
            holder.expect("open")
            holder.hold(scope)
            holder.saves(SAVES)

        async def play():
            new = SQLiteStore(path)
            try:
                mine = (await new.acquire(SCOPE, 1)).lease
                for holder in holders:
                    holder.saves(SAVES)
                for holder, scope in zip(holders, scopes, strict=True):
                    left = (await new.acquire(scope, 1)).entries
                    assert left["number"] == left["same"] == str(holder.until("fenced"))
                holders[0].hold(SCOPE)
                holders[0].saves(1)
                assert list(await new.commit([Batch(mine, {"a": ("1", None)})])) == [mine]
                return [info.scope for info in await new.scopes() if info.keys]
            finally:
                await new.close()

        assert set(asyncio.run(play())) == {SCOPE, *scopes}
    finally:
        for holder in holders:
            holder.end()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM entry WHERE scope_id = -1").fetchone() == (ROWS,)


def test_processes_that_begin_at_once_bring_one_database_up_to_date(path, old):
    assert old.commit(old.acquire(SCOPE, 1), {"a": "1"}, LATER)
    seen = []

    def open_it():
        seen.append(using(path, lambda store: store.read(SCOPE)).entries)

    with closing(sqlite3.connect(path, isolation_level=None)) as locker:
        # Nobody can bring it up to date until all of them try to.
        locker.execute("BEGIN IMMEDIATE")
        openers = [Thread(target=open_it) for _ in range(5)]
        for opener in openers:
            opener.start()
        locker.execute("COMMIT")
    for opener in openers:
        opener.join()
    assert seen == [{"a": "1"}] * len(openers)
    assert tables(path)[0] == SCHEMA_VERSION


class Holder:
    """A process that knows version 1 only."""

    def __init__(self, process):
        self.process = process
        self.number = 0

    def hold(self, scope):
        self.process.stdin.write(f"{scope.task_id}\n")
        self.process.stdin.flush()

    def expect(self, line):
        assert self.process.stdout.readline() == f"{line}\n"

    def saves(self, count):
        """Wait until it has saved as often more."""
        for _ in range(count):
            self.number = int(self.process.stdout.readline())

    def until(self, line):
        """Wait until it says so; the last number that it saved."""
        while (said := self.process.stdout.readline().strip()) != line:
            self.number = int(said)
        return self.number

    def end(self):
        self.process.kill()
        self.process.communicate()
