"""An Airflow connection says where state is kept."""

from __future__ import annotations

import json
from urllib.parse import unquote, urlsplit

import pytest
from anyio import to_thread

from async_task_state import SettingsError, TaskScope, TaskState, connections, task_state
from async_task_state.connections import resolved_here
from async_task_state.settings import Settings, load_settings
from async_task_state.stores.postgres_dsn import PostgresDsn

SECTION = "AIRFLOW__ASYNC_TASK_STATE__"
SCOPE = TaskScope("dag", "run", "task")

pytestmark = pytest.mark.usefixtures("_settings_read_anew", "_connections_forgotten")


@pytest.fixture
def _connections_forgotten():
    connections._known.clear()
    yield
    connections._known.clear()


@pytest.fixture
def connect(monkeypatch):
    """Makes a connection that Airflow knows."""

    def connect(conn_id, **fields):
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps({"conn_type": "postgres", **fields}))

    return connect


@pytest.fixture
def server(postgres, connect):
    """A connection of the server of all tests, named `state_db`."""
    dsn = PostgresDsn.parse(postgres.dsn())
    parts = urlsplit(dsn.address)
    connect(
        "state_db",
        host=parts.hostname,
        port=parts.port,
        login=parts.username,
        password=dsn.password,
        schema=parts.path[1:],
        extra={"schema": dsn.schema},
    )


@pytest.mark.anyio
async def test_state_is_kept_where_the_connection_says(server, monkeypatch, postgres, in_task):
    monkeypatch.setenv(f"{SECTION}CONN_ID", "state_db")
    with in_task(SCOPE):
        async with task_state(SCOPE) as state:
            await state.set("key", 17)
    assert load_settings().dsn == "conn_id:state_db"
    [[value]] = await to_thread.run_sync(postgres.query, f'SELECT value FROM "{postgres.schemas[-1]}".entry')
    assert value == "17"


@pytest.mark.anyio
async def test_a_connection_can_stand_where_a_dsn_may(server):
    settings = Settings(dsn="memory:")
    async with TaskState(SCOPE, store="conn_id:state_db", settings=settings) as state:
        await state.set("key", 17)
    async with TaskState(SCOPE, store="conn_id:state_db", settings=settings) as state:
        assert await state.get("key") == 17


def test_a_command_asks_without_a_supervisor(server):
    assert PostgresDsn.parse(resolved_here("conn_id:state_db")).password
    assert resolved_here("sqlite:////a.db") == "sqlite:////a.db"


@pytest.mark.parametrize(
    ("fields", "dsn"),
    [
        ({"host": "db"}, "postgresql://db/"),
        ({"host": "db", "port": 6432, "schema": "state"}, "postgresql://db:6432/state"),
        ({"host": "a,b", "port": 6432}, "postgresql://a:6432,b:6432/"),
        ({"host": "::1", "port": 6432}, "postgresql://[::1]:6432/"),
        ({"host": "a:5433,b,[::1]:5434", "port": 6432}, "postgresql://a:5433,b:6432,[::1]:5434/"),
        ({"host": "/var/run/pg", "schema": "state"}, "postgresql://%2Fvar%2Frun%2Fpg/state"),
        ({"host": "/var/run/pg", "port": 6432}, "postgresql://%2Fvar%2Frun%2Fpg:6432/"),
        ({"port": 6432, "login": "me"}, "postgresql://me@/?port=6432"),
        ({"host": "db", "login": "me"}, "postgresql://me@db/"),
        ({"host": "db", "password": "hunter2"}, "postgresql://:hunter2@db/"),
        ({"host": "db", "login": "m@e", "password": "p:/?#[]@%", "schema": "a b"}, None),
        (
            {
                "host": "db",
                "extra": {"sslmode": "verify-full", "pgbouncer": True, "iam": True, "connect_timeout": 3},
            },
            "postgresql://db/?sslmode=verify-full&pgbouncer=true&connect_timeout=3",
        ),
    ],
)
def test_a_connection_becomes_a_dsn(connect, fields, dsn):
    connect("some_db", **fields)
    found = resolved_here("conn_id:some_db")
    if dsn is not None:
        assert found == dsn
    parsed = PostgresDsn.parse(found)
    assert parsed.password == fields.get("password")
    assert "hunter2" not in repr(parsed)
    parsed.arguments()
    assert unquote(urlsplit(parsed.address).username or "") == fields.get("login", "")


@pytest.mark.anyio
async def test_g8_a_connection_that_is_missing_is_named():
    with pytest.raises(SettingsError, match="conn_id: Airflow has no connection 'nowhere'; make it"):
        await task_state(SCOPE, store="conn_id:nowhere").__aenter__()


def test_g8_a_command_names_a_connection_that_is_missing():
    with pytest.raises(SettingsError, match="Airflow has no connection 'nowhere'"):
        resolved_here("conn_id:nowhere")


def test_g8_a_connection_of_something_else_is_refused(connect):
    connect("lake", conn_type="aws", password="hunter2")
    with pytest.raises(
        SettingsError, match="'lake' is of type 'aws'; state can be kept in one of type 'postgres'"
    ) as caught:
        resolved_here("conn_id:lake")
    assert "hunter2" not in str(caught.value)


def test_g8_a_dsn_and_a_connection_are_one_too_many(monkeypatch):
    monkeypatch.setenv(f"{SECTION}CONN_ID", "state_db")
    monkeypatch.setenv(f"{SECTION}DSN", "memory:")
    with pytest.raises(SettingsError, match="dsn and conn_id are both set"):
        load_settings()


def test_no_repr_shows_a_dsn():
    dsn = "postgresql://me:hunter2@db/state"
    settings = Settings(dsn=dsn)
    state = TaskState(SCOPE, store=dsn, settings=settings)
    for shown in (repr(settings), repr(settings.dsn), repr(state), repr(state._store), f"{settings.dsn!r}"):
        assert "hunter2" not in shown
    assert settings.dsn == dsn
