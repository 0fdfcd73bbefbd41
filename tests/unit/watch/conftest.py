"""Fixtures of the tests of a watch."""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager

import anyio
import pytest
from watchkit import Watching

from async_task_state import AssetScope, Settings
from async_task_state.arrivals import Arrivals, Watch
from async_task_state.state import AssetState


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    return folder


@pytest.fixture
def watch(folder):
    return Watch(source=str(folder), poll_interval=0.01, settle=0, sample=100)


@pytest.fixture
def open_state(tmp_path):
    def open_state(**options):
        dsn = f"memory:{tmp_path}"
        return AssetState(AssetScope("orders"), store=dsn, settings=Settings(dsn=dsn), **options)

    return open_state


@pytest.fixture
def looks(monkeypatch):
    """What every look of every watch has found."""
    looks = []
    see = Arrivals.see

    def noting(self, *args, **options):
        found = see(self, *args, **options)
        looks.append(found)
        return found

    monkeypatch.setattr(Arrivals, "see", noting)
    return looks


@pytest.fixture
def watching(open_state, watch, looks):
    """Starts a watch, and ends it as a shutdown does."""

    @asynccontextmanager
    async def watching(watch=watch):
        async with anyio.create_task_group() as group:
            watching = Watching(looks)
            group.start_soon(watching.run, open_state(), watch)
            yield watching
            group.cancel_scope.cancel()

    return watching


@pytest.fixture
def by_hand(open_state, watch):
    """A watch whose events are confirmed by asking for the next."""

    @asynccontextmanager
    async def by_hand():
        async with open_state() as state, aclosing(watch.events(state)) as events:
            yield events

    return by_hand
