"""One state over all iterations of a loop of Airflow 3.4: they hold it one after the other, whatever is retried or cleared."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from uuid import UUID

import anyio
import pytest
from airflow.sdk.definitions.context import Context
from airflow.sdk.execution_time.context import set_current_context
from airflow.triggers.base import TriggerEvent
from readme import block

from async_task_state import (
    InvalidArgumentError,
    NoScopeError,
    SettingsError,
    StaleAttemptError,
    StaleWriterError,
    TaskScope,
    task_state,
    task_state_sync,
)
from async_task_state.clear_choice import Choice
from async_task_state.codec import encode_json
from async_task_state.testing import run_trigger
from async_task_state.triggers import CheckpointTrigger

REGION = UUID("01990000-0000-7000-8000-00000000000a")
REMADE = UUID("01990000-0000-7000-8000-00000000000b")
OVER = TaskScope("dag", "run", "task")

pytestmark = [pytest.mark.usefixtures("_settings_read_anew", "_airflow_imported"), pytest.mark.anyio]


@contextmanager
def iteration(index, made, attempt=1, *, max_tries=1, region=REGION, map_index=-1, looped=True):
    """Runs a block as Airflow runs the task in a loop; `made` says in which order Airflow made the task instances."""
    ti = SimpleNamespace(
        id=UUID(int=made << 80 | 7 << 76 | 2 << 62),
        dag_id="dag",
        run_id="run",
        task_id="task",
        map_index=map_index,
        region_id=region,
        region_index=index if map_index == -1 else map_index,
        try_number=attempt,
        max_tries=max_tries,
        task=SimpleNamespace(retries=1),
    )
    loop = {"loop": SimpleNamespace(index=index)} if looped else {}
    with set_current_context(Context(ti=ti, task=SimpleNamespace(on_kill=None), **loop)):
        yield


async def add(dsn, name, **options):
    async with task_state(store=dsn, across_iterations=True, **options) as state:
        assert state.scope == OVER
        await state.set("seen", [*await state.get("seen", []), name])
        return state.attempt, state.cleared, await state.get("seen")


async def elsewhere(dsn, value):
    """As another process does, which joins no state that is open here."""

    def put():
        with task_state_sync(store=dsn, across_iterations=True) as state:
            state.set("seen", value)

    with ThreadPoolExecutor(1) as thread:
        await anyio.to_thread.run_sync(thread.submit(put).result)


async def test_g2_iterations_share_one_state_and_have_one_each(dsn):
    for index in range(3):
        with iteration(index, made=index + 1):
            async with task_state(store=dsn) as own:
                assert not own.resumed
                await own.set("mine", index)
                assert await add(dsn, index) == (index + 1, False, list(range(index + 1)))
                assert await own.get_all() == {"mine": index}


async def test_g4_a_retry_counts_on_and_leaves_the_next_iteration_its_turn(dsn):
    with iteration(0, made=1):
        await add(dsn, "0")
    with iteration(0, made=2, attempt=2):
        assert await add(dsn, "0 again") == (2, False, ["0", "0 again"])
    # Its attempts begin at 1.
    with iteration(1, made=3):
        assert await add(dsn, "1") == (3, False, ["0", "0 again", "1"])
        assert await add(dsn, "1 goes on") == (3, False, ["0", "0 again", "1", "1 goes on"])


async def test_g4_a_replaced_attempt_cannot_open_it(dsn):
    with iteration(0, made=2, attempt=2):
        await add(dsn, "0 again")
    with iteration(1, made=3):
        async with task_state(store=dsn, across_iterations=True) as state:
            with iteration(0, made=1), pytest.raises(StaleAttemptError, match="another iteration or a later"):
                await elsewhere(dsn, "a zombie")
            await state.set("seen", "kept")


async def test_g4_a_holder_of_an_earlier_iteration_is_fenced(dsn):
    async def hold_on():
        async with task_state(store=dsn, across_iterations=True) as zombie:
            with iteration(1, made=2):
                await elsewhere(dsn, "kept")
            await zombie.set("seen", "lost")

    with iteration(0, made=1), pytest.raises(StaleWriterError, match="taken over by attempt 2"):
        await hold_on()
    async with task_state(OVER, store=dsn, read_only=True) as state:
        assert await state.get("seen") == "kept"


async def test_a_clear_of_a_later_iteration_leaves_it(dsn):
    for index in range(3):
        with iteration(index, made=index + 1):
            await add(dsn, index)
    with iteration(1, made=4, attempt=2, max_tries=2):
        assert await add(dsn, "1 cleared") == (4, False, [0, 1, 2, "1 cleared"])


@pytest.mark.parametrize("on_clear", ["restart", "resume"])
async def test_a_clear_of_the_first_iteration_starts_it_over_once(dsn, on_clear):
    for index in range(2):
        with iteration(index, made=index + 1):
            await add(dsn, index)
    left = [0, 1] if on_clear == "resume" else []
    with iteration(0, made=3, attempt=2, max_tries=2):
        assert await add(dsn, "0 cleared", on_clear=on_clear) == (3, True, [*left, "0 cleared"])
        assert await add(dsn, "goes on") == (3, False, [*left, "0 cleared", "goes on"])
    # Those that a cleared loop makes again are in a region of their own.
    with iteration(1, made=4, region=REMADE):
        assert await add(dsn, "1") == (4, False, [*left, "0 cleared", "goes on", "1"])


@pytest.fixture
def keeps(monkeypatch):
    """The user who has cleared the first iteration before its second attempt keeps its state."""

    async def look(running, key):
        return encode_json(Choice(2, kept=True, at_work=False).value)

    monkeypatch.setattr("async_task_state.clear_choice.asks_at_clear", lambda: True)
    monkeypatch.setattr("async_task_state.clear_choice._look", look)


@pytest.mark.usefixtures("keeps")
@pytest.mark.parametrize("attempt", [2, 3], ids=["at-once", "after-a-retry"])
async def test_g4_a_user_who_keeps_the_first_iterations_state_keeps_this_one(dsn, attempt):
    for index in range(2):
        with iteration(index, made=index + 1):
            await add(dsn, index)
    with iteration(0, made=3, attempt=attempt, max_tries=2):
        async with task_state(store=dsn) as own:
            await own.set("mine", 0)
        assert await add(dsn, "0 kept") == (3, True, [0, 1, "0 kept"])
    with iteration(0, made=4, attempt=4, max_tries=4):
        assert await add(dsn, "0 cleared") == (4, True, ["0 cleared"])


class Adds(CheckpointTrigger):
    """Opens both states."""

    def __init__(self, store):
        super().__init__()
        self.store = store

    def serialize(self):
        return f"{__name__}.Adds", {"store": self.store}

    async def run_with_state(self, state):
        async with self.task_state(across_iterations=True) as over:
            await over.set("seen", [*await over.get("seen", []), state.attempt])
            yield TriggerEvent([state.cleared, await over.get("seen")])


def defer_and_run(store, made, attempt, max_tries):
    with iteration(0, made, attempt, max_tries=max_tries):
        trigger = Adds(store)
    # Airflow has the task run no more by then.
    trigger.serialize()
    trigger = Adds(store)
    trigger.task_instance = SimpleNamespace(
        id=UUID(int=made << 80 | 7 << 76 | 2 << 62),
        dag_id="dag",
        run_id="run",
        task_id="task",
        map_index=-1,
        region_id=REGION,
        region_index=0,
        try_number=attempt,
    )

    async def events():
        return [event.payload async for event in trigger.run()]

    return asyncio.run(events())


@pytest.mark.usefixtures("keeps")
def test_g4_a_trigger_keeps_it_as_well(dsn):
    assert defer_and_run(dsn, 1, 1, 1) == [[False, [1]]]
    assert defer_and_run(dsn, 2, 2, 2) == [[True, [1, 2]]]
    assert defer_and_run(dsn, 3, 3, 3) == [[True, [3]]]


async def test_a_clear_is_known_though_the_first_iteration_has_never_opened_it(dsn):
    with iteration(1, made=1):
        await add(dsn, 1)
    with iteration(0, made=2, attempt=2, max_tries=2):
        assert await add(dsn, "0 cleared") == (2, True, ["0 cleared"])


async def test_a_mapped_task_in_a_loop_has_one_for_each_index(dsn):
    for index in range(2):
        for map_index in range(2):
            region = UUID(int=REGION.int + index)
            made = 2 * index + map_index + 1
            with iteration(index, made, map_index=map_index, region=region):
                async with task_state(store=dsn, across_iterations=True) as state:
                    assert state.scope == TaskScope("dag", "run", "task", map_index)
                    assert await state.get("last") == (None if index == 0 else [0, map_index])
                    await state.set("last", [index, map_index])


async def test_outside_of_a_loop_it_is_the_tasks_own(dsn):
    with iteration(0, made=1, region=None, looped=False):
        async with (
            task_state(store=dsn) as own,
            task_state(store=dsn, across_iterations=True) as state,
        ):
            assert state is own
            assert (state.scope, state.attempt) == (OVER, 1)


def test_the_sync_door_has_it_too(dsn):
    for index in range(2):
        with iteration(index, made=index + 1), task_state_sync(store=dsn, across_iterations=True) as state:
            assert (state.scope, state.get("n", 0)) == (OVER, index)
            state.set("n", index + 1)


def test_g8_a_scope_beside_it_is_refused():
    with pytest.raises(InvalidArgumentError, match=r"without it, .* TaskScope\('dag', 'run', 'task'\)"):
        task_state(TaskScope("dag", "run", "task", 2, REGION), across_iterations=True)
    with pytest.raises(NoScopeError, match=r"self.task_state\(across_iterations=True\)"):
        task_state(across_iterations=True)


async def test_g8_airflows_own_store_says_that_it_has_none(monkeypatch):
    context = pytest.importorskip("airflow.sdk.execution_time.context")
    if not hasattr(context, "TaskStateStoreAccessor"):
        pytest.skip("Airflow has a store since 3.3")
    from airflow.sdk.execution_time import task_runner  # noqa: PLC0415 - of Airflow's

    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", object(), raising=False)
    with iteration(1, made=1), pytest.raises(SettingsError, match="none over all of them"):
        await add("airflow:", 1)


async def test_the_example_of_the_readme(dsn):
    async def ask(best, state):
        return await state.get("answer", 0) + best * 2

    names = {
        "task": lambda **_: lambda function: function,
        "task_state": partial(task_state, store=dsn),
        "ask": ask,
    }
    # Without its imports, in whose place these are.
    exec(block("across_iterations=True").partition("\n\n")[2], names)
    for index in range(3):
        with iteration(index, made=index + 1):
            assert await names["improve"](loop=None) == 2.0 ** (index + 1)


class Refine(CheckpointTrigger):
    def serialize(self):
        return f"{__name__}.Refine", {}

    async def run_with_state(self, state):
        index = self.task_instance.region_index
        async with self.task_state(across_iterations=True) as over:
            await over.set("seen", [*await over.get("seen", []), index])
            await state.set("mine", index)
            yield TriggerEvent([over.attempt, over.cleared, await over.get("seen")])


def looped(index):
    return TaskScope("dag", "run", "task", index, REGION)


async def events(trigger, index, attempt=1, **options):
    run = await run_trigger(trigger, scope=looped(index), attempt=attempt, **options)
    assert run.values.get("mine", index) == index
    return [event.payload for event in run.events]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_g2_triggers_share_it_over_iterations_retries_and_clears():
    trigger = Refine()
    assert await events(trigger, 0) == [[1, False, [0]]]
    assert await events(trigger, 0, attempt=2) == [[2, False, [0, 0]]]
    assert await events(trigger, 1) == [[3, False, [0, 0, 1]]]
    # A user clears the second iteration, and then the first.
    for index, attempt, seen in ((1, 2, [0, 0, 1, 1]), (0, 3, [0])):
        await events(trigger, index, attempt - 1 if index else 2, stop="clear")
        assert (await events(trigger, index, attempt))[0][1:] == [index == 0, seen]
    assert (await events(trigger, 0, 3))[0][1:] == [True, [0, 0]]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("stop", ["shutdown", "crash", "move"])
async def test_g3_a_trigger_that_is_stopped_goes_on_with_it(stop):
    trigger = Refine()
    assert await events(trigger, 0) == [[1, False, [0]]]
    await events(trigger, 1, stop=stop)
    (attempt, cleared, seen) = (await events(trigger, 1))[0]
    assert (attempt, cleared, seen[0], seen[-1]) == (2, False, 0, 1)
