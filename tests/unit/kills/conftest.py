"""Fixtures of the tests of kills."""

from __future__ import annotations

import pytest
from killkit import Task, calls


@pytest.fixture(autouse=True)
def _no_calls(_settings_read_anew):
    calls.clear()


@pytest.fixture
def task(dsn):
    return Task(dsn)
