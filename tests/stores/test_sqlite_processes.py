"""One SQLite file and several processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest
from onestore import SCOPE, one_key, using

from async_task_state import StoreUnavailableError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


def test_processes_that_begin_at_once_make_one_database(path):
    code = """
        import asyncio, sys
        from async_task_state import Settings, TaskScope, TaskState

        async def main():
            dsn = f"sqlite:///{sys.argv[1]}"
            scope = TaskScope("dag", "run", "task", int(sys.argv[2]))
            async with TaskState(scope, store=dsn, settings=Settings(dsn=dsn)) as state:
                await state.set("index", scope.map_index)

        print("ready", flush=True)
        sys.stdin.readline()
        asyncio.run(main())
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(path), str(index)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(4)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    found = using(path, lambda store: store.scopes())
    assert sorted(info.scope.map_index for info in found) == [0, 1, 2, 3]
    assert [info.keys for info in found] == [1, 1, 1, 1]


def test_g5_a_locked_database_is_unavailable_until_it_is_released(path, monkeypatch):
    monkeypatch.setattr("async_task_state.stores.sqlite.LOCK_WAIT_SECONDS", 0.05)
    using(path, one_key)
    code = """
        import sqlite3, sys
        db = sqlite3.connect(sys.argv[1], isolation_level=None)
        db.execute("BEGIN IMMEDIATE")
        print("locked", flush=True)
        sys.stdin.readline()
    """
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "locked\n"

    async def wait(store):
        with pytest.raises(StoreUnavailableError, match=f"the database {path}: database is locked"):
            await store.acquire(SCOPE, 1)
        holder.communicate("go\n", timeout=60)
        assert (await store.acquire(SCOPE, 1)).entries == {"a": "1"}

    using(path, wait)


def test_g1_a_killed_process_leaves_what_was_committed(path):
    code = """
        import asyncio, sys
        from async_task_state.scopes import TaskScope
        from async_task_state.stores import Batch
        from async_task_state.stores.sqlite import SQLiteStore

        async def main():
            store = SQLiteStore(sys.argv[1])
            lease = (await store.acquire(TaskScope("dag", "run", "task"), 1)).lease
            number = 0
            while True:
                number += 1
                await store.commit([Batch(lease, {"a": (str(number), None), "b": (str(number), None)})])
                print(number, flush=True)

        asyncio.run(main())
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], stdout=subprocess.PIPE, text=True
    )
    while int(process.stdout.readline()) < 20:
        pass
    process.send_signal(signal.SIGKILL)
    # Not `communicate`, which leaves out what `readline` has read ahead.
    with process:
        told = int((process.stdout.read().split() or ["20"])[-1])
    left = using(path, lambda store: store.read(SCOPE)).entries
    assert left["a"] == left["b"]
    assert int(left["a"]) in (told, told + 1)
