"""What is on its way to the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from async_task_state.pending import Pending
    from async_task_state.stores import Batch
    from async_task_state.waiting import Waiter

__all__ = ["Flight", "laid_over"]


@dataclass(slots=True)
class Flight:
    """A batch on its way to the store, and what is needed to put it back or to settle it."""

    pending: Pending
    batch: Batch
    waiters: list[Waiter]
    calls: int
    bytes: int
    since: float


def laid_over(entries: Mapping[str, str], batches: Iterable[Batch]) -> dict[str, str]:
    """What a scope holds after some batches that held some entries before."""
    values = dict(entries)
    for batch in batches:
        if batch.cleared:
            values.clear()
        for key, (text, _) in batch.changes.items():
            if text is None:
                values.pop(key, None)
            else:
                values[key] = text
    return values
