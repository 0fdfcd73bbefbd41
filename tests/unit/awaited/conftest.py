"""Fixtures of the tests of a store that only awaited calls may reach."""

from __future__ import annotations

import pytest
from channel import SCOPE, Airflow

from async_task_state import (
    Settings,
    TaskState,
)


@pytest.fixture
def airflow():
    return Airflow()


@pytest.fixture
def make_state(airflow):
    def make_state(outage_timeout=60.0, **options):
        settings = Settings(dsn="airflow:", outage_timeout=outage_timeout, exit_timeout=1.0)
        return TaskState(SCOPE, store=airflow, settings=settings, **{"attempt": 1, **options})

    return make_state
