"""A database that goes back to what it was: a standby that lags is promoted, a backup is put back."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import AsyncExitStack, ExitStack, closing, suppress

import pytest
from standby import Standby

from async_task_state import Settings, StaleWriterError, TaskScope, TaskState
from async_task_state.sandbox_postgres import PostgresServer
from async_task_state.stores import open_store

TASKS = 40
"""More than the ids that PostgreSQL writes ahead of: the sequence of a standby that lags gives some of them again."""
SHARED = TaskScope("dag", "run", "shared")


class Process:
    """The states that one process has open, over a store of its own."""

    def __init__(self, dsn):
        self._settings = Settings(dsn=dsn)
        self._store = open_store(dsn)
        self._stack = AsyncExitStack()
        self.states = []

    async def open(self, *scopes):
        for scope in scopes:
            state = TaskState(scope, attempt=1, store=self._store, settings=self._settings)
            # In a context of its own: there it finds no other state to join, as in a process of its own.
            await asyncio.create_task(state.__aenter__())
            self._stack.push_async_exit(state.__aexit__)
            await state.set("of", scope.task_id)
            self.states.append(state)

    @property
    def leases(self):
        return [state._pending.lease for state in self.states]

    async def close(self):
        with suppress(StaleWriterError):
            await self._stack.aclose()


def tasks(name):
    return [TaskScope("dag", "run", f"{name} {number}") for number in range(TASKS)]


async def play(dsn, go_back, keep):
    """What is held when a database goes back to an earlier moment, and held again since.

    Args:
        dsn: Of the database.
        go_back: Puts it back to the moment when `keep` was called.
        keep: Called when there is something that is to be there again.
    """
    early, late, since = (Process(dsn) for _ in range(3))
    try:
        await early.open(SHARED)
        await asyncio.to_thread(keep)
        await late.open(SHARED, *tasks("late"))
        await asyncio.to_thread(go_back)
        await since.open(SHARED, *tasks("since"))
        came_again = {numbers(lease) for lease in late.leases} & {numbers(lease) for lease in since.leases}
        assert len(came_again) > 1, "no id came again: this shows nothing"
        assert (late.leases[0].attempt, late.leases[0].epoch) == (
            since.leases[0].attempt,
            since.leases[0].epoch,
        ), "the shared task has another epoch: this shows nothing"
        for number, state in enumerate(late.states):
            if number % 3 == 0:
                with pytest.raises(StaleWriterError):
                    await state.set("of", "a task of before")
            elif number % 3 == 1:
                with pytest.raises(StaleWriterError):
                    await state.refresh()
            else:
                await state.checkpoint(of="a task of before")
            assert not await state.is_current()
        for state in since.states:
            assert await state.is_current()
            await state.refresh()
            assert await state.get_all() == {"of": state.scope.task_id}
        assert not await early.states[0].is_current()
    finally:
        for process in (early, late, since):
            await process.close()


def numbers(lease):
    return lease.scope_id, lease.attempt, lease.epoch


@pytest.fixture
def times(pytestconfig):
    return pytestconfig.getoption("failovers")


def test_g4_no_lease_comes_again_when_a_standby_that_lags_is_promoted(times):
    with ExitStack() as servers:
        primary = servers.enter_context(PostgresServer())
        for number in range(times):
            standby = servers.enter_context(Standby(primary))
            hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
            options = f"target_session_attrs=read-write&schema=failover_{number}"

            def fail_over(primary=primary, standby=standby):
                primary.stop()
                standby.promote()

            dsn = f"postgresql://postgres:{primary.password}@{hosts}/postgres?{options}"
            asyncio.run(play(dsn, fail_over, standby.lag))
            primary = standby


def back_in_place_of_the_file(path, backup):
    # As whoever restores a backup must: SQLite would apply the old log to the new file.
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    backup.replace(path)


def back_into_the_file(path, backup):
    with closing(sqlite3.connect(backup)) as source, closing(sqlite3.connect(path)) as target:
        source.backup(target)


@pytest.mark.parametrize("put", [back_in_place_of_the_file, back_into_the_file])
def test_g4_no_lease_comes_again_when_a_backup_is_put_back(tmp_path, times, put):
    for number in range(times):
        path, backup = tmp_path / f"{number}.db", tmp_path / "backup.db"

        def keep(path=path, backup=backup):
            backup.unlink(missing_ok=True)
            with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(backup)) as target:
                source.backup(target)

        asyncio.run(play(f"sqlite:///{path}", lambda path=path: put(path, tmp_path / "backup.db"), keep))
