"""A remote job whose task's state holds as much as `max_state_bytes` allows."""

from __future__ import annotations

import pytest
from doorkit import GIVEN, trigger_of
from jobkit import SUCCESS, work_of
from service import service

from async_task_state import InvalidValueError, Settings, StateTooLargeError, TaskState, ValueTooLargeError
from async_task_state.jobs import after_clear
from async_task_state.operators import RemoteJobOperator
from async_task_state.testing import run_trigger

LONG = {"name": "x" * 400}
"""The service calls its jobs by it."""
KEY_LIMIT_AND_SETTING = r"with key 'job'; \[async_task_state\] max_state_bytes allows 300: "


@pytest.fixture
def limited(dsn, scope):
    """The state of the task, with a limit."""

    def limited(limit, attempt=1, **options):
        settings = Settings(dsn=dsn, **{"max_state_bytes": limit, **options})
        return TaskState(
            scope, store=dsn, settings=settings, attempt=attempt, max_tries=0, on_clear=after_clear()
        )

    return limited


@pytest.mark.anyio
async def test_g8_a_job_whose_id_has_no_room_is_cancelled_and_the_error_says_why(limited):
    async with limited(300) as state:
        with pytest.raises(StateTooLargeError, match=KEY_LIMIT_AND_SETTING):
            await work_of(arguments=LONG).run(state)
        assert (await state.get("job"))["state"] == "cancelled"
    assert (service.count("submit"), service.count("cancel"), service.running) == (1, 1, [])
    async with limited(1000, attempt=2) as state:
        assert (await work_of(arguments=LONG).run(state))["job_id"] == f"{LONG['name']}-2"
    assert (service.count("submit"), service.count("cancel")) == (2, 1)


@pytest.mark.anyio
async def test_a_job_whose_record_is_longer_than_a_value_may_be_is_cancelled(limited):
    async with limited(10_000, max_value_bytes=410) as state:
        with pytest.raises(ValueTooLargeError, match=r"'job' is .* max_value_bytes allows 410"):
            await work_of(arguments=LONG).run(state)
        assert (await state.get("job"))["state"] == "cancelled"
    assert (service.count("submit"), service.count("cancel"), service.running) == (1, 1, [])


@pytest.mark.anyio
async def test_a_job_whose_record_is_nested_too_deep_is_cancelled(limited):
    deep = []
    for _ in range(199):
        deep = [deep]
    cancelled = []

    async def submit(**_):
        return deep

    async with limited(10_000) as state:
        with pytest.raises(InvalidValueError, match="nested too deeply"):
            await work_of(submit=submit, cancel=cancelled.append).run(state)
        assert cancelled == [deep]
        assert (await state.get("job"))["state"] == "cancelled"


@pytest.mark.anyio
async def test_g8_nothing_is_submitted_where_there_is_no_room_for_the_key_of_a_submission(limited):
    async with limited(50) as state:
        with pytest.raises(StateTooLargeError, match="with key 'job'"):
            await work_of().run(state)
    assert service.calls == []


@pytest.mark.anyio
async def test_what_a_submission_raised_is_raised_where_there_is_no_room_for_it(limited):
    service.errors["submit"] = [RuntimeError("x" * 400)]
    async with limited(200) as state:
        with pytest.raises(RuntimeError, match="xxx"):
            await work_of().run(state)
        job = await state.get("job")
        assert (job["state"], job["status"]) == ("refused", "")
        assert await work_of().run(state) == SUCCESS


@pytest.mark.anyio
async def test_a_status_that_has_no_room_keeps_no_job_from_going_on(limited, caplog):
    service.ends = "x" * 300
    async with limited(200) as state:
        outcome = await work_of(statuses={"x" * 300: "succeeded"}).run(state)
        assert outcome == {**SUCCESS, "job_status": "x" * 300}
        job = await state.get("job")
        assert (job["state"], job["status"]) == ("succeeded", "")
    assert "the status of the job is not saved, 'xxx" in caplog.text
    assert "max_state_bytes allows 200" in caplog.text


@pytest.mark.anyio
async def test_g8_a_result_that_has_no_room_is_asked_for_again_and_the_job_is_kept(limited):
    service.result = "x" * 500
    async with limited(400) as state:
        with pytest.raises(StateTooLargeError, match=r"with key 'result'; .* max_state_bytes allows 400"):
            await work_of().run(state)
        assert (await state.get("job"))["state"] == "succeeded"
    async with limited(1000, attempt=2) as state:
        assert (await work_of().run(state))["result"] == "x" * 500
    assert (service.count("submit"), service.count("cancel")) == (1, 0)


@pytest.mark.anyio
async def test_a_job_that_a_user_cancels_is_remembered_as_cancelled_without_room(limited):
    service.polls = None
    async with limited(10_000) as state:
        job = {"id": "a-1", "state": "running", "status": "RUNNING", "attempt": 1, "idempotency_key": "k"}
        await state.set("job", job)
    service.jobs["a-1"] = {"key": "k", "ended": False, "polls": 0}
    async with limited(10) as state:
        await work_of().cancel_job(state)
        assert (await state.get("job"))["state"] == "cancelled"
    assert service.count("cancel") == 1


@pytest.mark.asyncio
async def test_g8_the_trigger_raises_it_and_cancels_the_job(at_most):
    at_most(300)
    with pytest.raises(StateTooLargeError, match=KEY_LIMIT_AND_SETTING):
        await run_trigger(trigger_of(arguments=LONG))
    assert (service.count("submit"), service.count("cancel"), service.running) == (1, 1, [])


def test_g8_the_operator_raises_it_and_cancels_the_job(at_most, limited, monkeypatch):
    monkeypatch.setattr("async_task_state.operators.task_state", lambda **_: limited(300))
    operator = RemoteJobOperator(task_id="t", deferrable=False, **{**GIVEN, "arguments": LONG})
    with pytest.raises(StateTooLargeError, match=KEY_LIMIT_AND_SETTING):
        operator.execute({})
    assert (service.count("submit"), service.count("cancel"), service.running) == (1, 1, [])
