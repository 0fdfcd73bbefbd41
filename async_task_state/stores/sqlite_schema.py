"""The tables of the SQLite store, how they come to be, and transactions on those that this code knows."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final, TypeVar

from async_task_state.errors import StoreError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from pathlib import Path

__all__ = [
    "APPLICATION_ID",
    "MIGRATIONS",
    "SCHEMA_VERSION",
    "check_owner",
    "check_version",
    "migrate",
    "prepare",
    "transact",
    "transact_if_known",
]

T = TypeVar("T")

APPLICATION_ID: Final = 0x41545301
MIGRATIONS: Final = (
    """
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
""",
    # A process that knows version 1 only goes on without these: what it opens keeps its token, and has another epoch. An
    # expiry of NULL meant for ever, except for our own keys; now it means as long as the state.
    """
ALTER TABLE scope ADD COLUMN token INTEGER NOT NULL DEFAULT 0;
ALTER TABLE scope ADD COLUMN run TEXT NOT NULL DEFAULT '';
UPDATE entry SET expires_at = 9e999 WHERE expires_at IS NULL AND substr(key, 1, 6) <> '__ats:'
    AND scope_id IN (SELECT id FROM scope WHERE dag_id <> '');
CREATE INDEX entry_expires_at ON entry (expires_at) WHERE expires_at IS NOT NULL;
""",
    # Which process has taken the lease of `held_epoch`: whatever else raises the epoch need not know these.
    """
ALTER TABLE scope ADD COLUMN held_epoch INTEGER NOT NULL DEFAULT 0;
ALTER TABLE scope ADD COLUMN host TEXT NOT NULL DEFAULT '';
ALTER TABLE scope ADD COLUMN pid INTEGER NOT NULL DEFAULT 0;
ALTER TABLE scope ADD COLUMN since REAL NOT NULL DEFAULT 0;
""",
)
"""What leads from each version to the next. One that was released is never changed."""

SCHEMA_VERSION: Final = len(MIGRATIONS)


def transact(db: sqlite3.Connection, begin: str, work: Callable[..., T], *args: object) -> T:
    """Call `work` in one transaction, which is rolled back when it raises."""
    db.execute(begin)
    try:
        result = work(db, *args)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return result


def transact_if_known(db: sqlite3.Connection, begin: str, work: Callable[..., T], *args: object) -> T:
    """The same, unless a newer version of this code has changed the tables since they were opened.

    Raises:
        StoreError: It has.
    """

    def checked(db: sqlite3.Connection) -> T:
        check_version(db, db.execute("PRAGMA user_version").fetchone()[0])
        return work(db, *args)

    return transact(db, begin, checked)


def prepare(db: sqlite3.Connection, path: Path) -> None:
    """Set a new connection up, and make the tables where there are none.

    Raises:
        StoreError: See `check_owner`; or the file system cannot keep a write-ahead log.
    """
    check_owner(db, path)
    mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StoreError(
            f"the database {path} cannot use a write-ahead log (a network disk?); put it on a local disk"
        )
    db.execute("PRAGMA synchronous = FULL")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version < SCHEMA_VERSION:
        if version:
            # What is scanned under the lock is read from disk before it is taken.
            db.execute("SELECT count(*) FROM entry WHERE expires_at IS NULL").fetchone()
        transact(db, "BEGIN IMMEDIATE", migrate)


def check_owner(db: sqlite3.Connection, path: Path) -> None:
    """Refuse a file that is not ours, or newer than this code.

    Raises:
        StoreError: It belongs to another application, or has a newer schema.
    """
    # The owner last: another process may be making all of it, in one transaction, between any two of these.
    tables = db.execute("SELECT 1 FROM sqlite_master").fetchone()
    version = db.execute("PRAGMA user_version").fetchone()[0]
    owner = db.execute("PRAGMA application_id").fetchone()[0]
    if owner != APPLICATION_ID and (tables or version or owner):
        raise StoreError(f"the database {path} belongs to another application; change [async_task_state] dsn")
    check_version(db, version)


def check_version(db: sqlite3.Connection, version: int) -> None:
    """Refuse tables that are newer than this code.

    Raises:
        StoreError: They are.
    """
    if version > SCHEMA_VERSION:
        path = db.execute("PRAGMA database_list").fetchone()[2]
        raise StoreError(
            f"the database {path} has schema {version}, this version of async-task-state knows up to"
            f" {SCHEMA_VERSION}: upgrade async-task-state"
        )


def migrate(db: sqlite3.Connection) -> None:
    """Make the tables, or bring them up to date; the transaction is the caller's."""
    # Asked here, because another process may have been first.
    version = db.execute("PRAGMA user_version").fetchone()[0]
    for number, migration in enumerate(MIGRATIONS[version:], version + 1):
        for statement in migration.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {number}")
    if version == 0:
        # Ids begin anywhere: a lease of a file that was deleted must not match one of the file made in its place.
        db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('scope', ?)", (secrets.randbits(40),))
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
