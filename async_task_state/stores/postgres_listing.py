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

    from async_task_state.stores import Position
    from async_task_state.stores.matching import Matching

__all__ = ["count", "listing"]

_LIVE: Final = "scope_id = id AND (expires_at IS NULL OR expires_at > now())"
_OWN: Final = f"starts_with(key, '{RESERVED_PREFIX}')"


async def listing(
    fetch: Callable[..., Awaitable[Sequence[Any]]],
    schema: str,
    matching: Matching,
    limit: int | None,
    after: Position | None,
) -> list[ScopeInfo]:
    """See `Store.scopes`.

    Args:
        fetch: Returns the rows of a query.
        schema: Whose tables; a checked name.
        matching: Which scopes.
        limit: How many.
        after: Behind what.
    """
    values = [*matching.columns.values(), limit, *(after or ())]
    first = len(matching.columns) + 1
    behind = f"WHERE (updated, id) < (${first + 1}::float8, ${first + 2}::bigint)" if after else ""
    # How new a scope is has to be known of all that match, the rest only of those on the page.
    rows = await fetch(
        f"""
WITH page AS MATERIALIZED (
    SELECT * FROM (
        SELECT *, extract(epoch FROM coalesce(
            (SELECT max(updated_at) FROM "{schema}".entry WHERE {_LIVE}), touched_at))::float8 AS updated
        FROM "{schema}".scope WHERE {matching.conditions("${0}")}
    ) AS dated {behind} ORDER BY updated DESC, id DESC LIMIT ${first}::bigint
)
SELECT dag_id, run_id, task_id, map_index, region_id, attempt, epoch, {HOLDER}, keys, updated, id, own
FROM page, LATERAL (
    SELECT count(*) FILTER (WHERE NOT {_OWN}) AS keys,
        json_object_agg(key, octet_length(value)) FILTER (WHERE {_OWN})::text AS own
    FROM "{schema}".entry WHERE {_LIVE}
) AS entries ORDER BY updated DESC, id DESC""",
        *values,
    )
    return [
        ScopeInfo(
            *(scope_of(tuple(row)), attempt, epoch, keys, updated, id_, json.loads(own or "{}")),
            Holder(host, pid, attempt, since) if held_epoch == epoch > 0 else None,
        )
        for *row, attempt, epoch, held_epoch, host, pid, since, keys, updated, id_, own in rows
    ]


async def count(fetch: Callable[..., Awaitable[Sequence[Any]]], schema: str, matching: Matching) -> int:
    """See `Store.count_scopes`.

    Args:
        fetch: As above.
        schema: As above.
        matching: As above.
    """
    query = f'SELECT count(*) FROM "{schema}".scope WHERE {matching.conditions("${0}")}'
    [[number]] = await fetch(query, *matching.columns.values())
    return int(number)
