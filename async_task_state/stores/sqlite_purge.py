"""Deleting from SQLite what is due: it is looked for without the lock, and goes in small transactions that look again.

A state goes at once, and its rows by and by: the scope's row is deleted, or gets another id to which the keys move that
have a retention of their own. What stays under the old id is nobody's, because ids are never given again.
"""

from __future__ import annotations

import asyncio
import math
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from async_task_state.codec import MAX_TRIES, RESERVED_PREFIX
from async_task_state.stores import new_token

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Coroutine, Sequence

__all__ = ["LOOKS", "purge"]

ROWS: Final = 199
"""Of a transaction, at most."""
BYTES: Final = 1024 * 1024
"""Of a transaction, in values: as many as a batch that is saved has."""
SCOPES: Final = 199
"""Of a look, and of a transaction."""
IN_USE_SECONDS: Final = 3600.0
"""How stale the `touched_at` of a scope in use may get."""
PAUSE_SECONDS: Final = 0.01
"""Between two transactions: who waits for SQLite's lock looks now and then whether it is free."""

_OF_SCOPE: Final = "SELECT 1 FROM entry WHERE scope_id = scope.id"
_IS_DUE: Final = f"""touched_at <= :before AND (NOT EXISTS ({_OF_SCOPE}) OR (dag_id <> ''
    AND (EXISTS ({_OF_SCOPE} AND expires_at IS NULL AND key <> :max_tries)
        OR NOT EXISTS ({_OF_SCOPE} AND substr(key, 1, length(:prefix)) <> :prefix))))"""
_WORDS: Final = {"max_tries": MAX_TRIES, "prefix": RESERVED_PREFIX}


async def purge(run: Callable[..., Coroutine[Any, Any, Any]], now: float, retention: float | None) -> int:
    """Delete keys whose time is over, and states of tasks that have been idle for `retention`; how many keys that were.

    Args:
        run: Does a function of this module in one transaction.
        now: Seconds since 1970.
        retention: Seconds that an idle state is kept; None is for ever.
    """
    purged = 0
    while rows := await run(expired_rows, now):
        purged += await run(delete_expired, rows, now)
        await asyncio.sleep(PAUSE_SECONDS)
    before = now - IN_USE_SECONDS - (math.inf if retention is None else retention)
    last = 0
    while due := await run(due_scopes, last, before, now):
        if gone := [id_ for id_, kept in due if not kept]:
            await run(delete_scopes, gone, before, now)
        for id_ in (id_ for id_, kept in due if kept):
            await run(move_kept, id_, before, now)
        last = due[-1][0]
        await asyncio.sleep(PAUSE_SECONDS)
    # Those of this purge, and of one that was cut short.
    ids = await run(abandoned_ids, None)
    while ids.last is not None:
        for id_ in ids.abandoned:
            while last_key := await run(abandoned_rows, id_):
                purged += await run(delete_abandoned, id_, last_key)
                await asyncio.sleep(PAUSE_SECONDS)
        ids = await run(abandoned_ids, ids.last)
    return purged


def expired_rows(db: sqlite3.Connection, now: float) -> list[tuple[int, str]]:
    """A look: keys whose time is over, as many as a transaction deletes."""
    rows = db.execute(
        "SELECT scope_id, key, length(value) FROM entry WHERE expires_at <= ? ORDER BY expires_at LIMIT ?",
        (now, ROWS),
    ).fetchall()
    return [row[:2] for row in _as_many_as_go(rows)]


def delete_expired(db: sqlite3.Connection, rows: Sequence[tuple[int, str]], now: float) -> int:
    """Delete those of the rows that have not been written again; how many."""
    these = " OR ".join(["(scope_id, key) = (?, ?)"] * len(rows))
    return db.execute(
        f"DELETE FROM entry WHERE ({these}) AND expires_at <= ?",  # noqa: S608 - marks
        (*chain.from_iterable(rows), now),
    ).rowcount


def due_scopes(db: sqlite3.Connection, after: int, before: float, now: float) -> list[tuple[int, bool]]:
    """A look: the next idle scopes of which something is due, and whether something is kept."""
    return db.execute(
        f"SELECT id, EXISTS ({_OF_SCOPE} AND expires_at > :now) FROM scope"  # noqa: S608 - constants
        f" WHERE id > :after AND {_IS_DUE} ORDER BY id LIMIT :limit",
        {"after": after, "before": before, "now": now, "limit": SCOPES, **_WORDS},
    ).fetchall()


def delete_scopes(db: sqlite3.Connection, ids: Sequence[int], before: float, now: float) -> None:
    """Let go of scopes that are still idle, and of which nothing is to be kept."""
    these = ", ".join("?" * len(ids))
    db.execute(
        f"DELETE FROM scope WHERE id IN ({these}) AND touched_at <= ?"  # noqa: S608 - marks and constants
        f" AND NOT EXISTS ({_OF_SCOPE} AND (expires_at > ? OR dag_id = ''))",
        (*ids, before, now),
    )


def move_kept(db: sqlite3.Connection, id_: int, before: float, now: float) -> None:
    """Give a scope that is still idle another id, and move there what is to be kept."""
    query = f"SELECT 1 FROM scope WHERE id = :id AND {_IS_DUE}"  # noqa: S608 - constants
    if db.execute(query, {"id": id_, "before": before, **_WORDS}).fetchone() is None:
        return
    db.execute("UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = 'scope'")
    [new] = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'scope'").fetchone()
    db.execute("UPDATE scope SET id = ?, epoch = epoch + 1, token = ? WHERE id = ?", (new, new_token(), id_))
    db.execute(
        "UPDATE entry SET scope_id = ? WHERE scope_id = ? AND (expires_at > ? OR key = ?)",
        (new, id_, now, MAX_TRIES),
    )


class Ids(NamedTuple):
    """The last of some ids, None where there are none, and those of them that no scope has."""

    last: int | None
    abandoned: list[int]


def abandoned_ids(db: sqlite3.Connection, after: int | None) -> Ids:
    """A look: the next ids that there are rows of."""
    last, abandoned = db.execute(
        "WITH RECURSIVE held (id) AS (SELECT min(scope_id) FROM entry WHERE ?1 IS NULL OR scope_id > ?1"
        " UNION ALL SELECT (SELECT min(scope_id) FROM entry WHERE scope_id > held.id) FROM held"
        " WHERE held.id IS NOT NULL LIMIT ?2)"
        " SELECT max(held.id), group_concat(CASE WHEN scope.id IS NULL THEN held.id END)"
        " FROM held LEFT JOIN scope ON scope.id = held.id",
        (after, SCOPES),
    ).fetchone()
    return Ids(last, [int(id_) for id_ in (abandoned or "").split(",") if id_])


def abandoned_rows(db: sqlite3.Connection, id_: int) -> str | None:
    """A look: up to which key a transaction deletes the rows of an id that no scope has."""
    rows = db.execute(
        "SELECT scope_id, key, length(value) FROM entry WHERE scope_id = ? ORDER BY key LIMIT ?", (id_, ROWS)
    ).fetchall()
    return _as_many_as_go(rows)[-1][1] if rows else None


def delete_abandoned(db: sqlite3.Connection, id_: int, last: str) -> int:
    """Delete these rows; how many."""
    return db.execute(
        "DELETE FROM entry WHERE scope_id = ?1 AND key <= ?2 AND NOT EXISTS (SELECT 1 FROM scope WHERE id = ?1)",
        (id_, last),
    ).rowcount


def _as_many_as_go(rows: list[tuple[int, str, int]]) -> list[tuple[int, str, int]]:
    """The first rows, so few that a transaction of them is short; one at least."""
    sizes = accumulate(row[2] for row in rows)
    return [row for row, size in zip(rows, sizes, strict=True) if size <= BYTES] or rows[:1]


LOOKS: Final = (expired_rows, due_scopes, abandoned_ids, abandoned_rows)
"""What takes no lock."""
