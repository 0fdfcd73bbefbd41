"""A deadline calls at the moment that was set last, once, and costs no timer of the loop when it is put off."""

from __future__ import annotations

import asyncio
import time

import pytest
import pytest_asyncio

from async_task_state.deadline import NEVER, Deadline

pytestmark = pytest.mark.asyncio


class Bell:
    def __init__(self):
        self.rung_at = []
        self.rung = asyncio.Event()

    def ring(self):
        self.rung_at.append(time.monotonic())
        self.rung.set()


@pytest_asyncio.fixture
async def timers(monkeypatch):
    """The moments that timers of the running loop are set to."""
    moments = []
    loop = asyncio.get_running_loop()
    call_at = loop.call_at

    def noted(moment, call, *args, **options):
        moments.append(moment)
        return call_at(moment, call, *args, **options)

    monkeypatch.setattr(loop, "call_at", noted)
    return moments


async def test_what_is_put_off_is_called_when_the_last_moment_has_come_and_once():
    bell = Bell()
    deadline = Deadline(bell.ring)
    first, last = time.monotonic() + 0.01, time.monotonic() + 0.05
    deadline.set(first)
    deadline.set(last)
    await bell.rung.wait()
    assert bell.rung_at[0] >= last - time.get_clock_info("monotonic").resolution
    assert deadline.moment == NEVER
    bell.rung.clear()
    deadline.set(time.monotonic())
    await bell.rung.wait()
    assert len(bell.rung_at) == 2


async def test_what_is_brought_forward_is_not_waited_for():
    bell = Bell()
    deadline = Deadline(bell.ring)
    deadline.set(time.monotonic() + 3600)
    deadline.set(time.monotonic() + 0.01)
    await bell.rung.wait()
    assert len(bell.rung_at) == 1


@pytest.mark.parametrize("again", [False, True], ids=["for good", "set again"])
async def test_what_is_cleared_is_not_called(again):
    bell, later = Bell(), Bell()
    deadline = Deadline(bell.ring)
    moment = time.monotonic() + 0.01
    deadline.set(moment)
    deadline.clear()
    if again:
        deadline.set(moment + 3600)
    Deadline(later.ring).set(moment + 0.01)
    await later.rung.wait()
    assert bell.rung_at == []


async def test_what_is_stopped_leaves_nothing_behind(timers):
    deadline = Deadline(Bell().ring)
    deadline.set(time.monotonic() + 3600)
    deadline.stop()
    assert deadline._timer is None
    assert deadline.moment == NEVER
    # As another event loop would.
    deadline.set(time.monotonic() + 7200)
    assert len(timers) == 2


async def test_a_moment_that_never_comes_sets_no_timer(timers):
    Deadline(Bell().ring).set(NEVER)
    assert timers == []


async def test_to_put_it_off_sets_no_timer(timers):
    deadline = Deadline(Bell().ring)
    start = time.monotonic() + 3600
    for number in range(1000):
        deadline.clear()
        deadline.set(start + number)
    assert timers == [start]
