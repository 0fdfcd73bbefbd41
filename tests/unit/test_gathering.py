"""What is asked for while a call is under way is answered together by the next."""

from __future__ import annotations

import asyncio

import pytest

from async_task_state.errors import StaleAttemptError, StoreUnavailableError
from async_task_state.stores.gathering import AT_ONCE, Gathering

pytestmark = pytest.mark.asyncio


class Served:
    """Answers with the double of each number, when it is let."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self._let = asyncio.Semaphore(0)
        self.error: Exception | None = None

    async def __call__(self, questions):
        self.groups.append(list(questions))
        await self._let.acquire()
        if self.error is not None:
            raise self.error
        return [StaleAttemptError(str(n)) if n < 0 else 2 * n for n in questions]

    def let(self, calls):
        """Let so many calls answer."""
        for _ in range(calls):
            self._let.release()


@pytest.fixture
def served():
    return Served()


@pytest.fixture
def gathering(served):
    return Gathering(served)


async def started(gathering, *numbers):
    tasks = [asyncio.create_task(gathering.ask(number)) for number in numbers]
    await asyncio.sleep(0)
    return tasks


async def test_the_first_is_served_at_once_and_the_rest_together(gathering, served):
    tasks = await started(gathering, 1, 2, 3, 4)
    assert served.groups == [[1]]
    served.let(9)
    assert await asyncio.gather(*tasks) == [2, 4, 6, 8]
    assert served.groups == [[1], [2, 3, 4]]


async def test_a_group_has_an_end(gathering, served):
    numbers = list(range(2 * AT_ONCE + 1))
    tasks = await started(gathering, *numbers)
    served.let(9)
    assert await asyncio.gather(*tasks) == [2 * n for n in numbers]
    assert [len(group) for group in served.groups] == [1, AT_ONCE, AT_ONCE]


async def test_one_that_is_refused_refuses_no_other(gathering, served):
    served.let(9)
    answers = await asyncio.gather(*map(gathering.ask, (1, 2, -3, 4)), return_exceptions=True)
    assert [answers[0], answers[1], answers[3]] == [2, 4, 8]
    assert isinstance(answers[2], StaleAttemptError)


async def test_g5_what_fails_fails_for_all_of_the_group(gathering, served):
    served.error = StoreUnavailableError("away")
    tasks = await started(gathering, 1, 2, 3)
    served.let(9)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(answer) for answer in answers] == ["away"] * 3


async def test_g4_one_that_has_gone_is_not_served_later(gathering, served):
    first, second, third = await started(gathering, 1, 2, 3)
    second.cancel()
    await asyncio.sleep(0)
    served.let(9)
    assert await asyncio.gather(first, third) == [2, 6]
    assert served.groups == [[1], [3]]
    assert second.cancelled()


async def test_g5_one_that_goes_half_way_leaves_nobody_waiting(gathering, served):
    first, second, third = await started(gathering, 1, 2, 3)
    served.let(1)
    await first
    while len(served.groups) < 2:  # noqa: ASYNC110 - what is served sets no event
        await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(StoreUnavailableError, match="cancelled"):
        await third
    served.let(1)
    assert await gathering.ask(4) == 8
