"""Airflow's state backend in every kind of process: where its store is, threads, forks, and what Airflow takes it for."""

from __future__ import annotations

import json
import os
import threading
from functools import partial
from unittest.mock import Mock
from urllib.parse import urlsplit

import anyio
import pytest

pytest.importorskip("airflow.state", reason="Airflow has state backends since 3.3")

from airflow.sdk import state as sdk
from airflow.sdk.execution_time import task_runner
from airflow.state import BaseStoreBackend, TaskScope, resolve_state_backend

from async_task_state import SettingsError, connections
from async_task_state import backend as module
from async_task_state.backend import StateStoreBackend
from async_task_state.stores.postgres_dsn import PostgresDsn

SECTION = "AIRFLOW__ASYNC_TASK_STATE__"
SCOPE = TaskScope("dag", "run", "task")

pytestmark = pytest.mark.usefixtures("_settings_read_anew", "_airflow_imported")


@pytest.fixture
def connection(postgres, monkeypatch):
    """State is kept where a connection of Airflow's says."""
    dsn = PostgresDsn.parse(postgres.dsn())
    parts = urlsplit(dsn.address)
    fields = {
        "conn_type": "postgres",
        "host": parts.hostname,
        "port": parts.port,
        "login": parts.username,
        "password": dsn.password,
        "schema": parts.path[1:],
        "extra": {"schema": dsn.schema},
    }
    monkeypatch.setenv("AIRFLOW_CONN_STATE_DB", json.dumps(fields))
    monkeypatch.setenv(f"{SECTION}CONN_ID", "state_db")

    def forget():
        connections._known.clear()
        module._resolved.cache_clear()

    forget()
    yield
    forget()


def test_state_is_kept_where_the_connection_says(connection, postgres):
    backend = StateStoreBackend()
    backend.set(SCOPE, "key", "17")
    assert anyio.run(backend.aget, SCOPE, "key") == "17"
    anyio.run(partial(backend.aset, SCOPE, "key", "18"))
    assert backend.get(SCOPE, "key") == "18"
    [[value]] = postgres.query(f'SELECT value FROM "{postgres.schemas[-1]}".entry')
    assert value == "18"


def test_a_tasks_process_asks_for_the_connection_as_tasks_do(connection, monkeypatch):
    # Airflow warns a task that asks as the API server does, and warnings are errors here.
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", Mock(), raising=False)
    backend = StateStoreBackend()
    scope = sdk.TaskScope("dag", "run", "task")
    ref = backend.serialize_task_state_store_to_ref(value=17, key="key", scope=scope)
    assert backend.deserialize_task_state_store_from_ref(ref) == 17


def test_g8_a_connection_that_is_missing_is_named(monkeypatch):
    monkeypatch.setenv(f"{SECTION}CONN_ID", "nowhere")
    for _ in range(2):
        with pytest.raises(SettingsError, match="conn_id: Airflow has no connection 'nowhere'; make it"):
            StateStoreBackend().get(SCOPE, "key")


def test_a_forked_worker_of_the_api_server_has_a_connection_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv(f"{SECTION}DSN", f"sqlite:///{tmp_path}/state.db")
    backend = StateStoreBackend()
    backend.set(SCOPE, "key", '"parent"')
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if backend.get(SCOPE, "key") == '"parent"':
                backend.set(SCOPE, "key", '"child"')
                code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert backend.get(SCOPE, "key") == '"child"'


def test_a_call_from_a_thread_whose_loop_runs_is_answered(backend):
    async def main():
        backend.set(SCOPE, "key", "1")
        return backend.get(SCOPE, "key")

    assert anyio.run(main) == "1"


def test_many_threads_share_one_backend(backend):
    def work(number):
        for turn in range(20):
            backend.set(TaskScope("dag", "run", "task", number), "key", str(turn))
            assert backend.get(TaskScope("dag", "run", "task", number), "key") == str(turn)
            backend.set(SCOPE, f"key{number}", str(turn))

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [backend.get(SCOPE, f"key{number}") for number in range(8)] == ["19"] * 8


@pytest.mark.parametrize("role", ["server", "worker"])
def test_airflow_takes_it_for_a_backend(monkeypatch, role):
    monkeypatch.setenv("AIRFLOW__STATE_STORE__BACKEND", "async_task_state.backend.StateStoreBackend")
    assert resolve_state_backend() is StateStoreBackend
    assert issubclass(StateStoreBackend, {"server": BaseStoreBackend, "worker": sdk.BaseStoreBackend}[role])


def test_g8_airflows_own_store_would_call_itself(monkeypatch):
    monkeypatch.setenv(f"{SECTION}DSN", "airflow:")
    with pytest.raises(SettingsError, match=r"\[async_task_state\] dsn is airflow:, .* set .* to a database"):
        StateStoreBackend().get(SCOPE, "key")


def test_g8_a_file_is_refused_where_tasks_run_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv(f"{SECTION}DSN", f"sqlite:///{tmp_path}/state.db")
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    with pytest.raises(SettingsError, match="CeleryExecutor runs tasks on other machines"):
        StateStoreBackend().set(SCOPE, "key", "1")
