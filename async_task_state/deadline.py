"""A timer for what nearly always comes in time: it is put off at every commit, and hardly ever goes off."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NEVER", "Deadline"]

NEVER: Final = float("inf")


class Deadline:
    """Calls back at a moment that may be put off, at the cost of an assignment.

    To set and cancel a timer of asyncio with each commit costs as much as recording the checkpoint that it saves. So the
    timer stays, and looks when it goes off whether the moment has come, as the timers of TCP do in many kernels.

    Args:
        call: What to call, once for each time that the moment comes, in the event loop that `set` was called in.
    """

    __slots__ = ("_call", "_timer", "moment")

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._timer: asyncio.TimerHandle | None = None
        self.moment = NEVER

    def set(self, moment: float) -> None:
        """Call at `moment` of the loop's clock, which is `time.monotonic()`, and not at an earlier one set before."""
        self.moment = moment
        timer = self._timer
        if timer is not None and timer.when() > moment:
            timer.cancel()
            timer = None
        if timer is None:
            self._arm()

    def clear(self) -> None:
        """Do not call."""
        self.moment = NEVER

    def stop(self) -> None:
        """Do not call, and forget the event loop."""
        self.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None if self.moment == NEVER else loop.call_at(self.moment, self._look)

    def _look(self) -> None:
        if asyncio.get_running_loop().time() < self.moment:
            self._arm()
            return
        self._timer = None
        self.moment = NEVER
        self._call()
