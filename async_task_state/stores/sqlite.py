"""State in one SQLite file: for one machine, with nothing to set up.

WAL with `synchronous=FULL`: a commit that returned is on disk. Every call is one hop to aiosqlite's thread and one
transaction; writers of other processes wait their turn in SQLite's own lock.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import aiosqlite

from async_task_state.errors import StoreError, StoreUnavailableError
from async_task_state.logs import Log
from async_task_state.stores import (
    EVERYTHING,
    sqlite_listing,
    sqlite_purge,
    sqlite_schema,
    sqlite_sql,
    sqlite_wal,
)
from async_task_state.stores.gathering import Gathering
from async_task_state.stores.sqlite_file import (
    Identity,
    check_names,
    has_log_alone,
    identity_of,
    own_files,
    provide,
)
from async_task_state.stores.sqlite_hop import close, connect, forsake, has_ended, hop
from async_task_state.stores.sqlite_text import NOT_UTF8, with_damaged_text

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Mapping, Sequence

    from async_task_state.runs import Run
    from async_task_state.scopes import Scope
    from async_task_state.stores import Batch, Change, Lease, ScopeInfo, Snapshot, Wanted

__all__ = ["SQLiteStore"]

T = TypeVar("T")

log = Log(__name__)

LOCK_WAIT_SECONDS: Final = 5.0

LOOKS: Final = (sqlite_sql.read, *sqlite_listing.LOOKS, *sqlite_purge.LOOKS)
"""What takes no lock, so that nobody who watches holds up who works."""

# What waiting may mend.
_PASSING = ("locked", "busy", "disk I/O error")

FULL: Final = "database or disk is full"
LEAST_ROOM: Final = 1024 * 1024
"""Bytes that one more transaction takes in the log, and more."""

_forsaken: Final[set[Identity]] = set()
"""Files whose log was replaced while this process used it: it still has the old one, and would begin with it again."""


class SQLiteStore:
    """One SQLite file, mode 0600, shared by the processes of one machine.

    Args:
        path: The file; made on first use, in a directory that exists.
        default_retention: Seconds that `purge` keeps a state that is not in use; None is for ever.
    """

    def __init__(self, path: str | os.PathLike[str], *, default_retention: float | None = None) -> None:
        self.path = Path(path).absolute()
        self._default_retention = default_retention
        self._db: aiosqlite.Connection | None = None
        self._file: Identity = None
        # The log and its index, and which ones they were when they were opened.
        self._logs: list[tuple[Path, Identity]] = []
        self._opening = asyncio.Lock()
        self._is_full = False
        # In one transaction, because each costs a write to disk and waits for the lock of the file.
        self._acquiring: Gathering[tuple[Scope, int | None, Run | None], Snapshot] = Gathering(
            partial(self._run, sqlite_sql.acquire_each)
        )

    async def acquire(self, scope: Scope, attempt: int | None, run: Run | None = None) -> Snapshot:
        """See `Store.acquire`."""
        try:
            return await self._acquiring.ask((scope, attempt, run))
        except StoreUnavailableError as error:
            if FULL in str(error):
                raise StoreError(
                    f"the database {self.path}: {FULL}; nothing is lost, for nothing was accepted yet; {self._advice()}"
                ) from error
            raise

    async def commit(self, batches: Sequence[Batch]) -> Collection[Lease]:
        """See `Store.commit`."""
        return await self._call(sqlite_sql.save, batches)

    async def read(self, scope: Scope) -> Snapshot | None:
        """See `Store.read`."""
        return await self._run(sqlite_sql.read, scope)

    async def scopes(self, wanted: Wanted = EVERYTHING) -> list[ScopeInfo]:
        """See `Store.scopes`."""
        return [] if wanted.matches_nothing else await self._run(sqlite_listing.listing, wanted)

    async def count_scopes(self, wanted: Wanted = EVERYTHING) -> int:
        """See `Store.count_scopes`."""
        return 0 if wanted.matches_nothing else await self._run(sqlite_listing.count, wanted)

    async def write(
        self,
        scope: Scope,
        changes: Mapping[str, Change],
        *,
        cleared: bool = False,
        run: Run | None = None,
        expected: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> bool:
        """See `Store.write`."""
        return await self._run(sqlite_sql.write, scope, changes, cleared, run, expected, limit)

    async def clear(self, scope: Scope) -> int | None:
        """See `Store.clear`."""
        return await self._run(sqlite_sql.clear, scope)

    async def purge(self, now: float | None = None) -> int:
        """See `Store.purge`."""
        now = time.time() if now is None else now
        return await sqlite_purge.purge(self._run, now, self._default_retention)

    async def close(self) -> None:
        """See `Store.close`."""
        if self._db is not None and self._has_new_log:
            log.error("%s", self._forsake())
        db, self._db, self._file = self._db, None, None
        if db is not None:
            await close(db)

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        """Do all of `work` in one transaction."""
        begin = "BEGIN" if work in LOOKS else "BEGIN IMMEDIATE"
        return await self._call(sqlite_schema.transact_if_known, begin, work, *args)

    async def _call(self, call: Callable[..., T], *args: object) -> T:
        """Call a function of the connection, in one hop to its thread."""
        try:
            async with self._opening:
                db = await self._connection()
            if not self._is_full:
                try:
                    return await hop(db, call, *args)
                except sqlite3.OperationalError as error:
                    if NOT_UTF8 in str(error):
                        return await hop(db, with_damaged_text, call, *args)
                    if FULL not in str(error):
                        raise
                    self._is_full = True
            result: T = await hop(db, sqlite_wal.with_little_room, call, *args)
        except sqlite3.Error as error:
            raise self._translate(error) from error
        else:
            self._is_full = False
            return result

    async def _connection(self) -> aiosqlite.Connection:
        # A file that was deleted or replaced would go on taking commits that nobody will ever read.
        if self._db is not None and (has_ended(self._db) or self._file != identity_of(self.path)):
            await self.close()
        elif self._db is not None and any(identity_of(path) != file for path, file in self._logs):
            await self._leave_lost_log(self._db)
        if self._db is None:
            provide(self.path)
            check_names(self.path)
            file = identity_of(self.path)
            if file in _forsaken:
                raise self._lost()
            if has_log_alone(self.path):
                await self._move_log()
            # Not to be made by SQLite, and so for everybody to read, should it be gone by now.
            uri = f"{self.path.as_uri()}?mode=rw"
            # From any thread, for it is closed here where its own has ended.
            db = aiosqlite.connect(
                uri, uri=True, isolation_level=None, timeout=LOCK_WAIT_SECONDS, check_same_thread=False
            )
            await connect(db)
            try:
                await hop(db, sqlite_schema.prepare, self.path)
            except BaseException:
                await close(db)
                raise
            self._db, self._file = db, file
            self._logs = [(path, identity_of(path)) for path in own_files(self.path)[1:]]
        return self._db

    async def _move_log(self) -> None:
        try:
            await asyncio.to_thread(sqlite_wal.move_log, self.path)
        except sqlite3.OperationalError as error:
            if not any(sign in str(error) for sign in _PASSING):
                raise
            index_path = own_files(self.path)[2]
            raise StoreUnavailableError(
                f"the database {self.path}: the index {index_path} of its log was deleted while another process had it"
                " open; it can be opened after the next call of that process, or when that has ended"
            ) from error

    async def _leave_lost_log(self, db: aiosqlite.Connection) -> None:
        """Move what a log holds into the database: it, or its index, was deleted or replaced.

        A new log would begin without it; and with two indexes, processes overwrite what the others have saved.

        Raises:
            StoreError: It cannot be moved any more.
        """
        if self._has_new_log:
            raise self._forsake()
        # Where neither is new, whoever has the database open shares both.
        if not await hop(db, sqlite_wal.empty_log):
            raise StoreUnavailableError(f"{self._what_happened}, and another process reads what it holds")
        await self.close()
        log.warning(
            "%s; nothing is lost, because what it held was still at hand: leave these files to SQLite",
            self._what_happened,
        )

    @property
    def _has_new_log(self) -> bool:
        """Whether another process has begun a log or an index in the place of one that this one has open."""
        return any(identity_of(path) not in (None, file) for path, file in self._logs)

    @property
    def _what_happened(self) -> str:
        changed = [path for path, file in self._logs if identity_of(path) != file]
        lost = (changed or own_files(self.path)[1:])[0]
        return f"the log {lost} of the database was deleted or replaced while it was in use"

    def _lost(self) -> StoreError:
        return StoreError(
            f"{self._what_happened}: what was saved last may be lost; leave these files to SQLite, end this process, and"
            " let the tasks that were at work run again"
        )

    def _forsake(self) -> StoreError:
        """Use the connection no more, and never close it.

        SQLite would move what it knows of its log into the database, and delete the new log, with what others have saved.
        """
        db, self._db = self._db, None
        if db is not None:
            forsake(db)
        _forsaken.add(self._file)
        return self._lost()

    def _advice(self) -> str:
        """What to free on a full disk: moving what the log holds into the database takes as much as the log at most."""
        log_path, database = own_files(self.path)[1], self.path
        size = log_path.stat().st_size if log_path.exists() else 0
        return (
            f"free at least {size + LEAST_ROOM:,} bytes on the disk of {database}, and saving, opening and clearing states go on by"
            " themselves; what a clear removes is room for other states"
        )

    def _translate(self, error: sqlite3.Error) -> StoreError:
        text = str(error)
        if FULL in text:
            return StoreUnavailableError(f"the database {self.path}: {text}; {self._advice()}")
        if any(sign in text for sign in _PASSING):
            return StoreUnavailableError(f"the database {self.path}: {text}")
        if "readonly" in text:
            return StoreError(
                f"the database {self.path} is read-only; change its permissions, or [async_task_state] dsn"
            )
        if "not a database" in text:
            return StoreError(
                f"{self.path} is not an SQLite database; move it away, or change [async_task_state] dsn"
            )
        if "malformed" in text:
            return StoreError(
                f"the database {self.path} is corrupt ({text}); restore it, or move it away to start anew"
            )
        return StoreError(f"the database {self.path}: {text}")
