"""The tables in PostgreSQL: how they are made, brought up to date, and handed to a database administrator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from asyncpg import InsufficientPrivilegeError

from async_task_state.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MIGRATIONS", "grants", "prepare", "script"]

MIGRATIONS: Final = (
    # Ids begin anywhere: a lease of tables that were dropped must not match one of those made in their place.
    """
CREATE TABLE {schema}.scope (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    dag_id text COLLATE "C" NOT NULL, run_id text COLLATE "C" NOT NULL, task_id text COLLATE "C" NOT NULL,
    map_index integer NOT NULL, region_id text COLLATE "C" NOT NULL,
    attempt integer NOT NULL, epoch integer NOT NULL, retry integer NOT NULL DEFAULT 0,
    touched_at timestamptz NOT NULL,
    UNIQUE (dag_id, run_id, task_id, map_index, region_id)
);
CREATE TABLE {schema}.entry (
    scope_id bigint NOT NULL, key text COLLATE "C" NOT NULL, value text NOT NULL,
    updated_at timestamptz NOT NULL, expires_at timestamptz,
    PRIMARY KEY (scope_id, key)
);
CREATE TABLE {schema}.version (version integer NOT NULL);
INSERT INTO {schema}.version VALUES (0);
SELECT setval(pg_get_serial_sequence('{schema}.scope', 'id'), floor(random() * 1e12)::bigint + 1);
""",
    # Room in each page for the next version of its rows, so that updates stay heap-only; and what purge looks for.
    """
ALTER TABLE {schema}.entry SET (fillfactor = 45, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE {schema}.scope SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX entry_expires_at ON {schema}.entry (expires_at) WHERE expires_at IS NOT NULL;
""",
)
"""What leads from each version to the next. One that was released is never changed."""

LOCK: Final = 0x41545301
"""Of `pg_advisory_xact_lock`: whoever makes or changes tables holds it."""


def script(schema: str, steps: Sequence[str] = MIGRATIONS) -> str:
    """The SQL that makes everything in a database that has nothing of it.

    Args:
        schema: Its name.
        steps: The migrations to make.
    """
    return "\n".join(
        (
            "BEGIN;",
            f'CREATE SCHEMA IF NOT EXISTS "{schema}";',
            *(_step(schema, number, text) for number, text in enumerate(steps, 1)),
            "COMMIT;\n",
        )
    )


def grants(schema: str, role: str) -> str:
    """The SQL that lets a role use the tables, and not change them."""
    to = '"' + role.replace('"', '""') + '"'
    return (
        f'GRANT USAGE ON SCHEMA "{schema}" TO {to};\n'
        f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{schema}" TO {to};\n'
    )


async def prepare(db: Any, schema: str) -> None:
    """Make the tables, or bring them up to date; many processes may do so at once.

    Args:
        db: A connection of asyncpg, in no transaction.
        schema: Where they are.

    Raises:
        StoreError: They are newer than this code, or this role may not make them.
    """
    async with db.transaction():
        version = await _version(db, schema)
    if version > len(MIGRATIONS):
        raise StoreError(
            f"the database has schema {version}, this version of async-task-state knows up to {len(MIGRATIONS)}:"
            " upgrade async-task-state"
        )
    if version < len(MIGRATIONS):
        try:
            await _migrate(db, schema)
        except InsufficientPrivilegeError as error:
            async with db.transaction():
                role, database = await db.fetchrow("SELECT current_user::text, current_database()::text")
            raise StoreError(
                f"the role {role!r} may not make or change the tables of async-task-state ({error}): let an"
                f" administrator of the database {database!r} run what `async-task-state init-db --sql` prints, or"
                f' GRANT CREATE ON DATABASE "{database}" TO "{role}"'
            ) from None


async def _version(db: Any, schema: str) -> int:
    if await db.fetchval("SELECT to_regclass($1)::oid", f'"{schema}".version') is None:
        return 0
    version: int = await db.fetchval(f'SELECT version FROM "{schema}".version')  # noqa: S608 - a checked name
    return version


async def _migrate(db: Any, schema: str) -> None:
    async with db.transaction(isolation="read_committed"):
        await db.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        # Anew, under the lock: another process may have been first.
        version = await _version(db, schema)
        if await db.fetchval("SELECT to_regnamespace($1)::oid", f'"{schema}"') is None:
            await db.execute(f'CREATE SCHEMA "{schema}"')
        for number, text in enumerate(MIGRATIONS[version:], version + 1):
            await db.execute(_step(schema, number, text))


def _step(schema: str, number: int, text: str) -> str:
    update = f"UPDATE {{schema}}.version SET version = {number};"  # noqa: S608 - a number
    return (text + update).replace("{schema}", f'"{schema}"')
