"""Stores that are used without a writer, and a connection that looks at what they do."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg

from async_task_state.stores import Batch, open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from postgres import Postgres

    from async_task_state import TaskScope
    from async_task_state.stores import Lease
    from async_task_state.stores.postgres import PostgresStore

PATIENCE = 30


@asynccontextmanager
async def opened(dsn: str, **options) -> AsyncIterator[PostgresStore]:
    store = open_store(dsn, **options)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def control(postgres: Postgres) -> AsyncIterator[asyncpg.Connection]:
    db = await asyncpg.connect(postgres.address)
    try:
        yield db
    finally:
        await db.close()


def put(lease: Lease, *, cleared: bool = False, **values: str | None) -> Batch:
    return Batch(lease, {key: (value, None) for key, value in values.items()}, cleared)


async def hold(store: PostgresStore, scope: TaskScope, **values: str) -> Lease:
    """A lease, with which something was saved: the server knows the statements."""
    lease = (await store.acquire(scope, 1)).lease
    assert not await store.commit([put(lease, **values)])
    return lease


async def until(condition: Callable[[], object]) -> None:
    async def wait():
        while not condition():  # noqa: ASYNC110 - what a store does sets no event
            await asyncio.sleep(0.001)

    await asyncio.wait_for(wait(), PATIENCE)
