"""What a listing of the PostgreSQL store reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from async_task_state.codec import RESERVED_PREFIX
from async_task_state.scopes import scope_of
from async_task_state.stores import ScopeInfo
from async_task_state.stores.holders import Holder
from async_task_state.stores.postgres_sql import HOLDER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from async_task_state.stores import Wanted

__all__ = ["count", "listing"]

_LIVE: Final = "(expires_at IS NULL OR expires_at > now())"
_OWN: Final = f"starts_with(key, '{RESERVED_PREFIX}')"
_COUNTS: Final = f"""count(*) FILTER (WHERE NOT {_OWN}) AS keys,
    json_object_agg(key, octet_length(value)) FILTER (WHERE {_OWN})::text AS own"""
_UPDATED: Final = "extract(epoch FROM coalesce(newest, touched_at))::float8 AS updated"
_COLUMNS: Final = (
    f"dag_id, run_id, task_id, map_index, region_id, attempt, epoch, {HOLDER}, keys, updated, id, own"
)


async def listing(
    fetch: Callable[..., Awaitable[Sequence[Any]]], schema: str, wanted: Wanted
) -> list[ScopeInfo]:
    """See `Store.scopes`.

    Args:
        fetch: Returns the rows of a query.
        schema: Whose tables; a checked name.
        wanted: Which scopes.
    """
    values = list(wanted.columns.values())
    if wanted.limit is not None:
        query = _page(schema, wanted)
        values.append(wanted.limit)
    else:
        query = _all(schema, wanted)
    rows = await fetch(query, *values, *(wanted.after or ()))
    infos = [
        ScopeInfo(
            *(scope_of(tuple(row)), attempt, epoch, keys, updated, id_, json.loads(own) if own else {}),
            Holder(host, pid, attempt, since) if held_epoch == epoch > 0 else None,
        )
        for *row, attempt, epoch, held_epoch, host, pid, since, keys, updated, id_, own in rows
    ]
    # Here, because the server is told to avoid sorting.
    infos.sort(key=lambda info: (info.updated_at, info.scope_id), reverse=True)
    return infos


def _page(schema: str, wanted: Wanted) -> str:
    """How new a scope is has to be known of all that match, the rest only of those on the page."""
    limit = len(wanted.columns) + 1
    return f"""
WITH page AS MATERIALIZED (
    SELECT * FROM (
        SELECT *, extract(epoch FROM coalesce(
            (SELECT max(updated_at) FROM "{schema}".entry WHERE scope_id = id AND {_LIVE}), touched_at))::float8 AS updated
        FROM "{schema}".scope WHERE {wanted.conditions("${0}")}
    ) AS dated {_behind(wanted, limit + 1)} ORDER BY updated DESC, id DESC LIMIT ${limit}::bigint
)
SELECT {_COLUMNS} FROM page, LATERAL (
    SELECT {_COUNTS} FROM "{schema}".entry WHERE scope_id = id AND {_LIVE}
) AS entries"""


def _all(schema: str, wanted: Wanted) -> str:
    """Reads the entries of a scope once, where a page is chosen by them first."""
    return f"""
SELECT * FROM (
    SELECT {_COLUMNS.replace("updated", _UPDATED)} FROM "{schema}".scope, LATERAL (
        SELECT max(updated_at) AS newest, {_COUNTS} FROM "{schema}".entry WHERE scope_id = id AND {_LIVE}
    ) AS entries WHERE {wanted.conditions("${0}")}
) AS dated {_behind(wanted, len(wanted.columns) + 1)}"""


def _behind(wanted: Wanted, number: int) -> str:
    return f"WHERE (updated, id) < (${number}::float8, ${number + 1}::bigint)" if wanted.after else ""


async def count(fetch: Callable[..., Awaitable[Sequence[Any]]], schema: str, wanted: Wanted) -> int:
    """See `Store.count_scopes`.

    Args:
        fetch: As above.
        schema: As above.
        wanted: As above.
    """
    query = f'SELECT count(*) FROM "{schema}".scope WHERE {wanted.conditions("${0}")}'
    [[number]] = await fetch(query, *wanted.columns.values())
    return int(number)
