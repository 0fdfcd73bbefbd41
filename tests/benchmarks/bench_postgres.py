"""What the PostgreSQL benchmarks share: a server as it comes, what we are compared with, and how."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING

import asyncpg

from async_task_state.sandbox_postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

DURABLE = ("fsync", "full_page_writes", "synchronous_commit")
NOTE = "fsync, synchronous_commit on"

BARE_TABLE = """
CREATE TABLE bare (
    scope_id bigint NOT NULL, key text COLLATE "C" NOT NULL, value text NOT NULL, expires_at timestamptz,
    PRIMARY KEY (scope_id, key)
) WITH (fillfactor = 45, autovacuum_vacuum_scale_factor = 0.05)
"""
BARE_CONFLICT = """
ON CONFLICT (scope_id, key) DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at
"""


@contextmanager
def server() -> Iterator[PostgresServer]:
    """A server with its default settings, which must be those of a server that loses nothing."""

    async def check() -> None:
        db = await asyncpg.connect(postgres.dsn())
        await check_settings(db.fetchval)
        await db.close()

    with PostgresServer() as postgres:
        asyncio.run(check())
        yield postgres


async def check_settings(ask: Callable[[str], Awaitable[object]]) -> None:
    """Like is compared with like: whoever asks has on disk what it was told is committed."""
    for name in DURABLE:
        found = await ask(f"SHOW {name}")
        if found != "on":
            raise AssertionError(f"{name} is {found}")


async def medians_in_turn(rounds: int, *steps: Callable[[int], Awaitable[object]]) -> list[float]:
    """The median seconds of each step, all taken in each round, in random order, so that noise hits them alike.

    Args:
        rounds: How often.
        *steps: Each is told the number of the round and gives, outside the measured time, what is then awaited.
    """
    seconds: list[list[float]] = [[] for _ in steps]
    for number in range(rounds):
        for index in random.sample(range(len(steps)), len(steps)):
            work = steps[index](number)
            started = time.perf_counter()
            await work
            seconds[index].append(time.perf_counter() - started)
    return [median(measured) for measured in seconds]
