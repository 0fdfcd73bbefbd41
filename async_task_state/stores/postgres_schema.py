"""The tables in PostgreSQL: how they are made, brought up to date, and handed to a database administrator."""

from __future__ import annotations

import re
from shlex import quote
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote as percent_encoded

from asyncpg import InsufficientPrivilegeError

from async_task_state.errors import StoreError, UntrustedSchemaError
from async_task_state.stores.postgres_dsn import ROLE_FORM

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "MIGRATIONS",
    "PATH",
    "check_server",
    "forbidden",
    "grants",
    "make",
    "prepare",
    "script",
    "version",
]

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
    # A process that knows the version before only goes on without these: what it opens keeps its token, and has another
    # epoch. An expiry of NULL meant for ever, except for our own keys; now it means as long as the state.
    """
ALTER TABLE {schema}.scope ADD COLUMN token bigint NOT NULL DEFAULT 0,
    ADD COLUMN run text COLLATE "C" NOT NULL DEFAULT '';
UPDATE {schema}.entry SET expires_at = 'infinity' FROM {schema}.scope
    WHERE scope_id = id AND dag_id <> '' AND expires_at IS NULL AND NOT starts_with(key, '__ats:');
""",
    # Which process has taken the lease of `held_epoch`: whatever else raises the epoch need not know these.
    """
ALTER TABLE {schema}.scope ADD COLUMN held_epoch integer NOT NULL DEFAULT 0, ADD COLUMN host text NOT NULL DEFAULT '',
    ADD COLUMN pid bigint NOT NULL DEFAULT 0, ADD COLUMN since timestamptz;
""",
)
"""What leads from each version to the next. One that was released is never changed."""

OLDEST_SERVER: Final = 12

LOCK: Final = 0x41545301
"""Of `pg_advisory_xact_lock`: whoever makes or changes tables holds it."""


_STRANGER: Final = """
SELECT owner.rolname FROM pg_catalog.pg_namespace JOIN pg_catalog.pg_roles AS owner ON owner.oid = nspowner
    JOIN pg_catalog.pg_roles AS me ON me.rolname = current_user
    JOIN pg_catalog.pg_database ON datname = current_database()
WHERE nspname = {schema} AND owner.oid NOT IN (me.oid, datdba) AND NOT owner.rolsuper
    AND owner.rolname NOT IN ('pg_database_owner', {owner})
    AND (me.rolsuper OR NOT (pg_has_role(owner.oid, me.oid, 'MEMBER')
        OR current_setting('server_version_num')::integer >= 150000 AND pg_has_role(me.oid, owner.oid, 'MEMBER')))"""
"""The owner of a schema who is not trusted with what this role does there. A superuser is a member of every role, which
makes nobody's schema its own; and before PostgreSQL 15 any role could make another a member of itself."""
PATH: Final = "SET LOCAL search_path = pg_catalog, pg_temp"


def script(schema: str, steps: Sequence[str] = MIGRATIONS, owner: str | None = None) -> str:
    """The SQL that makes the tables or brings them up to date, whatever of them is there; one statement.

    Args:
        schema: Where they are.
        steps: The migrations that there are.
        owner: To whom the schema may belong, besides those who could use it anyway.
    """
    name = f'"{schema}"'
    refusal = (
        f"the schema '{schema}' belongs to the role '%s': if it is to be trusted, name it by ?owner= in"
        " [async_task_state] dsn"
    )
    return "\n".join(
        (
            "DO $do$ DECLARE stranger text; BEGIN",
            f"{PATH};",
            # Every look at what is there comes after this, so that processes may do it at once; the first is a query,
            # for what is cached of the catalog may be from before.
            f"PERFORM pg_advisory_xact_lock({LOCK});",
            f"stranger := ({_STRANGER.format(schema=_literal(schema), owner=_literal(owner or ''))});",
            f"IF stranger IS NOT NULL THEN RAISE EXCEPTION USING MESSAGE = format({_literal(refusal)}, stranger); END IF;",
            f"IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = '{schema}') THEN CREATE SCHEMA {name}; END IF;",
            *(_step(name, number, text) for number, text in enumerate(steps, 1)),
            "END $do$;\n",
        )
    )


def grants(schema: str, role: str) -> str:
    """The SQL that lets a role use the tables, and not change them."""
    to = _quoted(role)
    return (
        f'GRANT USAGE ON SCHEMA "{schema}" TO {to};\n'
        f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{schema}" TO {to};\n'
    )


def check_server(db: Any) -> None:
    """Refuse a server or a database that could not keep every state.

    Raises:
        StoreError: It is too old, or its encoding cannot hold every text.
    """
    major, encoding = db.get_server_version().major, db.get_settings().server_encoding
    if major < OLDEST_SERVER:
        raise StoreError(f"this is PostgreSQL {major}, and it must be {OLDEST_SERVER} or later")
    if encoding != "UTF8":
        raise StoreError(
            f"the encoding of the database is {encoding}, and it must be UTF8: CREATE DATABASE ... TEMPLATE template0"
            " ENCODING 'UTF8'"
        )


async def prepare(db: Any, schema: str, owner: str | None) -> None:
    """Make the tables, or bring them up to date; many processes may do so at once.

    Args:
        db: A connection of asyncpg, in no transaction.
        schema: Where they are.
        owner: To whom the schema may belong, besides those who could use it anyway.

    Raises:
        StoreError: They are newer than this code, this role may not make them, or the schema is a stranger's.
    """
    check_server(db)
    async with db.transaction():
        found = await version(db, schema, owner)
    if found > len(MIGRATIONS):
        raise StoreError(
            f"the database has schema {found}, this version of async-task-state knows up to {len(MIGRATIONS)}:"
            " upgrade async-task-state"
        )
    if found < len(MIGRATIONS):
        await make(db, schema, owner)


async def make(db: Any, schema: str, owner: str | None, *, keep: bool = True) -> None:
    """Run the script.

    Args:
        db: As above.
        schema: As above.
        owner: As above.
        keep: Whether what it makes is to stay, or was only to be tried.

    Raises:
        StoreError: This role may not.
    """
    transaction = db.transaction(isolation="read_committed")
    await transaction.start()
    try:
        await db.execute(script(schema, owner=owner))
    except InsufficientPrivilegeError as error:
        why = str(error)
    else:
        await (transaction.commit() if keep else transaction.rollback())
        return
    await transaction.rollback()
    async with db.transaction():
        raise StoreError(await forbidden(db, schema, why))


async def version(db: Any, schema: str, owner: str | None) -> int:
    """Which of the migrations have been made; 0 is none.

    Args:
        db: A connection of asyncpg, in a transaction.
        schema: As above.
        owner: As above.

    Raises:
        UntrustedSchemaError: The schema is a stranger's; nothing in it has been looked at.
    """
    await db.execute(PATH)
    stranger = await db.fetchval(
        _STRANGER.format(schema="$1::text", owner="coalesce($2::text, '')"), schema, owner
    )
    if stranger is not None:
        role = await db.fetchval("SELECT current_user::text")
        trust = f"where that role is to be trusted, add ?owner={percent_encoded(stranger)} to [async_task_state] dsn; otherwise"
        trust = f" {trust}" if re.fullmatch(ROLE_FORM, stranger) else ""
        raise UntrustedSchemaError(
            f"the schema {schema!r} belongs to the role {stranger!r}, which could change what is done there:{trust} name another"
            f' schema, or let an administrator look at it and then run ALTER SCHEMA "{schema}" OWNER TO {_quoted(role)}'
        )
    if await db.fetchval("SELECT to_regclass($1)::oid", f'"{schema}".version') is None:
        return 0
    found: int = await db.fetchval(f'SELECT version FROM "{schema}".version')  # noqa: S608 - a checked name
    return found


async def forbidden(db: Any, schema: str, why: str) -> str:
    """What a role is told that may not make or change the tables."""
    role, database, there = await db.fetchrow(
        "SELECT current_user::text, current_database()::text, to_regnamespace($1) IS NOT NULL", f'"{schema}"'
    )
    on = f'SCHEMA "{schema}"' if there else f'DATABASE "{database}"'
    return (
        f"the role {role!r} may not make or change the tables of async-task-state ({why}): let an administrator run"
        f" in the database {database!r} what `async-task-state init-db --sql --role {quote(role)}` prints, or, where"
        f" there are no tables yet, GRANT CREATE ON {on} TO {_quoted(role)}"
    )


def _step(name: str, number: int, text: str) -> str:
    due = (
        f"to_regclass('{name}.version') IS NULL"
        if number == 1
        else f"(SELECT version FROM {name}.version) < {number}"  # noqa: S608 - a checked name
    )
    update = f"UPDATE {{schema}}.version SET version = {number};"  # noqa: S608 - a number
    return f"IF {due} THEN EXECUTE $step${(text + update).replace('{schema}', name)}$step$; END IF;"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _quoted(role: str) -> str:
    return '"' + role.replace('"', '""') + '"'
