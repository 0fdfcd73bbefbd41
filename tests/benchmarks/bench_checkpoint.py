"""`checkpoint()`: how fast, what it costs in commits, and what the caller's event loop feels of it."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import TYPE_CHECKING

import anyio
from bench_measure import Line, Plan, state_in

from async_task_state.lifetime import shutdown, writer_for

if TYPE_CHECKING:
    from pathlib import Path

    from async_task_state import TaskState

TICK_SECONDS = 0.005
PERIOD_SECONDS = 0.1


def checkpoint(plan: Plan) -> list[Line]:
    rates: dict[str, list[float]] = {"asyncio": [], "trio": []}
    for _ in range(plan.repeat):
        for backend, measured in rates.items():
            measured.append(
                anyio.run(checkpoint_rate, plan.new_file(), plan.scaled(200_000), backend=backend)
            )
            shutdown()
    return [
        Line(f"checkpoint(n=i) in a loop, {backend}", "calls/s", measured, 200_000, ">=")
        for backend, measured in rates.items()
    ]


async def checkpoint_rate(file: Path, calls: int) -> float:
    async with state_in(file) as state:
        started = time.perf_counter()
        for i in range(calls):
            await state.checkpoint(n=i)
        return calls / (time.perf_counter() - started)


def commits(plan: Plan) -> list[Line]:
    measured = []
    for _ in range(plan.repeat):
        measured.append(float(anyio.run(count_commits, plan.new_file(), 10 * plan.scale)))
        shutdown()
    return [Line("commits of a 10 s loop of checkpoints", "transactions", measured, 15, "<=")]


async def count_commits(file: Path, seconds: float) -> int:
    state = state_in(file)
    async with state:
        # As SQLite itself sees them, on the connection that the writer uses.
        seen: list[str] = []
        store = writer_for(state._store, state._settings).store
        await (store._db).set_trace_callback(seen.append)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await state.checkpoint(n=end)
    # One key is saved by one statement, which is a transaction of its own.
    return sum(statement.startswith("INSERT INTO entry") for statement in seen)


def lag(plan: Plan) -> list[Line]:
    ours, theirs = [], []
    states, seconds = plan.scaled(1000, least=4), max(0.2, 4 * plan.scale)
    for _ in range(plan.repeat):
        theirs.append(anyio.run(loop_lag, None, states, seconds))
        ours.append(anyio.run(loop_lag, plan.new_file(), states, seconds))
        shutdown()
    return [
        Line(
            "loop lag, p99, 1,000 states checkpointing",
            "ms",
            ours,
            5,
            "<",
            "the loop without us",
            theirs,
            "difference",
            f"each every {PERIOD_SECONDS:g} s",
        )
    ]


async def loop_lag(file: Path | None, states: int, seconds: float) -> float:
    """The 99th percentile of how late a ticker wakes, in ms, beside tasks that checkpoint (or only loop)."""
    start = anyio.Event()
    opened = 0

    async def work(number: int, state: TaskState | None) -> None:
        nonlocal opened
        opened += 1
        if opened == states:
            start.set()
        await start.wait()
        await anyio.sleep(PERIOD_SECONDS * number / states)
        n = 0
        while True:
            await anyio.sleep(PERIOD_SECONDS)
            n += 1
            if state is not None:
                await state.checkpoint(n=n)

    async def one(number: int) -> None:
        if file is None:
            await work(number, None)
        else:
            async with state_in(file, f"task-{number}") as state:
                await work(number, state)

    lags = []
    async with anyio.create_task_group() as group:
        for number in range(states):
            group.start_soon(partial(one, number))
        await start.wait()
        await anyio.sleep(PERIOD_SECONDS)
        end = time.perf_counter() + seconds
        while (now := time.perf_counter()) < end:
            await anyio.sleep(TICK_SECONDS)
            lags.append(time.perf_counter() - now - TICK_SECONDS)
        group.cancel_scope.cancel()
    return sorted(lags)[math.ceil(len(lags) * 0.99) - 1] * 1000
