"""Fixtures of the unit tests."""

from __future__ import annotations

import fsspec
import pytest
from faulty import FaultyStore
from remembers import Remembers

from async_task_state.settings import allowed_protocols, load_settings


@pytest.fixture
def store():
    """A store that can be made to fail."""
    store = FaultyStore()
    yield store
    store.mend()


@pytest.fixture
def allow(monkeypatch, _settings_read_anew):
    """Sets `allowed_protocols`."""

    def allow(*protocols):
        monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__ALLOWED_PROTOCOLS", ", ".join(protocols))
        allowed_protocols.cache_clear()

    return allow


@pytest.fixture
def remembers(allow):
    """Has one file; `sizes` and `modified` say which, and since when."""
    allow("remembers")
    fsspec.register_implementation("remembers", Remembers, clobber=True)
    Remembers.sizes, Remembers.modified = {"/x": 1}, None
    return Remembers


@pytest.fixture
def at_most(monkeypatch):
    """Sets `max_state_bytes` for what reads settings."""

    def at_most(limit):
        monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__MAX_STATE_BYTES", str(limit))
        load_settings.cache_clear()

    return at_most
