"""Purging from a task."""

from __future__ import annotations

import logging

import pytest

from async_task_state import SettingsError, TaskScope, listener, purge, purge_sync
from async_task_state.lifetime import writer_for
from async_task_state.settings import load_settings

pytestmark = pytest.mark.usefixtures("_airflow_imported")

AT_ONCE = 1e-9


@pytest.mark.anyio
async def test_what_has_expired_is_purged_and_nothing_else(dsn, on_store, scope, make_state):
    await on_store("write", scope, {"expired": ("1", AT_ONCE), "kept": ("2", None)})
    await on_store("write", TaskScope("dag", "run", "other"), {"expired": ("1", AT_ONCE)})
    assert await purge(dsn) == 2
    assert await purge(dsn) == 0
    async with make_state(read_only=True) as state:
        assert await state.get_all() == {"kept": 2}


def test_it_need_not_be_awaited(tmp_path):
    assert purge_sync(f"sqlite:///{tmp_path}/state.db") == 0


@pytest.mark.anyio
async def test_g8_airflows_own_store_is_not_ours_to_purge():
    with pytest.raises(SettingsError, match="airflow state-store clean"):
        await purge("airflow:")


class TaskInstance:
    """As far as the listener looks at one."""

    dag_id, run_id, task_id, map_index = "dag", "run", "task", -1

    def __init__(self, try_number):
        self.try_number = try_number


TaskInstance.__module__ = "airflow.sdk.execution_time.task_runner"


@pytest.fixture
def succeed(monkeypatch, dsn, _settings_read_anew):
    """Says of an attempt that it has succeeded; and calls the store itself."""
    monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__DSN", dsn)
    monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__CLEAR_ON_SUCCESS", "True")
    load_settings.cache_clear()

    def succeed(attempt):
        listener.on_task_instance_success(None, TaskInstance(attempt))

    return succeed


def on_store_of(dsn, method, *args):
    writer = writer_for(dsn, load_settings())
    return writer.ask(getattr(writer.store, method), *args)


def test_what_succeeded_leaves_nothing(succeed, dsn, scope):
    on_store_of(dsn, "acquire", scope, 2)
    on_store_of(dsn, "write", scope, {"n": ("1", None)})
    succeed(2)
    assert on_store_of(dsn, "read", scope).entries == {}


def test_what_kept_no_state_leaves_no_trace(succeed, dsn, scope):
    succeed(1)
    assert on_store_of(dsn, "read", scope) is None


def test_g4_an_attempt_that_was_replaced_clears_nothing_when_it_succeeds(succeed, dsn, scope, caplog):
    caplog.set_level(logging.INFO)
    held = on_store_of(dsn, "acquire", scope, 2)
    on_store_of(dsn, "write", scope, {"n": ("1", None)})
    succeed(1)
    assert on_store_of(dsn, "read", scope).entries == {"n": "1"}
    assert on_store_of(dsn, "read", scope).lease == held.lease
    assert "the state is left to a later attempt" in caplog.text
