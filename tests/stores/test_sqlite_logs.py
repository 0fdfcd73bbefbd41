"""A log that is deleted or replaced while the database is open: noticed at the next call, and what it held is kept."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from direct import put
from onestore import SCOPE, one_key, using
from sqliteworker import started

from async_task_state import StoreError, StoreUnavailableError, TaskScope


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


def others_see(path):
    with closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT key, value FROM entry"))


def elsewhere(path, statement):
    """What a statement returns in a process that knows nothing of ours."""
    code = "import json, sqlite3, sys; print(json.dumps([*sqlite3.connect(sys.argv[1], isolation_level=None).execute(sys.argv[2])]))"
    return json.loads(subprocess.check_output([sys.executable, "-c", code, path, statement]))


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


def test_g1_a_deleted_index_lets_nobody_overwrite_what_another_has_saved(path):
    """Another process must not make a second index while the first is in use; the next call of its user mends it."""
    dsn = f"sqlite:///{path}"
    with started(2) as (first, second):
        first.tell("open", dsn)
        first.tell("set", 1)
        path.with_name(f"{path.name}-shm").unlink()
        with pytest.raises(AssertionError, match=r"open.*the index .*-shm .* was deleted"):
            second.tell("open", dsn)
        assert first.tell("set", 2) == "current True"
        second.tell("open", dsn)
        assert second.tell("set", 3) == "current True"
        assert first.tell("set", 4) == "current True"
        assert second.tell("set", 5) == "current True"
        first.tell("close")
        second.tell("close")
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT value FROM entry ORDER BY scope_id").fetchall() == [("4",), ("5",)]


def test_g1_a_second_index_is_no_silent_loss_and_destroys_nothing(path):
    """As made by somebody else's program, which knows nothing of this."""

    async def use(store):
        lease = await one_key(store)
        path.with_name(f"{path.name}-shm").unlink()
        elsewhere(path, "UPDATE entry SET value = '7'")
        for _ in range(2):
            with pytest.raises(StoreError, match=r"-shm.*end this process") as caught:
                await store.commit([put(lease, a="2")])
            assert not isinstance(caught.value, StoreUnavailableError)

    using(path, use)
    assert elsewhere(path, "SELECT key, value FROM entry") == [["a", "7"]]


def test_g1_what_a_killed_process_left_in_a_log_without_an_index_is_there(path):
    with started(1) as [process]:
        process.tell("open", f"sqlite:///{path}")
        process.tell("set", 1)
        process.kill()
    path.with_name(f"{path.name}-shm").unlink()
    assert using(path, lambda store: store.read(TaskScope("dag", "run", "task", 0))).entries == {"n": "1"}


def test_g4_a_second_name_of_a_file_is_refused(path):
    """SQLite would keep another log by it, and so another database."""
    with started(2) as (first, second):
        first.tell("open", f"sqlite:///{path}")
        first.tell("set", 1)
        path.with_name("hard.db").hardlink_to(path)
        with pytest.raises(
            AssertionError, match=r"open.*has 2 names \(hard links\).*remove all names but one"
        ):
            second.tell("open", f"sqlite:///{path.with_name('hard.db')}")
        assert first.tell("set", 2) == "current True"
        path.with_name("hard.db").unlink()
        second.tell("open", f"sqlite:///{path}")
        assert second.tell("set", 3) == "current True"


@pytest.mark.parametrize("leaves", ["close", "end"])
@pytest.mark.parametrize("mode", ["open", "read"])
def test_g1_a_process_that_did_nothing_meanwhile_destroys_nothing_when_it_leaves(path, leaves, mode):
    """Closing, SQLite would delete the new log by its name."""
    dsn = f"sqlite:///{path}"
    with started(3) as (idle, busy, late):
        busy.tell("open", dsn)
        busy.tell("set", 1)
        idle.tell(mode, dsn)
        for file in path.parent.glob("*-*"):
            file.unlink()
        assert busy.tell("set", 2) == "current True"
        late.tell("open", dsn)
        assert late.tell("set", 3) == "current True"
        busy.tell("close")
        late.kill()
        if leaves == "close":
            idle.tell("close")
        idle.end()
    found = elsewhere(
        path, "SELECT map_index, value FROM entry JOIN scope ON id = scope_id ORDER BY map_index"
    )
    assert found == [[1, "2"], [2, "3"]]


def test_g5_a_process_that_leaves_without_its_log_says_what_may_be_lost(path, caplog):
    async def use(store):
        await one_key(store)
        for file in path.parent.glob("*-*"):
            file.unlink()
        elsewhere(path, "CREATE TABLE made (a)")

    using(path, use)
    assert "what was saved last may be lost" in caplog.text
