"""How long Airflow's state backend keeps what, on our stores."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta, timezone

import pytest

pytest.importorskip("airflow.state", reason="Airflow has state backends since 3.3")

from airflow.state import AssetScope, TaskScope

from async_task_state import (
    lifetime,
    scopes,
)
from async_task_state.settings import load_settings

SCOPE = TaskScope("dag", "run", "task")
OURS = scopes.TaskScope("dag", "run", "task")

pytestmark = pytest.mark.usefixtures("_settings_read_anew", "_airflow_imported")


def until_gone(door, scope, key):
    deadline = time.monotonic() + 30
    while door.get(scope, key) is not None:
        assert time.monotonic() < deadline, f"{key} does not expire"
        time.sleep(0.02)


def soon(seconds=0.3):
    return datetime.now(timezone.utc) + timedelta(seconds=seconds)


def test_cleanup_takes_the_time_it_needs(backend, monkeypatch, of_store):
    """A batch has to be answered within `outage_timeout`, and not all of them."""
    backend.set(SCOPE, "kept", "1")
    [store] = {type(writer.store) for writer in lifetime._writers.values()}
    purge = store.purge

    async def slowly(self, *args):
        await asyncio.sleep(0.3)
        return await purge(self, *args)

    monkeypatch.setattr(store, "purge", slowly)
    monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__OUTAGE_TIMEOUT", "0.1")
    load_settings.cache_clear()
    backend.cleanup()


def test_a_key_is_gone_when_it_has_expired(door, of_store):
    door.set(SCOPE, "never", "1")
    door.set(SCOPE, "key", "1", expires_at=soon(60))
    assert door.get(SCOPE, "key") == "1"
    door.set(SCOPE, "key", "2", expires_at=soon())
    until_gone(door, SCOPE, "key")
    door.set(SCOPE, "key", "3", expires_at=soon(60))
    door.set(SCOPE, "key", "4", expires_at=soon(-1))
    assert door.get(SCOPE, "key") is None
    assert of_store("purge") == 0
    assert door.get(SCOPE, "never") == "1"


def test_a_moment_without_time_zone_is_utc(backend, monkeypatch):
    monkeypatch.setenv("TZ", "UTC+8")
    time.tzset()
    try:
        backend.set(SCOPE, "key", "1", expires_at=soon(60).replace(tzinfo=None))
        assert backend.get(SCOPE, "key") == "1"
        backend.set(SCOPE, "key", "1", expires_at=soon(-60).replace(tzinfo=None))
        assert backend.get(SCOPE, "key") is None
    finally:
        monkeypatch.undo()
        time.tzset()


def test_another_time_zone_is_the_same_moment(door):
    west = timezone(timedelta(hours=-8))
    door.set(SCOPE, "key", "1", expires_at=soon(60).astimezone(west))
    assert door.get(SCOPE, "key") == "1"
    door.set(SCOPE, "key", "1", expires_at=soon(-60).astimezone(west))
    assert door.get(SCOPE, "key") is None


def test_a_key_written_anew_without_expiry_stays(door, of_store):
    door.set(SCOPE, "kept", "1", expires_at=soon())
    door.set(SCOPE, "kept", "2")
    door.set(SCOPE, "gone", "1", expires_at=soon())
    until_gone(door, SCOPE, "gone")
    assert door.get(SCOPE, "kept") == "2"
    of_store("purge", time.time() + 86400)
    assert door.get(SCOPE, "kept") == "2"


def test_a_key_without_expiry_outlives_the_rest_of_a_state(door, of_store):
    """Airflow says so when its author has asked for it: what a state itself keeps goes when it is idle."""
    door.set(SCOPE, "kept", "1")
    of_store("write", OURS, {"of the state": ("1", None)})
    assert door.get(SCOPE, "of the state") == "1"
    of_store("purge", time.time() + 400 * 86400)
    assert door.get(SCOPE, "kept") == "1"
    assert door.get(SCOPE, "of the state") is None


def test_values_of_assets_never_expire(door, of_store):
    scope = AssetScope(name="asset")
    door.set(scope, "watermark", "1", expires_at=soon(-1))
    of_store("purge", time.time() + 10 * 365 * 86400)
    assert door.get(scope, "watermark") == "1"


def test_cleanup_purges(backend, of_store):
    backend.set(SCOPE, "kept", "1")
    backend.set(SCOPE, "gone", "1", expires_at=soon())
    until_gone(backend, SCOPE, "gone")
    backend.cleanup()
    # What this one returns is how many were left for it.
    assert of_store("purge") == 0
    assert backend.get(SCOPE, "kept") == "1"
