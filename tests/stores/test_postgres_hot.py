"""Rows that every commit updates are updated in place: neither the table nor its indexes grow with the commits."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from async_task_state import Settings, TaskScope
from async_task_state.stores import Batch, open_store
from async_task_state.stores.postgres_dsn import PostgresDsn

SCOPES = 100
KEYS = 10
COMMITS = 100
PATIENCE = 60.0
HOT_SHARE = 0.9


def hot_share(postgres, dsn, updates):
    """The part of a table's updates that were made in place, once the server has counted them all."""
    deadline = time.monotonic() + PATIENCE
    while True:
        [[counted, hot]] = postgres.query(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE schemaname = $1 AND relname = 'entry'",
            PostgresDsn.parse(dsn).schema,
        )
        if counted >= updates:
            return hot / counted
        assert time.monotonic() < deadline, f"{counted} of {updates} updates are counted"
        time.sleep(0.05)


@pytest.mark.parametrize("length", [10, 1000], ids=lambda length: f"{length}-bytes")
def test_rows_that_every_commit_updates_stay_in_their_pages(postgres, length):
    dsn = postgres.dsn()
    retention = Settings(dsn=dsn).default_retention
    chance = random.Random(length)

    def batch(lease):
        # Random, so that they take as much room in the table as here.
        return Batch(
            lease, {f"key {n}": (f'"{chance.randbytes(length // 2).hex()}"', retention) for n in range(KEYS)}
        )

    async def save():
        store = open_store(dsn, default_retention=retention)
        try:
            scopes = (TaskScope("dag", "run", "task", number) for number in range(SCOPES))
            leases = [(await store.acquire(scope, 1)).lease for scope in scopes]
            for _ in range(1 + COMMITS):
                assert not await store.commit(list(map(batch, leases)))
        finally:
            await store.close()

    asyncio.run(save())
    assert hot_share(postgres, dsn, SCOPES * KEYS * COMMITS) >= HOT_SHARE
