"""The store's fenced group commit against the bare upsert of the same rows: what the fence and our encoding cost."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import asyncpg
from bench_measure import Line, Plan
from bench_postgres import BARE_CONFLICT, BARE_TABLE, NOTE, medians_in_turn, server

from async_task_state import TaskScope
from async_task_state.stores import Batch
from async_task_state.stores.postgres import PostgresStore
from async_task_state.stores.postgres_dsn import PostgresDsn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from async_task_state.stores import Lease

ROWS = 1000
SCOPES = (ROWS, 32)
RETENTION = 30 * 86400.0
UPSERT = f"""
INSERT INTO bare SELECT scope_id, key, value, to_timestamp(expires)
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::float8[]) AS rows (scope_id, key, value, expires)
{BARE_CONFLICT}
"""


def commit(plan: Plan) -> list[Line]:
    with server() as postgres:
        measured = asyncio.run(rates(postgres.dsn(), plan.repeat, plan.scaled(200)))
    return [
        Line(
            f"PostgreSQL, fenced commit: {ROWS:,} rows of {scopes:,} states",
            "rows/s",
            [ours for ours, _ in measured[scopes]],
            0.75,
            ">=",
            "asyncpg: unnest upsert, no fence",
            [bare for _, bare in measured[scopes]],
            "ratio",
            NOTE if scopes == SCOPES[0] else "",
        )
        for scopes in SCOPES
    ]


async def rates(dsn: str, repeat: int, rounds: int) -> dict[int, list[tuple[float, float]]]:
    """Rows a second, ours and bare ones, a pair a repetition; by the number of scopes."""
    db = await asyncpg.connect(dsn)
    await db.execute(BARE_TABLE)
    upsert = await db.prepare(UPSERT)
    store = PostgresStore(PostgresDsn.parse(dsn), default_retention=RETENTION)
    steps = {
        scopes: (
            fenced_commits(store, await leases(store, scopes)),
            lambda number, scopes=scopes: upsert.fetch(*columns(scopes, number)),
        )
        for scopes in SCOPES
    }
    measured: dict[int, list[tuple[float, float]]] = {scopes: [] for scopes in SCOPES}
    for _ in range(repeat):
        for scopes in SCOPES:
            ours, bare = await medians_in_turn(rounds, *steps[scopes])
            measured[scopes].append((ROWS / ours, ROWS / bare))
    await store.close()
    await db.close()
    return measured


async def leases(store: PostgresStore, scopes: int) -> list[Lease]:
    names = (TaskScope("benchmark", f"{scopes} scopes", f"task-{number}") for number in range(scopes))
    return [(await store.acquire(name, None)).lease for name in names]


def fenced_commits(store: PostgresStore, held: list[Lease]) -> Callable[[int], Awaitable[object]]:
    async def of(batches: list[Batch]) -> None:
        if fenced := await store.commit(batches):
            raise AssertionError(fenced)

    def step(number: int) -> Awaitable[object]:
        batches = [Batch(lease) for lease in held]
        for index in range(ROWS):
            batches[index % len(held)].changes[key_of(index, len(held))] = (
                value_of(index, number),
                RETENTION,
            )
        return of(batches)

    return step


def columns(scopes: int, number: int) -> tuple[list[int], list[str], list[str], list[float]]:
    """The same rows, in the order in which we send them."""
    order = sorted(range(ROWS), key=lambda index: (index % scopes, key_of(index, scopes)))
    return (
        [scopes + index % scopes for index in order],
        [key_of(index, scopes) for index in order],
        [value_of(index, number) for index in order],
        [time.time() + RETENTION] * ROWS,
    )


def key_of(index: int, scopes: int) -> str:
    return f"key-{index // scopes:02}"


def value_of(index: int, number: int) -> str:
    return f'{{"row":{index},"round":{number}}}'
