"""RemoteJobTrigger and RemoteJobOperator: who goes on with a job, and who cancels it."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections import UserList
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest
from airflow.models.trigger import Trigger
from airflow.sdk.exceptions import AirflowTaskTimeout, TaskDeferred
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.timeout import timeout
from service import service

from async_task_state import (
    InvalidArgumentError,
    JobCallError,
    JobFailedError,
    TaskScope,
    UnknownJobStatusError,
)
from async_task_state.instances import state_in_airflow
from async_task_state.operators import RemoteJobOperator
from async_task_state.settings import load_settings
from async_task_state.testing import run_trigger
from async_task_state.triggers import RemoteJobTrigger

FUNCTIONS = {name: f"service.{name}" for name in ("submit", "poll", "cancel", "result")}
GIVEN = {**FUNCTIONS, "arguments": {"name": "a"}, "poll_interval": 0.001, "max_poll_interval": 0.002}


@pytest.fixture(autouse=True)
def _fresh_service(_settings_read_anew):
    service.reset()


@pytest.fixture
def dsn(tmp_path):
    return f"memory:{tmp_path}"


class Comms:
    """Airflow, to be asked for the state of the one task there is."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    async def asend(self, question):
        self.asked.append(question)
        if isinstance(self.answer, Exception):
            raise self.answer
        return SimpleNamespace(task_states=self.answer)


@pytest.fixture
def airflow_says(monkeypatch):
    def airflow_says(answer):
        comms = Comms({"run": {"task": answer}} if isinstance(answer, str) else answer)
        monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", comms, raising=False)
        return comms

    return airflow_says


def trigger_of(**options):
    return RemoteJobTrigger(**{**GIVEN, **options})


MOMENTS = {
    "opened": lambda state: True,
    "key saved": lambda state: "job" in state._pending.values,
    "submitted": lambda state: service.jobs,
    "id saved": lambda state: '"running"' in state._pending.values.get("job", ""),
    "polled": lambda state: service.count("poll") > 1,
}


@pytest.mark.asyncio
async def test_one_event_says_what_came_of_the_job():
    run = await run_trigger(trigger_of())
    payload = {"status": "success", "job_id": "a-1", "job_status": "SUCCEEDED", "result": {"rows": 7}}
    assert [event.payload for event in run.events] == [payload]
    service.ends = "FAILED"
    [event] = (await run_trigger(trigger_of())).events
    assert event.payload == {"status": "failed", "job_id": "a-2", "job_status": "FAILED", "result": None}


@pytest.mark.asyncio
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("stop", ["crash", "shutdown", "move"])
async def test_g1_a_trigger_that_ends_goes_on_elsewhere_with_the_same_job(stop, moment):
    trigger = trigger_of()
    service.polls = None
    stopped = await run_trigger(trigger, stop=stop, when=MOMENTS[moment])
    assert stopped.events == []
    service.polls = 1
    [event] = (await run_trigger(trigger)).events
    assert event.payload["job_id"] == "a-1"
    assert (len(service.jobs), service.count("cancel")) == (1, 0)


@pytest.mark.asyncio
@pytest.mark.parametrize("stop", ["crash", "shutdown", "move", "user_kill"])
async def test_g1_an_event_that_did_not_arrive_is_fired_again_without_a_poll(stop):
    trigger = trigger_of()
    await run_trigger(trigger, stop=stop, when=lambda state: "result" in state._pending.values)
    polls = service.count("poll")
    [event] = (await run_trigger(trigger)).events
    assert event.payload["result"] == {"rows": 7}
    assert (service.count("poll"), service.count("cancel"), len(service.jobs)) == (polls, 0, 1)


@pytest.mark.asyncio
@pytest.mark.parametrize("moment", ["submitted", "id saved", "polled"])
async def test_g4_a_users_kill_cancels_the_job_and_the_next_attempt_submits_anew(moment):
    trigger = trigger_of()
    service.polls = None
    killed = await run_trigger(trigger, stop="user_kill", when=MOMENTS[moment])
    assert (killed.values["job"]["state"], service.running) == ("cancelled", [])
    service.polls = 1
    [event] = (await run_trigger(trigger, attempt=2)).events
    assert (event.payload["job_id"], event.payload["status"]) == ("a-2", "success")
    assert service.count("cancel") == 1


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "cancelled"),
    [("failed", 1), ("queued", 1), ("deferred", 0), ({}, 1), (ConnectionError("no API server"), 1)],
)
async def test_g4_airflow_is_asked_whether_the_task_has_only_moved(airflow_says, answer, cancelled):
    comms = airflow_says(answer)
    service.polls = None
    await run_trigger(trigger_of(), stop="user_kill", when=MOMENTS["polled"])
    assert service.count("cancel") == cancelled
    assert len(comms.asked) == 1


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("answer", "seconds", "cancelled"), [("queued", 30, 0), ("queued", 600, 1), ("failed", 30, 1)]
)
async def test_a_deferral_that_is_over_by_the_schedulers_clock_only_cancels_no_job(
    airflow_says, monkeypatch, answer, seconds, cancelled
):
    over = datetime.now(timezone.utc) + timedelta(seconds=seconds)
    monkeypatch.setattr(RemoteJobTrigger, "timeout_after", over, raising=False)
    airflow_says(answer)
    service.polls = None
    await run_trigger(trigger_of(), stop="user_kill", when=MOMENTS["polled"])
    assert service.count("cancel") == cancelled


@pytest.mark.asyncio
@pytest.mark.parametrize(("answer", "cancelled"), [("failed", 1), ("queued", 0), ("deferred", 0)])
async def test_where_a_clear_resumes_only_a_task_that_is_over_has_its_job_cancelled(
    airflow_says, monkeypatch, answer, cancelled
):
    monkeypatch.setenv("AIRFLOW__ASYNC_TASK_STATE__ON_CLEAR", "resume")
    load_settings.cache_clear()
    airflow_says(answer)
    service.polls = None
    await run_trigger(trigger_of(), stop="user_kill", when=MOMENTS["polled"])
    assert service.count("cancel") == cancelled


@pytest.mark.asyncio
async def test_an_error_ends_the_trigger_and_not_the_job():
    trigger = trigger_of()
    service.ends = "DONE"
    with pytest.raises(UnknownJobStatusError, match="DONE"):
        await run_trigger(trigger)
    service.ends = "SUCCEEDED"
    [event] = (await run_trigger(trigger, attempt=2)).events
    assert (event.payload["job_id"], service.count("cancel")) == ("a-1", 0)


def test_the_trigger_survives_its_serialization():
    path, arguments = trigger_of(statuses={"DONE": "failed"}, max_poll_failures=3).serialize()
    assert path == "async_task_state.triggers.jobs.RemoteJobTrigger"
    assert RemoteJobTrigger(**arguments).serialize() == (path, arguments)


@pytest.mark.parametrize("name", ["submit", "poll", "cancel", "result", "job"])
def test_g8_the_triggerer_takes_no_function(name):
    with pytest.raises(InvalidArgumentError, match=f"{name} must be a dotted path"):
        trigger_of(**{name: print})
    with pytest.raises(InvalidArgumentError, match=f"{name} runs in the triggerer"):
        RemoteJobOperator(task_id="t", deferrable=True, **{**GIVEN, name: print})


# The states that Airflow knows


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("index", "answer", "state"),
    [
        (-1, {"run": {"task": "deferred"}}, "deferred"),
        (3, {"run": {"task_3": "running"}}, "running"),
        (-1, {"run": {"task": None}}, "none"),
        (-1, {"run": {}}, "removed"),
        (-1, {}, "removed"),
    ],
)
async def test_airflow_is_asked_for_one_task_instance(airflow_says, index, answer, state):
    comms = airflow_says(answer)
    assert await state_in_airflow(TaskScope("dag", "run", "task", index)) == state
    [question] = comms.asked
    assert (question.dag_id, question.run_ids, question.task_ids) == ("dag", ["run"], ["task"])
    assert question.map_index == (None if index < 0 else index)


@pytest.mark.asyncio
async def test_airflow_that_does_not_answer_is_not_waited_for(monkeypatch, caplog):
    monkeypatch.setattr("async_task_state.instances.ANSWER_SECONDS", 0.01)
    answered = asyncio.Event()

    class Silent:
        async def asend(self, question):
            await answered.wait()

    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", Silent(), raising=False)
    assert await state_in_airflow(TaskScope("dag", "run", "task")) is None
    assert "no answer within 0.01 s" in caplog.text
    answered.set()


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
    async def state_in_airflow(scope):
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
