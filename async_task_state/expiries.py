"""Which keys of a state have a retention of their own, and when that is over: looked at where the state is full."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from async_task_state.pending import Pending
    from async_task_state.stores import Batch

__all__ = ["NONE", "Expiries"]

NONE: Final[Mapping[str, float]] = {}

LATER: Final = 1.01
"""PostgreSQL moves an expiry by a hundredth of the retention at most."""


class Expiries:
    """When saved keys of one holder's state have expired; used under the lock of its `Pending`.

    Args:
        ends: As in a `Snapshot`.

    Attributes:
        are_any: Whether there are, or may be, any.
    """

    __slots__ = ("_ends", "are_any")

    def __init__(self, ends: Mapping[str, float] = NONE) -> None:
        self._ends = dict(ends)
        self.are_any = bool(ends)

    def note_saved(self, batch: Batch) -> None:
        """Learn from a batch that is saved by now."""
        now = time.monotonic()
        if batch.cleared:
            self._ends.clear()
        for key, (text, retention) in batch.changes.items():
            if text is not None and retention is not None and retention < math.inf:
                self._ends[key] = now + retention * LATER
            else:
                self._ends.pop(key, None)

    def note_read(self, ends: Mapping[str, float], saved: Iterable[Batch]) -> None:
        """Learn from a snapshot, and from what may have been saved since it was taken."""
        self._ends = dict(ends)
        for batch in saved:
            self.note_saved(batch)
        self.are_any = self.are_any or bool(ends)

    def drop(self, pending: Pending) -> bool:
        """Remove the values of keys that have expired, as the store has; whether there were any."""
        now = time.monotonic()
        ended = [key for key, end in self._ends.items() if end <= now and not pending.changes(key)]
        for key in ended:
            pending.values.pop(key, None)
            del self._ends[key]
        return bool(ended)
