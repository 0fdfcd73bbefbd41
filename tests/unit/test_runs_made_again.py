"""A run that is deleted and made again under the same id starts over, by every door."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest

from async_task_state import (
    StaleAttemptError,
    StaleWriterError,
    TaskScope,
    listener,
    task_state,
    task_state_sync,
)
from async_task_state.lifetime import writer_for
from async_task_state.settings import load_settings
from async_task_state.testing.runs import run_made

T1 = datetime(2026, 1, 2, 3, 4, 5, 678901, timezone.utc)
T2 = T1 + timedelta(minutes=5)
OLD, NEW = run_made(1, 1, T1), run_made(2, 1, T2)


@pytest.fixture
def leave(make_state):
    """What an attempt of a run leaves."""

    async def leave(run=OLD, attempt=1):
        async with make_state(attempt=attempt, run=run, max_tries=1) as state:
            await state.checkpoint(n=1)
            await state.work("files").done("a")

    return leave


@pytest.mark.anyio
@pytest.mark.parametrize("attempt", [1, 5])
async def test_another_run_starts_over(make_state, leave, saved, caplog, attempt):
    await leave(run_made(1, attempt, T1), attempt)
    caplog.set_level(logging.INFO)
    async with make_state(attempt=1, run=NEW, max_tries=1) as state:
        assert (state.attempt, state.resumed, state.cleared) == (1, False, False)
        assert await state.get_all() == {}
        assert not state.work("files").is_done("a")
        assert await saved() == {}
        await state.set("n", 2)
    async with make_state(attempt=2, run=run_made(2, 2, T2), max_tries=1) as state:
        assert (state.resumed, state.cleared, await state.get_all()) == (True, False, {"n": 2})
    said = [text for record in caplog.records if "made again" in (text := record.getMessage())]
    assert said == ["the state of dag/run/task starts over: its run was deleted and made again"]


@pytest.mark.anyio
async def test_another_run_starts_over_where_a_clear_would_not(make_state, leave):
    await leave()
    async with make_state(attempt=1, run=NEW, max_tries=2, on_clear="resume") as state:
        assert (state.resumed, state.cleared, await state.get_all()) == (False, False, {})
    await leave(NEW)
    async with make_state(attempt=1, run=run_made(3, 1), max_tries=3, on_clear=pytest.fail) as state:
        assert (state.resumed, state.cleared, await state.get_all()) == (False, False, {})


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("run", "max_tries", "on_clear", "left", "cleared"),
    [
        (run_made(1, 2, T1), 1, "restart", {"n": 1}, False),
        (run_made(1, 2, T1, 1), 2, "restart", {}, True),
        (run_made(1, 2, T2, 1), 2, "restart", {}, True),
        (run_made(1, 2, T1, 1), 2, "resume", {"n": 1}, True),
        (run_made(1, 2, T2, 1), 2, "resume", {"n": 1}, True),
        # Another task of the run was cleared.
        (run_made(1, 2, T2, 1), 1, "restart", {"n": 1}, False),
    ],
    ids=["retry", "clear", "clear-ended", "clear-resume", "clear-ended-resume", "retry-after-anothers-clear"],
)
async def test_a_retry_and_a_clear_are_of_the_same_run(
    make_state, leave, run, max_tries, on_clear, left, cleared
):
    await leave()
    async with make_state(attempt=2, run=run, max_tries=max_tries, on_clear=on_clear) as state:
        assert (await state.get_all(), state.cleared) == (left, cleared)


@pytest.mark.anyio
async def test_g4_a_holder_of_the_deleted_run_is_fenced_and_may_not_open(make_state, saved):
    held = make_state(attempt=5, run=run_made(1, 5, T1))
    await held.__aenter__()
    await held.set("n", 1)
    async with make_state(attempt=1, run=NEW) as state:
        await state.set("n", 2)
    assert not await held.is_current()
    for late in (lambda: held.set("n", 3), lambda: held.__aexit__(None, None, None)):
        with pytest.raises(StaleWriterError):
            await late()
    with pytest.raises(StaleAttemptError, match="it is of a run that was deleted"):
        async with make_state(attempt=6, run=run_made(1, 6, T1)):
            pass
    assert await saved() == {"n": 2}


@pytest.mark.anyio
async def test_who_only_reads_sees_nothing_of_another_run(make_state, leave, saved):
    await leave()
    async with make_state(attempt=1, run=NEW, read_only=True) as looking:
        assert (looking.resumed, looking.attempt, await looking.get_all()) == (False, 0, {})
        assert not looking.work("files").is_done("a")
        async with make_state(attempt=1, run=NEW) as state:
            await state.checkpoint(n=2)
        await looking.refresh()
        assert await looking.get_all() == {"n": 2}
    async with make_state(attempt=1, run=OLD, read_only=True) as looking:
        assert await looking.get_all() == {}
    assert await saved() == {"n": 2}


# the running task


@pytest.fixture
def config(monkeypatch, dsn, _settings_read_anew):
    monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__DSN", dsn)
    load_settings.cache_clear()


@contextmanager
def running(run, attempt=1):
    """A task's process, as far as Airflow shows it: in the attempt of that run."""
    from airflow.sdk.definitions.context import Context  # noqa: PLC0415 - takes a second
    from airflow.sdk.execution_time.context import set_current_context  # noqa: PLC0415 - the same

    dag_run = SimpleNamespace(
        start_date=run.started, clear_number=run.clears, logical_date=None, run_after=T1 - timedelta(days=1)
    )
    ids = {"dag_id": "dag", "run_id": "run", "task_id": "task", "map_index": -1}
    ti = SimpleNamespace(id=run.instance, **ids, try_number=attempt, max_tries=1)
    with set_current_context(Context(ti=ti, dag_run=dag_run)):
        yield


@pytest.mark.anyio
async def test_the_running_task_says_of_which_run_it_is(config, leave, scope):
    await leave()
    with running(OLD):
        async with task_state() as state:
            assert state.resumed
    with running(NEW):
        async with task_state(TaskScope("dag", "run", "other")) as other, task_state(scope) as state:
            assert (other.resumed, state.resumed) == (False, False)
    with running(OLD), pytest.raises(StaleAttemptError):
        async with task_state():
            pass


@pytest.mark.anyio
async def test_an_attempt_that_is_not_the_running_one_is_of_no_known_run(config, leave):
    await leave()
    with running(NEW):
        async with task_state(attempt=2) as state:
            assert state.resumed


def test_the_sync_door_starts_over_alike(config, dsn):
    for run in (OLD, NEW, NEW):
        with running(run), task_state_sync() as state:
            state.checkpoint(n=state.get("n", 0) + 1)
    writer = writer_for(dsn, load_settings())
    assert writer.ask(writer.store.read, state.scope).entries["n"] == "2"


# success


class TaskInstance(SimpleNamespace):
    """As far as the listener looks at one."""

    def get_template_context(self):
        return {"dag_run": self.dag_run}


TaskInstance.__module__ = "airflow.sdk.execution_time.task_runner"


@pytest.fixture
def succeed(monkeypatch, config):
    """Says of the first attempt of a run that it has succeeded, where that clears its state."""
    monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__CLEAR_ON_SUCCESS", "True")
    load_settings.cache_clear()

    def succeed(run):
        dag_run = SimpleNamespace(
            start_date=run.started, clear_number=0, logical_date=None, run_after=T1 - timedelta(days=1)
        )
        ids = {"dag_id": "dag", "run_id": "run", "task_id": "task", "map_index": -1}
        task_instance = TaskInstance(id=run.instance, **ids, try_number=1, dag_run=dag_run)
        listener.on_task_instance_success(None, task_instance)

    return succeed


@pytest.mark.usefixtures("_airflow_imported")
def test_g4_a_success_of_a_deleted_run_clears_nothing_of_its_successor(succeed, dsn, scope, caplog):
    caplog.set_level(logging.INFO)
    writer = writer_for(dsn, load_settings())
    writer.ask(writer.store.acquire, scope, 1, NEW)
    writer.ask(writer.store.write, scope, {"n": ("1", None)})
    succeed(OLD)
    assert writer.ask(writer.store.read, scope).entries == {"n": "1"}
    assert "the state is left to a later attempt" in caplog.text
    succeed(NEW)
    assert writer.ask(writer.store.read, scope).entries == {}
