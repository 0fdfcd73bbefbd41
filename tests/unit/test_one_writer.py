"""One writer a file in a process, whatever the file is called and whoever of the process uses it."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path

import pytest
from anyio import to_thread
from sqliteworker import started

from async_task_state import Settings, cli, lifetime, purge, purge_sync
from async_task_state.lifetime import writer_for
from async_task_state.settings import load_settings
from async_task_state.stores.memory import MemoryStore
from async_task_state.stores.sqlite import SQLiteStore

SHARED = "1073741826 1073742335"
"""The bytes of a database file that SQLite locks as long as it has it open."""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


@pytest.fixture
def dsn(path):
    return f"sqlite:///{path}"


def by_symlink(path):
    link = path.with_name("link.db")
    link.symlink_to(path.name)
    return f"sqlite:///{link}"


def by_hard_link(path):
    link = path.with_name("hard.db")
    link.hardlink_to(path)
    return f"sqlite:///{link}"


def by_folder(path):
    folder = path.parent.with_name(f"{path.parent.name}-link")
    folder.symlink_to(path.parent)
    return f"sqlite:///{folder}/{path.name}"


SPELLINGS = {
    "query": lambda path: f"sqlite:///{path}?single_machine=true",
    "parts": lambda path: f"sqlite:///{path.parent}/./x/..//{path.name}",
    "symlink": by_symlink,
    "folder": by_folder,
    "object": SQLiteStore,
}


@pytest.fixture(params=SPELLINGS)
def spelling(request, path):
    (path.parent / "x").mkdir()
    return SPELLINGS[request.param](path)


def shared_locks(path):
    """How many locks there are by which another process sees that this one has the file open."""
    inode = path.stat().st_ino
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    mine = [
        " ".join(line[6:]) for line in lines if line[4] == str(os.getpid()) and line[5].endswith(f":{inode}")
    ]
    return mine.count(SHARED)


def writer_of(store):
    return writer_for(store, Settings(dsn="memory:"))


def test_two_names_of_a_file_that_is_not_there_yet_are_one(dsn, path, spelling):
    assert writer_of(dsn) is writer_of(spelling)
    assert not path.exists()


@pytest.mark.anyio
async def test_two_names_of_a_file_that_is_there_are_one(dsn, path, make_state, spelling):
    async with make_state() as state:
        await state.set("n", 1)
        assert writer_of(spelling) is writer_of(dsn)
        assert writer_of(by_hard_link(path)) is writer_of(dsn)


def test_two_files_are_two(dsn, path, tmp_path):
    writer = writer_of(dsn)
    (tmp_path / "other").mkdir()
    for other in (tmp_path / "other.db", tmp_path / "other" / path.name, f"{path}.db"):
        assert writer_of(f"sqlite:///{other}") is not writer


@pytest.mark.anyio
async def test_a_name_that_leads_elsewhere_by_now_is_another_file(dsn, path, make_state):
    link = by_symlink(path)
    async with make_state() as state:
        await state.set("n", 1)
        assert writer_of(link) is writer_of(dsn)
        path.with_name("link.db").unlink()
        path.with_name("link.db").symlink_to("other.db")
        assert writer_of(link) is not writer_of(dsn)


@pytest.mark.anyio
async def test_a_replaced_file_still_has_one_writer(dsn, path, make_state, spelling):
    async with make_state() as state:
        await state.set("n", 1)
    shutil.copy(path, path.with_name("new.db"))
    path.with_name("new.db").replace(path)
    assert writer_of(spelling) is writer_of(dsn)
    async with make_state(store=spelling) as state:
        assert await state.get("n") == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("postgresql://u:p@h/db?sslmode=require&schema=s", "postgres://u:p@h/db?schema=s&sslmode=require"),
        ("memory:a", "memory:a"),
    ],
)
def test_two_spellings_of_a_database_are_one(one, other):
    assert writer_of(one) is writer_of(other)


@pytest.mark.parametrize("other", ["postgresql://u:p@h/other", "postgresql://u:p@h/db?schema=s", "memory:"])
def test_two_databases_are_two(other):
    assert writer_of("postgresql://u:p@h/db") is not writer_of(other)


@pytest.mark.anyio
async def test_another_name_joins_the_state_that_is_open(make_state, spelling):
    async with make_state() as outer:
        await outer.set("n", 1)
        async with make_state(store=spelling) as inner:
            assert inner is outer
        assert await outer.is_current()


# whoever else of the process uses the file


@pytest.fixture
def configured(monkeypatch, dsn, _airflow_imported, _settings_read_anew):
    monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__DSN", dsn)
    load_settings.cache_clear()


async def purge_elsewhere(dsn):
    await to_thread.run_sync(purge_sync, dsn)


async def clean_up(dsn):
    backends = pytest.importorskip("async_task_state.backend", reason="state backends are of Airflow 3.3")
    await to_thread.run_sync(backends.StateStoreBackend().cleanup)


def command(*arguments):
    async def run(dsn):
        argv = [*arguments, "--dsn", dsn]
        assert await to_thread.run_sync(cli.main, argv) == 0

    return run


OTHERS = {
    "purge": purge,
    "purge_sync": purge_elsewhere,
    "cleanup": clean_up,
    "list": command("list"),
    "show": command("show", "dag", "run", "task"),
    "watch": command("watch", "dag", "run", "task", "--until", "1"),
    "clear": command("clear", "dag", "run", "other", "--yes"),
    "cli_purge": command("purge"),
    "check": command("check"),
    "init": command("init-db"),
}


@pytest.fixture(scope="module")
def process():
    """Another process, which comes to the file and goes."""
    with started(1) as [process]:
        yield process


@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize("other", OTHERS)
def test_g1_what_else_uses_the_file_leaves_its_lock(make_state, scope, dsn, path, process, other):
    """Without it another process believes to be the last to use the file, and deletes the log."""

    async def use():
        async with make_state(type(scope)("dag", "run", "other")) as emptied:
            await emptied.set("n", 1)
        async with make_state() as state:
            await state.work("files").done("x", n=1)
            await state.flush()
            assert shared_locks(path) == 1
            for number, name in enumerate((dsn, f"{dsn}?single_machine=true")):
                await OTHERS[other](name)
                assert shared_locks(path) == 1
                assert len(lifetime._writers) == 1
                process.tell("open", dsn)
                process.tell("close")
                await state.set("n", number)
                assert process.tell("get", dsn, "task") == str(number)
            assert await state.is_current()

    asyncio.run(use())


@pytest.mark.usefixtures("configured")
@pytest.mark.anyio
async def test_g1_a_purge_leaves_the_lock_on_any_loop(make_state, path):
    async with make_state() as state:
        await state.set("n", 1)
        await purge()
        assert shared_locks(path) == 1


def test_g1_another_name_of_the_file_leaves_its_lock(make_state, scope, dsn, path, process):
    """Nor does it hang: two logs of one index are a disk I/O error that is tried again for a minute."""
    other = type(scope)("dag", "run", "other")

    async def use(names):
        async with make_state() as state:
            await state.set("n", 0)
            for number, name in enumerate(names, 1):
                async with make_state(other, store=name(path)) as another:
                    await another.set("n", -number)
                    assert shared_locks(path) == 1
                    # Where a file has two names, another process opens it by neither.
                    path.with_name("hard.db").unlink(missing_ok=True)
                    process.tell("open", dsn)
                    process.tell("close")
                    await state.set("n", number)
                    await another.set("n", number)
                assert process.tell("get", dsn, "task") == process.tell("get", dsn, "other") == str(number)

    (path.parent / "x").mkdir()
    asyncio.run(use([*SPELLINGS.values(), by_hard_link]))


def test_g1_two_event_loops_share_the_writer(make_state, scope, path):
    """Of two threads, each with a loop of its own and its own name of the file."""

    async def fill(index, store):
        async with make_state(type(scope)("dag", "run", "task", index), store=store) as state:
            for number in range(50):
                await state.set("n", number)
            return shared_locks(path)

    async def both():
        spelled = f"sqlite:///{path}?single_machine=true"
        return await asyncio.gather(
            asyncio.to_thread(lambda: asyncio.run(fill(0, f"sqlite:///{path}"))),
            asyncio.to_thread(lambda: asyncio.run(fill(1, spelled))),
        )

    assert asyncio.run(both()) == [1, 1]
    assert len(lifetime._writers) == 1


def test_a_file_made_here_keeps_the_locks_of_who_was_faster(path, monkeypatch):
    """Making the file is opening and closing it: whoever of the process is about to use it waits for that."""
    close, threads = os.close, []
    other = SQLiteStore(path)

    async def make():
        def close_late(descriptor):
            if not threads:
                threads.append(asyncio.get_running_loop().run_in_executor(None, asyncio.run, other.scopes()))
                # Long enough for whoever does not wait; whoever does is held up by nothing else.
                time.sleep(0.3)
            close(descriptor)

        store = SQLiteStore(path)
        monkeypatch.setattr("async_task_state.stores.sqlite_file.os.close", close_late)
        await store.scopes()
        await threads[0]
        await store.close()
        return shared_locks(path)

    assert asyncio.run(make()) == 1
    asyncio.run(other.close())


def test_a_memory_store_has_the_retention_that_was_given(tmp_path):
    name = str(tmp_path)
    assert MemoryStore.shared(name)._default_retention is None
    assert MemoryStore.shared(name, default_retention=5.0)._default_retention == 5.0
    assert MemoryStore.shared(name)._default_retention == 5.0
