"""The write-ahead log of an SQLite database: what it holds, moved into the database when its files are in trouble."""

from __future__ import annotations

from contextlib import closing, suppress
from sqlite3 import OperationalError, connect
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["empty_log", "move_log", "with_little_room"]

T = TypeVar("T")

WAIT_SECONDS: Final = 1.0
"""How long to wait for the last process that closes a database: it deletes the index before the log."""


def empty_log(db: sqlite3.Connection) -> bool:
    """Move all that the log holds into the database and make the log empty; whether that was done."""
    busy: int = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    return not busy


def move_log(path: Path) -> None:
    """Move what a log without its index holds into the database.

    A new index beside one that was deleted would let processes overwrite what the others have saved: so this needs the
    database for itself.

    Args:
        path: The database.

    Raises:
        OperationalError: Another process has it open.
    """
    with closing(
        connect(f"{path.as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=WAIT_SECONDS)
    ) as db:
        # Before anything is read: then SQLite makes no index.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        empty_log(db)


def with_little_room(db: sqlite3.Connection, call: Callable[..., T], *args: object) -> T:
    """Call a function on a disk that was full: what the log holds makes room, and what is deleted takes none of it."""
    with suppress(OperationalError):
        empty_log(db)
    # Else pages that the end of a transaction would find free are written to the log before.
    db.execute("PRAGMA cache_spill = OFF")
    try:
        return call(db, *args)
    finally:
        db.execute("PRAGMA cache_spill = ON")
