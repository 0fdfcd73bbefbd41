"""A dsn from an Airflow connection: `conn_id:NAME` stands wherever a dsn may."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from anyio import to_thread

from async_task_state.errors import SettingsError
from async_task_state.lifetime import awaited_writer, writer_for
from async_task_state.settings import SECTION, Dsn
from async_task_state.stores.airflow import DSN as AIRFLOW
from async_task_state.stores.airflow import Channel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from async_task_state.awaited import AwaitedWriter
    from async_task_state.settings import Settings
    from async_task_state.stores import Store
    from async_task_state.writer import Writer

__all__ = ["resolved", "resolved_here", "writer_of"]

PREFIX: Final = "conn_id:"

_known: dict[str, Dsn] = {}


async def writer_of(store: str | Store | Channel, settings: Settings) -> Writer | AwaitedWriter:
    """This process's writer for a store, given as itself, as a dsn, or as `conn_id:NAME`; one for each state of `airflow:`.

    Raises:
        SettingsError: There is no such connection, or it is not one of PostgreSQL, or the dsn is malformed.
    """
    if isinstance(store, Channel) or store == AIRFLOW:
        return awaited_writer(settings, None if isinstance(store, str) else store)
    return writer_for(await resolved(store) if isinstance(store, str) else store, settings)


async def resolved(dsn: str) -> str:
    """The dsn itself, or the one of the Airflow connection that it names; Airflow is asked once a process."""
    conn_id = dsn.removeprefix(PREFIX)
    if conn_id == dsn:
        return dsn
    if conn_id not in _known:
        # Where every version of Airflow has it.
        from airflow.exceptions import AirflowNotFoundException  # type: ignore[attr-defined]  # noqa: PLC0415
        from airflow.sdk import Connection  # noqa: PLC0415 - takes a second, so only when asked

        try:
            # On trio there is no supervisor, and Airflow's asynchronous call would not run.
            connection = await (
                Connection.async_get(conn_id)
                if _on_asyncio()
                else to_thread.run_sync(Connection.get, conn_id)
            )
        except AirflowNotFoundException:
            raise _missing(conn_id) from None
        _known[conn_id] = _dsn_of(conn_id, connection)
    return _known[conn_id]


def resolved_here(dsn: str) -> Dsn:
    """The dsn itself, or the one of the Airflow connection that it names, for who does not await: a command, a backend.

    A command and the API server have no supervisor to ask: they look into environment variables, secrets backends and
    Airflow's database.

    Raises:
        SettingsError: There is no such connection, or it is not one of PostgreSQL.
    """
    conn_id = dsn.removeprefix(PREFIX)
    if conn_id == dsn:
        return Dsn(dsn)
    from airflow.exceptions import AirflowNotFoundException  # type: ignore[attr-defined]  # noqa: PLC0415

    try:
        connection = _asked_for(conn_id)
    except AirflowNotFoundException:
        raise _missing(conn_id) from None
    return _dsn_of(conn_id, connection)


def _asked_for(conn_id: str) -> Any:
    # So does Airflow tell a task's process, which has its supervisor to ask.
    if hasattr(sys.modules.get("airflow.sdk.execution_time.task_runner"), "SUPERVISOR_COMMS"):
        from airflow.sdk import Connection  # noqa: PLC0415 - loaded by now

        return Connection.get(conn_id)
    from airflow.models.connection import Connection as Model  # noqa: PLC0415 - takes a second, so only when asked

    return Model.get_connection_from_secrets(conn_id)


def _on_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _missing(conn_id: str) -> SettingsError:
    return SettingsError(
        f"[{SECTION}] conn_id: Airflow has no connection {conn_id!r}; make it, or set [{SECTION}] dsn instead"
    )


def _dsn_of(conn_id: str, connection: Any) -> Dsn:
    if connection.conn_type not in ("postgres", "postgresql"):
        raise SettingsError(
            f"[{SECTION}] conn_id: the connection {conn_id!r} is of type {connection.conn_type!r}; state can be kept in"
            " one of type 'postgres'"
        )
    login = quote(connection.login or "", safe="")
    if connection.password:
        login += f":{quote(connection.password, safe='')}"
    hosts = ",".join(_with_port(host, connection.port) for host in (connection.host or "").split(",") if host)
    address = f"postgresql://{login}{'@' if login else ''}{hosts}/{quote(connection.schema or '', safe='')}"
    options = _options(connection.extra_dejson)
    if connection.port and not hosts:
        options["port"] = str(connection.port)
    query = urlencode(options, quote_via=quote)
    return Dsn(f"{address}?{query}" if query else address)


def _with_port(host: str, port: int | None) -> str:
    """A host as a dsn has it: a name, an address or the folder of a socket, with the port if it has none of its own."""
    if host.startswith("/"):
        host = quote(host, safe="")
    elif host.count(":") > 1 and not host.startswith("["):
        host = f"[{host}]"
    has_port = ":" in host.rpartition("]")[2]
    return f"{host}:{port}" if port and not has_port else host


def _options(extra: Mapping[str, Any]) -> dict[str, str]:
    """What a dsn can say of a connection's extra; the rest is for other libraries."""
    from async_task_state.stores.postgres_dsn import LIBPQ_OPTIONS, OUR_OPTIONS  # noqa: PLC0415 - for PostgreSQL only

    known = LIBPQ_OPTIONS | OUR_OPTIONS
    named = {name: value for name, value in extra.items() if name in known and value is not None}
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in named.items()
    }
