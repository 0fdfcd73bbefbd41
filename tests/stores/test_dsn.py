"""How a dsn becomes a store, and which executor a store is right for."""

from __future__ import annotations

import sys
import types

import pytest

from async_task_state import SettingsError
from async_task_state.settings import check_executor
from async_task_state.stores import open_store, sqlite_path
from async_task_state.stores.memory import MemoryStore
from async_task_state.stores.sqlite import SQLiteStore

SQLITE = "sqlite:////var/lib/state.db"


def test_sqlite_takes_an_absolute_path():
    assert isinstance(open_store(SQLITE), SQLiteStore)
    assert sqlite_path(SQLITE) == "/var/lib/state.db"
    assert sqlite_path(f"{SQLITE}?single_machine=true") == "/var/lib/state.db"


def test_nothing_is_opened_before_the_first_call(tmp_path):
    open_store(f"sqlite:///{tmp_path}/state.db")
    assert list(tmp_path.iterdir()) == []


def test_memory_stores_are_told_apart_by_name():
    assert isinstance(open_store("memory:"), MemoryStore)
    assert open_store("memory:a") is open_store("memory:a")
    assert open_store("memory:a") is not open_store("memory:b")


@pytest.mark.parametrize(
    "dsn",
    [
        "sqlite:",
        "sqlite:/state.db",
        "sqlite://state.db",
        "sqlite:///",
        "sqlite:///state.db",
        "sqlite:////var/lib/",
    ],
)
def test_g8_a_malformed_sqlite_dsn_is_explained(dsn):
    with pytest.raises(SettingsError, match="absolute path of a file, so four slashes"):
        open_store(dsn)


@pytest.mark.parametrize(
    ("dsn", "kind"),
    [
        ("", "without a known kind"),
        ("state.db", "without a known kind"),
        ("/var/lib/state.db", "without a known kind"),
        ("memory", "without a known kind"),
        ("oracle://host/db", "the dsn is 'oracle'"),
        ("SQLite:////var/lib/state.db", "the dsn is 'SQLite'"),
    ],
)
def test_g8_an_unknown_dsn_is_refused_with_what_is_known(dsn, kind):
    with pytest.raises(SettingsError, match=kind) as caught:
        open_store(dsn)
    assert "dsn takes sqlite:///path, postgresql://user:password@host/database, airflow: or memory:" in str(
        caught.value
    )


@pytest.mark.parametrize(
    "dsn",
    [
        "oracle://scott:hunter2@host/db",
        "scott-hunter2://host",
        "scott/hunter2@host:1521",
        "sqlite://scott:hunter2@host/db",
        "sqlite:////var/lib/state.db?password=hunter2",
        "sqlite:////var/lib/state.db?single_machine=hunter2",
    ],
)
def test_g8_an_error_shows_no_password(dsn):
    with pytest.raises(SettingsError) as caught:
        open_store(dsn)
    error = caught.value
    while error is not None:
        assert "hunter2" not in str(error)
        error = error.__cause__ or error.__context__


@pytest.fixture
def executor(monkeypatch, _settings_read_anew):
    """Sets the executor that Airflow is told to use."""

    class Local:
        is_local = True

    class Remote:
        is_local = False

    custom = types.ModuleType("custom_executors")
    custom.Local, custom.Remote = Local, Remote
    monkeypatch.setitem(sys.modules, custom.__name__, custom)

    def executor(setting):
        monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", setting)
        check_executor.cache_clear()

    return executor


@pytest.mark.parametrize(
    "setting",
    [
        "LocalExecutor",
        "SequentialExecutor",
        " LocalExecutor , SequentialExecutor ",
        "quick:LocalExecutor",
        "airflow.executors.local_executor.LocalExecutor",
        "custom_executors.Local",
        "mine:custom_executors.Local",
        "LocalExecutor;team=LocalExecutor",
        "team=mine:custom_executors.Local",
    ],
)
def test_sqlite_is_right_where_tasks_run_on_this_machine(executor, setting):
    executor(setting)
    check_executor(SQLITE)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("CeleryExecutor", "CeleryExecutor"),
        ("KubernetesExecutor", "KubernetesExecutor"),
        ("LocalExecutor,CeleryExecutor", "CeleryExecutor"),
        ("LocalExecutor, CeleryExecutor, KubernetesExecutor", "CeleryExecutor, KubernetesExecutor"),
        ("quick:LocalExecutor,slow:CeleryExecutor", "CeleryExecutor"),
        ("custom_executors.Remote", "custom_executors.Remote"),
        ("custom_executors.Local,mine:custom_executors.Remote", "custom_executors.Remote"),
        ("LocalExecutor;team=CeleryExecutor", "CeleryExecutor"),
        ("custom_executors.Missing", "custom_executors.Missing"),
        ("no_such_package.Executor", "no_such_package.Executor"),
    ],
)
def test_g8_sqlite_is_refused_where_tasks_run_elsewhere(executor, setting, named):
    executor(setting)
    with pytest.raises(SettingsError) as caught:
        check_executor(SQLITE)
    message = str(caught.value)
    assert message.startswith(f"{named} runs tasks on other machines, and SQLite keeps state on one")
    assert "set [async_task_state] dsn" in message
    assert "?single_machine=true" in message


@pytest.mark.parametrize("dsn", [f"{SQLITE}?single_machine=true", "memory:", "postgresql://host/db"])
def test_a_remote_executor_takes_other_stores_or_a_promise(executor, dsn):
    executor("CeleryExecutor")
    check_executor(dsn)
