"""Coalescing, group commit, the timer and the limits; what is recorded while a commit is under way."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack

import anyio
import pytest
from anyio.lowlevel import checkpoint
from faulty import until

from async_task_state import Settings, TaskScope
from async_task_state import writer as writer_module
from async_task_state.digests import DIGEST_BYTES, SEGMENTS, digest_of, digests_in
from async_task_state.pending import CAP_BYTES, MAX_BYTES, MAX_ROWS

pytestmark = pytest.mark.anyio

NEVER = 3600.0
"""A `max_delay` that no test lives to see."""


@pytest.fixture
def settings():
    return Settings(dsn="memory:", max_delay=NEVER, exit_timeout=20)


@pytest.fixture
def open_state(make_state, store):
    def open_state(*args, **options):
        return make_state(*args, store=store, **options)

    return open_state


async def nothing_was_due(state):
    """Return when the writer's thread has done all that it had to do by now."""
    for _ in range(3):
        await state._pending._writer.call(asyncio.sleep, 0)


async def test_g2_the_last_checkpoint_before_a_long_wait_is_saved(open_state, store, scope):
    async with open_state(max_delay=0.05) as state:
        for n in range(100):
            await state.checkpoint(n=n)
        await until(lambda: store.saved(scope) == {"n": 99})


async def test_g2_a_checkpoint_with_a_short_delay_does_not_wait_for_one_with_a_long_delay(open_state, store):
    slow, fast = TaskScope("dag", "run", "slow"), TaskScope("dag", "run", "fast")
    async with open_state(slow) as one, open_state(fast, max_delay=0.01) as other:
        await one.checkpoint(n=1)
        await nothing_was_due(one)
        assert not store.commits
        await other.checkpoint(n=2)
        await until(lambda: store.saved(fast) == {"n": 2})


async def test_checkpoints_of_one_delay_cost_one_commit(open_state, store):
    async with open_state() as state:
        for n in range(1000):
            await state.checkpoint(n=n, m="x")
        assert not store.commits
        await state.flush()
        assert [len(batch.changes) for batch in store.commits[0]] == [2]
        stats = state.stats
    assert len(store.commits) == 1
    assert (stats.recorded, stats.coalesced, stats.commits) == (1000, 999, 1)
    assert stats.bytes == len('999"x"')
    assert 0 < stats.last_lag < NEVER


async def test_a_flush_with_nothing_to_save_costs_no_commit(open_state, store):
    async with open_state() as state:
        await state.flush()
        await state.set("n", 1)
        await state.flush()
    assert len(store.commits) == 1


async def test_g2_a_thousand_rows_do_not_wait_for_the_timer(open_state, store, scope):
    async with open_state() as state:
        await state.checkpoint({str(n): n for n in range(MAX_ROWS - 2)})
        await nothing_was_due(state)
        assert not store.commits
        await state.checkpoint(last=1)
        await nothing_was_due(state)
        assert not store.commits
        await state.checkpoint(over=1)
        await until(lambda: len(store.saved(scope)) == MAX_ROWS)


async def test_g2_a_mebibyte_does_not_wait_for_the_timer(open_state, store, scope):
    async with open_state() as state:
        for _ in range(3):
            await state.checkpoint(half="x" * (MAX_BYTES // 2))
        await nothing_was_due(state)
        assert not store.commits
        await state.checkpoint(other="x" * (MAX_BYTES // 2))
        await until(lambda: len(store.saved(scope)) == 2)


async def test_g5_a_caller_faster_than_the_store_is_held_back_at_the_byte_cap(open_state, store, scope):
    value = "x" * (MAX_BYTES // 2)
    made = 0

    async def make(state):
        nonlocal made
        for n in range(40):
            await state.checkpoint({str(n): value})
            made += 1

    store.hanging = True
    async with anyio.create_task_group() as group:
        store.hanging = False
        async with open_state() as state:
            store.hanging = True
            group.start_soon(make, state)
            await until(lambda: state._pending.full)
            await anyio.wait_all_tasks_blocked()
            held_at = made
            in_flight = sum(len(batch.changes) for batches in store.commits for batch in batches)
            assert (held_at - in_flight) * len(value) <= CAP_BYTES
            store.hanging = False
            await until(lambda: made == 40)
    assert held_at < 40
    assert len(store.saved(scope)) == 40


async def test_g1_states_that_wait_at_once_share_a_commit(open_state, store):
    scopes = [TaskScope("dag", "run", "task", index) for index in range(64)]

    async def save(state):
        await state.set("n", 1)
        assert store.saved(state.scope) == {"n": 1}

    states = [await open_state(scope).__aenter__() for scope in scopes]
    async with anyio.create_task_group() as group:
        store.hanging = True
        group.start_soon(save, states[0])
        await until(lambda: store.calls_waiting)
        for state in states[1:]:
            group.start_soon(save, state)
        await anyio.wait_all_tasks_blocked()
        store.hanging = False
    assert [len(batches) for batches in store.commits] == [1, 63]
    for state in states:
        await state.__aexit__(None, None, None)


@pytest.mark.parametrize("how", ["set", "checkpoint"])
async def test_g2_who_comes_while_thousands_are_saved_is_not_forgotten(open_state, store, monkeypatch, how):
    monkeypatch.setattr(writer_module, "SCOPES_AT_ONCE", 2)
    many = [TaskScope("dag", "run", "many", index) for index in range(5)]
    late = TaskScope("dag", "run", "late")
    async with AsyncExitStack() as stack:
        states = [await stack.enter_async_context(open_state(scope)) for scope in many]
        newcomer = await stack.enter_async_context(open_state(late, max_delay=0.02))
        for state in states:
            await state.checkpoint(n=1)
        async with anyio.create_task_group() as group:
            store.hanging = True
            group.start_soon(states[0].flush)
            await until(lambda: store.calls_waiting)
            if how == "set":
                group.start_soon(newcomer.set, "n", 2)
                await anyio.wait_all_tasks_blocked()
            else:
                await newcomer.checkpoint(n=2)
            store.hanging = False
            await until(lambda: store.saved(late) == {"n": 2})
        assert [len(batches) for batches in store.commits] == [2, 2, 1, 1]


@pytest.mark.parametrize("fault", ["none", "down", "lossy"])
@pytest.mark.parametrize("later", ["checkpoint", "delete", "clear", "done", "nothing"])
async def test_g3_what_is_recorded_during_a_commit_wins_over_it(open_state, store, scope, fault, later):
    calls = {
        "checkpoint": (lambda state: state.checkpoint(a=2, c=2), {"a": 2, "b": 1, "c": 2}),
        "delete": (lambda state: state.delete("a"), {"b": 1}),
        "clear": (lambda state: state.clear(), {}),
        "done": (lambda state: state.work("w").done("second", a=2), {"a": 2, "b": 1}),
        "nothing": (lambda _: checkpoint(), {"a": 1, "b": 1}),
    }
    call, expected = calls[later]
    async with open_state() as state:
        await state.checkpoint(a=1, b=1)
        await state.work("w").done("first")
        store.hanging = True
        async with anyio.create_task_group() as group:
            group.start_soon(state.flush)
            await until(lambda: store.calls_waiting)
            group.start_soon(call, state)
            await anyio.wait_all_tasks_blocked()
            assert await state.get_all() == expected
            if fault != "none":
                setattr(store, fault, True)
            store.hanging = False
            if fault != "none":
                await until(lambda: len(store.commits) >= 2)
                store.mend()
    saved = {key: value for key, value in store.saved(scope).items() if not key.startswith("__ats:")}
    assert saved == expected
    async with open_state() as state:
        assert await state.get_all() == expected
        items = state.work("w")
        assert items.is_done("first") == (later != "clear")
        assert items.is_done("second") == (later == "done")


async def test_g1_a_commit_of_unknown_outcome_is_sent_again(open_state, store, scope):
    async with open_state() as state:
        store.lossy = True
        async with anyio.create_task_group() as group:
            group.start_soon(state.set, "n", 1)
            await until(lambda: len(store.commits) >= 2)
            store.mend()
        assert store.saved(scope) == {"n": 1}
        first, second = store.commits[:2]
        assert first[0].changes == second[0].changes


async def test_g1_a_flush_during_a_commit_waits_for_what_is_on_its_way(open_state, store, scope):
    async with open_state() as state:
        await state.checkpoint(n=1)
        store.hanging = True
        async with anyio.create_task_group() as group:
            group.start_soon(state.flush)
            await until(lambda: store.calls_waiting)

            async def flush_again():
                await state.flush()
                assert store.saved(scope) == {"n": 1}

            group.start_soon(flush_again)
            await anyio.wait_all_tasks_blocked()
            store.hanging = False
    assert len(store.commits) == 1


async def test_g1_a_cancelled_waiter_does_not_disturb_the_flush_it_shares(open_state, store, scope):
    async with open_state() as state:
        store.hanging = True
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as cancelled:
                group.start_soon(state.set, "a", 1)
                await until(lambda: store.calls_waiting)
                group.start_soon(state.set, "b", 1)
                await anyio.wait_all_tasks_blocked()

                async def cancel():
                    await anyio.wait_all_tasks_blocked()
                    cancelled.cancel()

                group.start_soon(cancel)
                await state.set("c", 1)
            assert cancelled.cancelled_caught
            store.hanging = False
        assert store.saved(scope) == {"a": 1, "b": 1, "c": 1}


async def test_g3_a_batch_never_holds_a_part_of_a_call(open_state, store, scope):
    """Batches leave from another thread, at any point between two instructions of the recording one."""
    taken, torn = 0, []

    async def commit(batches):
        nonlocal taken
        taken += 1
        (changes,) = (batch.changes for batch in batches)
        newest = max(key for key in changes if key.startswith(SEGMENTS))
        item = digests_in(scope, newest, changes[newest][0])[-DIGEST_BYTES:]
        values = {changes[key][0] for key in "abc"}
        if {digest_of(value) for value in values} != {item}:
            torn.append(changes)
        return ()

    store.commit = commit
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        async with open_state(max_delay=1e-4) as state:
            items, n = state.work("items"), 0
            while taken < 2000:
                n += 1
                await items.done(n, a=n, b=n, c=n)
    finally:
        sys.setswitchinterval(interval)
    assert not torn
