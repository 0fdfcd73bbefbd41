"""What only the SQLite store promises: the file, its modes, and clear words where it cannot serve."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import closing

import pytest
from onestore import SCOPE, one_key, using

from async_task_state import Settings, StoreError, StoreUnavailableError, TaskScope, TaskState
from async_task_state.codec import RESERVED_PREFIX
from async_task_state.stores import Batch
from async_task_state.stores.sqlite import SQLiteStore
from async_task_state.stores.sqlite_hop import hop
from async_task_state.stores.sqlite_schema import APPLICATION_ID, SCHEMA_VERSION, check_owner, migrate

NOBODY = 65534


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


def age(path, seconds):
    """Have every scope be touched so long ago, as far as the database knows."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE scope SET touched_at = ?", (time.time() - seconds,))


def refused(path, error=StoreError):
    """Why the store cannot serve, which it says without changing a byte of the file."""
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(error) as caught:
        using(path, lambda store: store.acquire(SCOPE, 1))
    assert (path.read_bytes() if path.is_file() else None) == before
    return str(caught.value)


def run_as_nobody(code, *args):
    """Run code in a process that permissions apply to, even where the tests run as root."""
    drop = f"import os; os.geteuid() or (os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY}))\n"
    done = subprocess.run(
        # Loaded before it drops: an installation may be readable by root alone.
        [
            sys.executable,
            "-c",
            "import asyncio, sys, aiosqlite, async_task_state.stores.sqlite\n" + drop + textwrap.dedent(code),
            *args,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_file_is_the_owners_alone(path):
    before = os.umask(0)
    try:
        using(path, one_key)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


def test_log_and_index_are_the_owners_alone(path):
    async def look(store):
        await one_key(store)
        return {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}

    assert using(path, look) == dict.fromkeys(("state.db", "state.db-wal", "state.db-shm"), 0o600)


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o666])
def test_a_file_that_others_could_read_becomes_the_owners_alone(path, mode):
    async def look(store):
        await one_key(store)
        for file in path.parent.iterdir():
            file.chmod(mode)
        other = SQLiteStore(path)
        try:
            assert (await other.read(SCOPE)).entries == {"a": "1"}
        finally:
            await other.close()
        return {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}

    path.touch()
    path.chmod(mode)
    assert using(path, look) == dict.fromkeys(("state.db", "state.db-wal", "state.db-shm"), 0o600)


def test_a_file_of_another_user_keeps_its_mode(path, monkeypatch):
    path.touch()
    path.chmod(0o644)
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    using(path, one_key)
    assert path.stat().st_mode & 0o777 == 0o644


def test_g1_commits_are_synced(path):
    async def pragmas(store):
        await one_key(store)
        return await hop(
            store._db,
            lambda db: [
                db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
            ],
        )

    assert using(path, pragmas) == ["wal", 2]


def test_a_missing_directory_is_named(tmp_path):
    message = refused(tmp_path / "nowhere" / "state.db")
    assert f"the directory {tmp_path / 'nowhere'} for the database does not exist" in message
    assert "[async_task_state] dsn" in message
    assert not (tmp_path / "nowhere").exists()


def test_a_directory_in_its_place_is_named(path):
    path.mkdir()
    assert f"the database {path} cannot be opened for writing (Is a directory)" in refused(path)


ACQUIRE_AS_NOBODY = """
    from async_task_state.scopes import TaskScope
    from async_task_state.stores.sqlite import SQLiteStore
    try:
        asyncio.run(SQLiteStore(sys.argv[1]).acquire(TaskScope("dag", "run", "task"), 1))
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.fixture
def open_tmp_path(tmp_path):
    """A directory that another user can reach."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.getuid() and not directory.stat().st_mode & 0o001:
            directory.chmod(0o711)
    return tmp_path


def test_a_read_only_directory_is_named(open_tmp_path):
    open_tmp_path.chmod(0o555)
    said = run_as_nobody(ACQUIRE_AS_NOBODY, str(open_tmp_path / "state.db"))
    assert said.startswith(
        f"StoreError the database {open_tmp_path / 'state.db'} cannot be opened for writing"
    )
    assert "change its directory's permissions, or [async_task_state] dsn" in said
    assert list(open_tmp_path.iterdir()) == []


def test_a_read_only_file_is_named(open_tmp_path):
    path = open_tmp_path / "state.db"
    using(path, one_key)
    before = path.read_bytes()
    path.chmod(0o444)
    open_tmp_path.chmod(0o777)
    said = run_as_nobody(ACQUIRE_AS_NOBODY, str(path))
    assert said.startswith(f"StoreError the database {path} cannot be opened for writing (Permission denied)")
    assert path.read_bytes() == before


def test_a_writable_file_in_a_read_only_directory_is_named(open_tmp_path):
    path = open_tmp_path / "state.db"
    using(path, one_key)
    before = path.read_bytes()
    path.chmod(0o666)
    open_tmp_path.chmod(0o555)
    said = run_as_nobody(ACQUIRE_AS_NOBODY, str(path))
    assert said.startswith(f"StoreError the database {path}")
    assert "permissions, or [async_task_state] dsn" in said
    assert path.read_bytes() == before


def test_a_full_disk_is_worth_waiting_for(path):
    """What was accepted stays in memory until there is room again; a scope that is not open yet is refused."""

    async def fill(store):
        lease = await one_key(store)
        pages = await hop(store._db, lambda db: db.execute("PRAGMA page_count").fetchone()[0])
        await hop(store._db, lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchone())
        batch = Batch(lease, {"a": ("2", None), "b": (f'"{"x" * 100_000}"', None)})
        with pytest.raises(StoreUnavailableError, match=f"the database {path}: database or disk is full"):
            await store.commit([batch])
        assert (await store.read(SCOPE)).entries == {"a": "1"}

        async def open_more():
            for index in range(10_000):
                await store.acquire(TaskScope("d" * 250, "r" * 250, "t" * 250, index), 1)

        with pytest.raises(StoreError, match="disk is full; nothing is lost") as caught:
            await open_more()
        assert not isinstance(caught.value, StoreUnavailableError)
        await hop(store._db, lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchone())
        assert not await store.commit([batch])
        assert (await store.read(SCOPE)).entries == {key: text for key, (text, _) in batch.changes.items()}

    using(path, fill)


def test_a_state_is_cleared_on_a_full_disk_and_makes_room(path):
    """And where even that finds no room, the error says how much to free."""

    async def fill(store):
        lease = await one_key(store)
        full = {f"k{number}": (f'"{"x" * 1000}"', None) for number in range(90)}
        assert not await store.commit([Batch(lease, full)])
        pages = await hop(store._db, lambda db: db.execute("PRAGMA page_count").fetchone()[0])
        await hop(store._db, lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchone())
        more = {f"m{number}": value for number, value in enumerate(full.values())}
        with pytest.raises(StoreUnavailableError, match=r"disk is full; free at least [1-9][\d,]* bytes on"):
            await store.commit([Batch(lease, more)])
        assert not await store.commit([Batch(lease, {}, cleared=True)])
        assert not await store.commit([Batch(lease, more)])
        assert (await store.read(SCOPE)).entries == {key: text for key, (text, _) in more.items()}
        with pytest.raises(StoreUnavailableError):
            await store.commit([Batch(lease, full)])
        assert await store.clear(SCOPE) == len(more)
        await store.write(SCOPE, full)
        spill = await hop(store._db, lambda db: db.execute("PRAGMA cache_spill").fetchone()[0])
        assert spill > 0

    using(path, fill)


@pytest.mark.parametrize("content", [b"some text\n" * 5, b"some text\n" * 5000], ids=len)
def test_what_is_not_a_database_is_named(path, content):
    path.write_bytes(content)
    assert f"{path} is not an SQLite database; move it away, or change [async_task_state] dsn" in refused(
        path
    )


def test_a_corrupt_file_is_named(path):
    async def fill(store):
        lease = await one_key(store)
        await store.commit([Batch(lease, {f"k{number}": ('"text"', None) for number in range(5000)})])

    using(path, fill)
    content = bytearray(path.read_bytes())
    # The header stays: the file opens, and every page behind the first is rubbish.
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    message = refused(path)
    assert f"the database {path} is corrupt" in message
    assert "restore it, or move it away to start anew" in message


def test_a_truncated_file_is_named(path):
    using(path, one_key)
    path.write_bytes(path.read_bytes()[:4096])
    assert f"the database {path} is corrupt" in refused(path)


@pytest.mark.parametrize(
    "mark", ["CREATE TABLE invoices (id)", "PRAGMA user_version = 7", "PRAGMA application_id = 7"]
)
def test_another_applications_database_is_left_alone(path, mark):
    with closing(sqlite3.connect(path)) as db:
        db.execute(mark)
        db.commit()
    assert f"the database {path} belongs to another application; change [async_task_state] dsn" in refused(
        path
    )


def test_a_newer_schema_is_refused(path):
    using(path, one_key)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    message = refused(path)
    assert (
        f"the database {path} has schema {SCHEMA_VERSION + 1}, this version of async-task-state knows up to {SCHEMA_VERSION}"
        in message
    )
    assert "upgrade async-task-state" in message


def test_an_empty_file_becomes_a_database(path):
    path.touch()
    using(path, one_key)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)


@pytest.mark.parametrize("pattern", ["state.db", "*"])
def test_g4_a_deleted_file_is_noticed(path, pattern):
    """A lease of a file that is gone does not count in the one made in its place, not even by chance."""

    async def delete(store):
        old = await one_key(store)
        for file in path.parent.glob(pattern):
            file.unlink()
        assert await store.read(SCOPE) is None
        assert list(await store.commit([Batch(old)])) == [old]
        other = (await store.acquire(TaskScope("dag", "run", "other"), 1)).lease
        assert list(await store.commit([Batch(old, {"a": ("2", None)})])) == [old]
        assert (await store.read(other.scope)).entries == {}
        new = (await store.acquire(SCOPE, 1)).lease
        assert list(await store.commit([Batch(old, {"a": ("2", None)})])) == [old]
        assert not await store.commit([Batch(new, {"a": ("3", None)})])

    using(path, delete)


def test_g4_a_replaced_file_is_noticed(path, tmp_path):
    """The lease of a scope says nothing about the scope that another file has under the same id."""
    other = tmp_path / "other.db"
    using(other, one_key)

    async def replace(store):
        old = await one_key(store)
        # As whoever restores a backup must: SQLite would apply the old log to the new file.
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink()
        other.replace(path)
        assert list(await store.commit([Batch(old, {"a": ("2", None)})])) == [old]
        assert (await store.read(SCOPE)).entries == {"a": "1"}

    using(path, replace)


def test_g4_a_lease_does_not_count_for_another_scope_that_got_its_id(path):
    """As after a backup was put back: ids go on from where they were then."""
    scope = TaskScope("dag", "run", "other")

    async def play(store):
        old = await one_key(store)
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("DELETE FROM scope")
            db.execute("DELETE FROM entry")
            db.execute("UPDATE sqlite_sequence SET seq = seq - 1")
        held = await store.acquire(scope, 1)
        assert dataclasses.replace(held.lease, scope=SCOPE, token=old.token) == old, "no id came again"
        for changes in ({}, {"a": ("2", None)}, {"a": (None, None)}):
            assert list(await store.commit([Batch(old, changes)])) == [old]
        assert await store.read(scope) == held

    using(path, play)


def test_a_database_made_meanwhile_is_ours(path):
    """Whichever statement of the check another process comes before, it is not taken for another application."""
    statements = 0
    while True:
        path.unlink(missing_ok=True)
        path.touch()
        seen = 0
        with closing(sqlite3.connect(path, isolation_level=None)) as db:

            def race(statement, when=statements):
                nonlocal seen
                if seen == when:
                    with closing(sqlite3.connect(path, isolation_level=None)) as first:
                        first.execute("BEGIN IMMEDIATE")
                        migrate(first)
                        first.execute("COMMIT")
                seen += 1

            db.set_trace_callback(race)
            check_owner(db, path)
        if seen <= statements:
            break
        statements += 1
    assert statements > 1


def test_purge_leaves_alone_what_is_written_all_the_time(path):
    work = f"{RESERVED_PREFIX}work:x:0000000000"

    async def write_and_purge():
        store = SQLiteStore(path, default_retention=60.0)
        try:
            lease = (await store.acquire(SCOPE, 1)).lease
            age(path, 50 * 60)
            assert not await store.commit([Batch(lease, {work: ("1", None)})])
            assert await store.purge() == 0
            age(path, 2 * 3600)
            await store.write(SCOPE, {work: ("2", None)})
            assert await store.purge() == 0
            assert (await store.read(SCOPE)).entries == {work: "2"}
            age(path, 2 * 3600)
            assert await store.purge() == 1
        finally:
            await store.close()

    asyncio.run(write_and_purge())


def test_an_item_of_a_work_set_takes_at_most_24_bytes_of_the_file(path):
    count = 50_000

    async def fill():
        dsn = f"sqlite:///{path}"
        async with TaskState(SCOPE, store=dsn, settings=Settings(dsn=dsn)) as state:
            work = state.work("files")
            for number in range(count):
                await work.done(f"s3://bucket/a/rather/long/path/to/a/file-{number:09d}.parquet")

    asyncio.run(fill())
    with closing(sqlite3.connect(path)) as db:
        pages, free, size = (
            db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
    assert (pages - free) * size <= 24 * count
