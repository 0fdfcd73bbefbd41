"""One real Airflow for all of these tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from async_task_state.sandbox import Sandbox

HERE = Path(__file__).parent
SECONDS = 300


def pytest_collection_modifyitems(items):
    # The first test waits for Airflow to start; the others for tasks, each of which takes seconds to start.
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(SECONDS))


@pytest.fixture(scope="session")
def dags():
    """The DAGs of this directory, and the modules beside them, which can then be imported everywhere."""
    return [path for path in sorted((HERE / "dags").iterdir()) if path.name != "__pycache__"]


@pytest.fixture(scope="session")
def airflow(dags):
    """A running Airflow."""
    with Sandbox(*dags, report=print) as sandbox:
        yield sandbox
