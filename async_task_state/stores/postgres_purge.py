"""Deleting from PostgreSQL what is due: found by indexes, without a lock, and deleted in small transactions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from async_task_state.codec import MAX_TRIES, RESERVED_PREFIX
from async_task_state.stores import new_token
from async_task_state.stores.postgres_sql import ROWS_A_STATEMENT, array_of, count_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

__all__ = ["Purge"]

SCOPES: Final = 100
"""Of a look, and of a transaction at most."""
IN_USE: Final = "interval '1 hour'"
"""How stale the `touched_at` of a scope in use may get."""

_NOW: Final = "coalesce(to_timestamp($1), now())"
_IDLE: Final = f"touched_at <= {_NOW} - make_interval(secs => $2) - {IN_USE}"


def _first_key(which: str, scope_id: str = "scope.id") -> str:
    """The first key of a scope that is so. Not EXISTS, for which the planner may read the whole table of entries."""
    entries = f"SELECT key FROM {{schema}}.entry WHERE entry.scope_id = {scope_id} AND {which}"
    return f"({entries} ORDER BY key LIMIT 1)"


_OWN: Final = _first_key("expires_at IS NOT NULL AND NOT starts_with(key, $3)", "e.scope_id")


class Purge:
    """Purges the tables of one schema.

    Args:
        schema: Its name, of letters, digits and underscores.
        transact: Gives a connection in a transaction.
        check: Raises where a transaction must not change the tables.
    """

    def __init__(
        self,
        schema: str,
        transact: Callable[[], AbstractAsyncContextManager[Any]],
        check: Callable[[Any], Awaitable[None]],
    ) -> None:
        def sql(text: str) -> str:
            return text.replace("{schema}", f'"{schema}"')

        self._transact = transact
        self._check = check
        # In order, or else the planner takes a scan of the whole table, of which it expects a third, for shorter.
        self.expired = sql(
            "DELETE FROM {schema}.entry WHERE ctid = ANY(ARRAY(SELECT ctid FROM {schema}.entry"
            f" WHERE expires_at <= {_NOW} ORDER BY expires_at LIMIT {ROWS_A_STATEMENT} FOR UPDATE SKIP LOCKED))"
        )
        # By id, so that each is looked at once.
        self.due = sql(
            "SELECT id, (SELECT count(*) FROM (SELECT FROM {schema}.entry WHERE scope_id = scope.id"
            f" LIMIT {ROWS_A_STATEMENT}) AS first_rows) FROM {{schema}}.scope WHERE id > $3 AND {_IDLE}"
            f" AND ({_first_key('true')} IS NULL OR (dag_id <> '' AND ("
            f"{_first_key('expires_at IS NULL AND key <> $4')} IS NOT NULL"
            f" OR {_first_key('NOT starts_with(key, $5)')} IS NULL))) ORDER BY id LIMIT {SCOPES}"
        )
        self.lock = sql(
            f"SELECT id, dag_id <> '' FROM {{schema}}.scope WHERE id = ANY($3::text::bigint[]) AND {_IDLE}"
            " ORDER BY id FOR UPDATE SKIP LOCKED"
        )
        self.delete = sql(
            "WITH gone AS (DELETE FROM {schema}.entry AS e WHERE scope_id = ANY($1::text::bigint[])"
            f" AND expires_at IS NULL AND NOT (key = $2 AND {_OWN} IS NOT NULL)"
            " RETURNING scope_id) SELECT scope_id, count(*) FROM gone GROUP BY scope_id"
        )
        self.fence = sql(
            "UPDATE {schema}.scope SET epoch = epoch + 1, token = $2, retry = 0 WHERE id = ANY($1::text::bigint[])"
        )
        self.forget = sql(
            f"DELETE FROM {{schema}}.scope WHERE id = ANY($1::text::bigint[]) AND {_first_key('true')} IS NULL"
        )

    async def run(self, now: float | None, retention: float | None) -> int:
        """Delete keys whose time is over, and states of tasks that have been idle for `retention`; how many keys that were.

        Args:
            now: Seconds since 1970; None is the server's.
            retention: Seconds that an idle state is kept; None is for ever.
        """
        purged = 0
        while deleted := await self._delete_expired(now):
            purged += deleted
        last = 0
        while due := await self._look(now, retention, last):
            for ids in _parts(due):
                purged += await self._delete_idle(now, retention, ids)
            last = due[-1][0]
        return purged

    async def _delete_expired(self, now: float | None) -> int:
        async with self._transact() as db:
            deleted = count_of(await db.execute(self.expired, now))
            await self._check(db)
        return deleted

    async def _look(self, now: float | None, retention: float | None, after: int) -> list[tuple[int, int]]:
        """The next idle scopes of which something is due, and how many rows they have, or that they have a thousand."""
        async with self._transact() as db:
            rows = await db.fetch(self.due, now, retention, after, MAX_TRIES, RESERVED_PREFIX)
        return [(row[0], row[1]) for row in rows]

    async def _delete_idle(self, now: float | None, retention: float | None, ids: Sequence[int]) -> int:
        """Delete what is due of scopes that are still idle, each as a whole; how many keys that were."""
        async with self._transact() as db:
            locked = await db.fetch(self.lock, now, retention, array_of(ids))
            await self._check(db)
            # Statements of their own: they see what was saved before the rows were locked.
            tasks = array_of(row[0] for row in locked if row[1])
            lost = await db.fetch(self.delete, tasks, MAX_TRIES, RESERVED_PREFIX)
            await db.execute(self.fence, array_of(row[0] for row in lost), new_token())
            await db.execute(self.forget, array_of(row[0] for row in locked))
        return sum(row[1] for row in lost)


def _parts(scopes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """What goes into a transaction each: whole scopes, a thousand rows where that can be."""
    ids: list[int] = []
    rows = 0
    for id_, more in scopes:
        if ids and rows + more > ROWS_A_STATEMENT:
            yield ids
            ids, rows = [], 0
        ids.append(id_)
        rows += more
    yield ids
