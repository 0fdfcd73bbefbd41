"""A submission while asyncio cancels its task again and again."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from jobkit import work_of
from service import service

from async_task_state import jobs as jobs_module

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """trio has no cancellation but that of scopes."""
    return "asyncio"


@pytest.mark.parametrize("answers", [True, False], ids=["answers", "hangs"])
async def test_g6_a_submission_goes_on_however_often_it_is_cancelled(opened, saved, monkeypatch, answers):
    service.submitted, service.answer = anyio.Event(), anyio.Event()
    if not answers:
        monkeypatch.setattr(jobs_module, "SUBMIT_SECONDS", 0.05)

    async def author():
        async with opened() as state:
            await work_of().run(state)

    task = asyncio.create_task(author())
    await service.submitted.wait()
    for _ in range(10):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
    if answers:
        service.answer.set()
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    assert task.cancelled()
    job = (await saved())["job"]
    assert job.get("id") == ("a-1" if answers else None)
    assert job["state"] == ("running" if answers else "submitting")
