"""Runs commands on a real SQLite file."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from async_task_state import TaskScope, cli
from async_task_state.stores import open_store

IDS = ("dag", "run", "task")
MANY = ("dag", "run", "many")
SCRIPT = Path(sys.executable).with_name("async-task-state")


@pytest.fixture(autouse=True)
def _nothing_logged_at_first_use(_airflow_imported):
    """`check` loads Airflow, whichever test runs it first."""


@pytest.fixture
def dsn(tmp_path):
    return f"sqlite:///{tmp_path}/state.db"


@pytest.fixture
def without_airflow(monkeypatch, tmp_path_factory):
    """Airflow has no database, whatever other tests have made."""
    path = tmp_path_factory.mktemp("airflow") / "none.db"
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", f"sqlite:///{path}")
    return path


@pytest.fixture
def run(dsn, capsys):
    """Runs a command on the store in this process: its exit code, stdout and stderr."""

    def run(*argv, store=dsn):
        code = cli.main([*argv, "--dsn", store])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def fill(make_state):
    """Fills one state with keys and work sets."""

    def fill(scope=TaskScope(*IDS), *, attempt=1, done=0, failed=0, work="files", **values):  # noqa: B008 - frozen
        async def fill():
            async with make_state(scope, attempt=attempt) as state:
                await state.checkpoint(values)
                for number in range(done):
                    await state.work(work).done(f"done-{number}")
                for number in range(failed):
                    await state.work(work).failed(f"failed-{number:03}", ValueError(f"bad row {number}"))

        asyncio.run(fill())

    return fill


@pytest.fixture
def write(dsn):
    """Writes keys without opening the state, as Airflow's own accessors do."""

    def write(scope, **values):
        async def write():
            store = open_store(dsn)
            await store.write(scope, {key: (json.dumps(value), None) for key, value in values.items()})
            await store.close()

        asyncio.run(write())

    return write


@pytest.fixture
def epoch_of(dsn):
    """Reads the epoch of a state: it goes up when somebody takes the lease or clears it."""

    def epoch_of(scope=TaskScope(*IDS)):  # noqa: B008 - frozen
        async def read():
            store = open_store(dsn)
            snapshot = await store.read(scope)
            await store.close()
            return snapshot.lease.epoch

        return asyncio.run(read())

    return epoch_of


@pytest.fixture
def start(dsn):
    """Starts a command in a process of its own, which ends with the test."""
    started = []

    def start(*argv, **options):
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        started.append(subprocess.Popen([SCRIPT, *argv, "--dsn", dsn], **options))
        return started[-1]

    yield start
    for process in started:
        with process:
            process.kill()


@pytest.fixture
def states(fill):
    for index, done in ((0, 10), (1, 4), (2, 0)):
        fill(TaskScope(*MANY, index), done=done, expected=10)


@pytest.fixture
def airflow_says(monkeypatch):
    """Says in which states task instances are, at each question what comes next."""
    monkeypatch.setattr("async_task_state.cli_instances._why_not_here", lambda: None)
    monkeypatch.setattr("async_task_state.cli_instances._import_airflow", lambda: None)
    monkeypatch.setattr("async_task_state.cli_instances.LEAST_SECONDS", 0.001)

    def says(*answers, goes_on=()):
        goes_on = list(goes_on)
        left = list(answers)

        def task_states(scope, *, all_indexes):
            answer = left.pop(0) if len(left) > 1 else left[0]
            found = answer() if callable(answer) else answer
            return [each for each in found if all_indexes or each[0] == scope.map_index]

        monkeypatch.setattr("async_task_state.cli_instances.task_states", task_states)
        monkeypatch.setattr(
            "async_task_state.cli_instances.loop_goes_on", lambda *_: goes_on and goes_on.pop(0)
        )
        monkeypatch.setattr("async_task_state.cli_instances.what_is_missing", lambda _: "no such run")

    return says
