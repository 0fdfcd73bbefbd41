"""`set()` in PostgreSQL, durable when it returns: against bare asyncpg, LangGraph's checkpointer and DBOS."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
from bench_measure import Line, Plan, state_at
from bench_postgres import BARE_CONFLICT, BARE_TABLE, NOTE, check_settings, medians_in_turn, server
from bench_set import STATES, rate_at_once, set_rate, sets_rate

from async_task_state.lifetime import shutdown, writer_for

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

AT_ONCE = 20
POOL = 20
UPSERT = f"INSERT INTO bare VALUES ($1, $2, $3, now() + interval '30 days') {BARE_CONFLICT}"
DBOS = Path(__file__).with_name("bench_postgres_dbos.py")


def one_set(plan: Plan) -> list[Line]:
    with server() as postgres:
        measured = asyncio.run(one_rates(postgres.dsn(), plan.repeat, plan.scaled(100)))
        shutdown()
    ours, bare, least = (list(rates) for rates in zip(*measured, strict=True))
    what = "PostgreSQL, one state awaiting set each time"
    only = "PostgreSQL, only its statement, on another thread's loop"
    return [
        Line(what, "sets/s", ours, 0.7, ">=", "asyncpg: prepared upsert", bare, "ratio", NOTE),
        Line(only, "sets/s", least, None, "", "the same", bare, "ratio", "the most that a thread can reach"),
    ]


async def one_rates(dsn: str, repeat: int, rounds: int) -> list[tuple[float, ...]]:
    """Ours, bare upserts, and our statement without the rest of us, a second; a few of each in turn."""
    db = await asyncpg.connect(dsn)
    await db.execute(BARE_TABLE)
    upsert = await db.prepare(UPSERT)
    loop = asyncio.get_running_loop()
    measured = []
    async with state_at(dsn) as state, state_at(dsn, "least") as least:
        writer = writer_for(state._store, state._settings)
        await writer.call(check_settings, writer.store._db.fetchval)
        other = await writer.call(partial(asyncpg.connect, dsn))
        statement = await writer.call(other.prepare, writer.store._sql.save_row)
        lease = least._pending.lease

        async def bare(number: int) -> None:
            for i in range(AT_ONCE):
                await upsert.fetch(1, "n", str(number * AT_ONCE + i))

        async def ours(number: int) -> None:
            for i in range(AT_ONCE):
                await state.set("n", number * AT_ONCE + i)

        async def save(value: str, saved: asyncio.Future[int]) -> None:
            rows = await statement.fetch(lease.scope_id, lease.attempt, lease.epoch, 0, "n", value, None)
            loop.call_soon_threadsafe(saved.set_result, len(rows))

        async def only_the_statement(number: int) -> None:
            for i in range(AT_ONCE):
                saved = loop.create_future()
                work = save(str(number * AT_ONCE + i), saved)
                writer.loop.call_soon_threadsafe(writer.loop.create_task, work)
                if await saved != 1:
                    raise AssertionError("the fence refused it")

        for _ in range(repeat):
            seconds = await medians_in_turn(rounds, ours, bare, only_the_statement)
            measured.append(tuple(AT_ONCE / one for one in seconds))
        await writer.call(other.close)
    await db.close()
    return measured


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
