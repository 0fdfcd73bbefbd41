"""How a store says that a call makes progress, so that whoever waits for it does not give up.

A state of a hundred megabytes takes minutes over a slow line. Only the store knows that something still arrives.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from typing import Any

__all__ = ["Patience", "listener", "listening"]

T = TypeVar("T")

_listener: Final[ContextVar[Callable[[], object] | None]] = ContextVar(
    "async_task_state_progress", default=None
)


def listener() -> Callable[[], object] | None:
    """What a store calls, from its event loop, each time that the call which asks for this has made progress."""
    return _listener.get()


@contextmanager
def listening(call: Callable[[], object]) -> Iterator[None]:
    """Have `call` called for the progress of what is called in this context."""
    earlier = _listener.set(call)
    try:
        yield
    finally:
        _listener.reset(earlier)


class Patience:
    """How long to wait for a store: some seconds from now, and as many from each progress.

    Args:
        seconds: After which a store counts as away that says nothing.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began = self._progress = time.monotonic()
        self.ends = self._without_progress = self._began + seconds

    def renew(self) -> None:
        """Wait for as long again while the call that makes progress goes on."""
        self._progress = time.monotonic()
        self.ends = self._progress + self._seconds

    def begin(self) -> None:
        """Take note that a call begins."""
        self._began = self._progress = time.monotonic()

    def fail(self) -> None:
        """Take note that it has ended, if it did not succeed: until its last progress it did not wait, and that is all that it gains.

        An answer is progress, too: a server that answers at once that it cannot serve is away.
        """
        self._without_progress += self._progress - self._began
        self._began = self._progress
        self.ends = self._without_progress

    async def wait_for(self, call: Coroutine[Any, Any, T]) -> T:
        """What a call returns.

        Raises:
            asyncio.TimeoutError: The store has made no progress for so long; the call has been cancelled.
        """
        self.begin()
        with listening(self.renew):
            task = asyncio.ensure_future(call)
        try:
            while not task.done():
                left = self.ends - time.monotonic()
                if left <= 0:
                    raise asyncio.TimeoutError
                await asyncio.wait([task], timeout=left)
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            self.fail()
