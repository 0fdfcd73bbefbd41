"""State in PostgreSQL: for workers and triggerers on many machines.

One connection a process, which each call has to itself. A commit is one statement and one round trip: it share-locks
the scopes' rows in the order of their ids, compares their leases with what was sent, and only then upserts. Whoever
takes a lease locks its row exclusively, so it waits for a commit that is under way and is seen by every later one.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from async_task_state.errors import AsyncTaskStateError, StoreUnavailableError
from async_task_state.room import check_write
from async_task_state.stores import EVERYTHING, Batch, Lease, Snapshot, new_token
from async_task_state.stores.admission import Held, admit, admit_write
from async_task_state.stores.holders import Holder, host_name
from async_task_state.stores.postgres_connection import SoleConnection
from async_task_state.stores.postgres_entries import FIRST_BYTES, Entries
from async_task_state.stores.postgres_listing import count, listing
from async_task_state.stores.postgres_purge import Purge
from async_task_state.stores.postgres_schema import MIGRATIONS
from async_task_state.stores.postgres_sql import (
    BEGIN,
    BEGIN_SNAPSHOT,
    LONGEST,
    ROWS_A_STATEMENT,
    SLOWEST,
    STATEMENT_BYTES,
    TOUCH_SECONDS,
    Rows,
    Statements,
    array_of,
    count_of,
    joined,
    lease_number,
    parts,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping, Sequence

    from async_task_state.runs import Run
    from async_task_state.scopes import Scope
    from async_task_state.stores import Change, ScopeInfo, Wanted
    from async_task_state.stores.admission import Admission
    from async_task_state.stores.postgres_dsn import PostgresDsn

__all__ = ["PostgresStore"]

NOT_THERE: Final = -1
"""The epoch of a scope that there is none of."""


class PostgresStore:
    """The tables of one schema of a PostgreSQL database.

    Args:
        dsn: Where it is.
        default_retention: Seconds that `purge` keeps a state that is not in use; None is for ever.
    """

    def __init__(self, dsn: PostgresDsn, *, default_retention: float | None = None) -> None:
        self._dsn = dsn
        self._default_retention = None if default_retention is None else min(default_retention, LONGEST)
        self._sql = Statements(dsn.schema, len(MIGRATIONS))
        self._connection = SoleConnection(dsn)
        self._purge = Purge(dsn.schema, self._transact, self._check)
        self._acquiring = asyncio.Lock()
        # Leases of which a commit may still be under way on a connection that was lost; and how often that was so.
        self._doubtful: list[tuple[list[int], list[int]]] = []
        self._retry = 0
        # What need not be touched before this moment.
        self._touched: set[int] = set()
        self._touched_until = time.monotonic() + TOUCH_SECONDS
        self._touched_over = 0

    async def acquire(self, scope: Scope, attempt: int | None, run: Run | None = None) -> Snapshot:
        """See `Store.acquire`."""
        async with self._use_in_line() as db:
            taken = None
            while taken is None:
                held, saved_ago, *seen = await self._newest(db, scope)
                admitted = admit(scope, attempt, run, held)
                taken = await self._take(db, scope, admitted, seen)
            lease, version = taken
            self._touched.add(lease.scope_id)
            entries = Entries()
            # A statement of its own, for one sees nothing that was committed while it waited for a lock.
            kept = held is not None and not admitted.fresh
            if kept:
                await self._read_page(db, lease.scope_id, entries)
        values, ends = entries.at(), entries.ends
        if kept and not entries.are_all:
            values, ends = await self._read_on(lease, version, entries)
        return Snapshot(lease, values, admitted.run, admitted.fresh, saved_ago=saved_ago, ends=ends)

    async def commit(self, batches: Sequence[Batch]) -> Collection[Lease]:
        """See `Store.commit`. A transaction has at most 1,000 rows, unless one batch has more."""
        fenced: list[Lease] = []
        async with self._use() as db:
            if self._doubtful:
                await self._fence_the_lost(db)
            for part in parts(batches):
                fenced += await self._save(db, part)
        return fenced

    async def read(self, scope: Scope) -> Snapshot | None:
        """See `Store.read`."""
        async with self._use() as db:
            rows = await self._look(db, self._sql.read, *scope.row, FIRST_BYTES)
            entries = _first_page(rows)
            if not entries.are_all:
                async with _transaction(db, BEGIN_SNAPSHOT):
                    rows = await db.fetch(self._sql.read, *scope.row, FIRST_BYTES)
                    entries = _first_page(rows)
                    while not entries.are_all:
                        await entries.read_page(db.fetch, self._sql.page, rows[0]["id"])
        if not rows:
            return None
        *numbers, run, held_epoch, host, pid, since = rows[0][:9]
        lease = Lease(scope, *numbers)
        holder = Holder(host, pid, lease.attempt, since) if held_epoch == lease.epoch > 0 else None
        return Snapshot(lease, entries.at(), run, holder=holder, ends=entries.ends)

    async def scopes(self, wanted: Wanted = EVERYTHING) -> list[ScopeInfo]:
        """See `Store.scopes`."""
        if wanted.matches_nothing:
            return []
        async with self._use() as db:
            return await listing(partial(self._look, db), self._dsn.schema, wanted)

    async def count_scopes(self, wanted: Wanted = EVERYTHING) -> int:
        """See `Store.count_scopes`."""
        if wanted.matches_nothing:
            return 0
        async with self._use() as db:
            return await count(partial(self._look, db), self._dsn.schema, wanted)

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
        """See `Store.write`.

        A transaction, which has the scope's lock before it ends: where its COMMIT arrives late, on a connection that was
        lost, whatever is newer waits for it.
        """
        async with self._transact() as db:
            if expected and not await self._has(db, scope, expected):
                return False
            new = admit_write(scope, run, None)
            made = await db.fetchrow(self._sql.make, *scope.row, new_token(), new.run)
            _refuse_unless(made)
            *numbers, left_by = made
            lease = Lease(scope, *numbers)
            admitted = admit_write(scope, run, Held(lease.attempt, left_by))
            if admitted.fresh:
                await self._reset(db, lease.scope_id, admitted.run)
            if limit is not None and not cleared:
                # A statement of its own: it sees what was saved before the row was locked.
                held, replaced = await db.fetchrow(self._sql.sizes, lease.scope_id, *joined(list(changes)))
                check_write(scope, changes, held, replaced, limit)
            await self._change(db, Rows.of([Batch(lease, dict(changes), cleared)]))
        return True

    async def clear(self, scope: Scope) -> int | None:
        """See `Store.clear`."""
        async with self._transact() as db:
            row = await db.fetchrow(self._sql.lock, *scope.row)
            await self._check(db)
            return None if row is None else await self._reset(db, row[0], "")

    async def purge(self, now: float | None = None) -> int:
        """See `Store.purge`."""
        return await self._purge.run(now, self._default_retention)

    async def close(self) -> None:
        """See `Store.close`."""
        await self._connection.close()

    async def _read_page(self, db: Any, scope_id: int, entries: Entries) -> None:
        await entries.read_page(partial(self._look, db), self._sql.page, scope_id)

    async def _read_on(
        self, lease: Lease, version: str, entries: Entries
    ) -> tuple[dict[str, str], dict[str, float]]:
        """Read what the first page of a scope left; all its values, and when they end.

        Others of this process have the connection between pages, so that what they save is not late. Whoever writes the
        scope meanwhile has no lease for it, and changes the version of its row.
        """
        while not entries.are_all:
            async with self._use_in_line() as db:
                await self._read_page(db, lease.scope_id, entries)
        async with self._use_in_line() as db:
            rows = await self._look(db, self._sql.version, lease.scope_id)
            if rows and rows[0][0] == version:
                return entries.at(rows[0][1]), entries.ends
            entries = Entries()
            async with _transaction(db, BEGIN_SNAPSHOT):
                while not entries.are_all:
                    await entries.read_page(db.fetch, self._sql.page, lease.scope_id)
            return entries.at(), entries.ends

    async def _save(self, db: Any, part: list[Batch]) -> list[Lease]:
        """Make a transaction of batches, without those that are fenced."""
        fenced: list[Lease] = []
        while part:
            leases = [batch.lease for batch in part]
            ids, numbers = [lease.scope_id for lease in leases], [lease_number(lease) for lease in leases]
            self._doubtful.append((ids, numbers))
            if await self._write(db, part, ids, numbers):
                self._doubtful.pop()
                await self._touch(db, ids)
                break
            newest = dict(await self._all(db, self._sql.leases, array_of(ids)))
            stale = {
                lease
                for lease, number in zip(leases, numbers, strict=True)
                if newest.get(lease.scope_id) != number
            }
            _refuse_unless(stale)
            self._doubtful.pop()
            fenced += stale
            part = [batch for batch in part if batch.lease not in stale]
        return fenced

    async def _write(self, db: Any, part: list[Batch], ids: list[int], numbers: list[int]) -> bool:
        """Write batches if all of their leases are held; whether they are."""
        rows = Rows.of(part)
        held: bool
        if rows.are_one_upsert and len(part) == 1:
            fence = (ids[0], numbers[0], self._retry)
            row = (rows.keys[0], rows.values[0], rows.kept[0])
            held = bool(await self._all(db, self._sql.save_row, *fence, *row))
        elif rows.are_upserts and not (self._dsn.pgbouncer and rows.size > STATEMENT_BYTES):
            own_ids = None if rows.ids == ids else array_of(rows.ids)
            leases = (array_of(ids), array_of(numbers), self._retry)
            [[held]] = await self._all(db, self._sql.save, *leases, own_ids, *rows.arguments())
        else:
            async with _transaction(db):
                held = await db.fetchval(self._sql.fence, array_of(ids), array_of(numbers), self._retry)
                if held:
                    await self._change(db, rows)
        return held

    async def _touch(self, db: Any, ids: list[int]) -> None:
        """Let purge know that scopes are in use, now and then."""
        now = time.monotonic()
        if now >= self._touched_until:
            self._touched.clear()
            self._touched_until = now + TOUCH_SECONDS
        if not self._touched.issuperset(ids):
            await self._all(db, self._sql.touch, array_of(ids))
            self._touched.update(ids)

    async def _change(self, db: Any, rows: Rows) -> None:
        """Change rows of scopes that this transaction has locked."""
        if rows.cleared:
            await db.execute(self._sql.clear, array_of(rows.cleared))
        await self._allow(db, max(map(len, rows.values), default=0))
        for some in rows.pieces():
            await db.execute(self._sql.upsert, array_of(rows.ids[some]), *rows.arguments(some))
        if rows.gone_ids:
            await db.execute(self._sql.delete, array_of(rows.gone_ids), *joined(rows.gone_keys))
        if smaller := {*rows.cleared, *rows.gone_ids}.difference(rows.ids):
            # No row is left that says when this was.
            await db.execute(self._sql.touch, array_of(sorted(smaller)))

    async def _fence_the_lost(self, db: Any) -> None:
        """Keep what a lost connection may still do from being done: its statements say an older `retry`."""
        self._retry += 1
        lost = sorted({lease for ids, numbers in self._doubtful for lease in zip(ids, numbers, strict=True)})
        for start in range(0, len(lost), ROWS_A_STATEMENT):
            ids, numbers = map(array_of, zip(*lost[start : start + ROWS_A_STATEMENT], strict=True))
            await self._all(db, self._sql.fence_lost, ids, numbers, self._retry)
        self._doubtful.clear()

    async def _newest(self, db: Any, scope: Scope) -> tuple[Held | None, float | None, int, int]:
        """Who has held the scope last, how long ago something was saved, and with which epoch and token it is held."""
        [[known, attempt, epoch, token, run, ago]] = await self._all(db, self._sql.newest, *scope.row)
        _refuse_unless(known)
        return (None, None, NOT_THERE, 0) if attempt is None else (Held(attempt, run), ago, epoch, token)

    async def _take(
        self, db: Any, scope: Scope, admitted: Admission, seen: Sequence[int]
    ) -> tuple[Lease, str] | None:
        """Take the lease, and the version of the row; None where another holder than the one that was `seen` has it."""
        here = host_name(), os.getpid()
        wanted = (*scope.row, admitted.attempt, new_token(), admitted.run, *seen, *here)
        if not admitted.fresh:
            rows = await self._all(db, self._sql.acquire, *wanted)
        else:
            async with _transaction(db):
                rows = await db.fetch(self._sql.acquire, *wanted)
                await db.execute(self._sql.empty, array_of(row[0] for row in rows))
        if not rows:
            return None
        *numbers, version = rows[0]
        return Lease(scope, *numbers), version

    async def _reset(self, db: Any, scope_id: int, run: str) -> int:
        """Delete every key of a scope that this transaction has locked, and fence its holder; how many keys there were."""
        await db.execute(self._sql.reset, scope_id, new_token(), run)
        return count_of(await db.execute(self._sql.empty, array_of([scope_id])))

    async def _has(self, db: Any, scope: Scope, expected: Mapping[str, str]) -> bool:
        """Whether a scope's keys have these texts; this transaction has locked it then."""
        row = await db.fetchrow(self._sql.lock, *scope.row)
        # A statement of its own: it sees what was saved before the row was locked.
        stored = [] if row is None else await db.fetch(self._sql.values, row[0], *joined(list(expected)))
        return expected.items() <= dict(stored).items()

    async def _all(self, db: Any, statement: str, *arguments: object) -> list[Any]:
        """The rows that a statement in a transaction of its own returns."""
        if not self._dsn.pgbouncer:
            return list(await db.fetch(statement, *arguments))
        # Behind a pooler it must be prepared and executed on one server connection.
        async with _transaction(db):
            await self._allow(db, sum(len(text) for text in arguments if isinstance(text, str)))
            return list(await db.fetch(statement, *arguments))

    async def _look(self, db: Any, statement: str, *arguments: object) -> list[Any]:
        """The same for a statement that only reads, and may return much."""
        if not self._dsn.pgbouncer:
            return list(await db.fetch(statement, *arguments))
        async with _transaction(db, BEGIN_SNAPSHOT):
            return list(await db.fetch(statement, *arguments))

    async def _allow(self, db: Any, size: int) -> None:
        """Let a transaction wait for a statement of so many bytes, which has to come over a slow line."""
        if size > STATEMENT_BYTES:
            seconds = size / SLOWEST
            await db.execute(f"SET LOCAL idle_in_transaction_session_timeout = {seconds * 1000:.0f}")

    @asynccontextmanager
    async def _use(self) -> AsyncIterator[Any]:
        """The connection, for one call at a time."""
        async with self._connection.use() as db:
            if self._connection.number != self._touched_over:
                # The database may have gone back to an earlier moment.
                self._touched.clear()
                self._touched_over = self._connection.number
            yield db

    async def _check(self, db: Any) -> None:
        """Refuse to go on with a transaction on tables that are newer than this code."""
        _refuse_unless(await db.fetchval(self._sql.known))

    @asynccontextmanager
    async def _transact(self) -> AsyncIterator[Any]:
        """The same in a transaction."""
        async with self._use() as db, _transaction(db):
            yield db

    @asynccontextmanager
    async def _use_in_line(self) -> AsyncIterator[Any]:
        """The connection for an opening: one of them at a time waits, so that no commit waits for hundreds."""
        async with self._acquiring, self._use() as db:
            yield db


@asynccontextmanager
async def _transaction(db: Any, begin: str | None = None) -> AsyncIterator[None]:
    """A transaction; where the driver raises, the connection is dropped, and so the transaction is rolled back."""
    await db.execute(begin or BEGIN)
    try:
        yield
    except AsyncTaskStateError:
        # What is refused leaves the connection as it was.
        await db.execute("ROLLBACK")
        raise
    await db.execute("COMMIT")


def _first_page(rows: Sequence[Any]) -> Entries:
    """The entries of the rows of a scope, of which there is one without an entry where it has none."""
    entries = Entries()
    entries.add([row[9:] for row in rows if row["key"] is not None])
    return entries


def _refuse_unless(good: object) -> None:
    """Have a call made again on a new connection, which finds out what is newer than this code."""
    if not good:
        raise StoreUnavailableError(
            "PostgreSQL refused a write, though its lease is the newest: the tables, or a connection that was lost, are"
            " newer; trying again on a new connection"
        )
