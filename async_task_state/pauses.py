"""When a call that does not wait must wait after all: its caller is faster than the store, or than its event loop."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from async_task_state.pending import CAP_BYTES
from async_task_state.waiting import TURN_SECONDS, give_turn, turns

if TYPE_CHECKING:
    from async_task_state.pending import Pending

__all__ = ["must_pause", "pause", "pause_if_due"]


def must_pause(pending: Pending) -> bool:
    """Whether the caller that has just recorded must wait."""
    # Without calls of properties and functions, because every checkpoint asks.
    return pending._batch_bytes > CAP_BYTES or monotonic() - turns.last > TURN_SECONDS


async def pause(pending: Pending) -> None:
    """Wait for the store, or give the event loop a turn."""
    if pending.full:
        await pending.flush()
        return
    await give_turn()
    if pending.story is not None:
        pending.story.go_on()
    if pending._writer.inline is True:
        await pending._writer.save_due(pending)


async def pause_if_due(pending: Pending) -> None:
    """Wait if the caller must."""
    if must_pause(pending):
        await pause(pending)
