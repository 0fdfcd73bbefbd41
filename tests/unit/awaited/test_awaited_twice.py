"""A task that opens its own state in Airflow's store twice at once, where no lease keeps the two apart, is told so."""

from __future__ import annotations

import anyio
import pytest
from channel import SCOPE

from async_task_state import AlreadyOpenError, StoreUnavailableError, TaskScope

pytestmark = pytest.mark.anyio


async def both(make_state):
    """Open it in two tasks at once, and leave it when both have; the errors."""
    errors, arrived = [], []
    two = anyio.Event()

    def arrive():
        arrived.append(1)
        if len(arrived) == 2:
            two.set()

    async def one():
        try:
            async with make_state() as state:
                await state.set("n", 1)
                arrive()
                await two.wait()
        except AlreadyOpenError as error:
            errors.append(error)
            arrive()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(one)
            group.start_soon(one)
    return errors


async def test_g4_two_at_once_are_told_that_it_is_this_task_itself(make_state, in_task, airflow):
    with in_task(SCOPE):
        [error] = await both(make_state)
    assert "this very task has the state of dag/run/task open already" in str(error)
    assert "Open it once" in str(error)
    assert airflow.users == {"n": 1}


async def test_one_that_is_left_and_opened_again_is_told_nothing(make_state, in_task):
    with in_task(SCOPE):
        for n in range(3):
            async with make_state() as state:
                await state.set("n", n)


async def test_one_that_could_not_be_opened_is_in_nobodys_way(make_state, in_task, airflow):
    with in_task(SCOPE):
        airflow.broken = OSError("away")
        with pytest.raises(StoreUnavailableError):
            await make_state(outage_timeout=0.01).__aenter__()
        airflow.broken = None
        async with make_state() as state:
            await state.set("n", 1)


@pytest.mark.parametrize("scope", [None, TaskScope("dag", "run", "another")])
async def test_what_is_not_the_running_tasks_own_may_be_opened_beside(make_state, in_task, scope):
    if scope is None:
        assert await both(make_state) == []
    else:
        with in_task(scope):
            assert await both(make_state) == []
