"""Fixtures of the tests of leaving."""

from __future__ import annotations

import pytest
from faulty import PATIENCE
from leavekit import NEVER

from async_task_state import Settings, TaskState


@pytest.fixture(params=[("asyncio", {}), ("asyncio", {"debug": True})], ids=["asyncio", "asyncio-debug"])
def anyio_backend(request):
    """trio has no cancellation but that of scopes."""
    return request.param


@pytest.fixture
def handle(store, scope):
    """Makes handles whose checkpoints only a flush can save."""

    def handle(*, exit_timeout=PATIENCE, **options):
        settings = Settings(dsn="memory:", max_delay=NEVER, outage_timeout=NEVER, exit_timeout=exit_timeout)
        return TaskState(scope, store=store, settings=settings, **options)

    return handle
