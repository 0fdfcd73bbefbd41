"""What a state saves and gives back."""

from __future__ import annotations

import time
from datetime import timedelta

import anyio
import anyio.lowlevel
import pytest

from async_task_state import (
    NEVER_EXPIRE,
    Settings,
    TaskScope,
)
from async_task_state import records as records_module

pytestmark = pytest.mark.anyio

NOT_SOON = 3600.0
DAY = 86400.0


async def until_saved(saved, expected):
    with anyio.fail_after(30):
        while await saved() != expected:  # noqa: ASYNC110 - the writer's thread does it
            await anyio.sleep(0.001)


async def test_what_was_set_is_there(make_state):
    values = {
        "none": [None],
        "int": 1,
        "float": 1.5,
        "text": "é",
        "list": [1, [2]],
        "dict": {"a": {"b": True}},
        "no": False,
    }
    async with make_state() as state:
        for key, value in values.items():
            await state.set(key, value)
            assert await state.get(key) == value
        assert await state.get_all() == values
    async with make_state() as state:
        assert await state.get_all() == values


async def test_what_is_not_there_is_the_default(make_state):
    async with make_state() as state:
        assert await state.get("a") is None
        assert await state.get("a", 7) == 7
        await state.set("a", 0)
        assert await state.get("a", 7) == 0


async def test_g1_set_is_durable_when_it_returns(make_state, saved):
    async with make_state(max_delay=NOT_SOON) as state:
        await state.checkpoint(before=1)
        await state.set("a", 2)
        assert await saved() == {"before": 1, "a": 2}


async def test_a_checkpoint_is_read_at_once_and_saved_later(make_state, saved):
    async with make_state(max_delay=NOT_SOON) as state:
        await state.checkpoint(a=1)
        assert await state.get("a") == 1
        assert await state.get_all() == {"a": 1}
        assert await saved() == {}
        await state.flush()
        assert await saved() == {"a": 1}


async def test_g2_a_checkpoint_is_saved_without_another_call(make_state, saved):
    async with make_state(max_delay=0.05) as state:
        await state.checkpoint(a=1)
        await until_saved(saved, {"a": 1})


async def test_a_thousand_rows_or_a_mebibyte_do_not_wait(make_state, saved):
    async with make_state(max_delay=NOT_SOON) as state:
        many = {f"k{number}": number for number in range(1000)}
        await state.checkpoint(many)
        await until_saved(saved, many)
        for name in "abcd":
            await state.checkpoint({name: "x" * 300_000})
        await until_saved(saved, await state.get_all())


async def test_checkpoint_takes_names_and_a_mapping(make_state):
    async with make_state() as state:
        await state.checkpoint({"a/b": 1, "n": 2}, n=3, values=4, self=5)
        await state.checkpoint()
        assert await state.get_all() == {"a/b": 1, "n": 3, "values": 4, "self": 5}


async def test_g3_a_call_is_saved_whole(make_state, saved):
    """Whatever is read while two keys are moved together, they are together."""
    async with make_state(max_delay=0.001) as state:
        seen = set()
        number = 0
        while len(seen) < 10:
            number += 1
            await state.checkpoint(a=number, b=number)
            left = await saved()
            assert left.get("a") == left.get("b")
            seen.add(left.get("a"))


async def test_g1_delete_is_durable_when_it_returns(make_state, saved):
    async with make_state(max_delay=NOT_SOON) as state:
        await state.set("a", 1)
        await state.checkpoint(b=2)
        await state.delete("a")
        assert await saved() == await state.get_all() == {"b": 2}
        await state.delete("a")
        await state.set("a", 3)
        assert await saved() == {"a": 3, "b": 2}


async def test_a_key_that_another_has_written_since_can_be_deleted(make_state, on_store, saved, scope):
    async with make_state() as state:
        await on_store("write", scope, {"theirs": ("1", None)})
        await state.delete("theirs")
        assert await saved() == {}


async def test_what_is_recorded_while_all_is_read_is_no_error(make_state, monkeypatch):
    async with make_state() as state:
        await state.checkpoint(a=1, b=2)
        decode = records_module.decode

        def decode_late(text):
            # As another thread may at any point.
            state._pending.record({f"c{text}": ("3", None)})
            return decode(text)

        monkeypatch.setattr(records_module, "decode", decode_late)
        assert await state.get_all() == {"a": 1, "b": 2}


async def test_a_key_that_was_not_saved_yet_can_be_deleted(make_state, saved):
    async with make_state(max_delay=NOT_SOON) as state:
        await state.checkpoint(a=1, b=2)
        await state.delete("a")
        assert await saved() == await state.get_all() == {"b": 2}


async def test_g1_clear_is_durable_when_it_returns(make_state, saved, on_store, scope):
    async with make_state(max_delay=NOT_SOON) as state:
        await state.set("a", 1)
        await state.checkpoint(b=2)
        await state.work("files").done("x")
        await state.work("files").failed("y", "why")
        await state.flush()
        await state.work("more").done("z")
        await state.clear()
        assert await state.get_all() == {}
        assert (await on_store("read", scope)).entries == {}
        assert not state.work("files").is_done("x")
        assert state.work("files").counts.failed == 0
        assert not state.work("more").is_done("z")
        await state.work("files").done("w", n=1)
    async with make_state() as state:
        assert await state.get_all() == {"n": 1}
        assert state.work("files").counts.done == 1


async def test_get_all_hides_what_work_sets_keep(make_state):
    async with make_state() as state:
        await state.work("files").done("x", n=1)
        await state.work("files").failed("y", "why")
    async with make_state() as state:
        assert await state.get_all() == {"n": 1}


async def test_g7_values_are_copied_at_the_call(make_state, saved):
    value = {"list": [1]}
    async with make_state(max_delay=NOT_SOON) as state:
        await state.checkpoint(a=value, b=value["list"])
        value["list"].append(2)
        (await state.get("b")).append(3)
        assert await state.get_all() == {"a": {"list": [1]}, "b": [1]}
        await state.flush()
    assert await saved() == {"a": {"list": [1]}, "b": [1]}


async def test_keys_go_when_their_retention_is_over(make_state, saved, on_store):
    async with make_state() as state:
        await state.set("ever", 1, retention=NEVER_EXPIRE)
        await state.set("day", 1, retention=timedelta(days=1))
        await state.set("default", 1)
        await state.checkpoint(recorded=1)
    for days, left in ((0.5, "day default ever recorded"), (2, "default ever recorded"), (31, "ever")):
        await on_store("purge", time.time() + days * DAY)
        assert " ".join(sorted(await saved())) == left


async def test_without_a_default_retention_keys_stay(make_state, saved, dsn, on_store):
    async with make_state(settings=Settings(dsn=dsn, default_retention_days=0)) as state:
        await state.checkpoint(a=1)
    await on_store("purge", time.time() + 10_000 * DAY)
    assert await saved() == {"a": 1}


async def test_stats_count_calls_and_commits(make_state):
    async with make_state(max_delay=NOT_SOON) as state:
        assert (state.stats.recorded, state.stats.commits) == (0, 0)
        for number in range(10):
            await state.checkpoint(n=number)
        await state.flush()
        await state.flush()
        await state.get("n")
        stats = state.stats
        assert (stats.recorded, stats.coalesced, stats.commits, stats.bytes) == (10, 9, 1, 1)
        assert stats.last_lag > 0
        await state.set("n", 10)
        assert (state.stats.recorded, state.stats.commits, state.stats.bytes) == (11, 2, 3)


async def test_many_coroutines_lose_nothing(make_state, saved):
    async with make_state() as state:

        async def worker(name):
            for number in range(20):
                await state.checkpoint({f"{name}": number})
            await state.set(f"{name} done", True)

        async with anyio.create_task_group() as group:
            for name in range(20):
                group.start_soon(worker, name)
    assert await saved() == {str(n): 19 for n in range(20)} | {f"{n} done": True for n in range(20)}


async def test_a_loop_of_checkpoints_gives_others_a_turn(make_state):
    turns = number = 0

    async def other():
        nonlocal turns
        while turns < 3:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with make_state() as state, anyio.create_task_group() as group:
        group.start_soon(other)
        while turns < 3:
            await state.checkpoint(n=number)
            number += 1


async def test_states_of_many_scopes_are_apart(make_state):
    scopes = [TaskScope("dag", "run", "task", index) for index in range(20)]
    for scope in scopes:
        async with make_state(scope) as state:
            await state.set("index", scope.map_index)
    for scope in scopes:
        async with make_state(scope) as state:
            assert (await state.get_all(), state.scope) == ({"index": scope.map_index}, scope)


async def test_read_only_sees_what_was_saved_and_fences_nobody(make_state):
    async with make_state(attempt=3, max_delay=NOT_SOON) as state:
        await state.set("a", 1)
        await state.work("files").done("x")
        await state.flush()
        await state.checkpoint(b=2)
        async with make_state(read_only=True) as seen:
            assert (await seen.get_all(), seen.attempt, seen.resumed) == ({"a": 1}, 3, True)
            assert seen.work("files").is_done("x")
            await state.work("files").done("y")
            await state.flush()
            assert await seen.get("b") is None
        async with seen:
            assert await seen.get("b") == 2
            assert seen.work("files").is_done("y")


async def test_read_only_of_a_scope_that_nobody_held_is_empty(make_state, on_store):
    async with make_state(read_only=True) as state:
        assert (await state.get_all(), state.attempt, state.resumed) == ({}, 0, False)
        assert state.work("files").counts.done == 0
    assert await on_store("scopes") == []
