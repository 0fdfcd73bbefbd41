"""RemoteJobOperator: who goes on with a job, and who cancels it."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections import UserList
from contextlib import contextmanager

import pytest
from airflow.models.trigger import Trigger
from airflow.sdk.execution_time.timeout import timeout
from doorkit import GIVEN, MOMENTS, trigger_of
from service import service

from async_task_state import (
    JobCallError,
    JobFailedError,
)
from async_task_state.clear_choice import Choice
from async_task_state.operators import RemoteJobOperator
from async_task_state.testing import run_trigger

try:
    from airflow.sdk.exceptions import AirflowTaskTimeout, TaskDeferred
except ImportError:
    # Airflow 3.1 has them elsewhere.
    from airflow.exceptions import AirflowTaskTimeout, TaskDeferred

# On the worker


@pytest.fixture
def operator(make_state, monkeypatch):
    """An operator whose task is the first attempt of the one that the tests share."""
    monkeypatch.setattr(
        "async_task_state.operators.task_state", lambda **options: make_state(attempt=1, **options)
    )

    def operator(**options):
        return RemoteJobOperator(task_id="t", deferrable=False, **{**GIVEN, **options})

    return operator


def test_the_worker_returns_the_result(operator):
    assert operator().execute({}) == {"rows": 7}
    assert operator().execute({}) == {"rows": 7}
    assert len(service.jobs) == 1


def test_the_worker_raises_for_a_job_that_failed(operator):
    service.ends = "FAILED"
    with pytest.raises(JobFailedError, match="job 'a-1' has failed: FAILED") as raised:
        operator().execute({})
    assert (raised.value.job_id, raised.value.status) == ("a-1", "FAILED")


async def until(condition):
    while not condition():  # noqa: ASYNC110 - what it waits for tells nobody
        await asyncio.sleep(0.001)


async def polled():
    polls = service.count("poll")
    await until(lambda: service.count("poll") > polls + 1)


@pytest.mark.asyncio
@pytest.mark.parametrize("answer", ["failed", "success", "restarting", {}])
async def test_g4_a_users_kill_of_the_worker_cancels_the_job(operator, airflow_says, answer):
    airflow_says(answer)
    service.polls = None
    running = operator()
    task = asyncio.create_task(running.aexecute({}))
    await polled()
    running.on_kill()
    with pytest.raises(JobFailedError, match="cancelled by a user"):
        await task
    assert (service.count("cancel"), service.running) == (1, [])


@pytest.mark.asyncio
@pytest.mark.parametrize("kept", [True, False])
async def test_g4_a_user_who_keeps_the_state_at_a_clear_has_the_job_go_on(
    operator, airflow_says, kept, monkeypatch
):
    asked = []

    async def choice_at_clear(scope, attempt, begun):
        asked.append(attempt)
        return Choice(attempt, kept, at_work=True)

    monkeypatch.setattr("async_task_state.operators.choice_at_clear", choice_at_clear)
    airflow_says("restarting")
    service.polls = None
    running = operator()
    task = asyncio.create_task(running.aexecute({}))
    await polled()
    running.on_kill()
    await until(lambda: asked == [2])
    if kept:
        await polled()
        service.polls = 0
        assert await task == {"rows": 7}
    else:
        with pytest.raises(JobFailedError, match="cancelled by a user"):
            await task
    assert service.count("cancel") == (not kept)


@pytest.mark.asyncio
@pytest.mark.parametrize("answer", ["running", "up_for_retry", "queued", ConnectionError("no API server")])
async def test_g4_a_shutdown_of_the_worker_leaves_the_job_alone_and_goes_on_while_it_may(
    operator, airflow_says, answer
):
    comms = airflow_says(answer)
    service.polls = None
    running = operator()
    task = asyncio.create_task(running.aexecute({}))
    for asked in (1, 2):
        await polled()
        running.on_kill()
        await until(lambda asked=asked: len(comms.asked) == asked)
    service.polls = 0
    assert await task == {"rows": 7}
    assert service.count("cancel") == 0


@pytest.mark.asyncio
async def test_what_keeps_the_worker_from_asking_ends_the_attempt_and_not_the_job(operator, monkeypatch):
    async def state_in_airflow(scope, *, patience):
        raise ValueError("cannot ask")

    monkeypatch.setattr("async_task_state.operators.state_in_airflow", state_in_airflow)
    service.polls = None
    running = operator()
    task = asyncio.create_task(running.aexecute({}))
    await polled()
    running.on_kill()
    with pytest.raises(ValueError, match="cannot ask"):
        await task
    assert service.count("cancel") == 0


class Ended(BaseException):
    """What a signal handler may raise, as it is no error of the task's."""


@pytest.mark.parametrize("moment", [0.05, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("error", [SystemExit, Ended, RuntimeError])
@pytest.mark.parametrize(("answer", "cancelled"), [("failed", 1), ("restarting", 1), ("running", 0)])
def test_g4_a_handler_that_raises_after_on_kill_loses_no_cancel(
    operator, airflow_says, raised_at, answer, cancelled, error, moment
):
    comms = airflow_says(answer)
    service.polls = None
    running = operator()
    with pytest.raises((error, JobFailedError)), raised_at(moment, running.on_kill, error):
        running.execute({})
    assert comms.asked
    assert (service.count("cancel"), len(service.running)) == (cancelled, 1 - cancelled)


@pytest.fixture
def raised_at():
    """A signal, some time after the first poll, whose handler raises when it has called something."""

    @contextmanager
    def raised_at(moment, call, error):
        def handle(*_):
            call()
            raise error

        def ring():
            while service.count("poll") < 1:
                time.sleep(0.001)
            time.sleep(moment)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

        before = signal.signal(signal.SIGUSR1, handle)
        ringing = threading.Thread(target=ring)
        ringing.start()
        try:
            yield
        finally:
            ringing.join()
            signal.signal(signal.SIGUSR1, before)

    return raised_at


def test_a_kill_before_and_after_the_work_is_nothing(operator):
    running = operator()
    running.on_kill()
    running.execute({})
    running.on_kill()
    assert service.count("cancel") == 0


def test_execution_timeout_leaves_the_job_to_the_next_attempt(operator):
    service.polls = None
    running = operator(poll_interval=0.01, max_poll_interval=0.01)
    with pytest.raises(AirflowTaskTimeout), timeout(1):
        running.execute({})
    # As Airflow does then.
    running.on_kill()
    assert (len(service.jobs), service.count("cancel")) == (1, 0)
    service.polls = 0
    assert operator().execute({}) == {"rows": 7}
    assert len(service.jobs) == 1


# Deferring


def deferrable(**options):
    return RemoteJobOperator(task_id="t", deferrable=True, **{**GIVEN, **options})


def test_the_operator_defers_with_everything_it_was_given(monkeypatch):
    with pytest.raises(TaskDeferred) as raised:
        deferrable(statuses={"DONE": "succeeded"}).execute({})
    path, arguments = raised.value.trigger.serialize()
    assert path == "async_task_state.triggers.jobs.RemoteJobTrigger"
    expected = trigger_of(statuses={"DONE": "succeeded"}).serialize()[1]
    assert arguments == expected


def test_what_mapped_tasks_return_is_sent_as_lists():
    lazy = UserList([{"files": UserList(["a", "b"])}, ("c", 1)])
    with pytest.raises(TaskDeferred) as raised:
        deferrable(arguments={"name": "a", "steps": lazy}).execute({})
    arguments = raised.value.trigger.serialize()[1]
    assert arguments["arguments"] == {"name": "a", "steps": [{"files": ["a", "b"]}, ("c", 1)]}
    assert type(arguments["arguments"]["steps"]) is list
    assert Trigger._decrypt_kwargs(Trigger.encrypt_kwargs(arguments)) == arguments


def test_g8_a_wrong_path_fails_on_the_worker():
    with pytest.raises(JobCallError, match="poll='no_such'"):
        deferrable(poll="no_such").execute({})


def test_the_operator_takes_the_event_for_the_outcome():
    event = {"status": "success", "job_id": 1, "job_status": "SUCCEEDED", "result": [1]}
    assert deferrable().execute_complete({}, event) == [1]
    with pytest.raises(JobFailedError, match="job 1 has failed: DEAD"):
        deferrable().execute_complete({}, {**event, "status": "failed", "job_status": "DEAD"})


@pytest.mark.asyncio
async def test_deferrable_may_be_changed_between_attempts(make_state, monkeypatch):
    trigger = trigger_of()
    service.polls = None
    await run_trigger(trigger, stop="crash", when=MOMENTS["polled"])
    service.polls = 0
    monkeypatch.setattr(
        "async_task_state.operators.task_state",
        lambda **options: make_state(store=trigger_store(trigger), attempt=2, **options),
    )
    assert await RemoteJobOperator(task_id="t", deferrable=False, **GIVEN).aexecute({}) == {"rows": 7}
    assert (len(service.jobs), service.count("cancel")) == (1, 0)


def trigger_store(trigger):
    from async_task_state.testing import triggers  # noqa: PLC0415 - loads Airflow's models

    return triggers._stores[trigger]
