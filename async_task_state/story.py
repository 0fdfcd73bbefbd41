"""What the log says of a state while it is held: a line when it is opened, on its way, and when it is left."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Final
from weakref import ref

from async_task_state.codec import RESERVED_PREFIX
from async_task_state.digests import work_counts
from async_task_state.logs import Log
from async_task_state.text import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from async_task_state.handle import State
    from async_task_state.pending import Pending

__all__ = ["Story", "since_text"]

log = Log(__name__)

PROGRESS_SECONDS: Final = 30.0
SHOWN_NUMBERS: Final = 5
SHOWN_CHARS: Final = 40
LOOKED_AT: Final = 100
NUMBER: Final = tuple("-0123456789")
"""How a number begins in JSON, and nothing else."""


class Story:
    """The log lines of one holder.

    Args:
        state: What it holds; not kept alive by this.
        pending: Its changes.
    """

    __slots__ = ("_begun", "_is_told", "_next", "_pending", "_state")

    def __init__(self, state: State, pending: Pending) -> None:
        self._state = ref(state)
        self._pending = pending
        self._is_told = state._is_told
        self._begun = time.monotonic()
        self._next = self._begun + PROGRESS_SECONDS

    def opened(self, values: Mapping[str, str], how: str, *, resumed: bool) -> None:
        """Say what an earlier holder has left.

        Args:
            values: What there is now.
            how: What the attempt does with it.
            resumed: Whether there is anything.
        """
        lease = self._pending.lease
        ago = self._pending.saved_ago
        saved = "" if ago is None else f", saved {since_text(ago)} ago"
        found = f": {content(values)}{saved}" if resumed else ""
        self._say("attempt %d %s%s", lease.attempt, how, found)

    @property
    def goes_on(self) -> bool:
        """Whether the state has not been left yet."""
        state = self._state()
        return state is not None and state.is_open

    def go_on(self) -> None:
        """Say how far it is, if that was not said for half a minute."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + PROGRESS_SECONDS
            self._say("after %.0f s: %s", now - self._begun, self._progress())

    def left(self) -> None:
        """Say what came of it."""
        seconds = time.monotonic() - self._begun
        self._say("closed after %.1f s: %s", seconds, self._progress())

    def _say(self, message: str, *args: object) -> None:
        if self._is_told:
            log.info("%s: %s", self._pending.lease.scope, message % args)

    def _progress(self) -> str:
        state, stats = self._state(), self._pending.stats
        works = [] if state is None else list(state._works.values())
        parts = [f"{work.name!r} {len(work._done):,} done, {len(work._failures):,} failed" for work in works]
        parts += numbers_in(self._pending.values)
        return "; ".join(
            [*parts, f"{counted(stats.recorded, 'call')} recorded, {counted(stats.commits, 'commit')}"]
        )


def numbers_in(values: Mapping[str, str]) -> list[str]:
    """The author's first few numbers, for a log line; of as many keys as can be looked at in no time."""
    # In a list at once, because another thread may record; and a damaged record may be no text.
    numbers = (
        f"{key[:SHOWN_CHARS]}={text}"
        for key, text in list(islice(values.items(), LOOKED_AT))
        if isinstance(text, str)
        and not key.startswith(RESERVED_PREFIX)
        and len(text) <= SHOWN_CHARS
        and text.startswith(NUMBER)
    )
    shown = list(islice(numbers, SHOWN_NUMBERS))
    return [", ".join(shown)] if shown else []


def since_text(seconds: float) -> str:
    """A number of seconds in the largest unit of which there are two."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def content(values: Mapping[str, str]) -> str:
    """What a state holds, for a log line; by its sizes, because a large work set takes long to read."""
    keys = counted(sum(not key.startswith(RESERVED_PREFIX) for key in values), "key")
    # A damaged record may be no text.
    counts = work_counts({key: len(str(text)) for key, text in values.items()})
    parts = [f"{name!r} {done:,} done, {failed:,} failed" for name, (done, failed) in counts.items()]
    return "; ".join([*parts, keys])
