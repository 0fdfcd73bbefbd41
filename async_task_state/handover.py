"""Handing the interpreter's lock to a writer's thread that an event loop would keep from running.

A thread that waits for the lock asks for it after 5 ms of waiting (`sys.getswitchinterval`). An event loop that is busy
gives the lock up at each of its turns, for a `select` that does not wait, and takes it again before the waiting thread
is awake; the 5 ms of that thread then begin again, so it may wait for seconds. The quieter the machine, the longer.

So each event loop watches the writers that it has given work to. Where one has made no step for `PATIENCE_SECONDS`, the
loop blocks for `PAUSE_SECONDS`, in which the writer gets the lock. A loop that waits for events anyway is never stuck.
"""

from __future__ import annotations

import threading
import time
from asyncio import _get_running_loop
from typing import TYPE_CHECKING, Any, Final, Protocol

from anyio.lowlevel import current_token

from async_task_state.alarms import despite_alarms
from async_task_state.deadline import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Watched", "watch"]

PATIENCE_SECONDS: Final = 0.005
PAUSE_SECONDS: Final = 0.00002
"""The system adds some 50 us: 1 to 2 % of the time of a loop whose writer is stuck."""


class Watched(Protocol):
    """What a writer shows of the work that it has been given.

    Attributes:
        steps: How many steps it has made: batches taken and settled, requests answered.
    """

    steps: int

    @property
    def wants_lock_at(self) -> float:
        """The moment of `time.monotonic()` from which on it has something to do: 0 is now, `NEVER` that it is idle."""


def watch(writer: Watched, moment: float, loop: Any = None) -> None:
    """Let the event loop of this thread hand the lock to a writer that is stuck.

    Args:
        writer: It has been given something to do.
        moment: When it is to begin, by `time.monotonic()`.
        loop: The event loop that runs here, where it is known: asyncio's, or trio's token.
    """
    watcher = _here.watcher
    if loop is None:
        try:
            # Every set comes by here, and to ask for the token takes thirty times as long.
            loop = _get_running_loop() or current_token().native_token
        except RuntimeError:
            # No event loop runs here, so none keeps the lock.
            return
    if watcher is None or watcher.loop is not loop:
        watcher = _here.watcher = _Watcher(loop)
    if watcher.next_look > moment + PATIENCE_SECONDS or writer not in watcher.writers:
        watcher.add(writer, moment)


class _Watcher:
    """Looks after the writers that one event loop has given work to, while they have any."""

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.writers: dict[Watched, int] = {}
        self.next_look = NEVER
        self._set_timer: Callable[[float], None] = (
            _AsyncioTimer(loop, self._look) if hasattr(loop, "call_later") else _TrioTimer(self._look)
        ).set

    def add(self, writer: Watched, moment: float) -> None:
        self.writers.setdefault(writer, writer.steps)
        self._look_at(max(moment, time.monotonic()) + PATIENCE_SECONDS)

    def _look_at(self, moment: float) -> None:
        if moment < self.next_look:
            # An alarm between two of these leaves a timer too many, and never one too few.
            self.next_look = NEVER
            self._set_timer(moment)
            self.next_look = moment

    @despite_alarms
    def _look(self) -> None:
        now = time.monotonic()
        self.next_look = soonest = NEVER
        stuck = False
        for writer, steps in list(self.writers.items()):
            moment = writer.wants_lock_at
            if moment == NEVER:
                del self.writers[writer]
                continue
            stuck = stuck or (moment <= now and writer.steps == steps)
            self.writers[writer] = writer.steps
            soonest = min(soonest, max(moment, now))
        if soonest < NEVER:
            self._look_at(soonest + PATIENCE_SECONDS)
        if stuck:
            time.sleep(PAUSE_SECONDS)


class _AsyncioTimer:
    """Calls back at one moment, in an event loop of asyncio."""

    def __init__(self, loop: Any, call: Callable[[], None]) -> None:
        self._loop = loop
        self._call = call
        self._timer: Any = None

    def set(self, moment: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(moment - time.monotonic(), self._call)


class _TrioTimer:
    """The same in trio, which has no timers: a task that sleeps."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._moment = NEVER
        self._sleeping: Any = None

    def set(self, moment: float) -> None:
        import trio  # noqa: PLC0415 - loaded by now

        self._moment = moment
        if self._sleeping is None:
            self._sleeping = trio.CancelScope()
            trio.lowlevel.spawn_system_task(self._run)
        self._sleeping.deadline = trio.current_time() + moment - time.monotonic()

    async def _run(self) -> None:
        import trio  # noqa: PLC0415 - loaded by now

        while self._moment < NEVER:
            with self._sleeping:
                await trio.sleep_forever()
            self._moment = NEVER
            self._sleeping = trio.CancelScope()
            self._call()
        self._sleeping = None


class _Here(threading.local):
    watcher: _Watcher | None = None


_here = _Here()
"""What the event loop of each thread watches; one that was abandoned is replaced by the next."""
