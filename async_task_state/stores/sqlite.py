"""State in one SQLite file: for one machine, with nothing to set up.

WAL with `synchronous=FULL`: a commit that returned is on disk. Every call is one hop to aiosqlite's thread and one
transaction; writers of other processes wait their turn in SQLite's own lock.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import time
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import aiosqlite

from async_task_state.codec import MAX_TRIES, RESERVED_PREFIX
from async_task_state.errors import StaleAttemptError, StoreError, StoreUnavailableError
from async_task_state.scopes import scope_of
from async_task_state.stores import Batch, Lease, ScopeInfo, Snapshot, stale_attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from async_task_state.scopes import Scope
    from async_task_state.stores import Change

__all__ = ["SQLiteStore"]

T = TypeVar("T")

APPLICATION_ID: Final = 0x41545301
SCHEMA_VERSION: Final = 1
SCHEMA: Final = """
CREATE TABLE scope (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    dag_id TEXT NOT NULL, run_id TEXT NOT NULL, task_id TEXT NOT NULL,
    map_index INTEGER NOT NULL, region_id TEXT NOT NULL,
    attempt INTEGER NOT NULL, epoch INTEGER NOT NULL, touched_at REAL NOT NULL,
    UNIQUE (dag_id, run_id, task_id, map_index, region_id)
);
CREATE TABLE entry (
    scope_id INTEGER NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
    updated_at REAL NOT NULL, expires_at REAL,
    PRIMARY KEY (scope_id, key)
) WITHOUT ROWID;
"""

LOCK_WAIT_SECONDS: Final = 5.0
PURGE_ROWS: Final = 1000
TOUCH_SECONDS: Final = 3600
"""How stale a scope's `touched_at` may get: a write of it with every commit would double the work of a small one."""

ROWS_A_STATEMENT: Final = 199
"""Of five columns: older SQLite takes 999 parameters."""

# sqlite3 lets go of the GIL at every row it steps over; where another thread is busy, each costs it 5 ms to get back.
# So a statement takes many rows, and the one that looks at leases returns only those that need something done.
_LOOK = (
    "WITH held (id, attempt, epoch) AS (VALUES {rows}) SELECT held.id, held.attempt, held.epoch,"
    " scope.attempt IS NOT held.attempt OR scope.epoch IS NOT held.epoch AS fenced"
    " FROM held LEFT JOIN scope ON scope.id = held.id WHERE fenced OR touched_at < ?"
)
_CLEAR = "DELETE FROM entry WHERE scope_id IN (VALUES {rows})"
# Not `IN (VALUES ...)`: for two columns that looks at every row of the table.
_DELETE = "DELETE FROM entry WHERE (scope_id, key) = {rows}"
_OR = " OR (scope_id, key) = "
_TOUCH = "WITH seen (id) AS (VALUES {rows}) UPDATE scope SET touched_at = ? WHERE id IN seen"
_UPSERT = (
    "INSERT INTO entry (scope_id, key, value, updated_at, expires_at) VALUES {rows}"
    " ON CONFLICT (scope_id, key) DO UPDATE SET"
    " value = excluded.value, updated_at = excluded.updated_at, expires_at = excluded.expires_at"
)
_SCOPE_KEY = "dag_id = ? AND run_id = ? AND task_id = ? AND map_index = ? AND region_id = ?"
_LIVE = "(expires_at IS NULL OR expires_at > ?)"

# What waiting may mend.
_PASSING = ("locked", "busy", "disk I/O error", "disk is full")


class SQLiteStore:
    """One SQLite file, mode 0600, shared by the processes of one machine.

    Args:
        path: The file; made on first use, in a directory that exists.
        default_retention: Seconds that an untouched scope is kept by `purge`; None is for ever.
    """

    def __init__(self, path: str | os.PathLike[str], *, default_retention: float | None = None) -> None:
        self._path = Path(path)
        self._default_retention = default_retention
        self._db: aiosqlite.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._opening = asyncio.Lock()

    async def acquire(self, scope: Scope, attempt: int | None) -> Snapshot:
        """See `Store.acquire`."""
        try:
            return await self._run(_acquire, scope, attempt)
        except StoreUnavailableError as error:
            if "disk is full" in str(error):
                raise StoreError(f"{error}; nothing is lost, for nothing was accepted yet") from error
            raise

    async def commit(self, batches: Sequence[Batch]) -> Collection[Lease]:
        """See `Store.commit`."""
        return await self._run(_commit, batches)

    async def read(self, scope: Scope) -> Snapshot | None:
        """See `Store.read`."""
        return await self._run(_read, scope)

    async def scopes(
        self, dag_id: str | None = None, run_id: str | None = None, task_id: str | None = None
    ) -> list[ScopeInfo]:
        """See `Store.scopes`."""
        return await self._run(_scopes, dag_id, run_id, task_id)

    async def write(self, scope: Scope, changes: Mapping[str, Change], *, cleared: bool = False) -> None:
        """See `Store.write`."""
        await self._run(_write, scope, changes, cleared)

    async def clear(self, scope: Scope) -> int | None:
        """See `Store.clear`."""
        return await self._run(_clear, scope)

    async def purge(self, now: float | None = None) -> int:
        """See `Store.purge`."""
        now = time.time() if now is None else now
        kept = float("inf") if self._default_retention is None else self._default_retention + TOUCH_SECONDS
        purged = 0
        after: tuple[int, str] = (0, "")
        # A transaction a batch, so that nobody waits for the lock longer than a batch takes.
        while rows := await self._run(_purge, now, now - kept, after):
            purged += len(rows)
            after = rows[-1]
        while await self._run(_forget, now - kept):
            pass
        return purged

    async def close(self) -> None:
        """See `Store.close`."""
        db, self._db, self._file = self._db, None, None
        if db is not None:
            await db.close()

    async def _run(self, work: Callable[..., T], *args: object) -> T:
        """Do all of `work` in one transaction and one hop to the connection's thread."""
        try:
            async with self._opening:
                db = await self._connection()
            # A look takes no lock, so that nobody who watches holds up who works.
            begin = "BEGIN" if work in (_read, _scopes) else "BEGIN IMMEDIATE"
            return await _hop(db, _transact, begin, work, *args)
        except sqlite3.Error as error:
            raise self._translate(error) from error

    async def _connection(self) -> aiosqlite.Connection:
        # A file that was deleted or replaced would go on taking commits that nobody will ever read.
        if self._db is not None and self._file != _identity(self._path):
            await self.close()
        if self._db is None:
            self._create_file()
            db = aiosqlite.connect(self._path, isolation_level=None, timeout=LOCK_WAIT_SECONDS)
            # Or a process that ends without closing would wait for this thread for ever; aiosqlite before 0.22, which
            # older Airflows ask for, is the thread itself.
            thread: Any = getattr(db, "_thread", db)
            thread.daemon = True
            await db
            try:
                await _hop(db, _prepare, self._path)
            except BaseException:
                await db.close()
                raise
            self._db, self._file = db, _identity(self._path)
        return self._db

    def _create_file(self) -> None:
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            if not self._path.parent.is_dir():
                raise StoreError(
                    f"the directory {self._path.parent} for the database does not exist;"
                    " make it, or change [async_task_state] dsn"
                ) from error
            raise StoreError(
                f"the database {self._path} cannot be opened for writing ({error.strerror});"
                " change its directory's permissions, or [async_task_state] dsn"
            ) from error

    def _translate(self, error: sqlite3.Error) -> StoreError:
        text = str(error)
        if any(sign in text for sign in _PASSING):
            return StoreUnavailableError(f"the database {self._path}: {text}")
        if "readonly" in text:
            return StoreError(
                f"the database {self._path} is read-only; change its permissions, or [async_task_state] dsn"
            )
        if "not a database" in text:
            return StoreError(
                f"{self._path} is not an SQLite database; move it away, or change [async_task_state] dsn"
            )
        if "malformed" in text:
            return StoreError(
                f"the database {self._path} is corrupt ({text}); restore it, or move it away to start anew"
            )
        return StoreError(f"the database {self._path}: {text}")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


async def _hop(db: aiosqlite.Connection, work: Callable[..., T], *args: object) -> T:
    """Run a function of the connection on its thread: aiosqlite's own way, public for single statements only.

    Three statements in three hops are a third of the speed.
    """
    result: T = await db._execute(work, db._conn, *args)  # type: ignore[no-untyped-call]  # noqa: SLF001
    return result


def _transact(db: sqlite3.Connection, begin: str, work: Callable[..., T], *args: object) -> T:
    db.execute(begin)
    try:
        result = work(db, *args)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return result


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    _check_owner(db, path)
    mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StoreError(
            f"the database {path} cannot use a write-ahead log (a network disk?); put it on a local disk"
        )
    db.execute("PRAGMA synchronous = FULL")
    if db.execute("PRAGMA user_version").fetchone()[0] < SCHEMA_VERSION:
        _transact(db, "BEGIN IMMEDIATE", _create_schema)


def _check_owner(db: sqlite3.Connection, path: Path) -> None:
    # The owner last: another process may be making all of it, in one transaction, between any two of these.
    tables = db.execute("SELECT 1 FROM sqlite_master").fetchone()
    version = db.execute("PRAGMA user_version").fetchone()[0]
    owner = db.execute("PRAGMA application_id").fetchone()[0]
    if owner != APPLICATION_ID and (tables or version or owner):
        raise StoreError(f"the database {path} belongs to another application; change [async_task_state] dsn")
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"the database {path} has schema {version}, this version of async-task-state knows up to"
            f" {SCHEMA_VERSION}: upgrade async-task-state"
        )


def _create_schema(db: sqlite3.Connection) -> None:
    # Another process may have been first.
    if db.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION:
        return
    for statement in SCHEMA.split(";"):
        db.execute(statement)
    # Ids begin anywhere: a lease of a file that was deleted must not match one of the file made in its place.
    db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('scope', ?)", (secrets.randbits(40),))
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _entries(db: sqlite3.Connection, scope_id: int) -> dict[str, str]:
    query = f"SELECT key, value FROM entry WHERE scope_id = ? AND {_LIVE} ORDER BY key"  # noqa: S608 - a constant
    return dict(db.execute(query, (scope_id, time.time())))


def _find(db: sqlite3.Connection, scope: Scope) -> Lease | None:
    query = f"SELECT id, attempt, epoch FROM scope WHERE {_SCOPE_KEY}"  # noqa: S608 - a constant
    row = db.execute(query, scope.row).fetchone()
    return None if row is None else Lease(scope, *row)


def _make(db: sqlite3.Connection, scope: Scope, attempt: int, epoch: int) -> Lease:
    cursor = db.execute(
        "INSERT INTO scope (dag_id, run_id, task_id, map_index, region_id, attempt, epoch, touched_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (*scope.row, attempt, epoch, time.time()),
    )
    return Lease(scope, cursor.lastrowid or 0, attempt, epoch)


def _acquire(db: sqlite3.Connection, scope: Scope, attempt: int | None) -> Snapshot:
    held = _find(db, scope)
    if held is None:
        return Snapshot(_make(db, scope, 1 if attempt is None else attempt, 1), {})
    if attempt is not None and attempt < held.attempt:
        raise StaleAttemptError(stale_attempt(scope, attempt, held.attempt))
    lease = Lease(scope, held.scope_id, held.attempt if attempt is None else attempt, held.epoch + 1)
    db.execute(
        "UPDATE scope SET attempt = ?, epoch = ?, touched_at = ? WHERE id = ?",
        (lease.attempt, lease.epoch, time.time(), lease.scope_id),
    )
    return Snapshot(lease, _entries(db, lease.scope_id))


def _commit(db: sqlite3.Connection, batches: Sequence[Batch]) -> list[Lease]:
    now = time.time()
    leases = {(b.lease.scope_id, b.lease.attempt, b.lease.epoch): b.lease for b in batches}
    noted = _in_bulk(db, _LOOK, list(leases), now - TOUCH_SECONDS)
    fenced = {row[:3] for row in noted if row[3]}
    cleared, upserts, gone = [], [], []
    for batch in batches:
        lease = batch.lease
        scope_id = lease.scope_id
        if fenced and (scope_id, lease.attempt, lease.epoch) in fenced:
            continue
        if batch.cleared:
            cleared.append((scope_id,))
        for key, (value, retention) in batch.changes.items():
            if value is None:
                gone.append((scope_id, key))
            else:
                upserts.append((scope_id, key, value, now, None if retention is None else now + retention))
    _in_bulk(db, _CLEAR, cleared)
    _in_bulk(db, _UPSERT, upserts)
    _in_bulk(db, _DELETE, gone, joint=_OR)
    _in_bulk(db, _TOUCH, [row[:1] for row in noted if not row[3]], now)
    return [leases[ids] for ids in fenced]


def _write(db: sqlite3.Connection, scope: Scope, changes: Mapping[str, Change], cleared: bool) -> None:
    _commit(db, [Batch(_find(db, scope) or _make(db, scope, 1, 0), dict(changes), cleared)])


def _in_bulk(
    db: sqlite3.Connection,
    statement: str,
    rows: Sequence[tuple[object, ...]],
    *last: object,
    joint: str = ", ",
) -> list[Any]:
    """Execute a statement on all rows, as many at a time as parameters allow; what it returns."""
    found = []
    for start in range(0, len(rows), ROWS_A_STATEMENT):
        part = rows[start : start + ROWS_A_STATEMENT]
        marks = f"({', '.join('?' * len(part[0]))})"
        values = joint.join([marks] * len(part))
        found += db.execute(statement.format(rows=values), [*chain.from_iterable(part), *last]).fetchall()
    return found


def _read(db: sqlite3.Connection, scope: Scope) -> Snapshot | None:
    lease = _find(db, scope)
    return None if lease is None else Snapshot(lease, _entries(db, lease.scope_id))


def _scopes(
    db: sqlite3.Connection, dag_id: str | None, run_id: str | None, task_id: str | None
) -> list[ScopeInfo]:
    rows = db.execute(
        "SELECT dag_id, run_id, task_id, map_index, region_id, attempt, epoch,"
        " COUNT(key) FILTER (WHERE substr(key, 1, length(:prefix)) <> :prefix),"
        " COALESCE(MAX(updated_at), touched_at) AS updated"
        " FROM scope LEFT JOIN entry ON scope_id = id AND (expires_at IS NULL OR expires_at > :now)"
        " WHERE (:dag IS NULL OR dag_id = :dag) AND (:run IS NULL OR run_id = :run)"
        " AND (:task IS NULL OR task_id = :task)"
        " AND (dag_id <> '' OR coalesce(:dag, :run, :task) IS NULL) GROUP BY id ORDER BY updated DESC",
        {"prefix": RESERVED_PREFIX, "now": time.time(), "dag": dag_id, "run": run_id, "task": task_id},
    )
    return [ScopeInfo(scope_of(row[:5]), *row[5:]) for row in rows.fetchall()]


def _clear(db: sqlite3.Connection, scope: Scope) -> int | None:
    lease = _find(db, scope)
    if lease is None:
        return None
    db.execute("UPDATE scope SET attempt = 1, epoch = epoch + 1 WHERE id = ?", (lease.scope_id,))
    return db.execute("DELETE FROM entry WHERE scope_id = ?", (lease.scope_id,)).rowcount


def _purge(
    db: sqlite3.Connection, now: float, idle_since: float, after: tuple[int, str]
) -> list[tuple[int, str]]:
    # From where the last batch ended, so that all of them together look at each row once.
    rows = db.execute(
        "SELECT scope_id, key FROM entry WHERE (scope_id, key) > (?, ?) AND (expires_at <= ? OR (expires_at IS NULL"
        " AND substr(key, 1, length(?)) = ? AND (SELECT touched_at FROM scope WHERE id = scope_id AND dag_id <> '') <= ?"
        " AND NOT (key = ? AND EXISTS (SELECT 1 FROM entry AS own WHERE own.scope_id = entry.scope_id"
        " AND substr(own.key, 1, length(?)) <> ? AND (own.expires_at IS NULL OR own.expires_at > ?)))))"
        " ORDER BY scope_id, key LIMIT ?",
        (
            *(*after, now, RESERVED_PREFIX, RESERVED_PREFIX, idle_since),
            *(MAX_TRIES, RESERVED_PREFIX, RESERVED_PREFIX, now, PURGE_ROWS),
        ),
    ).fetchall()
    _in_bulk(db, _DELETE, rows, joint=_OR)
    return rows


def _forget(db: sqlite3.Connection, idle_since: float) -> int:
    return db.execute(
        "DELETE FROM scope WHERE id IN (SELECT id FROM scope WHERE touched_at <= ?"
        " AND NOT EXISTS (SELECT 1 FROM entry WHERE scope_id = id) LIMIT ?)",
        (idle_since, PURGE_ROWS),
    ).rowcount
