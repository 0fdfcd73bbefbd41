"""Fixtures of the tests of remote jobs."""

from __future__ import annotations

import pytest
from airflow.sdk.execution_time import task_runner
from doorkit import Comms
from jobkit import work_of
from service import Died, service

from async_task_state.jobs import after_clear


@pytest.fixture(autouse=True)
def _fresh_service(_airflow_imported, _settings_read_anew):
    service.reset()


@pytest.fixture
def dsn(tmp_path):
    """What a job needs of a store is the same of every one."""
    return f"memory:{tmp_path}"


@pytest.fixture
def opened(make_state, scope):
    """The state of a task whose clears raise `max_tries`."""

    def opened(attempt=1, max_tries=0, of=scope):
        return make_state(of, attempt=attempt, max_tries=max_tries, on_clear=after_clear())

    return opened


@pytest.fixture
def run(opened):
    """What one process does with the job."""

    async def run(attempt=1, max_tries=0, of=None, **options):
        async with opened(attempt, max_tries, *([of] if of else [])) as state:
            return await work_of(**options).run(state)

    return run


@pytest.fixture
def die(opened):
    """Runs a process that dies at a step; false if it has ended before."""

    async def die(at, attempt=1, max_tries=0, of=None, **options):
        try:
            async with opened(attempt, max_tries, *([of] if of else [])) as state:
                with service.dying(state, at):
                    await work_of(**options).run(state)
        except Died:
            return True
        return False

    return die


@pytest.fixture
def airflow_says(monkeypatch):
    def airflow_says(answer):
        comms = Comms({"run": {"task": answer}} if isinstance(answer, str) else answer)
        monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", comms, raising=False)
        # Airflow 3.4 is not asked where its triggerer has been imported.
        monkeypatch.setattr("async_task_state.triggers.checkpoint.releases_moved_triggers", lambda: False)
        return comms

    return airflow_says
