"""What each call of the SQLite store does in one transaction."""

from __future__ import annotations

import math
import sqlite3
import time
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from async_task_state.codec import KILL_PREFIX
from async_task_state.errors import AsyncTaskStateError
from async_task_state.room import check_write
from async_task_state.stores import Batch, Lease, Snapshot, new_token
from async_task_state.stores.admission import Held, admit, admit_write
from async_task_state.stores.holders import Holder
from async_task_state.stores.sqlite_schema import SCHEMA_VERSION, check_version, transact

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from async_task_state.runs import Run
    from async_task_state.scopes import Scope
    from async_task_state.stores import Change
    from async_task_state.stores.admission import Admission

__all__ = [
    "TOUCH_SECONDS",
    "acquire_each",
    "clear",
    "commit",
    "read",
    "save",
    "write",
]

TOUCH_SECONDS: Final = 1800.0
"""How stale a scope's `touched_at` may get: a write of it with every commit would double the work of a small one."""

ROWS_A_STATEMENT: Final = 199
"""Of five columns: older SQLite takes 999 parameters."""

ROWS_AT_ONCE: Final = 100
"""Of five columns, and as many leases of four."""

# sqlite3 lets go of the GIL at every row it steps over; where another thread is busy, each costs it 5 ms to get back.
# So a statement takes many rows, and the one that looks at leases returns only those that need something done.
_LOOK = (
    "WITH held (id, attempt, epoch, token) AS (VALUES {rows}) SELECT held.id, held.attempt, held.epoch, held.token,"  # noqa: S608
    " scope.attempt IS NOT held.attempt OR scope.epoch IS NOT held.epoch OR scope.token IS NOT held.token AS fenced,"
    " (SELECT user_version FROM pragma_user_version) AS version FROM held LEFT JOIN scope ON scope.id = held.id"
    f" WHERE fenced OR touched_at < ? OR version > {SCHEMA_VERSION}"
)
_CLEAR = "DELETE FROM entry WHERE scope_id IN (VALUES {rows}) AND substr(key, 1, ?) <> ?"
# Not `IN (VALUES ...)`: for two columns that looks at every row of the table.
_DELETE = "DELETE FROM entry WHERE (scope_id, key) = {rows}"
_OR = " OR (scope_id, key) = "
_TOUCH = "WITH seen (id) AS (VALUES {rows}) UPDATE scope SET touched_at = ? WHERE id IN seen"
_INSERT = "INSERT INTO entry (scope_id, key, value, updated_at, expires_at)"
_ON_CONFLICT = (
    " ON CONFLICT (scope_id, key) DO UPDATE SET"
    " value = excluded.value, updated_at = excluded.updated_at, expires_at = excluded.expires_at"
)
_UPSERT = f"{_INSERT} VALUES {{rows}}{_ON_CONFLICT}"
# As the look and the upsert, in one statement: all of it where the look finds nothing to be done, else nothing.
_UPSERT_IF_HELD = (
    f"{_INSERT} SELECT * FROM (VALUES {{rows}})"  # noqa: S608 - constants
    f" WHERE NOT EXISTS ({_LOOK.format(rows='{held}')}){_ON_CONFLICT}"
)
_SCOPE_KEY = "dag_id = ? AND run_id = ? AND task_id = ? AND map_index = ? AND region_id = ?"
_LIVE = "(expires_at IS NULL OR expires_at > ?)"
# Of a value that is long the newer function reads no more than how long it is.
_BYTES = "octet_length({0})" if sqlite3.sqlite_version_info >= (3, 43) else "length(CAST({0} AS BLOB))"
_SIZE = f"{_BYTES.format('key')} + {_BYTES.format('value')}"
_HELD = f"SELECT coalesce(sum({_SIZE}), 0) FROM entry WHERE scope_id = ? AND {_LIVE}"  # noqa: S608 - constants
_REPLACED = f"SELECT {_SIZE} FROM entry WHERE ((scope_id, key) = {{rows}}) AND {_LIVE}"  # noqa: S608 - constants


def _entries(db: sqlite3.Connection, scope_id: int) -> tuple[dict[str, str], dict[str, float], float | None]:
    """What a scope holds, when what of it ends as in a `Snapshot`, and how many seconds ago the newest was saved."""
    # In one query, because the times stand behind the value, all of which SQLite reads on its way there.
    query = (
        f"SELECT key, value, updated_at, expires_at FROM entry WHERE scope_id = ? AND {_LIVE} ORDER BY key"  # noqa: S608 - a constant
    )
    now = time.time()
    rows = db.execute(query, (scope_id, now)).fetchall()
    entries = {key: value for key, value, *_ in rows}
    ago = now - time.monotonic()
    # A damaged time is no number.
    ends = {key: end - ago for key, *_, end in rows if isinstance(end, float) and end < math.inf}
    saved_at = max((at for _, _, at, _ in rows if isinstance(at, float)), default=None)
    return entries, ends, None if saved_at is None else max(0.0, now - saved_at)


def _find(db: sqlite3.Connection, scope: Scope) -> tuple[Lease, Held] | tuple[None, None]:
    query = f"SELECT id, attempt, epoch, token, run FROM scope WHERE {_SCOPE_KEY}"  # noqa: S608 - a constant
    row = db.execute(query, scope.row).fetchone()
    return (None, None) if row is None else (Lease(scope, *row[:4]), Held(row[1], row[4]))


def _make(db: sqlite3.Connection, scope: Scope, admitted: Admission, epoch: int) -> Lease:
    """Make a scope that nobody has held; with an epoch of 1 this process does."""
    token, now = new_token(), time.time()
    holder = Holder.here(admitted.attempt, now)
    cursor = db.execute(
        "INSERT INTO scope (dag_id, run_id, task_id, map_index, region_id, attempt, epoch, token, run, touched_at,"
        " held_epoch, host, pid, since) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(*scope.row, admitted.attempt, epoch, token, admitted.run, now),
            *((epoch, holder.host, holder.pid, now) if epoch else (0, "", 0, 0.0)),
        ),
    )
    return Lease(scope, cursor.lastrowid or 0, admitted.attempt, epoch, token)


def _hand_over(db: sqlite3.Connection, held: Lease, admitted: Admission, *, to_here: bool) -> Lease:
    """Make the lease this process's, or nobody's."""
    lease = Lease(held.scope, held.scope_id, admitted.attempt, held.epoch + 1, new_token())
    if admitted.fresh:
        _delete_entries(db, lease.scope_id)
    now = time.time()
    holder = Holder.here(lease.attempt, now)
    columns = "attempt = ?, epoch = ?, token = ?, run = ?, touched_at = ?"
    values: list[object] = [*_numbers(lease)[1:], admitted.run, now]
    if to_here:
        columns += ", held_epoch = ?, host = ?, pid = ?, since = ?"
        values += [lease.epoch, holder.host, holder.pid, now]
    db.execute(f"UPDATE scope SET {columns} WHERE id = ?", (*values, lease.scope_id))  # noqa: S608 - constants
    return lease


def _delete_entries(db: sqlite3.Connection, scope_id: int) -> int:
    return db.execute("DELETE FROM entry WHERE scope_id = ?", (scope_id,)).rowcount


def acquire(db: sqlite3.Connection, scope: Scope, attempt: int | None, run: Run | None) -> Snapshot:
    """See `Store.acquire`."""
    lease, held = _find(db, scope)
    admitted = admit(scope, attempt, run, held)
    if lease is None:
        return Snapshot(_make(db, scope, admitted, 1), {}, admitted.run)
    lease = _hand_over(db, lease, admitted, to_here=True)
    entries, ends, saved_ago = _entries(db, lease.scope_id)
    return Snapshot(lease, entries, admitted.run, admitted.fresh, saved_ago=saved_ago, ends=ends)


def acquire_each(
    db: sqlite3.Connection, wanted: Sequence[tuple[Scope, int | None, Run | None]]
) -> list[Snapshot | Exception]:
    """Acquire several scopes, and give what is raised in place of a snapshot; the others are acquired."""
    snapshots: list[Snapshot | Exception] = []
    for scope, attempt, run in wanted:
        try:
            snapshots.append(acquire(db, scope, attempt, run))
        except AsyncTaskStateError as error:
            # Nothing was changed before it was raised.
            snapshots.append(error)
    return snapshots


def save(db: sqlite3.Connection, batches: Sequence[Batch]) -> list[Lease]:
    """See `Store.commit`: one transaction, and one statement where that is enough.

    Each statement gives the GIL up; where another thread is busy, the next one waits for it.
    """
    now = time.time()
    rows = _upserts(batches, now)
    changes = sum(len(batch.changes) + batch.cleared for batch in batches)
    if 0 < changes == len(rows) <= ROWS_AT_ONCE >= len(batches):
        held = [_numbers(batch.lease) for batch in batches]
        statement = _UPSERT_IF_HELD.format(rows=_marks(rows), held=_marks(held))
        values = [*chain.from_iterable(rows), *chain.from_iterable(held), now - TOUCH_SECONDS]
        if db.execute(statement, values).rowcount == len(rows):
            return []
    return transact(db, "BEGIN IMMEDIATE", commit, batches)


def commit(db: sqlite3.Connection, batches: Sequence[Batch]) -> list[Lease]:
    """The same in any number of statements; the transaction is the caller's."""
    now = time.time()
    leases = {_numbers(batch.lease): batch.lease for batch in batches}
    noted = _in_bulk(db, _LOOK, list(leases), now - TOUCH_SECONDS)
    if noted:
        check_version(db, noted[0][5])
    fenced = {row[:4] for row in noted if row[4]}
    cleared, gone, held, smaller = [], [], [], []
    for batch in batches:
        scope_id = batch.lease.scope_id
        if fenced and _numbers(batch.lease) in fenced:
            continue
        if batch.cleared:
            cleared.append((scope_id,))
        held.append(batch)
        removed = [(scope_id, key) for key, (value, _) in batch.changes.items() if value is None]
        gone += removed
        if (removed or batch.cleared) and len(removed) == len(batch.changes):
            # No row is left that says when this was.
            smaller.append((scope_id,))
    _in_bulk(db, _CLEAR, cleared, len(KILL_PREFIX), KILL_PREFIX)
    _in_bulk(db, _UPSERT, _upserts(held, now))
    _in_bulk(db, _DELETE, gone, joint=_OR)
    _in_bulk(db, _TOUCH, [*(row[:1] for row in noted if not row[4]), *smaller], now)
    return [leases[ids] for ids in fenced]


def write(
    db: sqlite3.Connection,
    scope: Scope,
    changes: Mapping[str, Change],
    cleared: bool,
    run: Run | None,
    expected: Mapping[str, str] | None,
    limit: int | None,
) -> bool:
    """See `Store.write`."""
    lease, held = _find(db, scope)
    if expected and (lease is None or not expected.items() <= _entries(db, lease.scope_id)[0].items()):
        return False
    admitted = admit_write(scope, run, held)
    if lease is None:
        lease = _make(db, scope, admitted, 0)
    elif admitted.fresh:
        lease = _hand_over(db, lease, admitted, to_here=False)
    if limit is not None and not cleared:
        check_write(scope, changes, *_sizes(db, lease.scope_id, changes), limit)
    commit(db, [Batch(lease, dict(changes), cleared)])
    return True


def _sizes(db: sqlite3.Connection, scope_id: int, keys: Iterable[str]) -> tuple[int, int]:
    """How many bytes a scope holds that have not expired, and how many of them some of its keys hold."""
    now = time.time()
    [held] = db.execute(_HELD, (scope_id, now)).fetchone()
    replaced = _in_bulk(db, _REPLACED, [(scope_id, key) for key in keys], now, joint=_OR)
    return held, sum(size for (size,) in replaced)


def _upserts(batches: Sequence[Batch], now: float) -> list[tuple[int, str, str, float, float | None]]:
    """The rows that batches set."""
    return [
        (batch.lease.scope_id, key, value, now, None if retention is None else now + retention)
        for batch in batches
        for key, (value, retention) in batch.changes.items()
        if value is not None
    ]


def _numbers(lease: Lease) -> tuple[int, int, int, int]:
    """What tells a lease from every other one."""
    return lease.scope_id, lease.attempt, lease.epoch, lease.token


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
        values = [*chain.from_iterable(part), *last]
        found += db.execute(statement.format(rows=_marks(part, joint)), values).fetchall()
    return found


def _marks(rows: Sequence[tuple[object, ...]], joint: str = ", ") -> str:
    """The parameters of rows of one length, as SQL."""
    return joint.join([f"({', '.join('?' * len(rows[0]))})"] * len(rows))


def read(db: sqlite3.Connection, scope: Scope) -> Snapshot | None:
    """See `Store.read`."""
    lease, held = _find(db, scope)
    if lease is None or held is None:
        return None
    held_epoch, host, pid, since = db.execute(
        "SELECT held_epoch, host, pid, since FROM scope WHERE id = ?", (lease.scope_id,)
    ).fetchone()
    holder = Holder(host, pid, lease.attempt, since) if held_epoch == lease.epoch > 0 else None
    entries, ends, _ = _entries(db, lease.scope_id)
    return Snapshot(lease, entries, held.run, holder=holder, ends=ends)


def clear(db: sqlite3.Connection, scope: Scope) -> int | None:
    """See `Store.clear`."""
    lease, _ = _find(db, scope)
    if lease is None:
        return None
    fencing = (
        "UPDATE scope SET attempt = 1, epoch = epoch + 1, token = ?, run = '', touched_at = ? WHERE id = ?"
    )
    db.execute(fencing, (new_token(), time.time(), lease.scope_id))
    return _delete_entries(db, lease.scope_id)
