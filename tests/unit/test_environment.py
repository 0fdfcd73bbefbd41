"""The throw-away Airflow knows nothing of the user's own."""

from __future__ import annotations

import pytest

from async_task_state.environment import environment_of

DSN = "sqlite:////state.db"


@pytest.fixture(autouse=True)
def _a_users_own_airflow(monkeypatch):
    monkeypatch.setenv("AIRFLOW_HOME", "/users/own")
    monkeypatch.setenv("AIRFLOW_CONFIG", "/users/own.cfg")
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_CMD", "users-own")
    monkeypatch.setenv("_AIRFLOW__AS_LIBRARY", "1")
    monkeypatch.setenv("PYTHONPATH", "/users/modules")
    monkeypatch.setenv("UNRELATED", "kept")


def test_the_users_airflow_does_not_leak_in(tmp_path):
    environment = environment_of(tmp_path, DSN, {})
    assert not [value for value in environment.values() if "own" in value]
    assert "_AIRFLOW__AS_LIBRARY" not in environment
    assert environment["AIRFLOW_HOME"] == str(tmp_path)
    assert environment["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"
    assert environment["AIRFLOW__ASYNC_TASK_STATE__DSN"] == DSN
    assert environment["UNRELATED"] == "kept"
    assert environment["PYTHONPATH"] == f"{tmp_path / 'dags'}:/users/modules"


def test_the_callers_options_count_most(tmp_path):
    environment = environment_of(
        tmp_path, DSN, {"triggerer": {"capacity": 7}, "async_task_state": {"dsn": "x"}}
    )
    assert environment["AIRFLOW__TRIGGERER__CAPACITY"] == "7"
    assert environment["AIRFLOW__ASYNC_TASK_STATE__DSN"] == "x"


def test_each_has_its_own_secrets(tmp_path):
    name = "AIRFLOW__API_AUTH__JWT_SECRET"
    assert environment_of(tmp_path, DSN, {})[name] != environment_of(tmp_path, DSN, {})[name]
