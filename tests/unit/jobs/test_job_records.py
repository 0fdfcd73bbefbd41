"""The record of a job that was damaged, or that a newer version wrote, is an error that names it."""

from __future__ import annotations

import pytest
from doorkit import trigger_of
from jobkit import work_of
from service import service

from async_task_state import DamagedRecordError
from async_task_state.job_records import EARLIER, JOB

JOB_RECORD = {
    "id": "a-1",
    "state": "running",
    "status": "RUNNING",
    "attempt": 1,
    "idempotency_key": "k",
}
DAMAGED = [
    [1],
    "x",
    7,
    {"a": None},
    {**JOB_RECORD, "state": "paused"},
    {**JOB_RECORD, "state": None},
    {**JOB_RECORD, "state": []},
    {**JOB_RECORD, "id": None},
    {**JOB_RECORD, "attempt": "1"},
    {**JOB_RECORD, "attempt": True},
    *(
        {name: value for name, value in JOB_RECORD.items() if name != gone}
        for gone in ("id", "state", "status", "attempt")
    ),
    {"state": "submitting", "status": "", "attempt": 1},
]

pytestmark = pytest.mark.anyio


def remember(opened, key, value):
    async def remember():
        async with opened() as state:
            await state.set(key, value)

    return remember()


@pytest.mark.parametrize("record", DAMAGED)
async def test_g8_a_damaged_job_is_named_and_nothing_is_submitted(opened, record):
    await remember(opened, JOB, record)
    for call in ("run", "cancel_job"):
        async with opened() as state:
            with pytest.raises(
                DamagedRecordError, match=r"key 'job' in the state of dag/run/task .* async-task-state clear"
            ):
                await getattr(work_of(), call)(state)
    assert service.calls == []


@pytest.mark.parametrize("records", [*([record] for record in DAMAGED), {"a": 1}, 7])
async def test_g8_damaged_jobs_that_are_to_be_cancelled_are_named(opened, records):
    await remember(opened, EARLIER, records)
    async with opened() as state:
        with pytest.raises(DamagedRecordError, match="key 'earlier_jobs' in the state of dag/run/task"):
            await work_of().run(state)
    assert service.calls == []


@pytest.mark.parametrize("key", [JOB, EARLIER])
@pytest.mark.parametrize("record", DAMAGED)
async def test_g8_a_clear_that_cannot_tell_which_job_to_cancel_says_so(opened, key, record):
    await remember(opened, key, record if key == JOB else [record])
    with pytest.raises(DamagedRecordError, match=rf"jobs a clear has to cancel .* {key!r}.*upgrade"):
        await opened(attempt=2, max_tries=1).__aenter__()


async def test_what_a_newer_version_adds_to_a_job_is_kept(opened, saved):
    service.jobs["a-1"] = {"key": "k", "ended": False, "polls": 0}
    await remember(opened, JOB, {**JOB_RECORD, "priority": 3})
    async with opened() as state:
        assert (await work_of().run(state))["status"] == "success"
    assert (await saved())["job"]["priority"] == 3


async def test_g8_the_trigger_names_a_damaged_job(opened):
    await remember(opened, JOB, {"a": None})
    async with opened() as state:
        with pytest.raises(DamagedRecordError, match="key 'job'"):
            await anext(trigger_of().run_with_state(state))
