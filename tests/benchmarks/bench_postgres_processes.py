"""Many processes with many states each on one server, against one such process.

`python bench_postgres_processes.py DSN NAME` is one of them: for each line of input, a moment of the system's
monotonic clock, it answers how many sets it made until then, and how many of its states were fenced.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import asyncpg
from bench_measure import Line, Plan, state_at
from bench_postgres import NOTE, server

from async_task_state import StaleWriterError
from async_task_state.lifetime import shutdown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_task_state import TaskState

PROCESSES = 32
STATES = 32
SECONDS = 5.0


def processes(plan: Plan) -> list[Line]:
    many, one, fenced = [], [], 0
    count, seconds = plan.scaled(PROCESSES, least=2), max(0.2, SECONDS * plan.scale)
    with server() as postgres:
        dsn = postgres.dsn()
        with ExitStack() as stack:
            workers = [stack.enter_context(worker(dsn, f"process-{number}")) for number in range(count)]
            for _ in range(plan.repeat):
                for measured, some in ((one, workers[:1]), (many, workers)):
                    # Once for nothing, so that all of them have opened their states.
                    ask(some, 0)
                    sets, refused = ask(some, seconds)
                    measured.append(sets / seconds)
                    fenced += refused
        deadlocks = asyncio.run(count_deadlocks(dsn))
    what = f"PostgreSQL, {count} processes, {STATES} states each awaiting set"
    return [
        Line(what, "sets/s", many, 0.8, ">=", "one such process", one, "ratio", NOTE),
        Line(f"{what}: deadlocks", "", [float(deadlocks)], 0, "<=", note="server's count"),
        Line(f"{what}: fenced", "states", [float(fenced)], 0, "<="),
    ]


@contextmanager
def worker(dsn: str, name: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, __file__, dsn, name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()


def ask(workers: list[subprocess.Popen[str]], seconds: float) -> tuple[int, int]:
    """How many sets processes make together, and how many of their states are fenced."""
    end = time.monotonic() + seconds
    for process in workers:
        process.stdin.write(f"{end}\n")
        process.stdin.flush()
    answers = [process.stdout.readline().split() for process in workers]
    return sum(int(sets) for sets, _ in answers), sum(int(fenced) for _, fenced in answers)


async def count_deadlocks(dsn: str) -> int:
    db = await asyncpg.connect(dsn)
    try:
        return await db.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    finally:
        await db.close()


async def answer(dsn: str, name: str) -> None:
    async with AsyncExitStack() as stack:
        handles = [state_at(dsn, f"{name}-{number}") for number in range(STATES)]
        states = [await stack.enter_async_context(handle) for handle in handles]
        while line := await asyncio.to_thread(sys.stdin.readline):
            made = await asyncio.gather(*(sets_until(state, float(line)) for state in states))
            sys.stdout.write(f"{sum(made)} {[await state.is_current() for state in states].count(False)}\n")
            sys.stdout.flush()


async def sets_until(state: TaskState, end: float) -> int:
    """How many return in time."""
    made = 0
    with suppress(StaleWriterError):
        while True:
            await state.set("n", made)
            if time.monotonic() > end:
                break
            made += 1
    return made


if __name__ == "__main__":
    asyncio.run(answer(*sys.argv[1:]))
    shutdown()
