"""Behind PgBouncer, where each transaction may be on another connection of the server's."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from uuid import uuid4

import asyncpg
import pytest
from pgbouncer import PgBouncer

from async_task_state import StoreError, TaskScope, cli
from async_task_state.lifetime import drain
from async_task_state.stores import Batch, open_store
from async_task_state.stores.postgres_schema import LOCK, script
from async_task_state.testing import StoreConformance

STORES = 8
ROUNDS = 25
SCOPE = TaskScope("dag", "run", "contended")


@pytest.fixture(scope="module")
def pgbouncer(postgres):
    with PgBouncer(postgres.address) as pgbouncer:
        yield pgbouncer


@pytest.fixture
def make_dsn(pgbouncer, postgres):
    """A dsn through the pooler, of a schema that is not there yet."""

    def make_dsn(**options):
        return pgbouncer.dsn(schema=postgres.dsn().partition("schema=")[2], **options)

    return make_dsn


@pytest.fixture
def dsn(make_dsn):
    return make_dsn(pgbouncer="true")


class TestBehindPgBouncer(StoreConformance):
    @pytest.fixture(autouse=True)
    def _dsn(self, dsn):
        self.dsn = dsn

    def make_store(self, default_retention):
        return open_store(self.dsn, default_retention=default_retention)

    def reopen(self, store):
        return open_store(self.dsn)


def test_g4_more_stores_than_connections_commit_and_fence_each_other(make_dsn, postgres):
    name = f"test-{uuid4().hex}"
    dsn = make_dsn(pgbouncer="true", application_name=name)

    async def work(store, number):
        """Save a count in a scope of its own, and take the lease of one that all want; what it saved there last."""
        mine = (await store.acquire(TaskScope("dag", "run", "own", number), 1)).lease
        contended, saved = None, 0
        for count in range(ROUNDS):
            batches = [Batch(mine, {"count": (str(count), None)})]
            if contended is None:
                contended = (await store.acquire(SCOPE, None)).lease
            batches.append(
                Batch(contended, {"holder": (f'"{number}"', None), f"n{number}": (str(count), None)})
            )
            fenced = await store.commit(batches)
            assert set(fenced) <= {contended}
            if fenced:
                contended = None
            else:
                saved = count
        return saved

    async def check():
        async with AsyncExitStack() as stack:
            stores = [open_store(dsn) for _ in range(STORES)]
            for store in stores:
                stack.push_async_callback(store.close)
            saved = await asyncio.gather(*(work(store, number) for number, store in enumerate(stores)))
            [[used]] = await asyncio.to_thread(
                postgres.query, "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", name
            )
            assert 1 <= used <= 2
            own = [await stores[0].read(TaskScope("dag", "run", "own", n)) for n in range(STORES)]
            return saved, own, await stores[0].read(SCOPE)

    saved, own, contended = asyncio.run(check())
    assert [snapshot.entries for snapshot in own] == [{"count": str(ROUNDS - 1)}] * STORES
    # What a commit said it saved is there, and nothing of one that it said was fenced.
    for number, count in enumerate(saved):
        assert contended.entries.get(f"n{number}", "0") == str(count)
    assert contended.lease.epoch > STORES


@pytest.mark.asyncio
async def test_g8_a_pooler_that_the_dsn_does_not_mention_is_named(make_state, make_dsn):
    dsn = make_dsn()

    async def saving():
        async with make_state(store=dsn) as state:
            await state.set("a", 1)
            # The other now has the connection on which the state's statements were prepared.
            async with other.transaction():
                await state.set("b", 2)

    other = await asyncpg.connect(dsn.partition("?")[0], statement_cache_size=0)
    try:
        with pytest.raises(StoreError, match=r"add \?pgbouncer=true to \[async_task_state\] dsn"):
            await saving()
    finally:
        await other.close()
    await asyncio.to_thread(drain)
    async with make_state(store=dsn, read_only=True) as seen:
        assert await seen.get_all() == {"a": 1, "b": 2}


@pytest.mark.asyncio
async def test_tables_that_another_makes_meanwhile_are_taken_as_they_are(make_dsn, postgres):
    waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = $1 AND NOT granted"
    administrator = await asyncpg.connect(postgres.address)
    # On a connection that has made tables before, and remembers what it saw.
    stores = [open_store(make_dsn(pgbouncer="true")) for _ in range(2)]
    try:
        await stores[0].scopes()
        async with administrator.transaction():
            await administrator.execute(f"SELECT pg_advisory_xact_lock({LOCK})")
            listing = asyncio.create_task(stores[1].scopes())
            while not (await asyncio.to_thread(postgres.query, waits, LOCK))[0][0]:
                pass
            await administrator.execute(script(postgres.schemas[-1]))
        assert await listing == []
    finally:
        await administrator.close()
        for store in stores:
            await store.close()


@pytest.mark.usefixtures("_settings_read_anew")
@pytest.mark.parametrize("option", ["", "true"])
def test_commands_go_through_a_pooler(make_dsn, capsys, option):
    dsn = make_dsn(pgbouncer=option or "false")
    for command in (["check"], ["list"], ["init-db"], ["check"], ["list"], ["purge"]):
        code = cli.main([*command, "--dsn", dsn])
        out, err = capsys.readouterr()
        assert code == 0, out + err
        assert ("through a pooler: if it pools transactions, add ?pgbouncer=true" in out) is (
            command == ["check"] and not option
        )
