"""`[async_task_state] max_state_bytes`: how much one state may hold in all, at every door."""

from __future__ import annotations

import json

import pytest
from sizekit import size, with_limit

from async_task_state import (
    AssetScope,
    AssetState,
    AsyncTaskStateError,
    StateTooLargeError,
    SyncTaskState,
    TaskScope,
    TaskState,
    WorkCounts,
)
from async_task_state.lifetime import shutdown
from async_task_state.room import Room

pytestmark = pytest.mark.anyio


@pytest.fixture
def stored(on_store, scope):
    """What the store has of the state, as text."""

    async def stored(of=scope):
        return (await on_store("read", of)).entries

    return stored


async def refused(state, call, match=None):
    """A call raises and the state is as it was."""
    before = await state.get_all(), state.stats
    with pytest.raises(StateTooLargeError, match=match):
        call()
    assert (await state.get_all(), state.stats) == before


async def test_g8_a_call_that_makes_the_state_too_large_is_refused_and_changes_nothing(
    make_state, dsn, stored
):
    async with make_state(settings=with_limit(dsn, 20)) as state:
        # One byte of the key, 19 of text.
        await state.set("a", "x" * 17)
        await refused(state, lambda: state.set("b", 1))
        await refused(state, lambda: state.checkpoint(a=1, b="x" * 17))
        await refused(state, lambda: state.set("a", "x" * 18))
        await state.checkpoint(a=1, b="x" * 14)
        await refused(state, lambda: state.checkpoint(c=1))
        await state.flush()
    assert await stored() == {"a": "1", "b": f'"{"x" * 14}"'}
    assert size(await stored()) == 19


async def test_g8_the_error_names_the_state_the_key_both_sizes_and_the_setting(make_state, dsn):
    async with make_state(settings=with_limit(dsn, 2000)) as state:
        await state.set("k", "x" * 997)
        with pytest.raises(StateTooLargeError) as caught:
            state.checkpoint(small=1, large="x" * 1500)
    assert issubclass(StateTooLargeError, AsyncTaskStateError)
    assert issubclass(StateTooLargeError, ValueError)
    assert str(caught.value) == (
        "the state of dag/run/task holds 1,000 bytes, and would hold 2,513 with key 'large'; [async_task_state]"
        " max_state_bytes allows 2,000: delete keys, or clear the state"
    )


async def test_keys_count_as_utf8(make_state, dsn):
    async with make_state(settings=with_limit(dsn, 10)) as state:
        await state.set("é" * 4, 12)
        await refused(state, lambda: state.checkpoint({"é" * 4: 123}))


async def test_what_makes_a_state_smaller_is_taken_though_the_limit_was_lowered(make_state, dsn, stored):
    async with make_state() as state:
        await state.checkpoint({"a": "x" * 50, "b": "x" * 50, "c": "x" * 50, "d": 1})
        await state.work("w").done("i")
        await state.work("w").failed("j", "no")
    async with make_state(settings=with_limit(dsn, 100)) as state:
        await refused(state, lambda: state.checkpoint(e=1))
        await refused(state, lambda: state.checkpoint(d=10))
        await state.checkpoint(d=2)
        await state.set("a", "y" * 49)
        # More of one and less of another.
        await state.checkpoint(a="y" * 48, d=20)
        await state.checkpoint(a=None)
        await state.delete("b")
        await state.delete("nowhere")
        # What is done has not failed: that is fewer bytes, though one item more.
        await state.work("w").done("j")
        with pytest.raises(StateTooLargeError):
            state.work("w").done("k")
        await state.work("w").done("k", c=None)
        await state.clear()
        await state.set("e", "x" * 90)
    assert await stored() == {"e": json.dumps("x" * 90)}


async def test_a_work_set_counts_with_the_values_and_is_named(make_state, dsn, stored):
    async with make_state(settings=with_limit(dsn, 10_000)) as state:
        work = state.work("files")
        done = 0
        with pytest.raises(StateTooLargeError, match="with work set 'files'; "):  # noqa: PT012 - which call it is is the question
            while True:
                await work.done(str(done), last=done)
                done += 1
        assert work.counts.done == done
        assert not work.is_done(str(done))
        assert await state.get("last") == done - 1
        with pytest.raises(StateTooLargeError, match="with work set 'files'; "):
            work.failed("other", "x" * 100)
        assert work.failures == []
        await state.flush()
    held = size(await stored())
    assert 10_000 - 20 < held <= 10_000


async def test_a_set_that_is_not_opened_counts_as_much_as_one_that_is(make_state, dsn, stored):
    async with make_state() as state:
        for item in range(600):
            await state.work("w").done(str(item))
        await state.work("w").failed("f", "why")
        await state.work("w:v").done("i")
    entries = await stored()
    for opened in (), ("w",), ("w", "w:v"):
        limit = size(entries) + len("k1")
        async with make_state(settings=with_limit(dsn, limit)) as state:
            for name in opened:
                state.work(name)
            with pytest.raises(StateTooLargeError, match=f"holds {size(entries):,} bytes, "):
                state.checkpoint(k=12)
            await state.set("k", 1)
            await state.delete("k")


@pytest.mark.parametrize("on_error", ["raise", "collect"])
async def test_a_run_over_a_set_ends_when_nothing_more_can_be_recorded(make_state, dsn, on_error):
    async with make_state(settings=with_limit(dsn, 2000)) as state:
        with pytest.raises(StateTooLargeError):
            await state.work("w").process(range(1000), lambda item: item, on_error=on_error)
        assert 80 < state.work("w").counts.done < 130
        await state.clear()
        assert (await state.work("w").process(range(9), lambda item: item)).done == 9


@pytest.mark.parametrize("on_error", ["raise", "collect"])
async def test_g8_a_result_that_has_no_room_is_no_items_failure(make_state, dsn, on_error):
    calls = []

    def fn(item):
        calls.append(item)
        return item

    def record(item, result):
        return {f"row {item:03}": "x" * 500}

    async with make_state(settings=with_limit(dsn, 3200)) as state:
        # So much is free in the end that there would be room for the failures of some.
        options = {"on_error": on_error, "concurrency": 1, "record": record, "max_attempts": 3}
        with pytest.raises(
            StateTooLargeError, match=r"'6' is not recorded as done: .* max_state_bytes allows 3,200"
        ):
            await state.work("w").process(range(1000), fn, **options)
        assert state.work("w").counts == WorkCounts(6, 0)
        assert calls == [*range(7)]
    async with make_state() as state:
        assert (await state.work("w").process(range(10), fn, **options)).done == 4
    assert calls == [*range(7), *range(6, 10)]


@pytest.mark.parametrize("on_error", ["raise", "collect"])
async def test_g8_a_call_that_finds_its_state_full_ends_the_run_and_one_of_another_state_does_not(
    make_state, dsn, on_error
):
    other = TaskScope("dag", "run", "other")
    limited = with_limit(dsn, 1500)
    calls = []

    async with make_state(settings=limited) as state, make_state(of=other, settings=limited) as beside:

        def fill(of):
            async def fn(item):
                calls.append(item)
                await of.checkpoint({f"row {item}": "x" * 1600})

            return fn

        with pytest.raises(StateTooLargeError, match="the state of dag/run/task holds"):
            await state.work("w").process(range(1000), fill(state), on_error=on_error, concurrency=1)
        assert calls == [0]
        assert state.work("w").counts == WorkCounts(0, 0)
        if on_error == "collect":
            summary = await state.work("w").process(range(3), fill(beside), on_error=on_error)
            assert summary.failed == 3
            assert "the state of dag/run/other holds" in summary.failures[0].error


async def test_what_failed_is_told_where_there_is_no_room_for_the_failure(make_state, dsn):
    def fn(item):
        raise KeyError("what is wrong with it")

    async with make_state(settings=with_limit(dsn, 100)) as state:
        with pytest.raises(StateTooLargeError, match="with work set 'w'") as caught:
            await state.work("w").process(range(5), fn, on_error="collect")
    assert isinstance(caught.value.__cause__, KeyError)


async def test_an_asset_has_its_limit(dsn, settings):
    limited = with_limit(dsn, 100)
    async with AssetState(AssetScope("orders"), store=dsn, settings=limited) as state:
        await state.set("a", "x" * 97)
        await refused(state, lambda: state.checkpoint(b=1), match="the state of asset orders holds 100 bytes")


def test_the_sync_door_has_the_limit(dsn, scope):
    with SyncTaskState(TaskState(scope, store=dsn, settings=with_limit(dsn, 100))) as state:
        with pytest.raises(StateTooLargeError):
            state.set("a", "x" * 98)
        with pytest.raises(StateTooLargeError):
            state.work("w").done("i", a="x" * 80)
        state.set("a", "x" * 97)
        state.delete("a")
        state.work("w").done("i")
        with pytest.raises(StateTooLargeError):
            state.work("w").failed("j", "x" * 98)
        state.clear()
    shutdown()


async def test_a_refresh_counts_what_others_have_written(make_state, dsn, on_store, scope):
    async with make_state(settings=with_limit(dsn, 100)) as state:
        await state.set("a", 1)
        await on_store("write", scope, {"b": (f'"{"x" * 90}"', None)})
        await state.set("a", 12)
        await state.refresh()
        await refused(state, lambda: state.checkpoint(c="xx"), match="holds 96 bytes")
        await state.checkpoint(c=10)


async def test_what_an_on_clear_keeps_has_the_limit_and_what_is_owed_has_not(make_state, dsn, stored):
    kept = {"kept": "x" * 40}
    limited = with_limit(dsn, 100)
    async with make_state(max_tries=0, trigger="a.Trigger") as state:
        await state.set("a", "x" * 50)
    with pytest.raises(StateTooLargeError, match="'kept'"):
        async with make_state(max_tries=1, settings=limited, on_clear=lambda _: {"kept": "x" * 500}):
            pass
    async with make_state(max_tries=1, settings=limited, on_clear=lambda _: kept) as state:
        assert await state.get_all() == kept
        assert any("after" in key for key in await stored())


def counting(monkeypatch):
    """How often states were counted."""
    counted = []
    count = Room.count

    def counts(self, values):
        counted.append(len(values))
        return count(self, values)

    monkeypatch.setattr(Room, "count", counts)
    return counted


async def test_a_state_near_its_limit_is_not_counted_at_each_call(make_state, dsn, monkeypatch):
    counted = counting(monkeypatch)
    limit = 2_000_000
    async with make_state(settings=with_limit(dsn, limit)) as state:
        await state.checkpoint({f"k{key:04}": "x" * 999_00 for key in range(19)})
        await state.checkpoint({f"k{key:04}": "x" * 993 for key in range(19, 119)})
        held = size(state._pending.values)
        assert limit - 2000 < held < limit
        del counted[:]
        work = state.work("w")
        for call in range(3000):
            await state.checkpoint(n=call)
            if call < 50:
                await work.done(str(call))
            if call % 100 == 0:
                await state.flush()
        with pytest.raises(StateTooLargeError):
            state.checkpoint(m="x" * 2000)
        with pytest.raises(StateTooLargeError):
            state.checkpoint(m="x" * 2000)
        assert len(counted) <= 1


async def test_a_state_far_from_its_limit_is_counted_once_in_an_eighth_of_it(make_state, dsn, monkeypatch):
    counted = counting(monkeypatch)
    async with make_state(settings=with_limit(dsn, 80_000_000, max_value_bytes=100_000)) as state:
        work = state.work("w")
        written = 0
        for call in range(3000):
            await state.checkpoint(a="x" * 10_000, n=call)
            await work.done(str(call), **{f"v{value}": call for value in range(10)})
            written += 10_000
            if call % 100 == 0:
                await state.flush()
        assert len(counted) <= 1 + written // 10_000_000
