"""A newer version brings the tables up to date while an older one has them open."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from contextlib import closing

import pytest
from direct import opened, put, until
from onestore import SCOPE

from async_task_state import Settings, StoreError, StoreUnavailableError, TaskScope, TaskState
from async_task_state.stores import Batch
from async_task_state.stores.postgres_dsn import PostgresDsn
from async_task_state.stores.postgres_schema import MIGRATIONS
from async_task_state.stores.sqlite_schema import SCHEMA_VERSION


class SQLite:
    """A file, and the version that it says."""

    known = SCHEMA_VERSION

    def __init__(self, path):
        self._path = path
        self.dsn = f"sqlite:///{path}"

    def say(self, version):
        with closing(sqlite3.connect(self._path)) as db:
            db.execute(f"PRAGMA user_version = {version}")


class Postgres:
    """A schema, and the version that its tables say."""

    known = len(MIGRATIONS)

    def __init__(self, postgres):
        self._postgres = postgres
        self.dsn = postgres.dsn()

    def say(self, version):
        schema = PostgresDsn.parse(self.dsn).schema
        self._postgres.query(f'UPDATE "{schema}".version SET version = {version} RETURNING 1')


@pytest.fixture(params=["sqlite", "postgres", "pgbouncer"])
def tables(request, tmp_path):
    if request.param == "sqlite":
        return SQLite(tmp_path / "state.db")
    tables = Postgres(request.getfixturevalue("postgres"))
    if request.param == "pgbouncer":
        tables.dsn += "&pgbouncer=true" if "?" in tables.dsn else "?pgbouncer=true"
    return tables


CALLS = {
    "save": lambda store, lease: store.commit([put(lease, a="2")]),
    "save_two": lambda store, lease: store.commit([put(lease, a="2", b="2")]),
    "clear": lambda store, lease: store.commit([put(lease, cleared=True)]),
    "delete": lambda store, lease: store.commit([put(lease, a=None)]),
    "confirm": lambda store, lease: store.commit([Batch(lease)]),
    "many": lambda store, lease: store.commit([put(lease, **{f"k{n}": "1" for n in range(1500)})]),
    "acquire": lambda store, _: store.acquire(SCOPE, 1),
    "acquire_new": lambda store, _: store.acquire(TaskScope("dag", "run", "other"), 1),
    "write": lambda store, _: store.write(SCOPE, {"a": ("2", None)}),
    "write_new": lambda store, _: store.write(TaskScope("dag", "run", "other"), {"a": ("2", None)}),
    "clear_all": lambda store, _: store.clear(SCOPE),
    "purge": lambda store, _: store.purge(),
}


async def refused(tables, call):
    """See that a call is refused for good: on PostgreSQL by the connection that takes the place of the one that was."""
    with pytest.raises(StoreError) as caught:
        await call()
    if isinstance(caught.value, StoreUnavailableError):
        assert isinstance(tables, Postgres)
        with pytest.raises(StoreError) as caught:
            await call()
    assert not isinstance(caught.value, StoreUnavailableError)
    known = f"schema {tables.known + 1}, this version of async-task-state knows up to {tables.known}"
    assert re.search(f"{known}.*upgrade async-task-state", str(caught.value))


@pytest.mark.parametrize("call", CALLS)
def test_an_open_store_writes_nothing_to_newer_tables(tables, call):
    async def use():
        async with opened(tables.dsn, default_retention=1e-9) as store:
            lease = (await store.acquire(SCOPE, 1)).lease
            assert not await store.commit([put(lease, a="1")])
            if call == "purge":
                await store.write(SCOPE, {"expired": ("1", 1e-9)})
            await asyncio.to_thread(tables.say, tables.known + 1)
            await refused(tables, lambda: CALLS[call](store, lease))
            await asyncio.to_thread(tables.say, tables.known)
            assert (await store.read(SCOPE)).entries == {"a": "1"}
            assert not await store.commit([put(lease, a="3")])
            assert [info.scope for info in await store.scopes()] == [SCOPE]
            if call == "purge":
                assert await store.purge() == 1

    asyncio.run(use())


def test_an_open_state_says_what_to_upgrade(tables):
    settings = Settings(dsn=tables.dsn)

    async def use():
        async with TaskState(SCOPE, store=settings.dsn, settings=settings) as state:
            await state.set("n", 1)
            await asyncio.to_thread(tables.say, tables.known + 1)
            with pytest.raises(StoreUnavailableError, match=r"upgrade async-task-state; not saved.*'n'"):
                await state.set("n", 2)
            await asyncio.to_thread(tables.say, tables.known)
            await until(lambda: state._writer.trouble is None)
            await state.set("m", 1)
            assert await state.get_all() == {"n": 2, "m": 1}

    asyncio.run(use())
