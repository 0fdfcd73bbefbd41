"""What a durable `set()` in PostgreSQL takes as states and values grow; to be known, not to be met."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from functools import partial

from bench_measure import Line, Plan, state_at
from bench_postgres import NOTE, server
from bench_set import sets_rate

from async_task_state.lifetime import shutdown

STATES = (1, 10, 100, 1000, 10_000)
SETS = 20_000
KILOBYTES = (1, 100)
CALLS = 200


def growth(plan: Plan) -> list[Line]:
    by_states: dict[int, list[float]] = {states: [] for states in STATES}
    by_size: dict[int, list[float]] = {size: [] for size in KILOBYTES}
    with server() as postgres:
        dsn = postgres.dsn()
        for _ in range(plan.repeat):
            for states in random.sample(STATES, len(STATES)):
                calls = max(5, plan.scaled(SETS) // states)
                at_once = plan.scaled(states)
                by_states[states].append(1e6 / asyncio.run(sets_rate(partial(state_at, dsn), at_once, calls)))
            for size in random.sample(KILOBYTES, len(KILOBYTES)):
                by_size[size].append(asyncio.run(microseconds(dsn, size, plan.scaled(CALLS))))
        shutdown()
    what = "PostgreSQL, set durable"
    return [
        *(
            Line(f"{what}: {states:,} at once", "us", measured, note=NOTE if states == STATES[0] else "")
            for states, measured in by_states.items()
        ),
        *(Line(f"{what}: one state, {size} KB", "us", measured) for size, measured in by_size.items()),
    ]


async def microseconds(dsn: str, kilobytes: int, calls: int) -> float:
    """That a set takes, of text that the server cannot compress much."""
    values = [secrets.token_hex(kilobytes * 500) for _ in range(calls)]
    async with state_at(dsn) as state:
        started = time.perf_counter()
        for value in values:
            await state.set("value", value)
        return (time.perf_counter() - started) / calls * 1e6
