"""A value of None: it removes its key in the atomic step of a checkpoint or a done item, and is an error elsewhere."""

from __future__ import annotations

import anyio.to_thread
import pytest

from async_task_state import InvalidValueError, SyncTaskState

pytestmark = pytest.mark.anyio

NOT_SOON = 3600.0


async def test_a_checkpoint_with_none_removes_the_key(make_state, saved):
    async with make_state(max_delay=NOT_SOON) as state:
        await state.checkpoint(cursor="p2", rows=100)
        await state.flush()
        await state.checkpoint(cursor=None, rows=150)
        assert await state.get_all() == {"rows": 150}
        assert await state.get("cursor", "none") == "none"
        assert await saved() == {"cursor": "p2", "rows": 100}
        await state.flush()
        assert await saved() == {"rows": 150}
        assert state.stats.commits == 2
        await state.checkpoint({"never there": None, "rows": 151})
    assert await saved() == {"rows": 151}


async def test_a_key_that_was_never_saved_can_be_removed(make_state, saved):
    async with make_state(max_delay=NOT_SOON) as state:
        await state.checkpoint(cursor="p2")
        await state.checkpoint(cursor=None)
        await state.checkpoint(cursor=None, more="p3")
        await state.checkpoint(more=None)
        assert not state._pending.full
        assert await state.get_all() == {}
    assert await saved() == {}
    async with make_state() as state:
        assert await state.get_all() == {}


async def test_done_with_none_removes_in_one_step(make_state, saved):
    async with make_state(max_delay=NOT_SOON) as state:
        await state.set("cursor", "p2")
        files = state.work("files")
        await files.done("last page", cursor=None, rows=7)
        assert await state.get_all() == {"rows": 7}
        assert await saved() == {"cursor": "p2"}
    async with make_state() as state:
        assert state.work("files").is_done("last page")
        assert await state.get_all() == {"rows": 7}


async def test_process_removes_what_record_gives_none_for(make_state):
    async def fetch(page):
        return "p2" if page == 1 else None

    async with make_state() as state:
        await state.work("pages").process(
            [1, 2], fetch, concurrency=1, record=lambda _, cursor: {"cursor": cursor}
        )
        assert await state.get_all() == {}


async def test_none_beside_a_bad_value_changes_nothing(make_state):
    async with make_state() as state:
        await state.set("cursor", "p2")
        with pytest.raises(InvalidValueError):
            await state.checkpoint(cursor=None, bad=object())
        assert await state.get("cursor") == "p2"


async def test_set_refuses_none_and_names_what_removes(make_state):
    async with make_state() as state:
        with pytest.raises(
            InvalidValueError, match=r"delete\('cursor'\) removes a key, and so does a checkpoint"
        ):
            await state.set("cursor", None)
        assert state.stats.recorded == 0


async def test_the_sync_door_removes_as_well(make_state):
    def in_a_thread():
        with SyncTaskState(make_state()) as state:
            state.checkpoint(cursor="p2", rows=1)
            state.flush()
            state.checkpoint(cursor=None)
            state.work("files").done("last page", rows=None)
            state.flush()
            return state.get_all()

    assert await anyio.to_thread.run_sync(in_a_thread) == {}


async def test_a_refresh_does_not_bring_it_back(make_state, on_store, scope):
    async with make_state(max_delay=NOT_SOON) as state:
        await state.set("cursor", "p2")
        await state.checkpoint(cursor=None)
        await on_store("write", scope, {"theirs": ("1", None)})
        await state.refresh()
        assert await state.get_all() == {"theirs": 1}
