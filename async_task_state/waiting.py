"""How a caller, on whatever event loop, waits for the writer's thread."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import current_token

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Waiter", "wake"]


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

    async def wait(self) -> Any:
        """What the writer answers, returned or raised."""
        await self._event.wait()
        if self.error is not None:
            raise self.error
        return self.result


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


def _wake_all(waiters: list[Waiter]) -> None:
    for waiter in waiters:
        waiter.wake()
