"""What is on its way to the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from async_task_state.pending import Pending
    from async_task_state.stores import Batch
    from async_task_state.waiting import Waiter

__all__ = ["Flight"]


@dataclass(slots=True)
class Flight:
    """A batch on its way to the store, and what is needed to put it back or to settle it."""

    pending: Pending
    batch: Batch
    waiters: list[Waiter]
    calls: int
    bytes: int
    since: float
