"""RemoteJobTrigger: who goes on with a job, and who cancels it."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone

import pytest
from airflow.sdk.execution_time import task_runner
from doorkit import GIVEN, MOMENTS, trigger_of
from service import service

from async_task_state import (
    InvalidArgumentError,
    TaskScope,
    UnknownJobStatusError,
)
from async_task_state.instances import TRIGGERER_SECONDS, state_in_airflow
from async_task_state.operators import RemoteJobOperator
from async_task_state.settings import load_settings
from async_task_state.testing import run_trigger
from async_task_state.triggers import RemoteJobTrigger


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
    [("failed", 1), ("queued", 1), ("deferred", 0), ({}, 1), (ConnectionError("no API server"), 0)],
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
    scope = TaskScope("dag", "run", "task", index)
    assert await state_in_airflow(scope, patience=TRIGGERER_SECONDS) == state
    [question] = comms.asked
    assert (question.dag_id, question.run_ids, question.task_ids) == ("dag", ["run"], ["task"])
    assert question.map_index == (None if index < 0 else index)


@pytest.mark.asyncio
async def test_airflow_that_does_not_answer_is_not_waited_for(monkeypatch, caplog):
    answered = asyncio.Event()

    class Silent:
        async def asend(self, question):
            await answered.wait()

    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", Silent(), raising=False)
    assert await state_in_airflow(TaskScope("dag", "run", "task"), patience=0.01) is None
    assert "no answer within 0.01 s" in caplog.text
    answered.set()
