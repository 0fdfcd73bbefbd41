"""Every store keeps the promises of the `Store` protocol."""

import pytest

from async_task_state.stores import open_store
from async_task_state.stores.memory import MemoryStore
from async_task_state.stores.sqlite import SQLiteStore
from async_task_state.testing import StoreConformance


class TestMemoryStore(StoreConformance):
    def make_store(self, default_retention):
        return MemoryStore(default_retention=default_retention)


class TestSQLiteStore(StoreConformance):
    @pytest.fixture(autouse=True)
    def _path(self, tmp_path):
        self.path = tmp_path / "state.db"

    def make_store(self, default_retention):
        return SQLiteStore(self.path, default_retention=default_retention)

    def reopen(self, store):
        return SQLiteStore(self.path)


class TestPostgresStore(StoreConformance):
    @pytest.fixture(autouse=True)
    def _dsn(self, postgres):
        self.dsn = postgres.dsn()

    def make_store(self, default_retention):
        return open_store(self.dsn, default_retention=default_retention)

    def reopen(self, store):
        return open_store(self.dsn)


class TestPostgresStoreInTransactionsOnly(TestPostgresStore):
    """As behind a pooler: nothing is kept from one transaction to the next."""

    @pytest.fixture(autouse=True)
    def _dsn(self, postgres):
        self.dsn = postgres.dsn(pgbouncer="true")
