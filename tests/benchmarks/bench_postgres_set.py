"""`set()` in PostgreSQL, durable when it returns: against bare asyncpg, LangGraph's checkpointer and DBOS."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
from bench_measure import Line, Plan, state_at
from bench_postgres import BARE_CONFLICT, BARE_TABLE, NOTE, check_settings, server
from bench_set import STATES, rate_at_once, set_rate, sets_rate

from async_task_state.lifetime import shutdown, writer_for
from async_task_state.stores.postgres_sql import WITH_ITS_STATE, lease_number

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from async_task_state import TaskState

POOL = 20
UPSERT = f"INSERT INTO bare VALUES ($1, $2, $3, now() + interval '30 days') {BARE_CONFLICT}"
DBOS = Path(__file__).with_name("bench_postgres_dbos.py")


def one_set(plan: Plan) -> list[Line]:
    ours, bare, least = [], [], []
    calls = plan.scaled(2000)
    with server() as postgres:
        dsn = postgres.dsn()
        asyncio.run(make_bare_table(dsn))
        for _ in range(plan.repeat):
            bare.append(asyncio.run(bare_rate(dsn, calls)))
            ours.append(asyncio.run(set_rate(state_at(dsn), calls)))
            least.append(asyncio.run(statement_rate(state_at(dsn, "least"), calls)))
            shutdown()
    what = "PostgreSQL, one state awaiting set each time"
    only = "PostgreSQL, only its statement, on another thread's loop"
    return [
        Line(what, "sets/s", ours, 0.7, ">=", "asyncpg: prepared upsert", bare, "ratio", NOTE),
        Line(only, "sets/s", least, None, "", "the same", bare, "ratio", "the most that a thread can reach"),
    ]


async def make_bare_table(dsn: str) -> None:
    db = await asyncpg.connect(dsn)
    await db.execute(BARE_TABLE)
    await db.close()


async def bare_rate(dsn: str, calls: int) -> float:
    db = await asyncpg.connect(dsn)
    await check_settings(db.fetchval)
    upsert = await db.prepare(UPSERT)
    started = time.perf_counter()
    for i in range(calls):
        await upsert.fetch(1, "n", str(i))
    rate = calls / (time.perf_counter() - started)
    await db.close()
    return rate


async def statement_rate(state: TaskState, calls: int) -> float:
    """What `set` sends and a loop that it is sent from, and nothing else of ours."""
    loop = asyncio.get_running_loop()
    async with state:
        writer, lease = writer_for(state._store, state._settings), state._pending.lease
        await writer.call(check_settings, writer.store._connection.db.fetchval)
        statement = await writer.call(writer.store._connection.db.prepare, writer.store._sql.save_row)

        async def save(value: str, saved: asyncio.Future[int]) -> None:
            rows = await statement.fetch(lease.scope_id, lease_number(lease), 0, "n", value, WITH_ITS_STATE)
            loop.call_soon_threadsafe(saved.set_result, len(rows))

        started = time.perf_counter()
        for i in range(calls):
            saved = loop.create_future()
            writer.loop.call_soon_threadsafe(writer.loop.create_task, save(str(i), saved))
            if await saved != 1:
                raise AssertionError("the fence refused it")
        return calls / (time.perf_counter() - started)


def many_sets(plan: Plan) -> list[Line]:
    many, one, langgraph, dbos = [], [], [], []
    with server() as postgres:
        dsn = postgres.dsn()
        for _ in range(plan.repeat):
            one.append(asyncio.run(set_rate(state_at(dsn), plan.scaled(1000))))
            many.append(asyncio.run(sets_rate(partial(state_at, dsn), STATES, plan.scaled(400))))
            shutdown()
            langgraph.append(asyncio.run(langgraph_rate(dsn, plan.scaled(40))))
            dbos.append(dbos_rate(postgres.dsn("dbos"), plan.scaled(1000)))
    what = f"PostgreSQL, {STATES} states awaiting set at once"
    return [
        Line(what, "sets/s", many, target, ">=", peer, theirs, "ratio", note)
        for target, peer, theirs, note in (
            (10, "one state", one, NOTE),
            (10, f"LangGraph aput, {STATES} at once, pool of {POOL}", langgraph, "same server"),
            (20, "DBOS: steps of one workflow", dbos, "same server"),
        )
    ]


async def langgraph_rate(dsn: str, calls: int) -> float:
    # Of the dependency group "bench", which only this needs.
    from langgraph.checkpoint.base import empty_checkpoint  # noqa: PLC0415
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver  # noqa: PLC0415
    from psycopg_pool import AsyncConnectionPool  # noqa: PLC0415

    options = {"autocommit": True, "prepare_threshold": 0}
    async with AsyncConnectionPool(dsn, max_size=POOL, open=False, kwargs=options) as pool:

        async def ask(statement: str) -> object:
            async with pool.connection() as db:
                return (await (await db.execute(statement)).fetchone())[0]

        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        await check_settings(ask)

        @asynccontextmanager
        async def setter(number: int) -> AsyncIterator[Callable[[int], Awaitable[object]]]:
            config = {"configurable": {"thread_id": f"thread-{number}", "checkpoint_ns": ""}}
            # Of one id, so that each replaces the last, as each of our values does.
            checkpoint = empty_checkpoint()
            yield lambda i: saver.aput(config, {**checkpoint, "channel_values": {"n": i}}, {}, {})
            # What another connection sees when `aput` has returned is committed.
            seen = await ask(
                "SELECT checkpoint -> 'channel_values' ->> 'n' FROM checkpoints"
                f" WHERE checkpoint ->> 'id' = '{checkpoint['id']}'"
            )
            if seen != str(calls - 1):
                raise AssertionError(seen)

        return await rate_at_once(setter, STATES, calls)


def dbos_rate(dsn: str, steps: int) -> float:
    """Steps a second; in a process of its own, for it takes over threads and logging."""
    command = [sys.executable, DBOS, dsn, str(steps)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
