"""What the command line asks of PostgreSQL itself: is it fit, are the tables there; and to make them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from async_task_state.cli_check import Fault
from async_task_state.errors import AsyncTaskStateError, StoreError
from async_task_state.stores.postgres_connect import connect
from async_task_state.stores.postgres_connection import CLOSE_SECONDS, COMMAND_SECONDS
from async_task_state.stores.postgres_errors import TROUBLE, explained
from async_task_state.stores.postgres_schema import (
    MIGRATIONS,
    PATH,
    check_server,
    forbidden,
    grants,
    make,
    prepare,
    version,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from async_task_state.stores.postgres_dsn import PostgresDsn

__all__ = ["describe_server", "describe_tables", "init", "looking", "not_ready"]

_MISSING: Final = """
SELECT privilege || ' ON ' || name AS what, current_user::text AS role
FROM unnest(ARRAY['scope', 'entry']) AS name, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
WHERE NOT has_table_privilege(format('%I.%I', $1::text, name), privilege)"""

_OWNS: Final = (
    "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = format('%I.entry', $1::text)::regclass"
)


async def not_ready(dsn: PostgresDsn) -> str | None:
    """What to say instead of making or changing tables for somebody who only looks: perhaps as the wrong role."""
    async with _connected(dsn) as db, db.transaction():
        found = await version(db, dsn.schema, dsn.owner)
    if not found:
        return f"there are no tables yet in schema {dsn.schema}: they are made on first use, or by init-db"
    if found < len(MIGRATIONS):
        return (
            f"the tables in schema {dsn.schema} are of version {found}: they are brought to {len(MIGRATIONS)} on first"
            " use, or by init-db"
        )
    return None


async def init(dsn: PostgresDsn, role: str | None) -> tuple[int, int]:
    """Make the tables or bring them up to date, and let a role use them; their version before and after."""
    async with _connected(dsn) as db:
        async with db.transaction():
            before = await version(db, dsn.schema, dsn.owner)
        await prepare(db, dsn.schema, dsn.owner)
        if role is not None:
            await db.execute(grants(dsn.schema, role))
        return before, max(before, len(MIGRATIONS))


async def describe_server(dsn: PostgresDsn) -> str:
    """Which one answers, or what of it would lose what is saved; a StoreError where none does."""
    async with looking(dsn) as db:
        number, role, pid, *risks = await db.fetchrow(
            "SELECT split_part(current_setting('server_version'), ' ', 1), current_user::text, pg_backend_pid(),"
            " current_setting('fsync'), current_setting('synchronous_commit')"
        )
        # A pooler cannot say which of its connections a client may cancel, so it makes a number up.
        is_pooled = pid != db.get_server_pid()
    for name, value in zip(("fsync", "synchronous_commit"), risks, strict=True):
        if value == "off":
            return Fault(f"{name} is off, so a crash of the server would lose what was saved: set it to on")
    answers = f"PostgreSQL {number} answers, as role {role}"
    if dsn.pgbouncer or not is_pooled:
        return answers
    return f"{answers}, through a pooler: if it pools transactions, add ?pgbouncer=true to the dsn"


async def describe_tables(dsn: PostgresDsn) -> str:
    """What to know of them; a StoreError where this role may not make, change or use them."""
    schema = dsn.schema
    async with _connected(dsn) as db:
        async with db.transaction():
            found = await version(db, schema, dsn.owner)
            missing = await db.fetch(_MISSING, schema) if found else []
            if 0 < found < len(MIGRATIONS) and not await db.fetchval(_OWNS, schema):
                raise StoreError(await forbidden(db, schema, "it does not own them"))
        if not found:
            await make(db, schema, dsn.owner, keep=False)
            return f"none yet in schema {schema}, where this role may make them"
    if missing:
        role = missing[0]["role"]
        raise StoreError(
            f"the role {role!r} may not {', '.join(row['what'] for row in missing)}: let an administrator run"
            f" {' '.join(grants(schema, role).split())}"
        )
    return f"schema {schema}, version {found}"


@asynccontextmanager
async def looking(dsn: PostgresDsn) -> AsyncIterator[Any]:
    """A connection in a transaction, in which names are looked for in the catalog alone."""
    async with _connected(dsn) as db, db.transaction():
        await db.execute(PATH)
        yield db


@asynccontextmanager
async def _connected(dsn: PostgresDsn) -> AsyncIterator[Any]:
    """A connection of one command; behind a pooler each transaction may be on another one of the server's."""
    try:
        db = await connect(dsn)
        try:
            db.line.expect(COMMAND_SECONDS)
            check_server(db)
            yield db
            await db.close(timeout=CLOSE_SECONDS)
        finally:
            db.terminate()
    except AsyncTaskStateError:
        raise
    except TROUBLE as error:
        # Without the driver's own traceback: its frames hold the password.
        raise explained(error, dsn.schema) from None
