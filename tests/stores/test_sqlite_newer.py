"""A newer version brings the tables up to date while an older one has them open."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing

import pytest
from direct import put, until
from onestore import SCOPE, one_key, using

from async_task_state import Settings, StoreError, StoreUnavailableError, TaskScope, TaskState
from async_task_state.stores import Batch
from async_task_state.stores.sqlite_sql import SCHEMA_VERSION


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


def raise_version(path, version=SCHEMA_VERSION + 1):
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {version}")


CALLS = {
    "save": lambda store, lease: store.commit([put(lease, a="2")]),
    "clear": lambda store, lease: store.commit([put(lease, cleared=True)]),
    "delete": lambda store, lease: store.commit([put(lease, a=None)]),
    "confirm": lambda store, lease: store.commit([Batch(lease)]),
    "many": lambda store, lease: store.commit([put(lease, **{f"k{n}": "1" for n in range(500)})]),
    "acquire": lambda store, _: store.acquire(SCOPE, 1),
    "acquire_new": lambda store, _: store.acquire(TaskScope("dag", "run", "other"), 1),
    "write": lambda store, _: store.write(SCOPE, {"a": ("2", None)}),
    "clear_all": lambda store, _: store.clear(SCOPE),
    "read": lambda store, _: store.read(SCOPE),
    "scopes": lambda store, _: store.scopes(),
    "purge": lambda store, _: store.purge(),
}


@pytest.mark.parametrize("call", CALLS)
def test_an_open_store_does_not_go_on_with_newer_tables(path, call):
    async def use(store):
        lease = await one_key(store)
        raise_version(path)
        with pytest.raises(StoreError, match="upgrade async-task-state") as caught:
            await CALLS[call](store, lease)
        assert not isinstance(caught.value, StoreUnavailableError)
        assert f"the database {path} has schema {SCHEMA_VERSION + 1}" in str(caught.value)
        raise_version(path, SCHEMA_VERSION)
        assert (await store.read(SCOPE)).entries == {"a": "1"}
        assert not await store.commit([put(lease, a="3")])

    using(path, use)


def test_an_open_state_says_so(path):
    settings = Settings(dsn=f"sqlite:///{path}")

    async def use():
        async with TaskState(SCOPE, store=settings.dsn, settings=settings) as state:
            await state.set("n", 1)
            raise_version(path)
            with pytest.raises(StoreUnavailableError, match=r"upgrade async-task-state; not saved.*'n'"):
                await state.set("n", 2)
            raise_version(path, SCHEMA_VERSION)
            await until(lambda: state._writer.trouble is None)
            await state.set("m", 1)
            assert await state.get_all() == {"n": 2, "m": 1}

    asyncio.run(use())
