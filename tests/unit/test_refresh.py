"""Seeing what others than the holder have written."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from async_task_state import StaleWriterError

pytestmark = pytest.mark.anyio

NOT_SOON = 3600.0


async def test_what_others_wrote_is_seen_when_asked_for(make_state, on_store, scope):
    async with make_state() as state:
        await state.set("mine", 1)
        await on_store("write", scope, {"theirs": ("2", None), "mine": ("3", None)})
        assert await state.get_all() == {"mine": 1}
        await state.refresh()
        assert await state.get_all() == {"mine": 3, "theirs": 2}


async def test_g4_a_write_of_others_leaves_the_lease_alone(make_state, on_store, scope, saved):
    async with make_state() as state:
        await on_store("write", scope, {"theirs": ("2", None)})
        await state.set("mine", 1)
        assert await state.is_current()
    assert await saved() == {"mine": 1, "theirs": 2}


async def test_what_is_recorded_and_not_saved_is_later_than_what_others_wrote(make_state, on_store, scope):
    async with make_state(max_delay=NOT_SOON) as state:
        await on_store("write", scope, {"n": ("5", None)})
        await state.checkpoint(n=1)
        await state.refresh()
        assert await state.get("n") == 1


async def test_what_is_recorded_while_the_store_is_read_is_not_lost(make_state, saved):
    async with make_state() as state:
        done = 0

        async def record():
            nonlocal done
            for done in range(1, 300):
                await state.checkpoint({"n": done, f"k{done}": done})
                await state.work("files").done(done)
                if done % 10 == 0:
                    await state.flush()
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            group.start_soon(record)
            while done < 299:
                await state.refresh()
                values = await state.get_all()
                assert values.get("n", 0) <= done
                assert state.work("files").counts.done <= done
                assert set(values) == {"n", *(f"k{n}" for n in range(1, values["n"] + 1))} if values else True
        await state.refresh()
        assert await state.get("n") == 299
        assert state.work("files").counts.done == 299
    assert (await saved())["n"] == 299


async def test_a_work_set_that_others_cleared_starts_over(make_state, on_store, scope):
    async with make_state() as state:
        files = state.work("files")
        for file in range(300):
            await files.done(file)
        await files.failed("bad", "why")
        await state.flush()
        await on_store("write", scope, {"kept": ("1", None)})
        await state.refresh()
        assert (files.counts.done, files.counts.failed) == (300, 1)
        await files.done(300)
        assert files.counts.done == 301
        await state.flush()
        await on_store("write", scope, {}, cleared=True)
        await state.refresh()
        assert (files.counts.done, files.counts.failed) == (0, 0)
        assert await state.get_all() == {}
        await files.done("again")
    async with make_state() as state:
        assert state.work("files").is_done("again")
        assert state.work("files").counts.done == 1


async def test_a_read_only_state_is_read_anew(make_state, on_store, scope):
    async with make_state() as writer:
        await writer.set("n", 1)
        await writer.work("files").done("a")
        async with make_state(read_only=True) as state:
            files = state.work("files")
            await writer.work("files").done("b")
            await writer.set("n", 2)
            assert (await state.get("n"), files.is_done("b")) == (1, False)
            await state.refresh()
            assert (await state.get("n"), files.is_done("b")) == (2, True)


async def test_g4_whoever_was_replaced_hears_it(make_state):
    old = make_state()
    await old.__aenter__()
    async with make_state(attempt=9):
        pass
    with pytest.raises(StaleWriterError):
        await old.refresh()
    with pytest.raises(StaleWriterError):
        await old.__aexit__(None, None, None)
