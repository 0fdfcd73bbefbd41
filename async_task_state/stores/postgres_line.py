"""A connection to PostgreSQL that counts as lost once nothing comes over it, and nothing leaves, for some time.

A limit on each statement would cut whatever is large where the line is slow, and cut it again at each further try.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from async_task_state.deadline import Deadline
from async_task_state.stores.progress import listener

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Connection"]

LOOKS: Final = 8
"""How often to look, within the time that nothing may come, whether something leaves."""
LOOK_SECONDS: Final = 1.0
"""At most, so that who waits for a large commit is told often that it makes progress."""


class Connection(asyncpg.Connection):  # type: ignore[misc]
    """A connection of asyncpg's, with its line."""

    __slots__ = ("line",)

    def __init__(self, protocol: Any, transport: Any, *arguments: Any) -> None:
        super().__init__(protocol, transport, *arguments)
        self.line = Line(protocol, transport)
        transport.set_protocol(self.line)


class Line(asyncio.Protocol):
    """Stands between a connection's transport and asyncpg, and takes note of what comes.

    Args:
        protocol: Of asyncpg.
        transport: Of asyncio.
    """

    def __init__(self, protocol: Any, transport: Any) -> None:
        self._transport = transport
        self._protocol = protocol
        self._take = protocol.data_received
        self._received = 0
        self._seen: tuple[int, int] | None = None
        self._alive_at = 0.0
        self._limit = 0.0
        self._listener: Callable[[], object] | None = None
        self._next_look = Deadline(self._look)
        self._lost: Exception | None = None

    def expect(self, seconds: float) -> None:
        """End the connection once nothing has come or left for so long, until `rest`."""
        self._listener = listener()
        self._limit, self._seen, self._alive_at = seconds, None, time.monotonic()
        self._plan()

    def rest(self) -> None:
        """Expect nothing more."""
        self._next_look.clear()
        self._listener = None

    def data_received(self, data: bytes) -> None:
        """Hand over what has come."""
        self._received += 1
        if self._listener is not None:
            self._listener()
        self._take(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Hand over that this is the end, and why."""
        self._next_look.stop()
        self._protocol.connection_lost(self._lost or exc)

    def eof_received(self) -> bool | None:
        """Hand over that nothing more comes."""
        ended: bool | None = self._protocol.eof_received()
        return ended

    def pause_writing(self) -> None:
        """Hand over that more would have to be kept here."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Hand over that more may be written."""
        self._protocol.resume_writing()

    def _plan(self) -> None:
        self._next_look.set(time.monotonic() + min(LOOK_SECONDS, self._limit / LOOKS))

    def _look(self) -> None:
        now, seen = time.monotonic(), (self._received, self._unsent())
        if self._seen is not None and seen != self._seen:
            self._alive_at = now
            if self._listener is not None:
                self._listener()
        self._seen = seen
        if now - self._alive_at < self._limit:
            self._plan()
            return
        self._lost = ConnectionAbortedError(f"nothing has come from it for {self._limit:g} s")
        self._transport.abort()

    def _unsent(self) -> int:
        """How many bytes the other end has not taken: of asyncio's buffer, and of the kernel's."""
        unsent: int = self._transport.get_write_buffer_size()
        with suppress(OSError, ValueError):
            number = self._transport.get_extra_info("socket").fileno()
            unsent += struct.unpack("i", fcntl.ioctl(number, termios.TIOCOUTQ, bytes(4)))[0]
        return unsent
