"""State in PostgreSQL: for workers and triggerers on many machines.

One connection a process, which each call has to itself. A commit is one statement and one round trip: it share-locks
the scopes' rows in the order of their ids, compares their leases with what was sent, and only then upserts. Whoever
takes a lease locks its row exclusively, so it waits for a commit that is under way and is seen by every later one.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from async_task_state.codec import MAX_TRIES, RESERVED_PREFIX
from async_task_state.deadline import Deadline
from async_task_state.errors import AsyncTaskStateError, StoreError, StoreUnavailableError
from async_task_state.scopes import scope_of
from async_task_state.stores import Batch, Lease, ScopeInfo, Snapshot, new_token
from async_task_state.stores.admission import Held, admit, admit_write
from async_task_state.stores.postgres_connect import connect
from async_task_state.stores.postgres_errors import TROUBLE, explained
from async_task_state.stores.postgres_schema import prepare
from async_task_state.stores.postgres_sql import (
    BEGIN,
    LONGEST,
    ROWS_A_STATEMENT,
    SESSION,
    TOUCH_SECONDS,
    Rows,
    Statements,
    array_of,
    joined,
    lease_number,
    parts,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping, Sequence

    from async_task_state.runs import Run
    from async_task_state.scopes import Scope
    from async_task_state.stores import Change
    from async_task_state.stores.admission import Admission
    from async_task_state.stores.postgres_dsn import PostgresDsn

__all__ = ["PostgresStore"]

COMMAND_SECONDS: Final = 20.0
"""How long the server may take to answer before the connection counts as lost."""
IDLE_SECONDS: Final = 60.0
CLOSE_SECONDS: Final = 2.0
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
        self._sql = Statements(dsn.schema)
        self._turn = asyncio.Lock()
        self._acquiring = asyncio.Lock()
        self._db: Any = None
        self._idle = Deadline(self._begin_to_close)
        self._closing: asyncio.Task[None] | None = None
        # Leases of which a commit may still be under way on a connection that was lost; and how often that was so.
        self._doubtful: list[tuple[list[int], list[int]]] = []
        self._retry = 0
        # What need not be touched before this moment.
        self._touched: set[int] = set()
        self._touched_until = time.monotonic() + TOUCH_SECONDS

    async def acquire(self, scope: Scope, attempt: int | None, run: Run | None = None) -> Snapshot:
        """See `Store.acquire`."""
        # One of them at a time waits for the connection, so that no commit waits for hundreds.
        async with self._acquiring, self._use() as db:
            lease = None
            while lease is None:
                held, *seen = await self._newest(db, scope)
                admitted = admit(scope, attempt, run, held)
                lease = await self._take(db, scope, admitted, seen)
            self._touched.add(lease.scope_id)
            # A statement of its own, for one sees nothing that was committed while it waited for a lock.
            kept = held is not None and not admitted.fresh
            entries = await self._all(db, self._sql.entries, lease.scope_id) if kept else []
        return Snapshot(lease, dict(entries), admitted.run, admitted.fresh)

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
            rows = await self._all(db, self._sql.read, *scope.row)
        if not rows:
            return None
        *numbers, run, _, _ = rows[0]
        return Snapshot(Lease(scope, *numbers), {row[5]: row[6] for row in rows if row[5] is not None}, run)

    async def scopes(
        self, dag_id: str | None = None, run_id: str | None = None, task_id: str | None = None
    ) -> list[ScopeInfo]:
        """See `Store.scopes`."""
        async with self._use() as db:
            rows = await self._all(db, self._sql.scopes, dag_id, run_id, task_id, RESERVED_PREFIX)
        return [ScopeInfo(scope_of(tuple(row[:5])), *row[5:]) for row in rows]

    async def write(
        self,
        scope: Scope,
        changes: Mapping[str, Change],
        *,
        cleared: bool = False,
        run: Run | None = None,
        expected: Mapping[str, str] | None = None,
    ) -> bool:
        """See `Store.write`.

        A transaction, which has the scope's lock before it ends: where its COMMIT arrives late, on a connection that was
        lost, whatever is newer waits for it.
        """
        async with self._use() as db, _transaction(db):
            if expected and not await self._has(db, scope, expected):
                return False
            new = admit_write(scope, run, None)
            *numbers, left_by = await db.fetchrow(self._sql.make, *scope.row, new_token(), new.run)
            lease = Lease(scope, *numbers)
            admitted = admit_write(scope, run, Held(lease.attempt, left_by))
            if admitted.fresh:
                await self._reset(db, lease.scope_id, admitted.run)
            await self._change(db, Rows.of([Batch(lease, dict(changes), cleared)]))
        return True

    async def clear(self, scope: Scope) -> int | None:
        """See `Store.clear`."""
        async with self._use() as db, _transaction(db):
            row = await db.fetchrow(self._sql.lock, *scope.row)
            if row is None:
                return None
            return await self._reset(db, row[0], "")

    async def purge(self, now: float | None = None) -> int:
        """See `Store.purge`."""
        purged = 0
        # A transaction a batch, so that nobody waits longer than a batch takes.
        while deleted := await self._purge_expired(now):
            purged += deleted
        idle = now, self._default_retention
        after = 0
        while ids := await self._idle_scopes(*idle, after):
            purged += await self._purge_idle(*idle, ids)
            after = ids[-1]
        return purged

    async def close(self) -> None:
        """See `Store.close`."""
        async with self._turn:
            db, self._db = self._db, None
            self._idle.stop()
            if db is not None:
                try:
                    await db.close(timeout=CLOSE_SECONDS)
                except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, asyncio.TimeoutError):
                    db.terminate()

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
            if not stale:
                raise StoreUnavailableError("a lease was refused that is its scope's newest; trying again")
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
        elif rows.are_upserts:
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
        for start in range(0, len(rows.ids), ROWS_A_STATEMENT):
            some = array_of(rows.ids[start : start + ROWS_A_STATEMENT])
            await db.execute(self._sql.upsert, some, *rows.arguments(start))
        if rows.gone_ids:
            await db.execute(self._sql.delete, array_of(rows.gone_ids), *joined(rows.gone_keys))

    async def _fence_the_lost(self, db: Any) -> None:
        """Keep what a lost connection may still do from being done: its statements say an older `retry`."""
        self._retry += 1
        lost = sorted({lease for ids, numbers in self._doubtful for lease in zip(ids, numbers, strict=True)})
        for start in range(0, len(lost), ROWS_A_STATEMENT):
            ids, numbers = map(array_of, zip(*lost[start : start + ROWS_A_STATEMENT], strict=True))
            await self._all(db, self._sql.fence_lost, ids, numbers, self._retry)
        self._doubtful.clear()

    async def _purge_expired(self, now: float | None) -> int:
        async with self._use() as db, _transaction(db):
            return _count(await db.execute(self._sql.expired, now))

    async def _idle_scopes(self, now: float | None, retention: float | None, after: int) -> list[int]:
        """Some scopes of which something is due, above an id."""
        async with self._use() as db:
            rows = await self._all(db, self._sql.idle, now, retention, after, MAX_TRIES, RESERVED_PREFIX)
        return [row[0] for row in rows]

    async def _purge_idle(self, now: float | None, retention: float | None, ids: list[int]) -> int:
        """Delete what is due of scopes that are still idle, each as a whole; how many keys that were."""
        async with self._use() as db, _transaction(db):
            locked = await db.fetch(self._sql.lock_idle, now, retention, array_of(ids))
            # Statements of their own: they see what was saved before the rows were locked.
            tasks = array_of(row[0] for row in locked if row[1])
            lost = await db.fetch(self._sql.purge_idle, tasks, MAX_TRIES, RESERVED_PREFIX)
            await db.execute(self._sql.fence_idle, array_of(row[0] for row in lost), new_token())
            await db.execute(self._sql.forget, array_of(row[0] for row in locked))
        return sum(row[1] for row in lost)

    async def _newest(self, db: Any, scope: Scope) -> tuple[Held | None, int, int]:
        """Who has held the scope last, with which epoch and token."""
        rows = await self._all(db, self._sql.newest, *scope.row)
        if not rows:
            return None, NOT_THERE, 0
        attempt, epoch, token, run = rows[0]
        return Held(attempt, run), epoch, token

    async def _take(self, db: Any, scope: Scope, admitted: Admission, seen: Sequence[int]) -> Lease | None:
        """Take the lease; None where another holder than the one that was `seen` has it."""
        wanted = (*scope.row, admitted.attempt, new_token(), admitted.run, *seen)
        if not admitted.fresh:
            rows = await self._all(db, self._sql.acquire, *wanted)
        else:
            async with _transaction(db):
                rows = await db.fetch(self._sql.acquire, *wanted)
                await db.execute(self._sql.empty, array_of(row[0] for row in rows))
        return Lease(scope, *rows[0]) if rows else None

    async def _reset(self, db: Any, scope_id: int, run: str) -> int:
        """Delete every key of a scope that this transaction has locked, and fence its holder; how many keys there were."""
        await db.execute(self._sql.reset, scope_id, new_token(), run)
        return _count(await db.execute(self._sql.empty, array_of([scope_id])))

    async def _has(self, db: Any, scope: Scope, expected: Mapping[str, str]) -> bool:
        """Whether a scope's keys have these texts; this transaction has locked it then."""
        row = await db.fetchrow(self._sql.lock, *scope.row)
        # A statement of its own: it sees what was saved before the row was locked.
        entries = [] if row is None else await db.fetch(self._sql.entries, row[0])
        return expected.items() <= dict(entries).items()

    async def _all(self, db: Any, statement: str, *arguments: object) -> list[Any]:
        """The rows that a statement in a transaction of its own returns."""
        # Behind a pooler it must be prepared and executed on one server connection.
        async with _transaction(db) if self._dsn.pgbouncer else nullcontext():
            rows: list[Any] = await db.fetch(statement, *arguments)
        return rows

    @asynccontextmanager
    async def _use(self) -> AsyncIterator[Any]:
        """The connection, for one call at a time; after any trouble the next call gets a new one."""
        async with self._turn:
            self._idle.clear()
            try:
                if self._db is None or self._db.is_closed():
                    self._db = await self._connect()
                    # The database may have gone back to an earlier moment.
                    self._touched.clear()
                yield self._db
            except AsyncTaskStateError as error:
                if isinstance(error, StoreError):
                    self._drop()
                raise
            except TROUBLE as error:
                self._drop()
                raise explained(error, self._dsn.schema) from error
            except BaseException:
                # Cancelled: the server may be busy with it yet.
                self._drop()
                raise
            finally:
                if self._db is not None:
                    self._idle.set(time.monotonic() + IDLE_SECONDS)

    async def _connect(self) -> Any:
        db = None
        try:
            db = await connect(self._dsn, COMMAND_SECONDS)
            if not self._dsn.pgbouncer:
                await db.execute(SESSION)
            await prepare(db, self._dsn.schema)
        except BaseException as error:
            if db is not None:
                db.terminate()
            if isinstance(error, AsyncTaskStateError) or not isinstance(error, TROUBLE):
                raise
            trouble = explained(error, self._dsn.schema)
        else:
            return db
        # Not from within: the driver's own frames hold the password.
        raise trouble

    def _drop(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.terminate()

    def _begin_to_close(self) -> None:
        self._closing = asyncio.get_running_loop().create_task(self.close())


@asynccontextmanager
async def _transaction(db: Any) -> AsyncIterator[None]:
    """A transaction; where its body raises, the connection is dropped, and so the transaction is rolled back."""
    await db.execute(BEGIN)
    yield
    await db.execute("COMMIT")


def _count(status: str) -> int:
    """How many rows a command changed, by what the server says when it is done."""
    return int(status.rpartition(" ")[2])
