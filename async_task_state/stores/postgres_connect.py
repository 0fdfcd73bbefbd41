"""Connecting to a PostgreSQL database that may be on one of several hosts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import asyncpg

from async_task_state.logs import Log
from async_task_state.stores.postgres_line import Connection

if TYPE_CHECKING:
    from async_task_state.stores.postgres_dsn import PostgresDsn

__all__ = ["connect"]

log = Log(__name__)

NOT_THIS_ONE: Final = (
    *(OSError, asyncio.TimeoutError),
    *(asyncpg.TargetServerAttributeNotMatched, asyncpg.CannotConnectNowError),
)
"""What is raised where a host is gone, does not answer, is none of those asked for, or has not started yet."""


async def connect(dsn: PostgresDsn) -> Connection:
    """A connection to the first host that will do, each asked for `connect_timeout` seconds, as libpq does.

    Args:
        dsn: Where it is.

    Raises:
        Exception: What asyncpg raises of the last host.
    """
    *others, last = dsn.each_host()
    for number, host in enumerate(others, 1):
        try:
            return await _connect(host)
        except NOT_THIS_ONE as error:
            log.info("host %d of the dsn is passed over: %s", number, str(error) or type(error).__name__)
    return await _connect(last)


async def _connect(host: PostgresDsn) -> Connection:
    db: Connection = await asyncpg.connect(**host.arguments(), connection_class=Connection)
    return db
