"""The one connection that a process has to PostgreSQL, and which each call has to itself."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from async_task_state.deadline import Deadline
from async_task_state.errors import AsyncTaskStateError, StoreError
from async_task_state.stores.postgres_connect import connect
from async_task_state.stores.postgres_errors import TROUBLE, explained
from async_task_state.stores.postgres_schema import prepare
from async_task_state.stores.postgres_sharing import Sharing
from async_task_state.stores.postgres_sql import SESSION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from async_task_state.stores.postgres_dsn import PostgresDsn

__all__ = ["CLOSE_SECONDS", "COMMAND_SECONDS", "SoleConnection"]

COMMAND_SECONDS: Final = 20.0
"""How long nothing may come from the server, or go to it, before the connection counts as lost."""
IDLE_SECONDS: Final = 60.0
SHARED_IDLE_SECONDS: Final = 0.01
"""For the next call of whoever makes one after the other; a few calls then share what connecting costs."""
CLOSE_SECONDS: Final = 2.0


class SoleConnection:
    """A connection that is made when it is needed, and made anew after any trouble.

    Args:
        dsn: Where to.
    """

    def __init__(self, dsn: PostgresDsn) -> None:
        self.db: Any = None
        """The connection, where there is one."""
        self.number = 0
        """How many there have been, not counting those in the place of one that was given back for others."""
        self._dsn = dsn
        self._sharing = Sharing(pooled=dsn.pgbouncer)
        # Whether the tables were there when the last connection was given back.
        self._prepared = False
        self._turn = asyncio.Lock()
        self._idle = Deadline(self._begin_to_close)
        self._closing: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Any]:
        """The connection, for one call at a time; after any trouble the next call gets a new one."""
        async with self._turn:
            self._idle.clear()
            try:
                if self.db is None or self.db.is_closed():
                    await self._begin()
                self.db.line.expect(COMMAND_SECONDS)
                await self._sharing.look(self.db)
                yield self.db
            except AsyncTaskStateError as error:
                if isinstance(error, StoreError):
                    self._drop()
                raise
            except TROUBLE as error:
                self._drop()
                raise explained(error, self._dsn.schema) from error
            except BaseException:
                # Cancelled: the server may be busy with it yet.
                self._drop()
                raise
            finally:
                if self.db is not None:
                    self.db.line.rest()
                    idle = SHARED_IDLE_SECONDS if self._sharing.on else IDLE_SECONDS
                    self._idle.set(time.monotonic() + idle)
            if self._sharing.turn_is_over:
                await self._give_back()

    async def close(self) -> None:
        """Let go of it; the next call gets another."""
        async with self._turn:
            self._idle.stop()
            await self._give_back()
            self._prepared = False

    async def _begin(self) -> None:
        """Have a connection; where the last one was lost, tables may have gone with it."""
        if self.db is not None:
            self._drop()
        self.db = await self._connect()
        if not self._prepared:
            self._prepared = True
            self.number += 1

    async def _connect(self) -> Any:
        db = None
        try:
            db = await self._sharing.connect(partial(connect, self._dsn))
            db.line.expect(COMMAND_SECONDS)
            if not self._dsn.pgbouncer:
                await db.execute(SESSION)
            if not self._prepared:
                await prepare(db, self._dsn.schema, self._dsn.owner)
        except BaseException as error:
            if db is not None:
                db.terminate()
            if isinstance(error, AsyncTaskStateError) or not isinstance(error, TROUBLE):
                raise
            trouble = explained(error, self._dsn.schema)
        else:
            return db
        # Not from within: the driver's own frames hold the password.
        raise trouble

    def _drop(self) -> None:
        db, self.db = self.db, None
        self._prepared = False
        if db is not None:
            db.terminate()

    async def _give_back(self) -> None:
        """Close the connection; the turn is held."""
        db, self.db = self.db, None
        if db is None:
            return
        self._idle.clear()
        self._sharing.end_turn()
        try:
            await db.close(timeout=CLOSE_SECONDS)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, asyncio.TimeoutError):
            db.terminate()

    def _begin_to_close(self) -> None:
        close = self._share() if self._sharing.on else self.close()
        self._closing = asyncio.get_running_loop().create_task(close)

    async def _share(self) -> None:
        async with self._turn:
            await self._give_back()
