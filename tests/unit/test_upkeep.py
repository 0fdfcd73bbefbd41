"""Purging from a task."""

from __future__ import annotations

import pytest

from async_task_state import SettingsError, TaskScope, purge, purge_sync

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
