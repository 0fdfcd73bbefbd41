"""A run that starts over on PostgreSQL, while commits and openings of other processes are under way."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone

import pytest
from direct import control, opened, put
from proxy import REQUESTS, Proxy

from async_task_state.scopes import TaskScope
from async_task_state.testing.runs import run_made

pytestmark = pytest.mark.asyncio

SCOPE = TaskScope("dag", "the-run", "task")
T1 = datetime(2026, 1, 2, tzinfo=timezone.utc)
OLD, NEW = run_made(1, 1, T1), run_made(2, 1, T1 + timedelta(hours=1))
COMMIT = b"COMMIT\0"
WAITS = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE $1 = ANY(pg_blocking_pids(pid)))"


@pytest.fixture
def dsn(postgres):
    return postgres.dsn()


async def left_by_the_old_run(store):
    lease = (await store.acquire(SCOPE, 1, OLD)).lease
    assert not await store.commit([put(lease, a="1", b="2")])
    return lease


async def rows(db, dsn):
    return await db.fetchval(f'SELECT count(*) FROM "{dsn.partition("schema=")[2]}".entry')


async def test_g4_what_the_deleted_run_commits_meanwhile_is_deleted_too(postgres, dsn):
    schema = dsn.partition("schema=")[2]
    async with control(postgres) as late, control(postgres) as db, opened(dsn) as store:
        lease = await left_by_the_old_run(store)
        # As a commit under that lease does it, stopped before its end.
        await late.execute("BEGIN")
        await late.execute(f'SELECT FROM "{schema}".scope WHERE id = {lease.scope_id} FOR KEY SHARE')
        await late.execute(
            f'INSERT INTO "{schema}".entry (scope_id, key, value, updated_at)'
            f" VALUES ({lease.scope_id}, 'late', '3', now())"
        )
        opening = asyncio.create_task(store.acquire(SCOPE, 1, NEW))
        pid = await late.fetchval("SELECT pg_backend_pid()")
        while not await db.fetchval(WAITS, pid):
            assert not opening.done()
        await late.execute("COMMIT")
        snapshot = await opening
        assert (snapshot.entries, snapshot.fresh) == ({}, True)
        assert await rows(db, dsn) == 0
        assert await store.commit([put(lease, a="9")]) == [lease]


@pytest.mark.parametrize("answered", [False, True])
async def test_g4_an_opening_that_was_lost_deletes_nothing_of_its_retry(postgres, dsn, answered):
    async with Proxy(dsn) as proxy, opened(proxy.dsn) as store, control(postgres) as db:
        await left_by_the_old_run(store)
        opening = asyncio.create_task(store.acquire(SCOPE, 1, NEW))
        line = await proxy.catch(COMMIT, REQUESTS)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        retry = asyncio.create_task(store.acquire(SCOPE, 1, NEW))
        if answered:
            line.release()
        else:
            line.cut()
        snapshot = await retry
        line.release()
        assert snapshot.entries == {}
        assert not await store.commit([put(snapshot.lease, a="4")])
        await line.over.wait()
        assert (await store.read(SCOPE)).entries == {"a": "4"}
        assert await rows(db, dsn) == 1


async def test_g4_of_two_processes_that_start_over_at_once_one_deletes(dsn):
    async with opened(dsn) as here, opened(dsn) as there:
        await left_by_the_old_run(here)
        one, other = await asyncio.gather(here.acquire(SCOPE, 1, NEW), there.acquire(SCOPE, 1, NEW))
        assert sorted([one.fresh, other.fresh]) == [False, True]
        newest = max(one.lease, other.lease, key=lambda lease: lease.epoch)
        batches = [put(one.lease, a="1")], [put(other.lease, a="2")]
        fenced = [*await here.commit(batches[0]), *await there.commit(batches[1])]
        assert newest not in fenced
        assert len(fenced) == 1
