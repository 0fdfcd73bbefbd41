"""`set()`, durable when it returns: against bare aiosqlite, and against LangGraph's checkpointer."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import aiosqlite
import anyio
from bench_measure import Line, Plan, state_in

from async_task_state.lifetime import shutdown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from async_task_state import TaskState

STATES = 64
FULL = 2


def one_set(plan: Plan) -> list[Line]:
    ours, theirs = [], []
    calls = plan.scaled(2000)
    for _ in range(plan.repeat):
        theirs.append(anyio.run(aiosqlite_rate, plan.new_file(), calls))
        ours.append(anyio.run(set_rate, state_in(plan.new_file()), calls))
        shutdown()
    return [
        Line(
            "one state awaiting set each time",
            "sets/s",
            ours,
            0.6,
            ">=",
            "aiosqlite: upsert, commit; WAL, FULL",
            theirs,
            "ratio",
        )
    ]


def many_sets(plan: Plan) -> list[Line]:
    ours, theirs = [], []
    calls = plan.scaled(200)
    for _ in range(plan.repeat):
        theirs.append(anyio.run(langgraph_rate, plan.new_file(), calls // 4 + 1))
        ours.append(anyio.run(sets_rate, partial(state_in, plan.new_file()), STATES, calls))
        shutdown()
    return [
        Line(
            f"{STATES} states awaiting set at once",
            "sets/s",
            ours,
            10,
            ">=",
            f"LangGraph aput, {STATES} at once; WAL, FULL",
            theirs,
            "ratio",
        )
    ]


async def set_rate(state: TaskState, calls: int) -> float:
    async with state:
        started = time.perf_counter()
        for i in range(calls):
            await state.set("n", i)
        return calls / (time.perf_counter() - started)


async def aiosqlite_rate(file: Path, calls: int) -> float:
    async with aiosqlite.connect(file) as db:
        await db.execute("PRAGMA journal_mode = WAL")
        await db.execute("PRAGMA synchronous = FULL")
        await db.execute("CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT)")
        started = time.perf_counter()
        for i in range(calls):
            await db.execute(
                "INSERT INTO state VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                ("n", str(i)),
            )
            await db.commit()
        return calls / (time.perf_counter() - started)


async def sets_rate(make_state: Callable[[str], TaskState], states: int, calls: int) -> float:
    @asynccontextmanager
    async def setter(number: int) -> AsyncIterator[Callable[[int], Awaitable[object]]]:
        async with make_state(f"task-{number}") as state:
            yield lambda i: state.set("n", i)

    return await rate_at_once(setter, states, calls)


async def langgraph_rate(file: Path, calls: int) -> float:
    # Of the dependency group "bench", which only this needs.
    from langgraph.checkpoint.base import empty_checkpoint  # noqa: PLC0415
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver  # noqa: PLC0415

    async with AsyncSqliteSaver.from_conn_string(str(file)) as saver:
        await saver.setup()
        await saver.conn.execute("PRAGMA synchronous = FULL")
        await check_pragmas(saver.conn)

        @asynccontextmanager
        async def setter(number: int) -> AsyncIterator[Callable[[int], Awaitable[object]]]:
            config = {"configurable": {"thread_id": f"thread-{number}", "checkpoint_ns": ""}}
            # Of one id, so that each replaces the last, as each of our values does.
            checkpoint = empty_checkpoint()
            yield lambda i: saver.aput(config, {**checkpoint, "channel_values": {"n": i}}, {}, {})

        return await rate_at_once(setter, STATES, calls)


async def check_pragmas(db: aiosqlite.Connection) -> None:
    """Like is compared with like."""
    for pragma, wanted in (("journal_mode", "wal"), ("synchronous", FULL)):
        async with db.execute(f"PRAGMA {pragma}") as cursor:
            (found,) = await cursor.fetchone()
        if found != wanted:
            raise AssertionError(f"{pragma} is {found}")


async def rate_at_once(setter, setters: int, calls: int) -> float:
    """How many calls a second so many tasks make together, each awaiting one before its next."""
    opened = 0
    started = 0.0
    start = anyio.Event()

    async def one(number: int) -> None:
        nonlocal opened, started
        async with setter(number) as put:
            opened += 1
            if opened == setters:
                started = time.perf_counter()
                start.set()
            await start.wait()
            for i in range(calls):
                await put(i)
        ended.append(time.perf_counter())

    ended: list[float] = []
    async with anyio.create_task_group() as group:
        for number in range(setters):
            group.start_soon(one, number)
    return setters * calls / (max(ended) - started)
