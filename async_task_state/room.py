"""How much a state may hold in all, work sets and the library's own records included; what costs a checkpoint nothing.

While there is much room a state is not counted: its batches are, as if they replaced nothing, until they may have used up
what room there was. Near its limit a state is counted once, and then each call by what it changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from async_task_state.codec import MAX_KEY_CHARS, RESERVED_PREFIX
from async_task_state.errors import StateTooLargeError
from async_task_state.settings import SECTION

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from async_task_state.pending import Pending
    from async_task_state.scopes import Scope
    from async_task_state.settings import Settings
    from async_task_state.stores import Change
    from async_task_state.work import WorkSet

__all__ = [
    "BYTES_A_KEY_CHAR",
    "FEW",
    "MUST_COUNT",
    "TAIL_BYTES",
    "Room",
    "check_write",
    "entry_bytes",
    "growth_of",
]

FEW: Final = 8
"""How many values a call may have that is let through without a look at them."""
MUST_COUNT: Final = -(1 << 62)
"""Fewer bytes than any batch has: every call is counted."""
BYTES_A_KEY_CHAR: Final = 4
"""In UTF-8, at most."""
TAIL_BYTES: Final = 8192
"""What the tail of a work set and its key take, and more."""
FAR: Final = 8
"""A state is far from its limit while this part of the limit is free: so much is written before it is counted again."""


class Room:
    """How much more one holder's state may hold; used under the lock of its `Pending`.

    Args:
        settings: For the limits.
        works: The work sets that the holder has opened, by name; what they hold is not among the values.
    """

    __slots__ = ("_at", "_held", "_limit", "_slack", "_works")

    def __init__(self, settings: Settings, works: Mapping[str, WorkSet]) -> None:
        self._limit = settings.max_state_bytes
        self._slack = int(FEW * (settings.max_value_bytes + BYTES_A_KEY_CHAR * MAX_KEY_CHARS)) + TAIL_BYTES
        self._works = works
        self._held = 0
        # The number of calls recorded when `_held` was right.
        self._at = -1

    def admit(
        self, pending: Pending, changes: Mapping[str, Change], growth: int = 0, work: str | None = None
    ) -> None:
        """Refuse a call after which the state would hold too much, unless it makes it smaller.

        Args:
            pending: Of the state.
            changes: What the call is about to record.
            growth: By how many bytes it makes a work set grow besides.
            work: The name of that work set.

        Raises:
            StateTooLargeError: It would hold too much; nothing is changed.
        """
        batch, calls = pending._batch_bytes, pending._recorded
        size = sum(len(text or "") + BYTES_A_KEY_CHAR * len(key) for key, (text, _) in changes.items())
        if batch + size + TAIL_BYTES <= pending._near + self._slack:
            return
        if self._at != calls:
            self._held, self._at = self.count(pending.values), calls
        held, more = self._held, growth + growth_of(pending.values, changes)
        if more > 0 and held + more > self._limit and pending.expiries.drop(pending):
            held, more = self.count(pending.values), growth + growth_of(pending.values, changes)
        check_growth(pending.lease.scope, changes, held, more, self._limit, work)
        self._held, self._at = held + more, calls + 1
        free = self._limit - held - len(self._works) * TAIL_BYTES
        pending._near = int(batch + free - self._slack) if free >= self._limit / FAR else MUST_COUNT

    def admit_instead(self, pending: Pending, changes: Mapping[str, Change]) -> None:
        """Refuse what is to be there instead of all that the state holds, if that is too much.

        Raises:
            StateTooLargeError: It is, and it is more than the state holds.
        """
        held = self.count(pending.values)
        check_growth(pending.lease.scope, changes, held, growth_of({}, changes) - held, self._limit)

    def forget(self, pending: Pending) -> None:
        """Count at the next call, because something was changed by what was no call."""
        pending._near, self._at = MUST_COUNT, -1

    def count(self, values: Mapping[str, str]) -> int:
        """How many bytes the state holds: its keys in UTF-8 and their JSON."""
        works = list(self._works.values())
        entries: Iterable[tuple[str, str]] = list(values.items())
        if works:
            # What an open set holds it counts itself; records of it are also here that were written since.
            prefixes = {prefix for work in works for prefix in work.prefixes}
            entries = (
                (key, text)
                for key, text in entries
                if not (key.startswith(RESERVED_PREFIX) and key[: key.rindex(":") + 1] in prefixes)
            )
        return sum(entry_bytes(key, text) for key, text in entries) + sum(work.held_bytes for work in works)


def check_growth(
    scope: Scope, changes: Mapping[str, Change], held: int, growth: int, limit: float, work: str | None = None
) -> None:
    """Refuse to let a state grow beyond its limit.

    Args:
        scope: Whose state.
        changes: What makes it grow.
        held: How many bytes it holds.
        growth: How many more it is to hold.
        limit: How many it may hold; one that holds more may shrink.
        work: The work set that grows, where one does.

    Raises:
        StateTooLargeError: It would grow beyond it.
    """
    if growth > 0 and held + growth > limit:
        what = f"work set {work!r}" if work is not None else f"key {longest(changes)!r}"
        error = StateTooLargeError(
            f"the state of {scope} holds {held:,} bytes, and would hold {held + growth:,} with {what};"
            f" [{SECTION}] max_state_bytes allows {limit:,}: delete keys, or clear the state"
        )
        error.scope = scope
        raise error


def check_write(scope: Scope, changes: Mapping[str, Change], held: int, replaced: int, limit: float) -> None:
    """Refuse changes of a scope that nobody holds here; for a store, in the transaction that makes them.

    Args:
        scope: Whose state.
        changes: What is to be written.
        held: How many bytes the scope's keys and values have that have not expired, as `entry_bytes` counts them.
        replaced: How many of them those have that are changed.
        limit: How many it may hold.

    Raises:
        StateTooLargeError: It would hold more, and more than now.
    """
    check_growth(scope, changes, held, growth_of({}, changes) - replaced, limit)


def growth_of(values: Mapping[str, str], changes: Mapping[str, Change]) -> int:
    """By how many bytes changes make some values grow."""
    growth = 0
    for key, (text, _) in changes.items():
        earlier = values.get(key)
        if earlier is not None:
            growth -= entry_bytes(key, earlier)
        if text is not None:
            growth += entry_bytes(key, text)
    return growth


def longest(changes: Mapping[str, Change]) -> str:
    """The key whose new value is the longest."""
    return max(changes, key=lambda key: len(changes[key][0] or ""))


def entry_bytes(key: str, text: object) -> int:
    """How many bytes a key in UTF-8 and its JSON have; a damaged record may be no text."""
    text = text if isinstance(text, str) else str(text)
    size = len(key) + len(text)
    if key.isascii() and text.isascii():
        return size
    return len(key.encode("utf-8", "surrogatepass")) + len(text.encode("utf-8", "surrogatepass"))
