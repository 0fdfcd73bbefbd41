"""Such a store while asyncio cancels the task that saves, once or again and again."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from channel import NOT_SOON

from async_task_state import StoreUnavailableError

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[("asyncio", {}), ("asyncio", {"debug": True})], ids=["asyncio", "asyncio-debug"])
def anyio_backend(request):
    """trio has no cancellation but that of scopes."""
    return request.param


@pytest.fixture
def requests(airflow, monkeypatch):
    """A channel each of whose requests waits to be answered; one that is cancelled half way is an error."""
    requests = Requests(airflow)
    monkeypatch.setattr(airflow, "_request", requests)
    return requests


class Requests:
    def __init__(self, airflow):
        self.request = airflow._request
        self.waiting = 0
        self.answered = anyio.Event()
        self.answered.set()
        self.cut_short = 0

    async def __call__(self, *args):
        self.waiting += 1
        try:
            await self.answered.wait()
        except asyncio.CancelledError:
            self.cut_short += 1
            raise
        finally:
            self.waiting -= 1
        await self.request(*args)

    def hang(self):
        self.answered = anyio.Event()

    async def until_waiting(self):
        while self.answered.is_set() or not self.waiting:  # noqa: ASYNC110 - the code under test sets no event
            await asyncio.sleep(0)


async def cancel_while_saving(requests, task, times=10):
    await requests.until_waiting()
    for _ in range(times):
        task.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not task.done()
    requests.answered.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_g6_cancelled_again_and_again_a_state_is_left_saved(make_state, airflow, requests):
    async def author():
        async with make_state(max_delay=NOT_SOON) as state:
            await state.checkpoint(n=1, m=2)
            await state.work("files").done("x")
            requests.hang()

    await cancel_while_saving(requests, asyncio.create_task(author()))
    assert airflow.users == {"n": 1, "m": 2}
    assert not requests.cut_short
    async with make_state(read_only=True) as state:
        assert state.work("files").is_done("x")


async def test_g6_a_call_that_is_cancelled_cuts_no_request_short(make_state, airflow, requests):
    async with make_state(max_delay=NOT_SOON) as state:
        requests.hang()
        await cancel_while_saving(requests, asyncio.create_task(state.set("n", 1)))
        assert airflow.users == {"n": 1}
        assert not requests.cut_short
        await state.set("m", 2)
    assert airflow.users == {"n": 1, "m": 2}


async def test_g6_another_task_that_is_cancelled_disturbs_no_leaving(make_state, airflow, requests):
    async with make_state(max_delay=NOT_SOON) as state:

        async def author():
            async with make_state() as same:
                assert same is state
                await same.checkpoint(n=1)

        requests.hang()
        other = asyncio.create_task(state.set("m", 2))
        await requests.until_waiting()
        leaving = asyncio.create_task(author())
        await cancel_while_saving(requests, other)
        await leaving
        assert airflow.users == {"m": 2, "n": 1}


async def test_g5_a_request_that_airflow_cancels_is_an_outage(make_state, airflow, monkeypatch):
    """As a triggerer does that has lost its supervisor: whoever awaits the answer is not cancelled."""

    async def lost(*_):
        answer = asyncio.get_running_loop().create_future()
        answer.cancel("Reader loop exited")
        await answer

    request = airflow._request
    async with make_state(max_delay=NOT_SOON, outage_timeout=0.3) as state:
        monkeypatch.setattr(airflow, "_request", lost)
        with pytest.raises(StoreUnavailableError, match=r"outage_timeout = 0.3 s .*was cancelled.*'n'"):
            await state.set("n", 1)
        monkeypatch.setattr(airflow, "_request", request)
        while state._pending._writer.trouble is not None:  # noqa: ASYNC110 - it is over when its time is
            await asyncio.sleep(0.001)
    assert airflow.users == {"n": 1}


def test_g6_a_loop_that_ends_every_task_lets_a_state_be_left(make_state, airflow, requests):
    """As `asyncio.run` does when its main coroutine has ended: it cancels the request, too."""

    async def author():
        async with make_state(max_delay=NOT_SOON) as state:
            await state.checkpoint(n=1)
            requests.hang()

    async def main():
        tasks.append(asyncio.create_task(author()))
        await requests.until_waiting()
        asyncio.get_running_loop().call_later(0.1, requests.answered.set)

    tasks = []
    asyncio.run(main())
    assert airflow.users == {"n": 1}
