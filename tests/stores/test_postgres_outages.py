"""PostgreSQL goes away and comes back: who saves waits, and nothing is lost."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from itertools import pairwise

import asyncpg
import pytest
from anyio import to_thread
from direct import control, opened, until
from proxy import ANSWERS, REQUESTS, Proxy

from async_task_state import Settings, StoreUnavailableError, TaskScope, TaskState, writer
from async_task_state.lifetime import writer_for
from async_task_state.sandbox_postgres import PostgresServer
from async_task_state.stores import postgres_connection

pytestmark = pytest.mark.asyncio

SCOPE = TaskScope("dag", "run", "task")
NEVER = 3600.0
COUNT = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outages'"
END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'outages'"


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch):
    monkeypatch.setattr(writer, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(writer, "LAST_RETRY_SECONDS", 0.1)


@pytest.fixture
def dsn(postgres):
    return postgres.dsn(application_name="outages")


@pytest.fixture(scope="module")
def own_server():
    with PostgresServer(max_connections=8, superuser_reserved_connections=1, max_wal_senders=0) as server:
        yield server


def patient(dsn, scope=SCOPE, **options):
    """A handle that no test sees give up."""
    return TaskState(scope, store=dsn, settings=settings_of(dsn, **options))


def settings_of(dsn, outage_timeout=NEVER):
    return Settings(dsn=dsn, max_delay=0.02, outage_timeout=outage_timeout)


def writer_of(dsn):
    return writer_for(dsn, settings_of(dsn))


async def saved(dsn, scope=SCOPE):
    async with TaskState(scope, store=dsn, settings=settings_of(dsn), read_only=True) as state:
        return await state.get_all()


async def tried(caplog):
    """Return when a commit has failed."""
    await until(lambda: "could not save" in caplog.text)


@pytest.mark.parametrize("way", ["kill", "shut_down"])
async def test_g5_callers_wait_while_the_server_restarts(own_server, caplog, way):
    dsn = own_server.dsn(schema=way)
    async with patient(dsn) as state:
        await state.set("before", 1)
        await to_thread.run_sync(getattr(own_server, way))
        sets = [asyncio.create_task(state.set(f"k{number}", number)) for number in range(5)]
        await state.checkpoint(during=1)
        await state.work("items").done("item")
        await tried(caplog)
        await to_thread.run_sync(own_server.start)
        await asyncio.gather(*sets)
        await state.set("after", 1)
    expected = {"before": 1, "during": 1, "after": 1, **{f"k{number}": number for number in range(5)}}
    assert await saved(dsn) == expected
    assert "the store has been away" not in caplog.text


async def test_g1_what_was_set_survives_a_crash_of_the_server(own_server):
    dsn = own_server.dsn(schema="crash")
    for number in range(3):
        async with patient(dsn) as state:
            assert await state.get("n", 0) == number
            await state.set("n", number + 1)
            await to_thread.run_sync(own_server.kill)
            await to_thread.run_sync(own_server.start)


async def test_g5_nobody_notices_a_backend_that_was_terminated(postgres, dsn):
    async with control(postgres) as db, patient(dsn) as state:
        for number in range(5):
            await state.set("n", number)
            await db.execute(END)
            if number % 2:
                await until(writer_of(dsn).store._connection.db.is_closed)
    assert await saved(dsn) == {"n": 4}


@pytest.mark.parametrize("kind", [REQUESTS, ANSWERS])
@pytest.mark.parametrize("call", ["autocommit", "transaction"])
async def test_g5_nobody_notices_a_connection_that_was_cut_in_a_commit(dsn, kind, call):
    async with Proxy(dsn) as proxy, patient(proxy.dsn) as state:
        await state.set("n", 1)
        await state.set("gone", 1)
        if call == "autocommit":
            caught = proxy.catch(b"1234567", kind)
            commit = asyncio.create_task(state.set("n", 1234567))
        else:
            caught = proxy.catch(b"COMMIT\0", kind)
            commit = asyncio.create_task(state.delete("gone"))
        line = await caught
        await state.checkpoint(n=2)
        line.cut()
        line.release()
        await commit
        await state.flush()
        await line.over.wait()
        expected = {"n": 2, "gone": 1} if call == "autocommit" else {"n": 2}
        assert await saved(dsn) == expected


async def test_g5_callers_wait_while_connections_are_used_up(own_server, caplog):
    dsn = own_server.dsn(schema="full", application_name="outages")
    async with AsyncExitStack() as stack:
        state = await stack.enter_async_context(patient(dsn))
        others = [await taken(own_server.dsn()) for _ in range(7)]
        with pytest.raises(asyncpg.TooManyConnectionsError):
            await asyncpg.connect(own_server.dsn())
        await others[0].execute(END)
        others.append(await taken(own_server.dsn()))
        setting = asyncio.create_task(state.set("n", 1))
        await tried(caplog)
        assert not setting.done()
        for other in others:
            await other.close()
        await setting
    assert "53300" in caplog.text
    assert await saved(dsn) == {"n": 1}


async def taken(dsn):
    """A connection, maybe in the place of one that is about to end."""
    while True:
        try:
            return await asyncpg.connect(dsn)
        except asyncpg.TooManyConnectionsError:
            await asyncio.sleep(0)


async def test_g5_callers_wait_while_the_database_can_only_be_read(own_server, caplog):
    dsn = own_server.dsn(schema="standby", application_name="outages")
    db = await asyncpg.connect(own_server.dsn())
    async with patient(dsn) as state:
        await state.set("n", 1)
        await db.execute("ALTER DATABASE postgres SET default_transaction_read_only = on")
        await db.execute(END)
        setting = asyncio.create_task(state.set("n", 2))
        await until(lambda: "25006" in str(writer_of(dsn)._away_because))
        assert not setting.done()
        await db.execute("ALTER DATABASE postgres RESET default_transaction_read_only")
        await setting
    await db.close()
    assert await saved(dsn) == {"n": 2}


async def test_g5_after_a_failover_the_host_is_found_that_can_be_written(own_server, caplog):
    standby = PostgresServer(default_transaction_read_only="on")
    standby.password = own_server.password
    with standby:
        login = f"postgresql://postgres:{own_server.password}"
        hosts = f"{login}@127.0.0.1:{standby.port},127.0.0.1:{own_server.port}/postgres?schema=failover"
        chosen = f"{hosts}&target_session_attrs=read-write"
        async with patient(chosen) as state:
            await state.set("n", 1)
        assert await saved(own_server.dsn(schema="failover")) == {"n": 1}
        only = f"{login}@127.0.0.1:{standby.port}/postgres?target_session_attrs=read-write"
        for dsn, why in ((hosts, r"25006.*target_session_attrs=read-write"), (only, "no host of")):
            async with opened(dsn) as store:
                with pytest.raises(StoreUnavailableError, match=why):
                    await store.acquire(SCOPE, None)
        await to_thread.run_sync(own_server.kill)
        async with opened(chosen) as store:
            with pytest.raises(StoreUnavailableError):
                await store.acquire(SCOPE, None)
        await to_thread.run_sync(own_server.start)
        async with patient(chosen) as state:
            assert await state.get_all() == {"n": 1}
            await state.set("n", 2)


async def test_g5_a_host_that_does_not_answer_leaves_the_next_its_time(own_server):
    """As a machine that is gone, of which nobody hears that it is."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        hosts = f"127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{own_server.port}"
        for where in (f"@{hosts}/postgres?", f"@/postgres?host=127.0.0.1,127.0.0.1&port={ports_of(hosts)}&"):
            dsn = (
                f"postgresql://postgres:{own_server.password}{where}schema=silent&connect_timeout=0.5"
                "&target_session_attrs=read-write"
            )
            async with opened(dsn) as store:
                assert (await store.acquire(SCOPE, None)).lease.scope == SCOPE


def ports_of(hosts):
    return ",".join(host.rpartition(":")[2] for host in hosts.split(","))


async def test_g5_callers_wait_for_a_server_that_does_not_answer(dsn, monkeypatch, caplog):
    monkeypatch.setattr(postgres_connection, "COMMAND_SECONDS", 0.1)
    async with Proxy(f"{dsn}&connect_timeout=0.1") as proxy, patient(proxy.dsn) as state:
        await state.set("n", 1)
        proxy.silent = True
        proxy.line.hold(REQUESTS, ANSWERS)
        setting = asyncio.create_task(state.set("n", 2))
        await until(lambda: len(proxy.lines) > 3)
        assert not setting.done()
        proxy.silent = False
        await setting
        for line in proxy.lines:
            line.release()
        await state.set("n", 3)
    assert await saved(dsn) == {"n": 3}


async def test_g5_after_the_outage_timeout_a_caller_hears_what_is_not_saved(dsn, caplog):
    async with Proxy(dsn) as proxy, patient(proxy.dsn, outage_timeout=0.3) as state:
        await state.set("n", 1)
        proxy.refusing = True
        proxy.cut()
        with pytest.raises(
            StoreUnavailableError, match=r"outage_timeout = 0\.3 s.*PostgreSQL.*not saved.*'n'"
        ):
            await state.set("n", 2)
        with pytest.raises(StoreUnavailableError, match="'n'"):
            await state.checkpoint(m=1)
        proxy.refusing = False
        await until(lambda: "the store is back" in caplog.text)
        assert await state.get_all() == {"n": 2}
    assert await saved(dsn) == {"n": 2}


async def test_g5_the_server_is_asked_less_and_less_often(dsn, monkeypatch):
    monkeypatch.setattr(writer, "FIRST_RETRY_SECONDS", 0.04)
    monkeypatch.setattr(writer, "LAST_RETRY_SECONDS", 60.0)
    async with Proxy(f"{dsn}&sslmode=disable") as proxy, patient(proxy.dsn) as state:
        proxy.refusing = True
        proxy.cut()
        setting = asyncio.create_task(state.set("n", 1))
        await until(lambda: len(proxy.lines) >= 7)
        proxy.refusing = False
        await setting
        # The first of them was open, the second is the first try.
        asked = [line.began for line in proxy.lines[1:7]]
    waits = [later - earlier for earlier, later in pairwise(asked)]
    assert all(wait >= 0.04 * 2**number / 2 for number, wait in enumerate(waits)), waits
    assert len({round(wait / 2**number, 4) for number, wait in enumerate(waits)}) > 1, waits


async def test_an_idle_connection_is_closed_and_opened_again_without_anyone_noticing(
    postgres, dsn, monkeypatch
):
    monkeypatch.setattr(postgres_connection, "IDLE_SECONDS", 0.05)
    async with control(postgres) as db, patient(dsn) as state:
        for number in range(3):
            await state.set("n", number)
            while await db.fetchval(COUNT):
                pass
        assert await state.is_current()


async def test_a_process_has_one_connection_however_many_states_it_has(postgres, dsn):
    async with control(postgres) as db, AsyncExitStack() as stack:
        scopes = [TaskScope("dag", "run", "task", number) for number in range(30)]
        states = [await stack.enter_async_context(patient(dsn, scope)) for scope in scopes]
        sets = asyncio.gather(*(state.set("n", number) for state in states for number in range(5)))
        counts = set()
        while not sets.done():
            counts.add(await db.fetchval(COUNT))
        await sets
        assert counts == {1}


@pytest.mark.timeout(40)
async def test_g5_a_server_that_answers_that_it_cannot_serve_is_away(dsn, postgres):
    """An answer is no progress of a call that fails, however often it is made again."""
    impatient = settings_of(dsn, 1.0)
    state = TaskState(SCOPE, store=dsn, settings=impatient)
    await state.__aenter__()
    await state.set("n", 1)
    async with control(postgres) as db:
        await db.execute(f'DROP TABLE "{dsn.partition("schema=")[2].partition("&")[0]}".entry')
    with pytest.raises(StoreUnavailableError, match=r"not saved, and still being tried: .*'n'"):
        await state.set("n", 2)
    with pytest.raises(StoreUnavailableError, match=r"outage_timeout|does not exist"):
        await writer_for(dsn, impatient).call(writer_for(dsn, impatient).store.read, SCOPE)
    with pytest.raises(StoreUnavailableError):
        await state.__aexit__(None, None, None)
