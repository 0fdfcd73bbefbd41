"""`async-task-state check`: would a state be kept here, and if not, what to do."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from async_task_state.commands import shell_command
from async_task_state.connections import resolved_here
from async_task_state.errors import AsyncTaskStateError, SettingsError, StoreError
from async_task_state.lifetime import lent_store
from async_task_state.scopes import TaskScope
from async_task_state.settings import SECTION, Dsn, Settings, check_executor, is_number, load_settings
from async_task_state.stores import Batch, Lease, open_store, sqlite_path
from async_task_state.stores.sqlite_file import check_names, modes_for_others
from async_task_state.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "Advice",
    "Check",
    "Fault",
    "absent",
    "checks",
    "is_postgres",
    "no_database",
    "opened_by_commands",
    "shown",
]

AIRFLOWS: Final = (
    "the dsn airflow: keeps state in Airflow's own store, which these commands do not open: Airflow shows it on the page of"
    " a task instance or asset and in its REST API, under .../state-store, and `airflow state-store clean` purges it"
)
SCOPE: Final = TaskScope("async-task-state", "check", "check")


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer.

    Args:
        name: What was asked about.
        ok: Whether all is well.
        detail: What was found; where it is not well, with what to do.
        warning: Whether all could be better, and `detail` says how.
    """

    name: str
    ok: bool
    detail: str
    warning: bool = False


class Advice(str):
    """An answer that says what should be changed, although states are kept."""

    __slots__ = ()


class Fault(str):
    """An answer that says what is wrong, and does not keep anything else from being asked."""

    __slots__ = ()


def checks(dsn: str | None) -> Iterator[Check]:
    """Ask one thing after another, but for what cannot be asked after an answer; nothing is left behind.

    Args:
        dsn: The store to ask about; None is the configured one.
    """
    settings = _check("settings", _settings)
    yield settings
    try:
        named = load_settings().dsn if dsn is None else dsn
    except AsyncTaskStateError:
        return
    known = _check("dsn", lambda: _dsn(named))
    yield known
    if not known.ok:
        return
    dsn = resolved_here(named)
    if _is_airflows(dsn):
        return
    yield _check("executor", lambda: _executor(dsn))
    usable = True
    if dsn.startswith("sqlite:"):
        directory = _check("directory", lambda: asyncio.run(_directory(Path(sqlite_path(dsn)))))
        yield directory
        usable = directory.ok
    for found in _of_postgres(dsn) if is_postgres(dsn) else ():
        yield found
        # Whatever else is wrong, states are read and written in the tables of a server that answers.
        usable = usable and (
            found.ok or found.name not in {"server", "tables"} or isinstance(found.detail, Fault)
        )
    if not usable:
        return
    store = _check("store", lambda: asyncio.run(_store(dsn)))
    yield store
    if store.ok and dsn.startswith("sqlite:") and not no_database(dsn):
        yield _check("file", lambda: _file(Path(sqlite_path(dsn))))


def opened_by_commands(named: str) -> Dsn:
    """The dsn itself, or the one of the Airflow connection that it names.

    Raises:
        SettingsError: There is no such connection, or what it names is Airflow's own store.
    """
    dsn = resolved_here(named)
    if _is_airflows(dsn):
        raise SettingsError(AIRFLOWS)
    return dsn


def is_postgres(dsn: str) -> bool:
    """Whether a dsn is one of PostgreSQL's."""
    return dsn.startswith(("postgresql:", "postgres:"))


async def absent(dsn: str) -> str | None:
    """What to say instead of making a database or tables for somebody who only looks."""
    if not is_postgres(dsn):
        return no_database(dsn)
    from async_task_state.cli_postgres import not_ready  # noqa: PLC0415 - for PostgreSQL only
    from async_task_state.stores.postgres_dsn import PostgresDsn  # noqa: PLC0415

    return await not_ready(PostgresDsn.parse(dsn))


def no_database(dsn: str) -> str | None:
    """What to say instead of making a database for somebody who only looks."""
    if not dsn.startswith("sqlite:"):
        return None
    path = Path(sqlite_path(dsn))
    return None if path.exists() else f"there is no database yet at {path}"


def _check(name: str, ask: Callable[[], str]) -> Check:
    try:
        detail = ask()
        ok = not isinstance(detail, Fault)
        return Check(name, ok=ok, detail=detail, warning=isinstance(detail, Advice))
    except AsyncTaskStateError as error:
        return Check(name, ok=False, detail=str(error))
    except Exception as error:  # noqa: BLE001 - Airflow's configuration can be broken in any way
        return Check(name, ok=False, detail=f"{type(error).__name__}: {error}")


def _settings() -> str:
    settings = load_settings()
    from airflow.configuration import conf  # noqa: PLC0415 - takes two seconds, so only when asked

    options = [option.name for option in fields(Settings) if option.name != "dsn"]
    known = ["dsn", "conn_id", *options]
    given = {name.removesuffix("_cmd").removesuffix("_secret") for name in conf.getsection(SECTION) or {}}
    if unknown := sorted(given.difference(known)):
        raise SettingsError(
            f"[{SECTION}] {', '.join(unknown)}: no such option; correct the name to one of {', '.join(known)}"
        )
    return ", ".join(f"{name} {_readable(getattr(settings, name))}" for name in options)


def _is_airflows(dsn: Dsn) -> bool:
    return dsn.kind == "airflow"


def _readable(value: object) -> str:
    return f"{value:,.10g}" if is_number(value) else str(value)


def _dsn(named: str) -> str:
    dsn = resolved_here(named)
    if _is_airflows(dsn):
        return AIRFLOWS
    open_store(dsn)
    if dsn.startswith("memory:"):
        raise SettingsError(
            "memory: forgets everything when its process ends and is for tests: set [async_task_state] dsn to"
            " sqlite:/// and the absolute path of a file"
        )
    return f"{shown(dsn)} of the connection {named.partition(':')[2]}" if named != dsn else shown(dsn)


def shown(dsn: str) -> str:
    """A dsn that may be printed: without its password."""
    if is_postgres(dsn):
        from async_task_state.stores.postgres_dsn import PostgresDsn  # noqa: PLC0415 - for PostgreSQL only

        return PostgresDsn.parse(dsn).address
    return dsn if dsn.startswith(("sqlite:", "memory:")) else f"{dsn.partition(':')[0]}:..."


def _of_postgres(dsn: str) -> Iterator[Check]:
    from async_task_state.cli_deployment import (  # noqa: PLC0415 - for PostgreSQL only
        describe_connections,
        describe_role,
    )
    from async_task_state.cli_postgres import describe_server, describe_tables  # noqa: PLC0415
    from async_task_state.stores.postgres_dsn import PostgresDsn  # noqa: PLC0415

    parsed = PostgresDsn.parse(dsn)
    server = _check("server", lambda: asyncio.run(describe_server(parsed)))
    yield server
    if not server.ok and not isinstance(server.detail, Fault):
        return
    yield _check("tables", lambda: asyncio.run(describe_tables(parsed)))
    yield _check("role", lambda: asyncio.run(describe_role(parsed)))
    yield _check("connections", lambda: asyncio.run(describe_connections(parsed)))


def _executor(dsn: str) -> str:
    check_executor(dsn)
    from airflow.configuration import conf  # noqa: PLC0415 - as above

    return f"right for {conf.get('core', 'executor')}"


async def _directory(database: Path) -> str:
    """Keep a state in a database beside the real one: SQLite needs room there, and files of its own."""
    directory = database.parent
    try:
        with TemporaryDirectory(prefix=".async-task-state-check-", dir=directory) as beside:
            store = open_store(f"sqlite:///{beside}/check.db")
            try:
                lease = (await store.acquire(SCOPE, 1)).lease
                await store.commit([Batch(lease, {"key": ('"value"', None)})])
            finally:
                await store.close()
    except OSError as error:
        raise StoreError(
            f"no file can be made in {directory} ({error.strerror}): make that directory, correct its permissions, or"
            " change [async_task_state] dsn"
        ) from error
    except StoreError as error:
        raise StoreError(f"no database can be kept in {directory}: {error}") from error
    return f"{directory} can be written"


async def _store(dsn: str) -> str:
    """Commit on a lease that nobody was given: it goes all the way and changes nothing."""
    if nothing := await absent(dsn):
        return nothing if is_postgres(dsn) else f"{nothing}: it is made on first use"
    store = lent_store(dsn)
    try:
        await store.commit([Batch(Lease(SCOPE, -1, 0, 0, 0))])
        found = await store.count_scopes()
    finally:
        await store.close()
    return f"can be read and written, and holds {counted(found, 'state')}"


def _file(database: Path) -> str:
    """Whether the file is its owner's alone, which opening it has made it where that is us; and has one name."""
    if modes := modes_for_others(database):
        named = ", ".join(f"{file} {mode:04o}" for file, mode in modes.items())
        raise StoreError(
            f"others than its owner may read what is stored ({named}): as the user with the id"
            f" {database.stat().st_uid} run {shell_command('chmod', '600', *map(str, modes))}"
        )
    check_names(database)
    return "its owner's alone"
