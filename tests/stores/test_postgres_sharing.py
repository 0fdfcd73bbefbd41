"""More processes than a role may have connections: all of them save, and others of the role get in."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
import pytest
from direct import control, hold, put, until
from pgbouncer import PgBouncer

from async_task_state import StoreUnavailableError, TaskScope
from async_task_state.stores import open_store, postgres_sharing

pytestmark = pytest.mark.asyncio

LIMIT = 4
COUNT = "SELECT count(*)::integer FROM pg_stat_activity WHERE usename = $1"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(postgres_sharing, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(postgres_sharing, "PAUSE_SECONDS", 0.02)


@pytest.fixture
def limited(postgres, role):
    """A dsn of a role that may have four connections, and tables to use."""
    postgres.query(f"ALTER ROLE {role.name} CONNECTION LIMIT {LIMIT}")
    dsn = role.dsn(postgres.dsn())
    postgres.query(f'CREATE SCHEMA "{postgres.schemas[-1]}" AUTHORIZATION {role.name}')
    return dsn


@asynccontextmanager
async def stores_of(dsn, count):
    async with AsyncExitStack() as stack:
        stores = [open_store(dsn) for _ in range(count)]
        for store in stores:
            stack.push_async_callback(store.close)
        yield stores


def scope_of(number):
    return TaskScope("dag", "run", "task", number)


async def lasting(store, number):
    """The lease of a store that asks again as a writer does."""
    while True:
        try:
            return await hold(store, scope_of(number), n="0")
        except StoreUnavailableError:
            pass


async def save(store, lease, value):
    while True:
        try:
            assert not await store.commit([put(lease, n=str(value))])
        except StoreUnavailableError:
            continue
        return


async def connections_of(db, role):
    return await db.fetchval(COUNT, role.name)


async def test_g5_those_that_have_a_connection_leave_it_to_those_that_are_refused(postgres, role, limited):
    """As many hold one as the role may have; the others come later."""
    async with control(postgres) as db, stores_of(limited, 3 * LIMIT) as stores:
        first = [await lasting(store, number) for number, store in enumerate(stores[:LIMIT])]
        saving = asyncio.gather(
            *(keep_saving(store, lease) for store, lease in zip(stores, first, strict=False))
        )
        try:
            later = range(LIMIT, len(stores))
            leases = await asyncio.wait_for(
                asyncio.gather(*(lasting(stores[number], number) for number in later)), 60
            )
            for value in range(1, 4):
                await asyncio.gather(
                    *(save(stores[number], lease, value) for number, lease in zip(later, leases, strict=True))
                )
            await until_let_in(limited)
        finally:
            saving.cancel()
        entries = [(await stores[number].read(scope_of(number))).entries for number in later]
        assert entries == [{"n": "3"}] * len(entries)
        assert await connections_of(db, role) <= LIMIT


async def keep_saving(store, lease):
    for value in range(10**9):
        await save(store, lease, value)
        await asyncio.sleep(0.01)


async def until_let_in(dsn):
    """Return when another client of the role has been let in."""
    while True:
        try:
            db = await asyncpg.connect(dsn.partition("?")[0])
        except asyncpg.TooManyConnectionsError:
            await asyncio.sleep(0.01)
            continue
        await db.close()
        return


async def test_a_process_keeps_its_connection_where_there_is_room(postgres, role, limited):
    async with stores_of(limited, 1) as [store]:
        lease = await lasting(store, 0)
        connection = store._connection.db
        for value in range(100):
            await save(store, lease, value)
        assert store._connection.db is connection
        assert not store._connection._sharing.on


async def test_a_process_keeps_its_connection_again_after_a_calm_time(monkeypatch, role, limited, caplog):
    monkeypatch.setattr(postgres_sharing, "CALM_SECONDS", 0.1)
    async with stores_of(limited, LIMIT) as stores:
        leases = [await lasting(store, number) for number, store in enumerate(stores)]
        # Each looks only when it is used, and shares by chance.
        while not any(store._connection._sharing.on for store in stores):
            for store, lease in zip(stores, leases, strict=True):
                await save(store, lease, -1)
            await asyncio.sleep(0.01)
        for store in stores[1:]:
            await store.close()
        sharing = stores[0]._connection._sharing
        sharing._begin("for the test")
        for value in range(10**9):
            await save(stores[0], leases[0], value)
            if not sharing.on:
                break
            await asyncio.sleep(0.01)
        connection = stores[0]._connection.db
        assert connection is not None
        await save(stores[0], leases[0], -1)
        assert stores[0]._connection.db is connection
    assert "PostgreSQL is short of connections" in caplog.text


async def test_g5_a_refusal_that_lasts_is_raised_with_what_the_server_says(
    monkeypatch, role, limited, caplog
):
    monkeypatch.setattr(postgres_sharing, "WAIT_SECONDS", 0.2)
    others = [await asyncpg.connect(limited.partition("?")[0]) for _ in range(LIMIT)]
    try:
        async with stores_of(limited, 1) as [store]:
            with pytest.raises(StoreUnavailableError, match="53300"):
                await store.acquire(scope_of(0), 1)
            await others.pop().close()
            await lasting(store, 0)
    finally:
        for other in others:
            await other.close()


async def test_a_connection_given_back_for_others_is_not_touched_over_again(limited, postgres):
    """It costs a statement with each commit, and who only shares has lost nothing."""
    async with stores_of(limited, 1) as [store]:
        lease = await lasting(store, 0)
        store._connection._sharing._begin("for the test")
        number = store._connection.number
        for value in range(3):
            await save(store, lease, value)
            await until(lambda: store._connection.db is None)
        assert store._connection.number == number


async def test_g5_more_processes_than_a_pooler_lets_in_take_turns(monkeypatch, postgres):
    monkeypatch.setattr(postgres_sharing, "POOLED_SECONDS", 0.05)
    with PgBouncer(postgres.address, max_client_conn=LIMIT) as pooler:
        dsn = pooler.dsn(schema=postgres.dsn().partition("schema=")[2], pgbouncer="true")
        async with stores_of(dsn, 3 * LIMIT) as stores:
            first = [await lasting(store, number) for number, store in enumerate(stores[:LIMIT])]
            saving = asyncio.gather(
                *(keep_saving(store, lease) for store, lease in zip(stores, first, strict=False))
            )
            try:
                later = range(LIMIT, len(stores))
                await asyncio.wait_for(asyncio.gather(*(lasting(stores[n], n) for n in later)), 60)
            finally:
                saving.cancel()
