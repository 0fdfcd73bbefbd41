"""One SQLite store for one thing."""

from __future__ import annotations

import asyncio

from async_task_state import TaskScope
from async_task_state.stores import Batch
from async_task_state.stores.sqlite import SQLiteStore

SCOPE = TaskScope("dag", "run", "task")


def using(path, work):
    """Do one thing with a store of its own."""

    async def use():
        store = SQLiteStore(path)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(use())


async def one_key(store):
    """Take the lease and save a key."""
    lease = (await store.acquire(SCOPE, 1)).lease
    assert not await store.commit([Batch(lease, {"a": ("1", None)})])
    return lease
