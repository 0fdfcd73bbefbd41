"""Purging PostgreSQL: what is due is found by indexes, and nobody waits for more than a batch."""

from __future__ import annotations

import time

import asyncpg
import pytest
from direct import opened

from async_task_state import TaskScope
from async_task_state.codec import MAX_TRIES, RESERVED_PREFIX
from async_task_state.stores.postgres_purge import Purge

pytestmark = pytest.mark.asyncio

DAY = 86400.0
SCOPE = TaskScope("dag", "run", "task")
SCOPES = 3000

FILL = """
    INSERT INTO "{0}".scope (dag_id, run_id, task_id, map_index, region_id, attempt, epoch, touched_at)
        SELECT 'dag', 'many', 'task', number, '', 1, 1, now() - CASE WHEN number % 5 = 0 THEN interval '99 days' ELSE '0' END
        FROM generate_series(1, {1}) AS number;
    INSERT INTO "{0}".entry (scope_id, key, value, updated_at, expires_at)
        SELECT id, 'key ' || number, '1', now(), CASE WHEN number = 1 THEN now() + interval '9 days' END
        FROM "{0}".scope, generate_series(1, 10) AS number WHERE run_id = 'many';
    ANALYZE "{0}".scope, "{0}".entry;
"""


@pytest.fixture
def dsn(postgres):
    return postgres.dsn()


async def plan(db, statement, types, arguments):
    """How the server would do a statement that it knows, whatever the arguments are."""
    await db.execute("SET plan_cache_mode = force_generic_plan")
    await db.execute(f"PREPARE it ({types}) AS {statement}")
    rows = await db.fetch(f"EXPLAIN (COSTS OFF) EXECUTE it ({arguments})")
    await db.execute("DEALLOCATE it")
    return "\n".join(row[0] for row in rows)


async def test_g2_a_purge_finds_what_is_due_by_indexes(postgres, dsn):
    schema = dsn.partition("schema=")[2]
    sql = Purge(schema, None, None)
    async with opened(dsn) as store:
        await store.acquire(SCOPE, 1)
        db = await asyncpg.connect(postgres.address, statement_cache_size=0)
        try:
            await db.execute(FILL.format(schema, SCOPES))
            idle = f"NULL, {30 * DAY}"
            words = f"'{MAX_TRIES}', '{RESERVED_PREFIX}'"
            plans = {
                "entry_expires_at": await plan(db, sql.expired, "float8", "NULL"),
                "scope_pkey": await plan(
                    db, sql.due, "float8, float8, bigint, text, text", f"{idle}, 0, {words}"
                ),
                "entry_pkey": await plan(db, sql.delete, "text, text, text", f"'{{1,2}}', {words}"),
            }
        finally:
            await db.close()
    for index, text in plans.items():
        assert "Seq Scan" not in text
        assert index in text


async def test_a_purge_looks_at_each_idle_scope_once_and_locks_none_that_stays(postgres, dsn):
    schema = dsn.partition("schema=")[2]
    async with opened(dsn, default_retention=30 * DAY) as store:
        await store.acquire(SCOPE, 1)
        db = await asyncpg.connect(postgres.address)
        try:
            await db.execute(FILL.format(schema, SCOPES))
            assert await store.purge() == 9 * SCOPES // 5
            rows = await db.fetch(
                f"""SELECT map_index % 5 = 0 AS idle, epoch, count(*) FROM "{schema}".scope JOIN "{schema}".entry
                ON scope_id = id WHERE run_id = 'many' GROUP BY 1, 2 ORDER BY 1"""
            )
            assert [tuple(row) for row in rows] == [(False, 1, 10 * SCOPES * 4 // 5), (True, 2, SCOPES // 5)]
            # A row that was locked says by whom, for ever.
            before = await db.fetch(f'SELECT id, xmin, xmax FROM "{schema}".scope ORDER BY id')
            assert await store.purge() == 0
            assert await db.fetch(f'SELECT id, xmin, xmax FROM "{schema}".scope ORDER BY id') == before
        finally:
            await db.close()


async def test_g2_a_transaction_of_a_purge_has_a_thousand_rows_or_one_scope(dsn, monkeypatch):
    sizes = (400, 400, 400, 1500, 2, 900, 0, 1)
    transactions = []

    async def note(purge, *arguments):
        transactions.append(await delete(purge, *arguments))
        return transactions[-1]

    delete = Purge._delete_idle
    monkeypatch.setattr(Purge, "_delete_idle", note)
    async with opened(dsn, default_retention=DAY) as store:
        for number, size in enumerate(sizes):
            values = {f"k{key}": ("1", None) for key in range(size)}
            await store.write(TaskScope("dag", "run", "task", number), values)
        assert await store.purge(time.time() + 9 * DAY) == sum(sizes)
        assert transactions == [800, 400, 1500, 902 + 1]
        assert await store.scopes() == []
