"""A log that is deleted or replaced while the database is open: noticed at the next call, and what it held is kept."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from direct import put
from onestore import SCOPE, one_key, using
from sqliteworker import started

from async_task_state import StoreError, StoreUnavailableError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


def others_see(path):
    with closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT key, value FROM entry"))


@pytest.mark.parametrize("pattern", ["*-wal", "*-*"])
def test_g1_what_a_deleted_log_held_is_kept(path, caplog, pattern):
    async def use(store):
        lease = await one_key(store)
        assert not await store.commit([put(lease, b="2")])
        for file in path.parent.glob(pattern):
            file.unlink()
        assert not await store.commit([put(lease, c="3")])
        assert (await store.read(SCOPE)).entries == {"a": "1", "b": "2", "c": "3"}
        with started(1) as [process]:
            process.tell("open", f"sqlite:///{path}")
            process.tell("close")
        assert not await store.commit([put(lease, d="4")])

    using(path, use)
    assert others_see(path).items() >= {"a": "1", "b": "2", "c": "3", "d": "4"}.items()
    assert caplog.text.count(f"the log {path}-wal of the database was deleted or replaced") == 1


def test_g5_a_new_log_beside_a_deleted_one_is_no_silent_loss(path):
    """Another process began without what the log held, so that neither may go on as if nothing were."""

    async def use(store):
        lease = await one_key(store)
        assert not await store.commit([put(lease, b="2")])
        for file in path.parent.glob("*-*"):
            file.unlink()
        with started(1) as [process]:
            process.tell("open", f"sqlite:///{path}")
            with pytest.raises(StoreError, match="what was saved last may be lost") as caught:
                await store.commit([put(lease, c="3")])
            assert not isinstance(caught.value, StoreUnavailableError)
            assert f"{path}-wal" in str(caught.value)

    using(path, use)
