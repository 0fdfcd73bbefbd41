"""Who holds a state: a holder that is fenced is told by whom, and the log says how old what it resumes is."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import threading
import time

import anyio
import pytest
from anyio import to_thread
from faulty import PATIENCE

from async_task_state import AssetScope, AssetState, StaleWriterError, TaskScope, story
from async_task_state.stores import Lease, open_store
from async_task_state.stores.holders import Holder
from async_task_state.sync import SyncTaskState
from async_task_state.takeover import DELETED, fate_of, holder_text, stale_error

pytestmark = pytest.mark.anyio

HERE = re.escape(f"host {socket.gethostname()}, process {os.getpid()}, since ") + r"\d\d:\d\d:\d\dZ"
TAKEN = rf"attempt 1 of dag/run/task is no longer its holder: taken over by attempt 2 on {HERE}; nothing more"


def acquired_elsewhere(dsn, scope, attempt):
    """Another process takes the lease, by a store of its own."""

    async def acquire():
        store = open_store(dsn)
        try:
            return await store.acquire(scope, attempt)
        finally:
            await store.close()

    asyncio.run(acquire())


def left(state):
    """Have a state left without the error that it would raise again."""
    state._pending.error = None


async def test_g4_a_fenced_holder_is_told_by_whom(make_state, dsn, scope):
    async with make_state(attempt=1) as state:
        await state.set("a", 1)
        await to_thread.run_sync(acquired_elsewhere, dsn, scope, 2)
        with pytest.raises(StaleWriterError, match=TAKEN):
            await state.set("a", 2)
        with pytest.raises(StaleWriterError, match=TAKEN):
            await state.checkpoint(a=3)
        left(state)


async def test_g4_who_refreshes_is_told_by_whom(make_state, dsn, scope):
    async with make_state(attempt=1) as state:
        await to_thread.run_sync(acquired_elsewhere, dsn, scope, 2)
        with pytest.raises(StaleWriterError, match=TAKEN):
            await state.refresh()
        left(state)


async def test_g4_an_asset_has_no_attempt(settings, dsn):
    async with AssetState(AssetScope("x"), store=settings.dsn, settings=settings) as state:
        await to_thread.run_sync(acquired_elsewhere, dsn, AssetScope("x"), None)
        with pytest.raises(StaleWriterError, match=f"taken over by {HERE};"):
            await state.set("a", 2)
        left(state)


async def test_g4_who_was_cleared_is_told_of_no_holder(make_state, on_store, scope):
    async with make_state(attempt=1) as state:
        await on_store("clear", scope)
        with pytest.raises(
            StaleWriterError, match=r"holder: it was cleared, by `.*` or a purge, and no process is known"
        ):
            await state.set("a", 2)
        left(state)


def test_g4_the_sync_door_is_told_too(make_state, dsn, scope):
    def hold():
        with SyncTaskState(make_state(attempt=1)) as state:
            acquired_elsewhere(dsn, scope, 2)
            state.set("a", 2)

    with pytest.raises(StaleWriterError, match=TAKEN):
        hold()


class TestAStoreThatDoesNotSay:
    """The error comes all the same."""

    @pytest.fixture
    def dsn(self):
        return "memory:"

    @pytest.fixture
    def fenced(self, store, settings, make_state, scope):
        async def fenced():
            async with make_state(attempt=1, store=store) as state:
                await store.inner.acquire(scope, 2)
                with pytest.raises(StaleWriterError, match="another one has opened or cleared this state"):
                    await state.set("a", 2)
                left(state)

        return fenced

    async def test_g4_that_knows_no_way_to_list(self, fenced):
        await fenced()

    async def test_g4_that_raises(self, fenced, store, monkeypatch):
        async def scopes(*_):
            raise RuntimeError

        monkeypatch.setattr(type(store), "scopes", staticmethod(scopes), raising=False)
        await fenced()

    async def test_g4_that_never_answers(self, fenced, store, monkeypatch):
        monkeypatch.setattr("async_task_state.writer.LOOK_SECONDS", 0.01)

        async def scopes(*_):
            await asyncio.Event().wait()

        monkeypatch.setattr(type(store), "scopes", staticmethod(scopes), raising=False)
        await fenced()

    async def test_g2_another_state_in_the_commit_does_not_wait_for_it(
        self, store, make_state, scope, monkeypatch
    ):
        monkeypatch.setattr("async_task_state.writer.LOOK_SECONDS", PATIENCE)
        looking, answer = threading.Event(), threading.Event()

        async def scopes(*_):
            looking.set()
            await asyncio.to_thread(answer.wait, PATIENCE)
            raise RuntimeError

        monkeypatch.setattr(type(store), "scopes", staticmethod(scopes), raising=False)
        saved = anyio.Event()

        async def save(other):
            await other.set("b", 1)
            saved.set()

        async def be_fenced(state):
            with pytest.raises(StaleWriterError):
                await state.set("a", 2)

        async with (
            make_state(attempt=1, store=store) as state,
            make_state(TaskScope("dag", "run", "other"), store=store) as other,
        ):
            # So that nothing is on its way, and both come in one commit.
            await state.set("a", 1)
            await other.set("b", 0)
            await store.inner.acquire(scope, 2)
            async with anyio.create_task_group() as group:
                group.start_soon(be_fenced, state)
                group.start_soon(save, other)
                await to_thread.run_sync(looking.wait, PATIENCE)
                with anyio.fail_after(PATIENCE / 2):
                    await saved.wait()
                answer.set()
            left(state)


@pytest.mark.parametrize(
    ("now", "fate"),
    [
        (
            (7, 5, None),
            "it was cleared, by `async-task-state clear` or a purge, and no process is known that has",
        ),
        ((7, 4, None), "its database has gone back to an earlier moment"),
        ((7, 3, Holder("w", 1, 2, 1.0)), "its database has gone back to an earlier moment"),
        ((8, 1, None), "a purge has deleted it, or its database was replaced"),
        (
            (8, 1, Holder("w", 1, 2, 1.0)),
            "taken over by attempt 2 on host w, process 1, since 1970-01-01T00:00:01Z",
        ),
    ],
    ids=["cleared", "restored", "restored-and-held", "deleted", "made-again"],
)
def test_g4_what_is_stored_says_what_has_become_of_the_state(now, fate):
    lease = Lease(TaskScope("dag", "run", "task"), 7, 1, 4, 0)
    assert fate_of(lease, *now).startswith(fate)


async def test_g4_who_was_deleted_is_told_so(make_state, on_store, scope, settings):
    async with make_state(attempt=1) as state:
        await state.set("a", 1)
        await on_store("clear", scope)
        await on_store("purge", time.time() + 100 * 86400)
        with pytest.raises(StaleWriterError, match=f"holder: {DELETED}; nothing more"):
            await state.set("a", 2)
        left(state)


def test_a_takeover_of_another_day_says_which():
    lease = Lease(TaskScope("dag", "run", "task"), 1, 1, 1, 0)
    long_ago = Holder("worker", 4711, 2, 1_000_000_000.5)
    text = "attempt 2 on host worker, process 4711, since 2001-09-09T01:46:40Z"
    assert holder_text(lease.scope, long_ago) == text
    assert f"taken over by {text};" in str(
        stale_error(lease, reopened_here=False, fate=fate_of(lease, 1, 2, long_ago))
    )
    assert holder_text(AssetScope("x"), Holder("w", 1, 1, time.time())).startswith(
        "host w, process 1, since "
    )


async def test_the_log_says_how_old_it_is_what_is_resumed(make_state, caplog, scope):
    caplog.set_level(logging.INFO, story.__name__)
    async with make_state(attempt=1) as state:
        await state.set("a", 1)
    caplog.clear()
    async with make_state(attempt=2):
        [line] = [record.getMessage() for record in caplog.records if record.name == story.__name__]
    assert re.fullmatch(rf"{scope}: attempt 2 resumes: 1 key, saved \d+ s ago", line)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (12, "12 s"), (119, "119 s"), (120, "2 min"), (7300, "2 h"), (2e5, "2 d")],
)
def test_a_time_is_said_in_its_largest_unit(seconds, text):
    assert story.since_text(seconds) == text
