"""A TCP proxy on 127.0.0.1 that holds bytes back, either way, and cuts connections."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from urllib.parse import urlsplit

REQUESTS, ANSWERS = "requests", "answers"
TICK_SECONDS = 0.01
BUFFER_BYTES = 4096
"""What a slow line takes before it is sent on: more would look as if it had arrived."""


class End(asyncio.Protocol):
    """One end of a connection: what it receives is for the other end, once nothing holds it back.

    Args:
        line: The connection.
        kind: What it receives.
    """

    def __init__(self, line: Line, kind: str) -> None:
        self.line, self.kind = line, kind
        self.transport = None
        self.bytes = b""
        self.ended = self.passed_end = False
        self._tick = self._sent_at = None

    def connection_made(self, transport):
        self.transport = transport
        if self.line.proxy.refusing:
            transport.abort()
        self.line.pass_on()

    def data_received(self, data):
        self.bytes += data
        if self.line.proxy.rate is not None and len(self.bytes) > BUFFER_BYTES:
            self.transport.pause_reading()
        self.line.watch(self)
        self.line.pass_on()

    def connection_lost(self, error):
        self.ended = True
        if self is self.line.server:
            self.line.over.set()
        self.line.pass_on()

    def pass_on(self, other: End) -> None:
        if self.kind in self.line.held or other.transport is None or other.ended:
            return
        if self.line.proxy.rate is not None:
            self._trickle(other)
        elif self.bytes:
            data, self.bytes = self.bytes, b""
            other.transport.write(data)
        if self.ended and not self.passed_end and not self.bytes:
            # The other side may have more to say, and its end is how a test knows that the server is through.
            self.passed_end = True
            with suppress(OSError):
                other.transport.write_eof()

    def _trickle(self, other: End) -> None:
        if not self.bytes or self._tick is not None:
            return
        loop = asyncio.get_running_loop()
        # A machine that is busy is no slower line.
        elapsed = max(TICK_SECONDS, loop.time() - self._sent_at) if self._sent_at else TICK_SECONDS
        some = int(self.line.proxy.rate * elapsed)
        other.transport.write(self.bytes[:some])
        self.bytes = self.bytes[some:]
        self._sent_at = loop.time() if self.bytes else None
        self._tick = loop.call_later(TICK_SECONDS, self._go_on)
        if not self.ended:
            (
                self.transport.pause_reading
                if len(self.bytes) > BUFFER_BYTES
                else self.transport.resume_reading
            )()

    def _go_on(self) -> None:
        self._tick = None
        self.line.pass_on()


class Line:
    """A connection that goes through a proxy.

    Attributes:
        held: What does not pass at present, of `REQUESTS` and `ANSWERS`.
        over: The server has come to the end of it.
        began: When, by the event loop's clock.
    """

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.held: set[str] = set()
        self.over = asyncio.Event()
        self.began = asyncio.get_running_loop().time()
        self._next: tuple[int, tuple[str, ...]] | None = None
        self.client, self.server = End(self, REQUESTS), End(self, ANSWERS)

    @property
    def stuck(self) -> bool:
        """Whether something is held back at present."""
        return any(end.bytes and end.kind in self.held for end in (self.client, self.server))

    @property
    def tampered(self) -> bool:
        """Whether the client may yet notice that something is held back."""
        return not self.client.ended and bool(self.held or self._next)

    def hold(self, *kinds: str, after: int = 0) -> None:
        """Hold everything of these kinds from now on, or once some more requests have passed."""
        if after:
            self._next = (after, kinds)
        else:
            self.held.update(kinds)

    def release(self) -> None:
        self.held.clear()
        self._next = None
        self.pass_on()

    def cut(self) -> None:
        """End the client's side; what the server has yet to get, it gets."""
        self.client.transport.abort()

    def pass_on(self) -> None:
        self.client.pass_on(self.server)
        self.server.pass_on(self.client)

    def watch(self, end: End) -> None:
        if end is not self.client:
            return
        self.proxy.look_at(self, end.bytes)
        if self._next is not None:
            after, kinds = self._next
            if not after:
                self.held.update(kinds)
            self._next = (after - 1, kinds) if after else None


class Proxy:
    """Stands before a server, in the event loop that enters it.

    Args:
        dsn: The server's; `dsn` is the same by way of the proxy.
        rate: How many bytes a second pass each way of a connection; None is without limit.

    Attributes:
        lines: The connections that were made.
        silent: New connections are accepted and nothing of them passes.
        refusing: New connections are accepted and cut.
    """

    def __init__(self, dsn: str, rate: float | None = None) -> None:
        parts = urlsplit(dsn)
        self.rate = rate
        self._to = (parts.hostname, parts.port)
        self._parts = parts
        self.lines: list[Line] = []
        self.silent = self.refusing = False
        self._trap: list | None = None

    async def __aenter__(self) -> Proxy:  # noqa: PYI034 - nobody derives from it
        loop = asyncio.get_running_loop()
        listening = socket.socket()
        if self.rate is not None:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        listening.bind(("127.0.0.1", 0))
        self._server = await loop.create_server(self._accept, sock=listening)
        self._connecting: set[asyncio.Task] = set()
        return self

    async def __aexit__(self, *_) -> None:
        self._server.close()
        for line in self.lines:
            for end in (line.client, line.server):
                if end.transport is not None:
                    end.transport.abort()
        await asyncio.gather(*self._connecting)
        await self._server.wait_closed()

    @property
    def dsn(self) -> str:
        login = self._parts.netloc.rpartition("@")[0]
        port = self._server.sockets[0].getsockname()[1]
        return self._parts._replace(netloc=f"{login}@127.0.0.1:{port}").geturl()

    @property
    def line(self) -> Line:
        """The newest connection."""
        return self.lines[-1]

    def catch(self, marker: bytes, kind: str, number: int = 1) -> asyncio.Future[Line]:
        """The line on which a request with `marker` in it comes, the first or a later one; hold it, or its answers."""
        caught: asyncio.Future[Line] = asyncio.get_running_loop().create_future()
        self._trap = [marker, kind, number, caught]
        return caught

    def look_at(self, line: Line, request: bytes) -> None:
        if self._trap is None or self._trap[0] not in request:
            return
        self._trap[2] -= 1
        if not self._trap[2]:
            _, kind, _, caught = self._trap
            self._trap = None
            line.hold(kind)
            caught.set_result(line)

    def cut(self) -> None:
        for line in self.lines:
            line.cut()

    def _accept(self) -> End:
        line = Line(self)
        if self.silent:
            line.hold(REQUESTS, ANSWERS)
        self.lines.append(line)
        if self.refusing:
            return line.client
        task = asyncio.get_running_loop().create_task(self._connect(line))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return line.client

    async def _connect(self, line: Line) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: line.server, *self._to)
        except OSError:
            line.client.transport.abort()
