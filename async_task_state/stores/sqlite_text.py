"""Text of an SQLite database that is not UTF-8, as a damaged disk leaves it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

__all__ = ["NOT_UTF8", "with_damaged_text"]

T = TypeVar("T")

NOT_UTF8: Final = "Could not decode to UTF-8"


def with_damaged_text(db: sqlite3.Connection, call: Callable[..., T], *args: object) -> T:
    """Call a function for which text that is not UTF-8 reads as what no record is, so that its reader names it."""
    db.text_factory = _read
    try:
        return call(db, *args)
    finally:
        db.text_factory = str


def _read(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return repr(raw)
