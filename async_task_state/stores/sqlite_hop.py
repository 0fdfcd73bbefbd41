"""Calls on the thread of an SQLite connection, which is aiosqlite's; whoever waits for one hears of that thread's end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import sqlite3
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakKeyDictionary

from async_task_state.errors import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import aiosqlite

__all__ = ["close", "connect", "forsake", "has_ended", "hop"]

T = TypeVar("T")


class _Watched:
    """What is known of a connection's thread, and who waits for it."""

    def __init__(self) -> None:
        self.cause: BaseException | None = None
        self.waiting: set[asyncio.Future[Any]] = set()

    def refusal(self) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"the thread that uses the database in this process has ended ({self.cause!r})"
        )

    def release(self) -> None:
        for future in self.waiting:
            if not future.done():
                future.set_exception(self.refusal())


_watched: Final[WeakKeyDictionary[aiosqlite.Connection, _Watched]] = WeakKeyDictionary()


async def connect(db: aiosqlite.Connection) -> None:
    """Begin a connection's thread, which no process waits for, and open the database on it.

    Raises:
        StoreUnavailableError: The thread has ended.
        sqlite3.Error: The database cannot be opened.
    """
    # aiosqlite before 0.22, which older Airflows ask for, is the thread itself.
    thread: Any = getattr(db, "_thread", db)
    _watch(db, thread)
    try:
        await _told(db, _begin(db))
    except sqlite3.Error:
        # It answers this loop as it ends.
        thread.join()
        raise


def _watch(db: aiosqlite.Connection, thread: Any) -> None:
    """Be told by a thread that has not begun yet when a fault ends it."""
    loop, run = asyncio.get_running_loop(), thread.run
    watched = _watched[db] = _Watched()

    def run_and_tell() -> None:
        try:
            run()
        except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
            watched.cause = error
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(watched.release)

    thread.run = run_and_tell
    thread.daemon = True


def has_ended(db: aiosqlite.Connection) -> bool:
    """Whether a fault has ended its thread, so that it answers nobody any more."""
    return _watched[db].cause is not None


async def hop(db: aiosqlite.Connection, work: Callable[..., T], *args: object) -> T:
    """Run a function of the connection on its thread: what aiosqlite does, public for single statements only.

    Three statements in three hops are a third of the speed.

    Raises:
        StoreUnavailableError: The thread has ended; whether the function ran is unknown.
    """
    watched = _watched[db]
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    watched.waiting.add(future)
    try:
        if watched.cause is not None:
            raise watched.refusal()
        db._tx.put_nowait((future, partial(work, db._conn, *args)))  # noqa: SLF001
        return await future
    finally:
        watched.waiting.discard(future)


async def close(db: aiosqlite.Connection) -> None:
    """Close a connection; from here where its thread has ended, or its locks would stay."""
    connection = db._connection  # noqa: SLF001
    if not has_ended(db):
        with contextlib.suppress(StoreUnavailableError):
            await _told(db, db.close())
    if has_ended(db) and connection is not None:
        db._connection = None  # noqa: SLF001
        connection.close()


async def _begin(db: aiosqlite.Connection) -> None:
    await db


async def _told(db: aiosqlite.Connection, call: Coroutine[Any, Any, None]) -> None:
    """Await what aiosqlite does by itself, or hear that the thread has ended."""
    watched = _watched[db]
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(call)
    watched.waiting.add(ended)
    try:
        await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
        await (task if task.done() else ended)
    finally:
        watched.waiting.discard(ended)
        ended.cancel()
        task.cancel()


def forsake(db: aiosqlite.Connection) -> None:
    """Let go of a connection that is never to be closed, not when the interpreter ends either."""
    connection, db._connection = db._connection, None  # noqa: SLF001
    # What has a reference that nobody gives back is never taken apart.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
