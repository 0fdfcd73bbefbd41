"""The statements of the PostgreSQL store, and the rows that go into them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Final

from async_task_state.codec import KILL_PREFIX
from async_task_state.stores.postgres_entries import page

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from async_task_state.stores import Batch, Lease

__all__ = [
    "BEGIN",
    "BEGIN_SNAPSHOT",
    "HOLDER",
    "LONGEST",
    "ROWS_A_STATEMENT",
    "SESSION",
    "SLOWEST",
    "STATEMENT_BYTES",
    "TOUCH_SECONDS",
    "Rows",
    "Statements",
    "array_of",
    "count_of",
    "joined",
    "lease_number",
    "parts",
]

ROWS_A_STATEMENT: Final = 1000
"""More are slower: measured at 100, 1,000 and 10,000."""

TOUCH_SECONDS: Final = 1800.0
"""How often a process that commits to a scope touches it: with every commit it would double the work of a small one."""

# A process that is frozen must not hold its successor up. Nobody may wait for a lock on the server when the client has
# given up, or those who try again would use all connections up. What is saved is on disk. No function of a schema that others
# may write is taken for one of the server's.
_LIMITS: Final = (
    "SET {0} search_path = pg_catalog, pg_temp; SET {0} idle_in_transaction_session_timeout = 10000; SET {0} lock_timeout = 15000; SELECT"
    " set_config('synchronous_commit', 'on', {1}) WHERE current_setting('synchronous_commit') = 'off'"
)
# A page of entries is read in the order of the index: without statistics the server would sort the whole scope for each.
_ORDER: Final = "; SET {0} enable_sort = off"
SESSION: Final = (_LIMITS + _ORDER).format("SESSION", "false")
BEGIN: Final = f"BEGIN ISOLATION LEVEL READ COMMITTED; {_LIMITS.format('LOCAL', 'true')}"
BEGIN_SNAPSHOT: Final = BEGIN.replace("READ COMMITTED", "REPEATABLE READ READ ONLY").replace(
    "10000", "60000"
) + _ORDER.format("LOCAL")
"""To read, as of one moment. It holds nobody up, and is idle for as long as it takes until what was read has arrived."""

STATEMENT_BYTES: Final = 250_000
"""What a statement in a transaction may have: over a slow line the server is idle in the transaction until all has come."""
SLOWEST: Final = 25_000
"""Bytes a second, of a line over which a value that is larger than that is still waited for."""

FOREVER: Final = float("inf")
WITH_ITS_STATE: Final = -1.0
"""Stands for a retention of None: NULL in the array of retentions has another meaning."""
LONGEST: Final = 100 * 365.25 * 86400.0
"""Seconds. What is kept for longer is kept for ever: a timestamp ends."""

_SCOPE_KEY: Final = "dag_id = $1 AND run_id = $2 AND task_id = $3 AND map_index = $4 AND region_id = $5"
_LEASE: Final = "((attempt::bigint << 32 | epoch) # token)"
_NUMBERS: Final = "id, attempt, epoch, token"
"""Of a lease."""
HOLDER: Final = "held_epoch, host, pid, extract(epoch FROM since)::float8"
"""Which process has the lease, if the epoch is still `held_epoch`."""
_LIVE: Final = "(expires_at IS NULL OR expires_at > now())"
_KNOWN: Final = "(SELECT version FROM {schema}.version) <= {known}"
"""Whether the tables are still those of the version that this code knows."""

# The fence: one row, whether all leases are their scopes' newest ones, and nothing is newer than this code.
# KEY SHARE is enough against whoever takes a lease, for that one locks FOR UPDATE. It is one comparison of arrays,
# for at 1,000 scopes a join costs more than all the locks.
_FENCE: Final = f"""
WITH sent AS MATERIALIZED (
    SELECT $1::text::bigint[] AS ids, $2::text::bigint[] AS leases
), locked AS MATERIALIZED (
    SELECT id, {_LEASE} AS lease, retry FROM {{schema}}.scope
    WHERE id = ANY((SELECT ids FROM sent)::bigint[]) ORDER BY id FOR KEY SHARE
), good AS MATERIALIZED (
    SELECT {_KNOWN} AND coalesce(max(retry) <= $3::integer
        AND array_agg(id) = (SELECT ids FROM sent) AND array_agg(lease) = (SELECT leases FROM sent), false) AS all_held
    FROM locked
)"""
_ANSWER: Final = "SELECT all_held FROM good"


# A key column is among those set so that the row is locked FOR UPDATE, and so before it is looked at: no commit is
# under way then, and rows may be locked in any order.
_MAKE: Final = (
    "INSERT INTO {schema}.scope AS s (dag_id, run_id, task_id, map_index, region_id, attempt, epoch, token,"
    " run, touched_at{holder}) SELECT $1, $2, $3, $4::integer, $5, {numbers}, now(){here} WHERE "
    + _KNOWN
    + " ON CONFLICT (dag_id, run_id, task_id, map_index, region_id) DO UPDATE SET dag_id = excluded.dag_id,"
    " touched_at = now()"
)


# An expiry moves in steps of a hundredth of the retention, for a row whose indexed column changed is not updated in place.
_EXPIRY: Final = """CASE WHEN {kept} = 'inf' THEN 'infinity' WHEN {kept} > 0 THEN
    to_timestamp(ceil(({now} + {kept}) / ({kept} / 100)) * ({kept} / 100)) END"""
_INSERT: Final = "INSERT INTO {schema}.entry (scope_id, key, value, updated_at, expires_at)"
_ON_CONFLICT: Final = """ON CONFLICT (scope_id, key) DO UPDATE
SET value = excluded.value, updated_at = excluded.updated_at, expires_at = excluded.expires_at"""


def _upsert(ids: str, first: int, where: str = "") -> str:
    """The upsert of columns of rows, each a text: parameters from `first` on.

    They are keys, values, the common retention, other retentions, and the mark between keys and between values. A
    row's retention is the common one where the array of others is too short to have it.

    Args:
        ids: An array of the rows' scopes.
        first: The number of the first of the parameters.
        where: Whether to do it.
    """
    keys, values, kept, others, mark = (f"${number}" for number in range(first, first + 5))
    return f"""
{_INSERT}
SELECT c.id, c.key, c.value, now(), {_EXPIRY.format(kept="c.kept", now="moment.now")}
FROM (SELECT date_part('epoch', now()) AS now) AS moment,
    (SELECT id, key, value, coalesce(other, {kept}::float8) AS kept FROM unnest({ids},
        string_to_array({keys}, {mark}), string_to_array({values}, {mark}), {others}::text::float8[])
        AS rows (id, key, value, other)) AS c
{where}
{_ON_CONFLICT}"""


# One row of one scope, with the fence: two thirds of the time of the general one. No answer where the lease is not held.
_SAVE_ROW: Final = f"""
{_INSERT}
SELECT id, $4::text, $5::text, now(), {_EXPIRY.format(kept="$6::float8", now="date_part('epoch', now())")}
FROM {{schema}}.scope WHERE id = $1 AND {_LEASE} = $2 AND retry <= $3 AND {_KNOWN} FOR KEY SHARE
{_ON_CONFLICT}
RETURNING true"""


class Statements:
    """The SQL for the tables of one schema.

    Args:
        schema: Its name, of letters, digits and underscores.
        known: The version of the tables that this code knows. Where they are newer nothing is written.
    """

    def __init__(self, schema: str, known: int) -> None:
        def sql(text: str) -> str:
            return text.replace("{schema}", f'"{schema}"').replace("{known}", str(known))

        self.fence = sql(f"{_FENCE} {_ANSWER}")
        if_held = "WHERE (SELECT all_held FROM good)"
        ids = "coalesce($4::text::bigint[], (SELECT ids FROM sent))::bigint[]"
        self.save = sql(f"{_FENCE}, saved AS ({_upsert(ids, 5, if_held)}) {_ANSWER}")
        self.save_row = sql(_SAVE_ROW)
        self.upsert = sql(_upsert("$1::text::bigint[]", 2))
        empty = "DELETE FROM {schema}.entry WHERE scope_id = ANY($1::text::bigint[])"
        self.empty = sql(empty)
        self.clear = sql(f"{empty} AND NOT starts_with(key, '{KILL_PREFIX}')")
        self.delete = sql(
            "DELETE FROM {schema}.entry AS e"
            " USING unnest($1::text::bigint[], string_to_array($2, $3)) AS gone (scope_id, key)"
            " WHERE e.scope_id = gone.scope_id AND e.key = gone.key"
        )
        self.touch = sql(
            "UPDATE {schema}.scope SET touched_at = now() WHERE id IN (SELECT id FROM {schema}.scope"
            " WHERE id = ANY($1::text::bigint[]) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)"
        )
        self.leases = sql(f"SELECT id, {_LEASE} FROM {{schema}}.scope WHERE id = ANY($1::text::bigint[])")
        self.fence_lost = sql(
            "UPDATE {schema}.scope AS s SET retry = $3 FROM ("
            "SELECT id FROM {schema}.scope JOIN unnest($1::text::bigint[], $2::text::bigint[]) AS lost (scope_id, lease)"
            f" ON id = lost.scope_id AND {_LEASE} = lost.lease ORDER BY id FOR UPDATE OF scope) AS held"
            " WHERE s.id = held.id AND s.retry < $3"
        )
        self.acquire = sql(
            _MAKE.replace("{numbers}", "$6::integer, 1, $7::bigint, $8")
            .replace("{holder}", ", held_epoch, host, pid, since")
            .replace("{here}", ", 1, $11, $12::bigint, now()")
            + ", attempt = $6, epoch = s.epoch + 1, token = excluded.token, run = excluded.run, retry = 0,"
            " held_epoch = s.epoch + 1, host = excluded.host, pid = excluded.pid, since = now()"
            f" WHERE s.epoch = $9 AND s.token = $10 RETURNING {_NUMBERS}, xmin::text"
        )
        make = (
            _MAKE.replace("{numbers}", "1, 0, $6::bigint, $7").replace("{holder}", "").replace("{here}", "")
        )
        self.make = sql(f"{make} RETURNING {_NUMBERS}, run")
        self.known = sql(f"SELECT {_KNOWN}")
        self.newest = sql(
            f"SELECT {_KNOWN}, attempt, epoch, token, run, extract(epoch FROM now() - (SELECT max(updated_at)"
            " FROM {schema}.entry WHERE scope_id = scope.id))::float8 FROM (SELECT) AS one"
            f" LEFT JOIN {{schema}}.scope ON {_SCOPE_KEY}"
        )
        self.page = sql(page("$1", "$2", "$3"))
        self.read = sql(
            f"SELECT {_NUMBERS}, run, {HOLDER}, key, value, expires, remaining, found FROM {{schema}}.scope"
            f" LEFT JOIN LATERAL ({page('scope.id', chr(39) * 2, '$6')}) AS first_page ON true"
            f" WHERE {_SCOPE_KEY} ORDER BY key"
        )
        self.values = sql(
            "SELECT key, value FROM {schema}.entry WHERE scope_id = $1 AND key = ANY(string_to_array($2, $3))"
            f" AND {_LIVE}"
        )
        size = "coalesce(sum(octet_length(key) + octet_length(value)){some}, 0)::bigint"
        of_keys = size.format(some=" FILTER (WHERE key = ANY(string_to_array($2, $3)))")
        self.sizes = sql(
            f"SELECT {size.format(some='')}, {of_keys} FROM {{schema}}.entry WHERE scope_id = $1 AND {_LIVE}"
        )
        self.version = sql(
            "SELECT xmin::text, extract(epoch FROM now())::float8 FROM {schema}.scope WHERE id = $1"
        )
        self.lock = sql(f"SELECT id FROM {{schema}}.scope WHERE {_SCOPE_KEY} FOR UPDATE")
        self.reset = sql(
            "UPDATE {schema}.scope SET attempt = 1, epoch = epoch + 1, token = $2, run = $3, retry = 0,"
            " touched_at = now() WHERE id = $1"
        )


def lease_number(lease: Lease) -> int:
    """Attempt, epoch and token as one number of 63 bits, as the statements compare them.

    Attempt and epoch have 31 bits each: the columns are of type integer, and the server refuses more.
    """
    return (lease.attempt << 32 | lease.epoch) ^ lease.token


def parts(batches: Sequence[Batch]) -> Iterator[list[Batch]]:
    """What goes into a transaction each: whole batches in the order of their scopes, 1,000 rows where that can be."""
    part: list[Batch] = []
    rows = 0
    for batch in sorted(batches, key=lambda batch: batch.lease.scope_id):
        more = max(1, len(batch.changes))
        if part and rows + more > ROWS_A_STATEMENT:
            yield part
            part, rows = [], 0
        part.append(batch)
        rows += more
    if part:
        yield part


@dataclass(frozen=True, slots=True)
class Rows:
    """What batches change, in the order in which every process locks rows: a column each."""

    ids: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    gone_ids: list[int] = field(default_factory=list)
    gone_keys: list[str] = field(default_factory=list)
    cleared: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, part: Sequence[Batch]) -> Rows:
        """The rows of batches that are in the order of their scopes."""
        rows = cls()
        for batch in part:
            scope_id, changes = batch.lease.scope_id, batch.changes
            if batch.cleared:
                rows.cleared.append(scope_id)
            for key in sorted(changes) if len(changes) > 1 else changes:
                value, retention = changes[key]
                if value is None:
                    rows.gone_ids.append(scope_id)
                    rows.gone_keys.append(key)
                else:
                    rows.ids.append(scope_id)
                    rows.keys.append(key)
                    rows.values.append(value)
                    rows.kept.append(_number_of(retention))
        return rows

    @property
    def are_upserts(self) -> bool:
        """Whether one upsert does it all."""
        return not self.cleared and not self.gone_ids and len(self.ids) <= ROWS_A_STATEMENT

    @property
    def are_one_upsert(self) -> bool:
        """Whether there is one row to upsert, and nothing else to do."""
        return len(self.ids) == 1 and self.are_upserts

    @property
    def size(self) -> int:
        """How many bytes the values have."""
        return sum(map(len, self.values))

    def pieces(self) -> Iterator[slice]:
        """What goes into a statement each, where there is a transaction around them."""
        start = size = 0
        for number, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            more = len(key) + len(value)
            if number > start and (size + more > STATEMENT_BYTES or number - start == ROWS_A_STATEMENT):
                yield slice(start, number)
                start, size = number, 0
            size += more
        if self.keys:
            yield slice(start, len(self.keys))

    def arguments(self, some: slice = slice(None)) -> tuple[str, str, float, str, str]:
        """What the upsert of rows takes, after the ids: no other retentions where all are alike."""
        kept = self.kept[some]
        alike = len(set(kept)) <= 1
        keys, values, mark = joined(self.keys[some], self.values[some])
        return (
            keys,
            values,
            kept[0] if alike and kept else WITH_ITS_STATE,
            "{}" if alike else array_of(kept),
            mark,
        )


def _number_of(retention: float | None) -> float:
    """A retention as the statements take it."""
    if retention is None:
        return WITH_ITS_STATE
    return FOREVER if retention > LONGEST else retention


def array_of(numbers: Iterable[float]) -> str:
    """Numbers as PostgreSQL writes an array: for a list asyncpg takes longer, and asks the server for its type first."""
    return f"{{{','.join(map(str, numbers))}}}"


def joined(*columns: Sequence[str]) -> tuple[str, ...]:
    """Each column as one text, and the mark between its parts, which none of them holds."""
    for code in count(1):
        mark = chr(code)
        texts = [mark.join(column) for column in columns]
        if all(
            text.count(mark) == max(0, len(column) - 1) for text, column in zip(texts, columns, strict=True)
        ):
            break
    return *texts, mark


def count_of(status: str) -> int:
    """How many rows a command changed, by what the server says when it is done."""
    return int(status.rpartition(" ")[2])
