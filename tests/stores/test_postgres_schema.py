"""The tables in PostgreSQL: made once by many, migrated under load, refused when too new, never taken for others."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import anyio
import asyncpg
import pytest
from direct import opened
from firstversion import OldPostgresStore

from async_task_state import Settings, StoreError, StoreUnavailableError, TaskScope, TaskState
from async_task_state.codec import MAX_TRIES, RESERVED_PREFIX
from async_task_state.scopes import AssetScope
from async_task_state.stores import Batch
from async_task_state.stores.postgres_dsn import PostgresDsn
from async_task_state.stores.postgres_schema import MIGRATIONS, script

PROCESSES = 20
HOLDERS = 5
DAY = 86400.0
ROWS = 200_000
"""Enough for a migration to take a while."""

PROCESS = """
    import asyncio, sys
    from async_task_state import Settings, TaskScope, TaskState
    import async_task_state.stores.postgres

    async def main(dsn, number):
        def state(**options):
            scope = TaskScope("dag", "run", "process", number)
            return TaskState(scope, store=dsn, settings=Settings(dsn=dsn), **options)

        async with state() as mine:
            await mine.set("number", number)
        async with state(read_only=True) as seen:
            assert await seen.get_all() == {"number": number}

    print("ready", flush=True)
    dsn, number = sys.stdin.readline().split()
    asyncio.run(main(dsn, int(number)))
"""

CATALOG = (
    """
    SELECT relname, relkind::text, reloptions::text[], attname, format_type(atttypid, atttypmod), attnotnull,
        attidentity::text, collname, pg_get_expr(adbin, adrelid) FROM pg_class
        LEFT JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        LEFT JOIN pg_collation ON pg_collation.oid = attcollation
        WHERE relnamespace = to_regnamespace($1) ORDER BY relname, attnum
    """,
    "SELECT replace(indexdef, $1, '') FROM pg_indexes WHERE schemaname = $1 ORDER BY indexname",
    """
    SELECT conname, contype::text, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = to_regnamespace($1) ORDER BY conname
    """,
)


@pytest.fixture
def dsn(postgres):
    return postgres.dsn()


@pytest.fixture
def execute(postgres):
    """Runs statements as an administrator runs a script."""

    async def run(statements):
        db = await asyncpg.connect(postgres.address)
        try:
            await db.execute(statements)
        finally:
            await db.close()

    return lambda statements: asyncio.run(run(statements))


@pytest.fixture
def catalog(postgres):
    """Everything that the schema of a dsn has but rows, and its version."""

    def catalog(dsn):
        parts = [[tuple(row) for row in postgres.query(part, schema_of(dsn))] for part in CATALOG]
        [[version]] = postgres.query(f'SELECT version FROM "{schema_of(dsn)}".version')
        return parts, version

    return catalog


def schema_of(dsn):
    return PostgresDsn.parse(dsn).schema


def using(dsn, work):
    """Do one thing with a store of its own."""

    async def use():
        async with opened(dsn) as store:
            return await work(store)

    return asyncio.run(use())


async def taken(store):
    return (await store.acquire(TaskScope("dag", "run", "task"), 1)).lease


def begin_at_once(dsn, count):
    """Run processes, each with a state of its own, and see that all of them do well."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", textwrap.dedent(PROCESS)]
    processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(count)]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for number, process in enumerate(processes):
            process.stdin.write(f"{dsn} {number}\n")
            process.stdin.flush()
        ends = [(process.communicate(timeout=90)[1], process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert ends == [("", 0)] * count


@pytest.mark.parametrize("version", range(len(MIGRATIONS)))
def test_processes_that_begin_at_once_make_or_migrate_one_schema(dsn, execute, catalog, postgres, version):
    if version:
        execute(script(schema_of(dsn), MIGRATIONS[:version]))

    async def play():
        db = await asyncpg.connect(postgres.address)
        try:
            async with db.transaction():
                # Nobody can make or change a table until all of them try to.
                await db.execute("LOCK TABLE pg_class IN SHARE MODE")
                running = asyncio.create_task(asyncio.to_thread(begin_at_once, dsn, PROCESSES))
                while (
                    await db.fetchval("SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted")
                    < PROCESSES
                ):
                    assert not running.done(), await running
                    await asyncio.sleep(0.02)
            await running
        finally:
            await db.close()

    asyncio.run(play())
    assert catalog(dsn)[1] == len(MIGRATIONS)
    assert [row[0] for row in postgres.query(f'SELECT count(*) FROM "{schema_of(dsn)}".entry')] == [PROCESSES]


def test_g1_g5_a_migration_under_load_is_noticed_by_nobody_and_loses_nothing(
    dsn, execute, catalog, postgres, caplog
):
    schema = schema_of(dsn)
    execute(script(schema, MIGRATIONS[:-1]))
    execute(
        f"INSERT INTO \"{schema}\".entry SELECT id, 'key', '1', now(), now() + interval '30 days'"
        f" FROM generate_series(-{ROWS}, -1) AS id"
    )
    told = [0] * HOLDERS

    async def load():
        opened = asyncio.Queue()
        migrated = asyncio.Event()

        async def hold(number):
            # A store of its own, and so a connection of its own, in a process that knows the version before.
            scope, store = TaskScope("dag", "run", "holder", number), OldPostgresStore(dsn)
            async with TaskState(scope, store=store, settings=Settings(dsn=dsn)) as state:
                opened.put_nowait(number)
                last = False
                while not last:
                    last = migrated.is_set()
                    await state.set("a", told[number] + 1)
                    told[number] += 1

        async with anyio.create_task_group() as group:
            for number in range(HOLDERS):
                group.start_soon(hold, number)
            for _ in range(HOLDERS):
                await opened.get()
            assert (await asyncio.to_thread(catalog, dsn))[1] == len(MIGRATIONS) - 1
            before = list(told)
            await asyncio.to_thread(begin_at_once, dsn, 1)
            assert all(now > earlier for now, earlier in zip(told, before, strict=True))
            migrated.set()

    asyncio.run(load())
    # Opening and leaving a state are logged, too, at INFO.
    warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert not warned, "a commit had to be tried again"
    saved = postgres.query(
        f'SELECT value FROM "{schema}".entry JOIN "{schema}".scope ON id = scope_id'
        " WHERE task_id = 'holder' ORDER BY map_index"
    )
    assert [int(row[0]) for row in saved] == told
    [[old_rows]] = postgres.query(f'SELECT count(*) FROM "{schema}".entry WHERE scope_id < 0')
    assert old_rows == ROWS
    new = postgres.dsn()
    using(new, taken)
    assert catalog(dsn) == catalog(new)


def test_g4_holders_of_both_versions_fence_each_other(dsn, execute):
    execute(script(schema_of(dsn), MIGRATIONS[:-1]))
    scope = TaskScope("dag", "run", "task")
    batch = {"a": ("1", None)}

    async def play(new):
        old = OldPostgresStore(dsn)
        try:
            first = (await old.acquire(scope, 1)).lease
            assert await old.commit([Batch(first, batch)]) == []
            for attempt in (1, 1, 2):
                second = (await new.acquire(scope, attempt)).lease
                assert await old.commit([Batch(first, batch)]) == [first]
                assert await new.commit([Batch(second, batch)]) == []
                first = (await old.acquire(scope, attempt)).lease
                assert await new.commit([Batch(second, batch)]) == [second]
                assert await new.commit([Batch(second)]) == [second]
                assert await old.commit([Batch(first, batch)]) == []
            await new.clear(scope)
            assert await old.commit([Batch(first, batch)]) == [first]
        finally:
            await old.close()

    using(dsn, play)


def test_what_the_version_before_kept_for_ever_is_kept_for_ever(dsn, execute):
    """No expiry meant for ever, but for our own keys, which went with the state; an asset's stay as they are."""
    schema = schema_of(dsn)
    execute(script(schema, MIGRATIONS[:2]))
    work = f"{RESERVED_PREFIX}work:x:0000000000"
    task, asset = TaskScope("dag", "run", "task"), AssetScope("orders")

    async def fill():
        old = OldPostgresStore(dsn)
        lease = (await old.acquire(task, 1)).lease
        await old.commit([Batch(lease, dict.fromkeys(["ever", work, MAX_TRIES, "later"], ("1", None)))])
        await old.commit(
            [Batch((await old.acquire(asset, 1)).lease, dict.fromkeys(["ever", work], ("1", None)))]
        )
        await old.close()

    asyncio.run(fill())
    execute(f"""UPDATE "{schema}".entry SET expires_at = NULL WHERE key <> 'later'""")

    async def purge():
        async with opened(dsn, default_retention=DAY) as store:
            assert await store.purge(time.time() + 29 * DAY) == 1
            assert (await store.read(task)).entries == {"ever": "1", "later": "1", MAX_TRIES: "1"}
            assert (await store.read(asset)).entries == {"ever": "1", work: "1"}
            assert await store.purge(time.time() + 99 * DAY) == 1
            assert (await store.read(task)).entries == {"ever": "1", MAX_TRIES: "1"}

    asyncio.run(purge())


def test_g4_a_scope_cannot_be_opened_more_often_than_its_number_can_say(dsn, execute):
    async def play(store):
        lease = await taken(store)
        await asyncio.to_thread(execute, f'UPDATE "{schema_of(dsn)}".scope SET epoch = 2147483647')
        last = replace(lease, epoch=2**31 - 1)
        assert await store.commit([Batch(last, {"a": ("1", None)})]) == []
        with pytest.raises(StoreError, match="22003"):
            await taken(store)
        assert (await store.read(lease.scope)).lease == last
        assert await store.commit([Batch(last)]) == []

    using(dsn, play)


def test_g8_a_schema_that_is_newer_than_the_code_is_refused_and_left_alone(dsn, execute, catalog):
    using(dsn, taken)
    execute(f'UPDATE "{schema_of(dsn)}".version SET version = version + 1')
    before = catalog(dsn)
    newer = len(MIGRATIONS) + 1
    with pytest.raises(
        StoreError, match=f"has schema {newer}, .* up to {newer - 1}: upgrade async-task-state"
    ):
        using(dsn, taken)
    execute(script(schema_of(dsn)))
    assert catalog(dsn) == before


@pytest.mark.parametrize("version", range(len(MIGRATIONS) + 1))
def test_the_script_and_a_first_use_make_the_same_of_whatever_is_there(
    dsn, execute, catalog, postgres, version
):
    used = postgres.dsn()
    for each in (dsn, used):
        if version:
            execute(script(schema_of(each), MIGRATIONS[:version]))
    execute(script(schema_of(dsn)))
    using(used, taken)
    assert catalog(dsn) == catalog(used)
    (relations, _, _), found = catalog(dsn)
    assert found == len(MIGRATIONS)
    options = {row[0]: row[2] for row in relations}
    assert "fillfactor=45" in options["entry"]
    assert "entry_expires_at" in options


def test_g4_a_lease_does_not_count_for_another_scope_that_got_its_id(dsn, execute):
    """As after a failover to a standby that lags: the sequence goes on from where it was there."""
    other = TaskScope("dag", "run", "other")

    async def play(store):
        lease = await taken(store)
        batches = [
            Batch(lease),
            Batch(lease, {"a": ("1", None)}),
            Batch(lease, {"a": ("1", None), "b": ("2", None)}),
            Batch(lease, {"a": (None, None)}, cleared=True),
        ]
        schema = schema_of(dsn)
        sequence = f"pg_get_serial_sequence('{schema}.scope', 'id')"
        back = f'DELETE FROM "{schema}".scope; SELECT setval({sequence}, {lease.scope_id}, false)'
        await asyncio.to_thread(execute, back)
        held = await store.acquire(other, 1)
        assert replace(held.lease, scope=lease.scope, token=lease.token) == lease, "no id came again"
        for batch in batches:
            assert await store.commit([batch]) == [lease]
        assert await store.read(other) == held

    using(dsn, play)


def test_g4_a_lease_of_tables_that_were_dropped_never_counts_for_those_in_their_place(dsn, execute):
    async def play(old):
        lease = await taken(old)
        batch = Batch(lease, {"a": ("1", None)})
        assert not await old.commit([batch])
        ids = {lease.scope_id}
        for again in range(2, 7):
            await asyncio.to_thread(execute, f'DROP SCHEMA "{schema_of(dsn)}" CASCADE')
            # Made anew by another process, or by the old holder's own when its commit has failed.
            if again % 2:
                with pytest.raises(StoreUnavailableError, match="42P01"):
                    await old.commit([batch])
            else:
                ids.add((await asyncio.to_thread(using, dsn, taken)).scope_id)
            assert await old.commit([batch]) == [lease]
            made = await asyncio.to_thread(using, dsn, taken)
            ids.add(made.scope_id)
            assert (made.attempt, made.epoch) == (lease.attempt, 1 + (again % 2 == 0))
            assert await old.commit([batch]) == [lease]
            assert (await old.read(lease.scope)).entries == {}
        assert len(ids) == 6

    using(dsn, play)
