"""What happens while the store does not answer, and when it is back."""

from __future__ import annotations

import asyncio
import logging

import anyio
import pytest
from faulty import until

from async_task_state import Settings, StoreError, StoreUnavailableError, TaskScope

pytestmark = pytest.mark.anyio

NEVER = 3600.0
OUTAGE_SECONDS = 0.2
FAULTS = ["down", "hanging", "lossy"]


@pytest.fixture
def dsn():
    return "memory:"


@pytest.fixture
def patient(make_state, store):
    """Handles that no test sees give up."""
    settings = Settings(dsn="memory:", max_delay=NEVER, outage_timeout=NEVER)
    return lambda *args, **options: make_state(*args, store=store, settings=settings, **options)


@pytest.fixture
def impatient(make_state, store):
    """Handles that give up at once."""
    settings = Settings(dsn="memory:", max_delay=0.01, outage_timeout=OUTAGE_SECONDS)
    return lambda *args, **options: make_state(*args, store=store, settings=settings, **options)


async def outage(store, state):
    """Break the store and wait until its absence is an outage."""
    store.down = True
    with pytest.raises(StoreUnavailableError):
        await state.set("unsaved", 1)


async def outage_over(state):
    """Wait until a retry has told the writer that the store is back."""
    await until(lambda: state._pending._writer.trouble is None)


@pytest.mark.parametrize("fault", FAULTS)
async def test_g5_callers_wait_while_the_store_is_away_and_succeed_when_it_is_back(
    patient, store, scope, fault
):
    other = TaskScope("dag", "run", "other")
    async with patient() as one, patient(other) as two:
        setattr(store, fault, True)
        async with anyio.create_task_group() as group:
            group.start_soon(one.set, "a", 1)
            group.start_soon(one.set, "b", 1)
            group.start_soon(two.set, "c", 1)
            await until(lambda: len(store.commits) >= (1 if fault == "hanging" else 3))
            await one.checkpoint(d=1)
            assert await one.get_all() == {"a": 1, "b": 1, "d": 1}
            store.mend()
    assert store.saved(scope) == {"a": 1, "b": 1, "d": 1}
    assert store.saved(other) == {"c": 1}


@pytest.mark.parametrize("fault", FAULTS)
async def test_g5_after_the_outage_timeout_every_waiter_hears_what_is_not_saved(
    impatient, store, scope, fault
):
    heard = []

    async def save(key):
        with pytest.raises(StoreUnavailableError) as error:
            await state.set(key, 1)
        heard.append(str(error.value))

    async with impatient() as state:
        setattr(store, fault, True)
        async with anyio.create_task_group() as group:
            for key in ("alpha", "beta", "gamma"):
                group.start_soon(save, key)
        assert len(heard) == 3
        for message in heard:
            assert "[async_task_state] outage_timeout = 0.2 s" in message
            assert str(scope) in message
            assert all(key in message for key in ("alpha", "beta", "gamma"))
        store.mend()
        await outage_over(state)
    assert store.saved(scope) == {"alpha": 1, "beta": 1, "gamma": 1}


async def test_g5_in_an_outage_every_call_raises_and_changes_nothing(impatient, store, scope):
    async with impatient() as state:
        work = state.work("items")
        await state.set("n", 1)
        await work.done("first")
        await outage(store, state)
        calls = [
            lambda: state.set("n", 2),
            lambda: state.checkpoint(n=2),
            lambda: state.delete("n"),
            state.clear,
            state.flush,
            lambda: state.get("n"),
            state.get_all,
            lambda: work.done("second"),
            lambda: work.failed("second", "why"),
            lambda: work.process(["second"], print),
            state.is_current,
        ]
        for call in calls:
            with pytest.raises(StoreUnavailableError, match="unsaved"):
                await call()
        store.mend()
        await outage_over(state)
        assert await state.get_all() == {"n": 1, "unsaved": 1}
        assert list(work.remaining(["first", "second"])) == ["second"]
        await state.set("n", 3)
    assert store.saved(scope)["n"] == 3


@pytest.mark.parametrize("error", [StoreError("the file is corrupt"), RuntimeError("a fault of the store's")])
async def test_g5_what_waiting_cannot_mend_is_said_at_once_and_nothing_is_lost(patient, store, scope, error):
    async with patient() as state:
        store.error, store.down = error, True
        with pytest.raises(StoreUnavailableError, match=f"{error}.*'n'"):
            await state.set("n", 1)
        with pytest.raises(StoreUnavailableError, match=f"{error}.*'n'"):
            await state.checkpoint(n=2)
        store.mend()
        await outage_over(state)
    assert store.saved(scope) == {"n": 1}


async def test_g5_an_outage_costs_memory_for_the_newest_value_of_a_key_only(patient, store):
    async with patient() as state:
        store.down = True
        async with anyio.create_task_group() as group:
            group.start_soon(state.set, "n", "x" * 1000)
            for n in range(20):
                await until(lambda n=n: len(store.commits) > n or n > 3)
                for _ in range(100):
                    await state.checkpoint(n="x" * 1000)
            assert state._pending._batch_bytes < 3000
            assert len(state._pending._changes) <= 1
            store.mend()


async def test_g5_memory_that_an_outage_fills_holds_callers_back(patient, store, scope):
    value, made = "x" * 500_000, 0

    async def make(state):
        nonlocal made
        for n in range(40):
            await state.checkpoint({str(n): value})
            made += 1

    async with patient() as state, anyio.create_task_group() as group:
        store.down = True
        group.start_soon(make, state)
        await until(lambda: state._pending.full)
        tried = len(store.commits)
        await until(lambda: len(store.commits) > tried + 1)
        assert made < 20
        store.mend()
    assert len(store.saved(scope)) == 40


async def test_g5_leaving_raises_when_the_last_flush_fails(impatient, store, scope):
    async def leave():
        async with impatient() as state:
            store.down = True
            await state.checkpoint(n=1)

    with pytest.raises(StoreUnavailableError, match="'n'"):
        await leave()
    store.mend()
    await until(lambda: store.saved(scope) == {"n": 1})


async def test_g5_leaving_lets_the_bodys_own_error_pass_and_logs_the_other(impatient, store, caplog):
    async def leave():
        async with impatient() as state:
            store.down = True
            await state.checkpoint(n=1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), caplog.at_level(logging.ERROR):
        await leave()
    assert "on leaving" in caplog.text
    assert "'n'" in caplog.text


async def test_g6_leaving_has_a_deadline_and_says_what_is_still_being_tried(make_state, store, scope):
    settings = Settings(dsn="memory:", max_delay=NEVER, outage_timeout=NEVER, exit_timeout=0.05)

    async def leave():
        async with make_state(store=store, settings=settings) as state:
            store.hanging = True
            await state.checkpoint(n=1)

    with pytest.raises(StoreUnavailableError, match=r"exit_timeout = 0\.05 s.*'n'"):
        await leave()
    store.mend()
    await until(lambda: store.saved(scope) == {"n": 1})


async def test_g6_leaving_by_cancellation_saves(patient, store, scope):
    async with anyio.create_task_group() as group, patient() as state:
        await state.checkpoint(n=1)
        group.cancel_scope.cancel()
        await anyio.sleep_forever()
    assert store.saved(scope) == {"n": 1}


@pytest.mark.parametrize("fault", FAULTS)
async def test_opening_waits_for_a_store_that_is_away(patient, store, fault):
    setattr(store, fault, True)

    async def enter():
        async with patient() as state:
            assert await state.get_all() == {}

    async with anyio.create_task_group() as group:
        group.start_soon(enter)
        await until(lambda: store.acquires >= (1 if fault == "hanging" else 2))
        store.mend()


@pytest.mark.parametrize(("fault", "why"), [("down", "is broken"), ("hanging", "has not answered for")])
async def test_opening_gives_up_after_the_outage_timeout(impatient, store, fault, why):
    setattr(store, fault, True)
    with pytest.raises(StoreUnavailableError, match=why):
        await impatient().__aenter__()


@pytest.mark.parametrize("call", ["opening", "reading", "saving"])
async def test_g5_a_call_that_makes_progress_is_no_outage(impatient, store, caplog, call):
    """However long it takes: the store is there. Once nothing comes any more, it is away."""

    async def make_it():
        if call == "saving":
            await holder.set("n", 1)
        else:
            async with impatient(other, read_only=call == "reading"):
                pass

    other = TaskScope("dag", "run", "other")

    async with impatient() as holder:
        store.hanging = store.progressing = True
        with anyio.move_on_after(5 * OUTAGE_SECONDS) as waited:
            await make_it()
        assert waited.cancelled_caught
        if call == "saving":
            assert "for too long" not in caplog.text
        store.progressing = False
        with pytest.raises(StoreUnavailableError, match="outage_timeout"):
            await make_it()
        store.mend()
        if call == "saving":
            await outage_over(holder)


async def test_opening_says_at_once_what_waiting_cannot_mend(patient, store):
    store.error, store.down = StoreError("the file is corrupt"), True
    with pytest.raises(StoreError, match="the file is corrupt"):
        await patient().__aenter__()
    assert store.acquires == 1


@pytest.mark.parametrize("fault", ["down", "hanging"])
async def test_g4_an_opening_that_was_cancelled_takes_no_lease_when_the_store_is_back(patient, store, fault):
    async with patient() as holder:
        await holder.set("n", 1)
        before = holder.attempt, holder._pending.lease.epoch
        other = patient(attempt=2)
        setattr(store, fault, True)
        asked = store.acquires
        async with anyio.create_task_group() as group:
            group.start_soon(other.__aenter__)
            await until(lambda: store.acquires > asked)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        # The writer's thread has heard of it.
        await holder._pending._writer.call(asyncio.sleep, 0)
        store.mend()
        await holder.set("n", 2)
        assert (holder.attempt, holder._pending.lease.epoch) == before
        assert await holder.is_current()


async def test_g5_a_successor_does_not_overtake_what_an_abandoned_handle_has_not_saved(patient, store, scope):
    abandoned = patient()
    await abandoned.__aenter__()
    await abandoned.checkpoint(n=1)
    del abandoned
    async with patient(attempt=2) as state:
        assert await state.get_all() == {"n": 1}


async def test_g5_in_an_outage_a_successor_does_not_overtake_what_is_not_saved(impatient, store, scope):
    abandoned = impatient()
    await abandoned.__aenter__()
    await outage(store, abandoned)
    store.down, store.read_only = False, True
    with pytest.raises(StoreUnavailableError, match="unsaved"):
        await impatient(attempt=2).__aenter__()
    store.mend()
    await outage_over(abandoned)
    async with impatient(attempt=2) as state:
        assert await state.get_all() == {"unsaved": 1}
