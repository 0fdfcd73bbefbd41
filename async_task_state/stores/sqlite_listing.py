"""What a listing of the SQLite store reads."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from async_task_state.codec import RESERVED_PREFIX
from async_task_state.scopes import scope_of
from async_task_state.stores import ScopeInfo
from async_task_state.stores.holders import Holder

if TYPE_CHECKING:
    import sqlite3

    from async_task_state.stores import Wanted

__all__ = ["LOOKS", "count", "listing"]

_COLUMNS: Final = (
    "dag_id, run_id, task_id, map_index, region_id, attempt, epoch, held_epoch, host, pid, since"
)
IDS_AT_ONCE: Final = 900
"""Older SQLite takes 999 parameters."""

_LIVE: Final = "(expires_at IS NULL OR expires_at > ?)"
_OWN: Final = f"substr(key, 1, {len(RESERVED_PREFIX)}) = '{RESERVED_PREFIX}'"


def listing(db: sqlite3.Connection, wanted: Wanted) -> list[ScopeInfo]:
    """See `Store.scopes`."""
    now = time.time()
    newest = f"(SELECT max(updated_at) FROM entry WHERE scope_id = id AND {_LIVE})"  # noqa: S608 - constants
    rows = db.execute(
        f"SELECT * FROM (SELECT {_COLUMNS}, coalesce({newest}, touched_at) AS updated, id FROM scope"  # noqa: S608
        f" WHERE {wanted.conditions('?')}){' WHERE (updated, id) < (?, ?)' if wanted.after else ''}"
        " ORDER BY updated DESC, id DESC LIMIT ?",
        (now, *wanted.columns.values(), *(wanted.after or ()), -1 if wanted.limit is None else wanted.limit),
    ).fetchall()
    keys: dict[int, int] = {}
    own: defaultdict[int, dict[str, int]] = defaultdict(dict)
    for start in range(0, len(rows), IDS_AT_ONCE):
        ids = [row[-1] for row in rows[start : start + IDS_AT_ONCE]]
        of_page = f"FROM entry WHERE scope_id IN ({', '.join('?' * len(ids))}) AND {_LIVE} AND"
        keys.update(
            db.execute(f"SELECT scope_id, count(*) {of_page} NOT {_OWN} GROUP BY scope_id", (*ids, now))
        )
        for id_, key, size in db.execute(
            f"SELECT scope_id, key, length(value) {of_page} {_OWN}", (*ids, now)
        ):
            own[id_][key] = size
    return [
        ScopeInfo(
            *(scope_of(tuple(row)), attempt, epoch, keys.get(id_, 0), updated, id_, own.get(id_, {})),
            Holder(host, pid, attempt, since) if held_epoch == epoch > 0 else None,
        )
        for *row, attempt, epoch, held_epoch, host, pid, since, updated, id_ in rows
    ]


def count(db: sqlite3.Connection, wanted: Wanted) -> int:
    """See `Store.count_scopes`."""
    query = f"SELECT count(*) FROM scope WHERE {wanted.conditions('?')}"  # noqa: S608 - constants and marks
    number: int = db.execute(query, list(wanted.columns.values())).fetchone()[0]
    return number


LOOKS: Final = (listing, count)
"""What takes no lock."""
