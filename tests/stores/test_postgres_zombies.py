"""What a lost connection may still do on the server, and what must come of it."""

from __future__ import annotations

import asyncio

import pytest
from direct import control, hold, opened, put, until
from proxy import ANSWERS, REQUESTS, Proxy

from async_task_state.codec import RESERVED_PREFIX
from async_task_state.errors import StaleAttemptError, StoreUnavailableError
from async_task_state.scopes import TaskScope
from async_task_state.stores import postgres as postgres_store
from async_task_state.stores import postgres_connection
from async_task_state.stores.postgres_schema import MIGRATIONS
from async_task_state.stores.postgres_sql import BEGIN, Statements, array_of, lease_number

pytestmark = pytest.mark.asyncio

SCOPE = TaskScope("dag", "the-run", "task")
OTHER = TaskScope("dag", "other", "task")
DAY = 86400.0
COMMIT = b"COMMIT\0"


@pytest.fixture
def dsn(postgres):
    return postgres.dsn()


async def lose(task):
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("cleared", [False, True])
async def test_g4_a_commit_that_arrives_after_its_retry_changes_nothing(postgres, dsn, cleared):
    async with Proxy(dsn) as proxy, opened(proxy.dsn) as store:
        lease = await hold(store, SCOPE, a="0", b="0")
        first = proxy.catch(b"111" if not cleared else COMMIT, REQUESTS)
        commit = asyncio.create_task(store.commit([put(lease, cleared=cleared, a="111", b="0")]))
        line = await first
        await lose(commit)
        retry = asyncio.create_task(store.commit([put(lease, a="222")]))
        if not cleared:
            await retry
        line.release()
        assert not await retry
        await line.over.wait()
        assert (await store.read(SCOPE)).entries == {"a": "222", "b": "0"}


async def test_g4_an_opening_that_was_lost_does_not_fence_its_retry(postgres, dsn):
    async with Proxy(dsn) as proxy, opened(proxy.dsn) as store:
        await hold(store, OTHER)
        for number in (1, 2):
            requests = proxy.catch(b"the-run", REQUESTS, number)
            opening = asyncio.create_task(store.acquire(SCOPE, 1))
            line = await requests
            await lose(opening)
            lease = (await store.acquire(SCOPE, 1)).lease
            line.release()
            await line.over.wait()
            assert not await store.commit([put(lease, a="1")])


async def test_g4_an_opening_that_was_lost_does_not_fence_who_opened_since(postgres, dsn):
    async with (
        Proxy(dsn) as proxy,
        opened(proxy.dsn) as gone,
        opened(dsn) as successor,
    ):
        await hold(gone, OTHER)
        await hold(gone, SCOPE)
        requests = proxy.catch(b"the-run", REQUESTS, 2)
        opening = asyncio.create_task(gone.acquire(SCOPE, 2))
        line = await requests
        await lose(opening)
        lease = (await successor.acquire(SCOPE, 2)).lease
        line.release()
        await line.over.wait()
        assert not await successor.commit([put(lease, a="1")])


async def test_g4_what_fences_a_lost_commit_is_never_taken_back(postgres, dsn):
    schema = dsn.partition("schema=")[2]
    sql = Statements(schema, len(MIGRATIONS))
    async with control(postgres) as db, opened(dsn) as store:
        lease = await hold(store, SCOPE)
        for retry in (3, 1):
            await db.execute(
                sql.fence_lost, array_of([lease.scope_id]), array_of([lease_number(lease)]), retry
            )
        assert await db.fetchval(f'SELECT retry FROM "{schema}".scope') == 3


async def test_g4_a_live_writer_that_was_refused_by_mistake_is_not_refused_again(postgres, dsn):
    sql = Statements(dsn.partition("schema=")[2], len(MIGRATIONS))
    async with control(postgres) as db, opened(dsn) as store:
        lease = await hold(store, SCOPE)
        await db.execute(sql.fence_lost, array_of([lease.scope_id]), array_of([lease_number(lease)]), 1)
        with pytest.raises(StoreUnavailableError):
            await store.commit([put(lease, a="1")])
        assert not await store.commit([put(lease, a="1")])


async def test_g4_of_two_leases_of_a_scope_in_a_commit_the_newer_one_counts(dsn):
    async with opened(dsn) as store:
        other = await hold(store, OTHER)
        old = await hold(store, SCOPE, a="0")
        new = (await store.acquire(SCOPE, 1)).lease
        batches = [put(new, a="2"), put(old, a="1"), put(other, a="3")]
        assert await store.commit(batches) == [old]
        assert (await store.read(SCOPE)).entries == {"a": "2"}
        assert (await store.read(OTHER)).entries == {"a": "3"}


async def test_a_batch_that_clears_and_sets_thousands_of_keys_is_one_step(postgres, dsn):
    async with Proxy(dsn) as proxy, opened(proxy.dsn) as store:
        lease = await hold(store, SCOPE, a="0", gone="0")
        values = {f"k{number}": str(number) for number in range(2500)}
        commit = asyncio.create_task(store.commit([put(lease, cleared=True, **values)]))
        line = await proxy.catch(COMMIT, REQUESTS)
        async with opened(dsn) as other:
            assert (await other.read(SCOPE)).entries == {"a": "0", "gone": "0"}
        line.cut()
        with pytest.raises(StoreUnavailableError):
            await commit
        line.release()
        assert not await store.commit([put(lease, cleared=True, **values)])
        assert (await store.read(SCOPE)).entries == values


async def test_a_write_that_arrives_after_its_retry_is_done_before_what_is_newer(dsn):
    async with Proxy(dsn) as proxy, opened(proxy.dsn) as store, opened(dsn) as observer:
        lease = await hold(store, SCOPE, a="0", b="0")
        for later in (
            lambda: store.write(SCOPE, {"a": ("2", None)}),
            lambda: store.commit([put(lease, a="2")]),
            lambda: store.commit([put(lease, a="2", b=None)]),
        ):
            caught = proxy.catch(COMMIT, REQUESTS)
            write = asyncio.create_task(store.write(SCOPE, {"a": ("1", None), "b": ("1", None)}))
            line = await caught
            await lose(write)
            newer = asyncio.create_task(later())
            assert (await observer.read(SCOPE)).entries["a"] != "1"
            line.release()
            assert await newer in (True, [])
            await line.over.wait()
            assert (await store.read(SCOPE)).entries["a"] == "2"
        assert (await store.read(SCOPE)).entries == {"a": "2"}


async def test_a_write_that_was_cut_leaves_nothing_and_is_sent_again(dsn):
    async with Proxy(dsn) as proxy, opened(proxy.dsn) as store:
        for number, kind in enumerate((REQUESTS, ANSWERS)):
            caught = proxy.catch(COMMIT, kind)
            values = {f"k{key}": (str(number), None) for key in range(2500)}
            write = asyncio.create_task(store.write(SCOPE, values, cleared=True))
            line = await caught
            line.cut()
            with pytest.raises(StoreUnavailableError):
                await write
            line.release()
            await store.write(SCOPE, values, cleared=True)
            assert (await store.read(SCOPE)).entries == dict.fromkeys(values, str(number))


async def test_g5_an_answer_that_was_lost_is_asked_for_again(dsn):
    async with Proxy(dsn) as proxy, opened(proxy.dsn) as store, opened(dsn) as observer:
        lease = await hold(store, SCOPE, a="0")
        for marker, cleared in ((b"111", False), (COMMIT, True)):
            commit = asyncio.create_task(store.commit([put(lease, cleared=cleared, a="111")]))
            line = await proxy.catch(marker, ANSWERS)
            while (await observer.read(SCOPE)).entries != {"a": "111"}:
                pass
            line.cut()
            with pytest.raises(StoreUnavailableError):
                await commit
            assert not await store.commit([put(lease, a="0")])
            assert (await store.read(SCOPE)).entries == {"a": "0"}


async def test_a_process_that_is_frozen_in_a_transaction_does_not_hold_its_successor_up(
    postgres, dsn, monkeypatch
):
    monkeypatch.setattr(postgres_store, "BEGIN", BEGIN.replace("10000", "200"))
    async with Proxy(dsn) as proxy, opened(proxy.dsn) as frozen, opened(dsn) as successor:
        lease = await hold(frozen, SCOPE, a="0")
        commit = asyncio.create_task(frozen.commit([put(lease, cleared=True, a="1")]))
        line = await proxy.catch(COMMIT, REQUESTS)
        snapshot = await asyncio.wait_for(successor.acquire(SCOPE, 2), 5)
        assert snapshot.entries == {"a": "0"}
        line.release()
        with pytest.raises(StoreUnavailableError):
            await commit
        assert await frozen.commit([put(lease, cleared=True, a="1")]) == [lease]
        assert (await successor.read(SCOPE)).entries == {"a": "0"}


async def test_purge_leaves_alone_what_is_just_being_opened(postgres, dsn):
    schema = dsn.partition("schema=")[2]
    work = f"{RESERVED_PREFIX}work:x:0000000000"
    async with control(postgres) as db, opened(dsn, default_retention=DAY) as store:
        await hold(store, SCOPE, **{work: "1"})
        later = await db.fetchval("SELECT extract(epoch FROM now())::float8") + 2 * DAY
        async with db.transaction():
            await db.execute(f'SELECT FROM "{schema}".scope FOR UPDATE')
            assert await store.purge(later) == 0
        assert await store.purge(later) == 1


async def test_purge_leaves_alone_what_is_written_all_the_time(postgres, dsn):
    schema = dsn.partition("schema=")[2]
    work = f"{RESERVED_PREFIX}work:x:0000000000"
    async with control(postgres) as db, opened(dsn, default_retention=60.0) as store:
        lease = await hold(store, SCOPE)
        await db.execute(f"""UPDATE "{schema}".scope SET touched_at = now() - interval '50 minutes'""")
        assert not await store.commit([put(lease, **{work: "1"})])
        await store.write(OTHER, {work: ("1", None)})
        await db.execute(
            f"""UPDATE "{schema}".scope SET touched_at = now() - interval '2 hours' WHERE run_id = 'other'"""
        )
        await store.write(OTHER, {work: ("2", None)})
        assert await store.purge() == 0
        assert (await store.read(SCOPE)).entries == {work: "1"}
        assert (await store.read(OTHER)).entries == {work: "2"}


@pytest.mark.parametrize("values", [{"a": "1"}, {"a": "1", "b": "2"}], ids=["row", "rows"])
@pytest.mark.parametrize("cleared", [False, True])
async def test_a_commit_says_that_its_scope_is_in_use_when_that_was_long_ago(
    postgres, dsn, monkeypatch, values, cleared
):
    scope = f'"{dsn.partition("schema=")[2]}".scope'

    async def touched(by):
        await db.execute(f"UPDATE {scope} SET touched_at = now() - interval '2 hours'")
        assert not await by.commit([put(lease, cleared=cleared, **values)])
        return await db.fetchval(f"SELECT touched_at > now() - interval '1 minute' FROM {scope}")

    async with control(postgres) as db, opened(dsn) as store:
        lease = await hold(store, SCOPE)
        assert not await touched(store)
        monkeypatch.setattr(postgres_store, "TOUCH_SECONDS", 0.0)
        async with opened(dsn) as later:
            assert await touched(later)
            assert await touched(later)


async def test_a_commit_to_a_database_that_was_restored_says_that_its_scope_is_in_use(postgres, dsn):
    scope = f'"{dsn.partition("schema=")[2]}".scope'
    async with control(postgres) as db, opened(dsn) as store:
        lease = await hold(store, SCOPE)
        await db.execute(f"UPDATE {scope} SET touched_at = now() - interval '100 days'")
        await store.close()
        assert not await store.commit([put(lease, a="1")])
        assert await db.fetchval(f"SELECT touched_at > now() - interval '1 minute' FROM {scope}")


async def test_purge_takes_any_retention(dsn):
    async with opened(dsn, default_retention=1e15) as store:
        await hold(store, SCOPE, a="1")
        assert await store.purge() == 0


async def test_a_connection_is_closed_when_idle_whatever_came_of_the_last_call(dsn, monkeypatch):
    monkeypatch.setattr(postgres_connection, "IDLE_SECONDS", 0.01)
    async with opened(dsn) as store:
        await store.acquire(SCOPE, 2)
        with pytest.raises(StaleAttemptError):
            await store.acquire(SCOPE, 1)

        await until(lambda: store._connection.db is None)
        await store.acquire(SCOPE, 2)


@pytest.mark.parametrize("pooled", ["true", "false"])
async def test_who_waits_for_a_lock_in_vain_leaves_nobody_waiting_on_the_server(
    postgres, monkeypatch, pooled
):
    for module, name in ((postgres_store, "BEGIN"), (postgres_connection, "SESSION")):
        monkeypatch.setattr(module, name, getattr(module, name).replace("15000", "100"))
    dsn = postgres.dsn(pgbouncer=pooled, application_name="waiting")
    async with control(postgres) as db, control(postgres) as locker, opened(dsn) as store:
        lease = await hold(store, SCOPE, a="0")
        async with locker.transaction():
            await locker.execute(f'LOCK TABLE "{dsn.partition("schema=")[2].partition("&")[0]}".entry')
            for call in (
                store.acquire(SCOPE, 1),
                store.commit([put(lease, a="1")]),
                store.write(SCOPE, {"a": ("1", None)}),
            ):
                with pytest.raises(StoreUnavailableError, match="55P03"):
                    await call
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'waiting'"
            while await db.fetchval(waiting):
                pass


@pytest.mark.parametrize("pooled", ["true", "false"])
async def test_g1_what_is_saved_is_on_disk_where_the_database_would_not_wait_for_it(postgres, pooled):
    async with opened(postgres.dsn(pgbouncer=pooled, options="-csynchronous_commit=off")) as store:
        await hold(store, SCOPE)
        seen = []
        async with store._use() as db:
            async with postgres_store._transaction(db):
                seen.append(await db.fetchval("SHOW synchronous_commit"))
            seen.append(await db.fetchval("SHOW synchronous_commit"))
        assert seen == ["on", "off" if pooled == "true" else "on"]
