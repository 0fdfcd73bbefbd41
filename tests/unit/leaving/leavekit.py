"""Cancelling a task again and again while it leaves a state."""

from __future__ import annotations

import asyncio
import sys

import pytest
from faulty import until

NEVER = 3600.0
COUNTS = sys.version_info >= (3, 11)


async def turns(count=20):
    for _ in range(count):
        await asyncio.sleep(0)


async def cancel_while_leaving(store, task, times=10):
    """Cancel a task again and again while it waits for its last flush, and let the flush end."""
    await until(lambda: store.calls_waiting)
    for number in range(times):
        task.cancel(f"number {number}")
        await turns()
        assert not task.done()
    store.hanging = False


async def ends_cancelled(task):
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
