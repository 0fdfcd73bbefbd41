"""Sharing the connections of a PostgreSQL server where more processes want one than there are.

A process that has a connection never sees that others are refused. So each looks now and then at how many are in use.
Where room is short, as many of them as it takes, and all that are refused, have one only while they use it, until there has
been room for minutes.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import asyncpg

from async_task_state.deadline import NEVER
from async_task_state.logs import Log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["ALLOWED", "Allowed", "Sharing", "is_refusal", "spare"]

T = TypeVar("T")

log = Log(__name__)

LOOK_SECONDS: Final = 5.0
"""How often to look at how many connections are in use, while this process uses its own."""
LOOKS_WHERE_SHORT: Final = 5
"""How many times as often where room is short, and it is left to others to share."""
CALM_SECONDS: Final = 120.0
"""How long there has to be room before a connection is kept again; up to twice as long, so that not all do so at once."""
TURN_SECONDS: Final = 0.5
"""How long a process that always has something to do may keep a connection that it shares."""
POOLED_SECONDS: Final = 10.0
"""The same for any process behind a pooler, whose clients cannot be counted and which makes connecting cheap."""
PAUSE_SECONDS: Final = 0.1
"""Between two turns, and after a first refusal."""
WAIT_FOR_CONNECTING: Final = 4
"""How many times as long as connecting took to wait between two turns, where that is longer; half of it on average."""
LONGEST_PAUSE_SECONDS: Final = 2.0
"""After further ones: while a server looks at who wants a connection, it has one."""
WAIT_SECONDS: Final = 3.0
"""How long to ask for a connection before the call fails, which makes its caller ask again later."""
SPARE: Final = 10
"""The part of the connections, one in so many, which are left for others."""
LEAST_SPARE: Final = 2

ALLOWED: Final = """
WITH me AS (
    SELECT oid, rolname, rolsuper, rolconnlimit FROM pg_catalog.pg_roles WHERE rolname = session_user
), busy AS MATERIALIZED (
    SELECT datid, usesysid FROM pg_catalog.pg_stat_activity
    WHERE datid IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend'
)
SELECT 'the role ' || rolname AS what, rolconnlimit AS allowed,
    (SELECT count(*) FROM busy WHERE usesysid = me.oid) AS used
FROM me WHERE rolconnlimit >= 0 AND NOT rolsuper
UNION ALL
SELECT 'the database ' || datname, datconnlimit, (SELECT count(*) FROM busy WHERE datid = d.oid)
FROM me, pg_catalog.pg_database AS d WHERE datname = current_database() AND datconnlimit >= 0 AND NOT rolsuper
UNION ALL
SELECT 'the server', current_setting('max_connections')::integer - CASE WHEN rolsuper THEN 0 ELSE
    current_setting('superuser_reserved_connections')::integer
    + coalesce(current_setting('reserved_connections', true)::integer, 0) END, (SELECT count(*) FROM busy)
FROM me"""
"""How many connections each of them allows this role, and how many are in use."""

_REFUSALS: Final = ("no more connections allowed", "too many connections", "too many clients")
"""What poolers say, of PostgreSQL or of themselves."""


class Allowed(NamedTuple):
    """How many connections may be in use.

    Args:
        what: Of the role, the database or the server, as a message names it.
        allowed: The limit.
        used: How many are in use.
    """

    what: str
    allowed: int
    used: int

    @property
    def excess(self) -> int:
        """How many of those in use should be left for others."""
        return self.used - self.allowed + spare(self.allowed)

    def __str__(self) -> str:
        return f"{self.what} may have {self.allowed}, and {self.used} are in use"


def spare(allowed: int) -> int:
    """How many of so many connections are left for others."""
    return max(LEAST_SPARE, allowed // SPARE)


def is_refusal(error: Exception) -> bool:
    """Whether a server or a pooler has no connection to give."""
    if isinstance(error, asyncpg.ConnectionDoesNotExistError) and isinstance(
        error.__cause__, asyncpg.PostgresError
    ):
        return is_refusal(error.__cause__)
    if isinstance(error, asyncpg.TooManyConnectionsError):
        return True
    return isinstance(error, asyncpg.PostgresError) and any(text in str(error) for text in _REFUSALS)


class Sharing:
    """Whether a process has to share, and what follows.

    Args:
        pooled: Whether a pooler is between this process and the server.
    """

    def __init__(self, *, pooled: bool) -> None:
        self._pooled = pooled
        self._ends = 0.0
        self._look_at = 0.0
        self._turn_ends = NEVER
        self._begin_at = 0.0
        self._pause = PAUSE_SECONDS
        self._took = 0.0

    @property
    def on(self) -> bool:
        """Whether the connection is to be given back as soon as nobody of this process waits for it."""
        return self._ends > 0

    @property
    def turn_is_over(self) -> bool:
        """Whether it is to be given back although somebody does."""
        return time.monotonic() >= self._turn_ends

    async def connect(self, connect: Callable[[], Awaitable[T]]) -> T:
        """A connection, asked for again for some time where it is refused.

        Args:
            connect: Asks for it.

        Raises:
            Exception: What `connect` raises.
        """
        gives_up_at = time.monotonic() + WAIT_SECONDS
        while True:
            await asyncio.sleep(max(0.0, self._begin_at - time.monotonic()))
            began = time.monotonic()
            try:
                db = await connect()
            except asyncpg.PostgresError as error:
                if not is_refusal(error):
                    raise
                self._begin(error.args[0] if error.args else "refused")
                self._begin_at = time.monotonic() + self._pause * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
                self._pause = min(self._pause * 2, LONGEST_PAUSE_SECONDS)
                if self._begin_at >= gives_up_at:
                    raise
            else:
                break
            finally:
                self._took = time.monotonic() - began
        self._pause = PAUSE_SECONDS
        seconds = TURN_SECONDS if self.on else POOLED_SECONDS if self._pooled else NEVER
        self._turn_ends = time.monotonic() + seconds * random.uniform(0.5, 1)  # noqa: S311 - jitter
        return db

    async def look(self, db: Any) -> None:
        """Find out now and then whether room is short, and end sharing when it has not been for some time."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS * random.uniform(0.5, 1)  # noqa: S311 - jitter
        # Behind a pooler what the server counts is not what the pooler allows.
        short = None if self._pooled else await _shortage(db)
        if short is not None:
            # Each as likely as it takes for so many to be left: where all did, all would have to connect at each commit.
            if self.on or random.random() < short.excess / short.used:  # noqa: S311 - no secret
                self._begin(str(short))
            else:
                self._look_at = now + LOOK_SECONDS / LOOKS_WHERE_SHORT
        elif self.on and now >= self._ends:
            log.info("PostgreSQL has had room for some time: this process keeps its connection again")
            self._ends, self._turn_ends = 0.0, NEVER

    def end_turn(self) -> None:
        """Take note that the connection is given back: others come first."""
        self._begin_at = time.monotonic()
        if self.on:
            # Where connecting takes long because the machines have too much of it to do, ask for it more seldom.
            self._begin_at += max(PAUSE_SECONDS, WAIT_FOR_CONNECTING * self._took) * random.uniform(0, 1)  # noqa: S311

    def _begin(self, why: str) -> None:
        if not self.on:
            log.warning(
                "PostgreSQL is short of connections (%s): this process has one only while it saves, and may save late;"
                " `async-task-state check` says how many are needed",
                why,
            )
        self._ends = time.monotonic() + CALM_SECONDS * random.uniform(1, 2)  # noqa: S311 - jitter
        self._turn_ends = min(self._turn_ends, time.monotonic() + TURN_SECONDS)


async def _shortage(db: Any) -> Allowed | None:
    """What has the fewest left, where these are too few."""
    try:
        found = [Allowed(*row) for row in await db.fetch(ALLOWED)]
    except asyncpg.SyntaxOrAccessError:
        # A server that does not let this role see it, or has no such thing.
        return None
    short = [allowed for allowed in found if allowed.excess > 0]
    return max(short, key=lambda allowed: allowed.excess / allowed.used, default=None)
