"""`async-task-state init-db`: the tables, made by somebody who may make them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from async_task_state.cli_check import is_postgres, no_database, shown
from async_task_state.errors import InvalidArgumentError
from async_task_state.lifetime import lent_store
from async_task_state.stores import open_store, sqlite_path

if TYPE_CHECKING:
    from async_task_state.stores.postgres_dsn import PostgresDsn

__all__ = ["Made", "init_db", "sql"]


class Made(NamedTuple):
    """What was done: a word for programs and a line for people."""

    word: str
    line: str


def sql(dsn: str, role: str | None) -> str:
    """What an administrator is to run; nothing is connected to.

    Raises:
        InvalidArgumentError: The store is none of PostgreSQL's.
    """
    if not is_postgres(dsn):
        open_store(dsn)
        raise InvalidArgumentError("--sql is for a postgresql dsn: another store needs no administrator")
    from async_task_state.stores.postgres_schema import grants, script  # noqa: PLC0415 - for PostgreSQL only

    parsed = _parsed(dsn)
    schema = parsed.schema
    return script(schema, owner=parsed.owner) + (grants(schema, role) if role is not None else "")


async def init_db(dsn: str, role: str | None) -> Made:
    """Make the tables, or bring them up to date, and let a role use them.

    Raises:
        InvalidArgumentError: The store has no tables, or no roles.
        StoreError: It cannot be done.
    """
    if is_postgres(dsn):
        return await _init_postgres(dsn, role)
    store = lent_store(dsn)
    if role is not None:
        raise InvalidArgumentError("--role is for a postgresql dsn")
    if not dsn.startswith("sqlite:"):
        raise InvalidArgumentError(f"{shown(dsn)} has no tables")
    made = no_database(dsn) is not None
    try:
        await store.count_scopes()
    finally:
        await store.close()
    path = sqlite_path(dsn)
    return Made("made", f"made {path}") if made else Made("there", f"{path} is there and up to date")


async def _init_postgres(dsn: str, role: str | None) -> Made:
    from async_task_state.cli_postgres import init  # noqa: PLC0415 - for PostgreSQL only

    parsed = _parsed(dsn)
    before, after = await init(parsed, role)
    where = f"in schema {parsed.schema} of {parsed.address}"
    may_use = "" if role is None else f"; role {role} may use them"
    if before == after:
        return Made("there", f"the tables {where} are there and up to date{may_use}")
    if before:
        return Made("migrated", f"brought the tables {where} from version {before} to {after}{may_use}")
    return Made("made", f"made the tables {where}{may_use}")


def _parsed(dsn: str) -> PostgresDsn:
    from async_task_state.stores.postgres_dsn import PostgresDsn  # noqa: PLC0415 - for PostgreSQL only

    return PostgresDsn.parse(dsn)
