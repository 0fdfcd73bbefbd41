"""PostgreSQL over a slow line: what is large takes long, and nothing is given up while anything comes."""

from __future__ import annotations

import asyncio
import json

import pytest
from direct import hold, opened, put, until
from proxy import ANSWERS, REQUESTS, Proxy

from async_task_state import Settings, StoreUnavailableError, TaskScope, TaskState
from async_task_state.stores import postgres as postgres_store
from async_task_state.stores import postgres_connection, postgres_entries, postgres_sql
from async_task_state.stores.postgres_sql import BEGIN, BEGIN_SNAPSHOT

pytestmark = pytest.mark.asyncio

SCOPE = TaskScope("dag", "run", "task")
OTHER = TaskScope("dag", "run", "other")
LIMIT_SECONDS = 1.0
RATE = 50_000
BYTES = 100_000
"""Of a state: they take twice as long as the server may say nothing."""
KEYS = [f"k{number:03}" for number in range(100)]
MANY = {key: json.dumps("x" * (BYTES // len(KEYS))) for key in KEYS}
ONE = {"k": json.dumps("x" * BYTES)}


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch):
    monkeypatch.setattr(postgres_store, "FIRST_BYTES", BYTES // 10)
    for name in ("FIRST_BYTES", "LEAST_BYTES", "MOST_BYTES"):
        monkeypatch.setattr(postgres_entries, name, BYTES // 10)


@pytest.fixture
def _little_patience(monkeypatch):
    """As with a large state: 20 s without an answer, 10 s in a transaction, 60 s in one that reads."""
    monkeypatch.setattr(postgres_connection, "COMMAND_SECONDS", LIMIT_SECONDS)
    milliseconds = f"{LIMIT_SECONDS * 1000:.0f}"
    monkeypatch.setattr(postgres_store, "BEGIN", BEGIN.replace("10000", milliseconds))
    monkeypatch.setattr(postgres_store, "BEGIN_SNAPSHOT", BEGIN_SNAPSHOT.replace("60000", f"{milliseconds}0"))
    for module in (postgres_store, postgres_sql):
        monkeypatch.setattr(module, "STATEMENT_BYTES", BYTES // 10)


@pytest.fixture(params=["false", "true"], ids=["direct", "pooled"])
def dsn(postgres, request):
    return postgres.dsn(pgbouncer=request.param, sslmode="disable")


@pytest.fixture(params=[MANY, ONE], ids=["many", "one"])
def values(request):
    return request.param


async def filled(dsn, values):
    async with opened(dsn) as store:
        await hold(store, SCOPE, **values)


@pytest.mark.usefixtures("_little_patience")
async def test_a_state_is_opened_and_read_however_long_it_takes(dsn, values):
    await filled(dsn, values)
    async with Proxy(dsn, RATE) as proxy, opened(proxy.dsn) as store:
        assert (await store.read(SCOPE)).entries == values
        assert (await store.acquire(SCOPE, None)).entries == values
        assert len(proxy.lines) == 1


@pytest.mark.usefixtures("_little_patience")
async def test_g1_what_is_saved_may_take_long_to_leave(dsn, values):
    cleared = values is ONE
    async with Proxy(dsn, RATE) as proxy, opened(proxy.dsn) as store:
        lease = await hold(store, SCOPE, a="1")
        assert not await store.commit([put(lease, cleared=cleared, **values)])
        assert len(proxy.lines) == 1
        await store.write(OTHER, {key: (value, None) for key, value in values.items()})
        assert len(proxy.lines) == 1
    async with opened(dsn) as store:
        assert (await store.read(SCOPE)).entries == {**({} if cleared else {"a": "1"}), **values}
        assert (await store.read(OTHER)).entries == values


@pytest.mark.usefixtures("_little_patience")
async def test_g5_an_opening_that_goes_on_is_no_outage(dsn):
    await filled(dsn, MANY)
    async with Proxy(dsn, RATE) as proxy:
        settings = Settings(dsn=proxy.dsn, outage_timeout=LIMIT_SECONDS)
        async with TaskState(SCOPE, store=settings.dsn, settings=settings) as state:
            assert (await state.get_all()).keys() == MANY.keys()


@pytest.mark.usefixtures("_little_patience")
@pytest.mark.parametrize("kind", [REQUESTS, ANSWERS])
async def test_g5_a_server_that_falls_silent_in_the_middle_is_given_up(dsn, kind):
    await filled(dsn, MANY)
    async with Proxy(dsn, RATE) as proxy, opened(proxy.dsn) as store:
        lease = (await store.acquire(OTHER, None)).lease
        if kind == ANSWERS:
            call = asyncio.create_task(store.read(SCOPE))
            await until(lambda: len(proxy.line.server.bytes) > BYTES // 50)
        else:
            call = asyncio.create_task(store.commit([put(lease, **MANY)]))
            await until(lambda: len(proxy.line.client.bytes) > BYTES // 50)
        proxy.line.hold(kind)
        with pytest.raises(
            StoreUnavailableError, match=r"cannot be reached: nothing has come from it for 1 s"
        ):
            await call


async def test_g2_others_of_the_process_save_while_a_large_state_is_opened(dsn):
    await filled(dsn, MANY)
    async with Proxy(dsn, RATE) as proxy, opened(proxy.dsn) as store:
        lease = await hold(store, OTHER, n="0")
        opening = asyncio.create_task(store.acquire(SCOPE, None))
        for number in range(5):
            assert not await store.commit([put(lease, n=str(number))])
        assert not opening.done()
        assert (await opening).entries == MANY


@pytest.mark.parametrize("change", ["write", "clear"])
async def test_g3_what_others_write_while_a_state_is_opened_is_seen_whole(dsn, change):
    """Of a change to the first and the last key, made when the first has been read."""
    await filled(dsn, MANY)
    ends = KEYS[0], KEYS[-1]
    async with Proxy(dsn) as proxy, opened(proxy.dsn) as store, opened(dsn) as other:
        await store.acquire(OTHER, None)
        # The second page, by its last key of the first.
        caught = proxy.catch(KEYS[9].encode(), REQUESTS)
        opening = asyncio.create_task(store.acquire(SCOPE, None))
        line = await caught
        await other.write(SCOPE, dict.fromkeys(ends, ("1", None)), cleared=change == "clear")
        line.release()
        entries = (await opening).entries
    assert {key: entries[key] for key in ends} == dict.fromkeys(ends, "1")
    assert entries.keys() == (set(ends) if change == "clear" else MANY.keys())


async def test_g3_what_expires_while_a_state_is_opened_expires_as_a_whole(dsn, postgres):
    await filled(dsn, MANY)
    ends = KEYS[0], KEYS[-1]
    schema = postgres.schemas[-1]

    await asyncio.to_thread(
        postgres.query,
        f"UPDATE \"{schema}\".entry SET expires_at = now() + interval '1 second' WHERE key = ANY($1)",
        list(ends),
    )
    async with Proxy(dsn) as proxy, opened(proxy.dsn) as store, opened(dsn) as other:
        await store.acquire(OTHER, None)
        caught = proxy.catch(KEYS[9].encode(), REQUESTS)
        opening = asyncio.create_task(store.acquire(SCOPE, None))
        line = await caught
        # Of the two that expire together, one has been read, and the other is purged.
        while (await other.read(SCOPE)).entries.keys() & set(ends):
            pass
        await other.purge()
        line.release()
        assert (await opening).entries.keys() == set(KEYS[1:-1])


async def test_g3_a_state_is_read_as_of_one_moment_while_its_holder_saves(dsn):
    await filled(dsn, MANY)
    ends = KEYS[0], KEYS[-1]
    async with Proxy(dsn) as proxy, opened(proxy.dsn) as store, opened(dsn) as other:
        lease = (await other.acquire(SCOPE, None)).lease
        await store.acquire(OTHER, None)
        caught = proxy.catch(KEYS[9].encode(), REQUESTS)
        reading = asyncio.create_task(store.read(SCOPE))
        line = await caught
        assert not await other.commit([put(lease, **dict.fromkeys(ends, "1"))])
        line.release()
        entries = (await reading).entries
        assert entries == MANY
        assert (await store.read(SCOPE)).entries == {**MANY, **dict.fromkeys(ends, "1")}


async def test_pages_are_no_larger_than_they_may_be(postgres, monkeypatch):
    """But for one value, which may be as large as a value may."""
    values = {**MANY, "k050x": json.dumps("y" * BYTES)}
    dsn = postgres.dsn()
    pages = []
    add = postgres_entries.Entries.add
    monkeypatch.setattr(
        postgres_entries.Entries, "add", lambda self, rows: (pages.append(rows), add(self, rows))[1]
    )
    await filled(dsn, values)
    async with opened(dsn) as store:
        pages.clear()
        assert (await store.acquire(SCOPE, None)).entries == values
    assert len(pages) >= 10
    for rows in pages:
        assert sum(len(row["value"]) for row in rows[:-1]) < BYTES // 10
    assert [row["key"] for rows in pages for row in rows] == sorted(values)


async def test_a_page_is_read_by_the_index_whatever_the_server_knows_of_a_large_scope(dsn):
    many = {f"k{number:05}": json.dumps("x" * 500) for number in range(8000)}
    async with opened(dsn) as store:
        lease = await hold(store, SCOPE, **many)
        explained = f"EXPLAIN {store._sql.page.replace('$1', str(lease.scope_id))}"
        async with store._use() as db:
            # The rows are inserted, and no statistics are made of them yet.
            rows = await store._look(db, explained.replace("$2", "''").replace("$3", "1000"))
    plan = "\n".join(row[0] for row in rows)
    assert "Index Scan using entry_pkey" in plan
    assert "Sort " not in plan
