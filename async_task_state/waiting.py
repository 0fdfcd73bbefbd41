"""How a caller, on whatever event loop, waits for the writer's thread."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio.lowlevel import checkpoint, current_token

from async_task_state.alarms import despite_alarms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Waiter", "give_turn", "turn_at_each_call", "turn_given", "turns", "wake"]

TURN_SECONDS: Final = 0.005
"""How long calls that do not wait may go on before their event loop gets a turn."""


class _Turns(threading.local):
    last = 0.0
    early = 0.0


turns = _Turns()
"""When the event loop of each thread last got one."""


class Waiter:
    """A caller, on whatever event loop, that waits for the writer's thread."""

    __slots__ = ("_event", "error", "loop", "result")

    def __init__(self) -> None:
        self._event = anyio.Event()
        self.loop: Any = current_token().native_token
        self.result: Any = None
        self.error: BaseException | None = None

    def wake(self) -> None:
        """Let the caller go on; only on its own loop."""
        self._event.set()

    @property
    def answered(self) -> bool:
        """Whether the caller may go on."""
        return self._event.is_set()

    async def wait(self) -> Any:
        """What the writer answers, returned or raised."""
        await self._event.wait()
        if self.error is not None:
            raise self.error
        return self.result


def turn_given() -> None:
    """Note that the loop of this thread has just had one."""
    turns.last = time.monotonic() - turns.early


@contextlib.contextmanager
def turn_at_each_call() -> Iterator[None]:
    """Let every call of this thread that does not wait give its event loop a turn."""
    turns.early = 2 * TURN_SECONDS
    turn_given()
    try:
        yield
    finally:
        turns.early = 0.0


async def give_turn() -> None:
    """Let everything else on this event loop run once."""
    await checkpoint()
    turn_given()


def wake(waiters: Iterable[Waiter]) -> None:
    """Wake callers with one call a loop, not one a caller."""
    loops: defaultdict[Any, list[Waiter]] = defaultdict(list)
    for waiter in waiters:
        loops[waiter.loop].append(waiter)
    for loop, group in loops.items():
        # asyncio's name for it, and trio's.
        post = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
        # A loop that is closed has nobody left to tell.
        with contextlib.suppress(RuntimeError):
            post(_wake_all, group)


@despite_alarms
def _wake_all(waiters: list[Waiter]) -> None:
    for waiter in waiters:
        waiter.wake()
