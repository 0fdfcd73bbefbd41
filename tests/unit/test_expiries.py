"""A key whose retention has ended takes no room from `max_state_bytes`, in every store and door."""

from __future__ import annotations

import time
from datetime import timedelta
from types import SimpleNamespace

import anyio
import pytest
from faulty import until

from async_task_state import NEVER_EXPIRE, Settings, StateTooLargeError, SyncTaskState, TaskState, expiries

SOON = timedelta(milliseconds=30)
DAY = timedelta(days=1)
LIMIT = 100

pytestmark = pytest.mark.anyio


@pytest.fixture
def limited(dsn, make_state):
    def limited(**options):
        return make_state(settings=Settings(dsn=dsn, max_state_bytes=LIMIT), **options)

    return limited


@pytest.fixture
def days_pass(monkeypatch):
    """Lets time pass for what looks at expiries."""

    def days_pass(days):
        clock = SimpleNamespace(monotonic=lambda: time.monotonic() + days * 86400)
        monkeypatch.setattr(expiries, "time", clock)

    return days_pass


async def until_taken(call):
    """Wait until there is room for what was refused."""
    with pytest.raises(StateTooLargeError):
        call()
    with anyio.fail_after(30):
        while True:
            try:
                return await call()
            except StateTooLargeError:
                await anyio.sleep(0.001)


async def test_g8_a_key_that_has_expired_takes_no_room(limited, saved):
    async with limited() as state:
        await state.checkpoint(kept="x" * 20)
        await state.set("gone", "x" * 60, retention=SOON)
        await until_taken(lambda: state.checkpoint(new="x" * 60))
        assert await state.get_all() == {"kept": "x" * 20, "new": "x" * 60}
        with pytest.raises(StateTooLargeError, match="holds 91 bytes"):
            state.checkpoint(more="x" * 20)
    assert await saved() == {"kept": "x" * 20, "new": "x" * 60}


async def test_g8_what_an_earlier_holder_has_left_takes_no_room_once_it_has_expired(limited, saved):
    async with limited() as state:
        await state.set("day", 1, retention=DAY)
        await state.set("ever", 1, retention=NEVER_EXPIRE)
        await state.set("gone", "x" * 60, retention=timedelta(seconds=0.5))
    async with limited() as state:
        await until_taken(lambda: state.work("w").done("i", new="x" * 30))
        assert set(await state.get_all()) == {"day", "ever", "new"}
    assert set(await saved()) == {"day", "ever", "new"}


async def test_g8_what_others_have_written_takes_no_room_once_it_has_expired(limited, on_store, scope):
    async with limited() as state:
        await on_store("write", scope, {"gone": (f'"{"x" * 80}"', 0.5)})
        await state.refresh()
        await until_taken(lambda: state.work("w").done("i", new="x" * 20))


async def test_a_key_that_was_saved_again_without_a_retention_stays(limited, days_pass):
    async with limited() as state:
        await state.set("a", "x" * 20, retention=DAY)
        await state.set("b", "x" * 20, retention=DAY)
        await state.set("c", "x" * 20, retention=DAY)
        await state.checkpoint(a="y" * 20)
        await state.set("b", "y" * 20, retention=NEVER_EXPIRE)
        await state.flush()
        # As after a call that was not saved yet.
        await state.checkpoint(c="y" * 20)
        days_pass(2)
        with pytest.raises(StateTooLargeError, match="holds 69 bytes"):
            state.checkpoint(d="x" * 40)
        await state.flush()
        assert len(await state.get_all()) == 3


async def test_a_key_that_is_cleared_and_saved_again_stays(limited, days_pass):
    async with limited() as state:
        await state.set("a", "x" * 20, retention=DAY)
        await state.clear()
        await state.checkpoint(a="x" * 80)
        days_pass(2)
        with pytest.raises(StateTooLargeError, match="holds 83 bytes"):
            state.checkpoint(d="x" * 40)
        assert await state.get("a") == "x" * 80


async def test_a_key_whose_retention_has_begun_anew_stays(limited, days_pass):
    async with limited() as state:
        await state.set("a", "x" * 80, retention=DAY)
        days_pass(0.9)
        await state.set("a", "x" * 80, retention=DAY)
        days_pass(1.8)
        with pytest.raises(StateTooLargeError):
            state.checkpoint(b="x" * 40)
        days_pass(2)
        await state.checkpoint(b="x" * 40)


async def test_a_key_that_is_not_saved_has_not_expired(store, scope, days_pass):
    settings = Settings(dsn="memory:", max_state_bytes=LIMIT)
    async with (
        TaskState(scope, store=store, settings=settings) as state,
        anyio.create_task_group() as group,
    ):
        store.hanging = True
        group.start_soon(lambda: state.set("a", "x" * 80, retention=DAY))
        await until(lambda: store.calls_waiting)
        days_pass(2)
        with pytest.raises(StateTooLargeError):
            state.checkpoint(b="x" * 40)
        store.mend()
        await state.flush()
        # Two days have passed by then, and so a third has to.
        with pytest.raises(StateTooLargeError):
            state.checkpoint(b="x" * 40)
        days_pass(4)
        await state.checkpoint(b="x" * 40)
    assert set(store.saved(scope)) == {"a", "b"}


def test_g8_the_sync_door_gives_the_room_back(limited, days_pass):
    with SyncTaskState(limited()) as state:
        state.set("gone", "x" * 80, retention=DAY)
        days_pass(2)
        state.set("new", "x" * 80)
        assert state.get_all() == {"new": "x" * 80}


async def test_a_state_far_from_its_limit_keeps_what_it_has_read(make_state, days_pass):
    async with make_state() as state:
        await state.set("a", 1, retention=DAY)
        days_pass(2)
        await state.checkpoint(b=1)
        assert await state.get("a") == 1


async def test_a_snapshot_says_of_a_large_state_what_expires_and_when(on_store, scope):
    values = {f"k{number:05}": ("1", None) for number in range(9000)}
    ends = {"a": ("1", 86400.0), "k00001": ("1", 2 * 86400.0), "z": ("1", 3 * 86400.0)}
    before = time.monotonic()
    await on_store("write", scope, {**values, "ever": ("1", float("inf")), **ends})
    for snapshot in await on_store("acquire", scope, None), await on_store("read", scope):
        assert len(snapshot.entries) == 9003
        assert snapshot.ends.keys() == ends.keys()
        for key, (_, retention) in ends.items():
            # Not before it, and not much later.
            assert retention <= snapshot.ends[key] - before < retention * 1.02
