"""An event loop hands the interpreter's lock to a writer that is stuck, and to no other."""

from __future__ import annotations

import gc
import signal
import time
import weakref
from dataclasses import dataclass

import anyio
import pytest
from anyio.lowlevel import checkpoint

from async_task_state import handover
from async_task_state.deadline import NEVER
from async_task_state.handover import PATIENCE_SECONDS, watch

SECONDS = 0.3


@dataclass(eq=False)
class Writer:
    """As a writer shows itself to event loops."""

    steps: int = 0
    wants_lock_at: float = 0.0


@pytest.fixture
def pauses(monkeypatch):
    """The moments at which the loop was blocked."""
    moments = []
    monkeypatch.setattr(handover.time, "sleep", lambda _seconds: moments.append(time.monotonic()))
    return moments


async def spin(seconds, each_turn=lambda: None):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        each_turn()
        await checkpoint()


@pytest.mark.anyio
async def test_g2_a_stuck_writer_is_given_the_lock_again_and_again(pauses):
    writer = Writer()
    began = time.monotonic()
    watch(writer, 0.0)
    while len(pauses) < 10:
        await checkpoint()
    # Bounded: no two of them are closer than the patience, so they are a small part of the loop's time.
    assert len(pauses) <= (time.monotonic() - began) / PATIENCE_SECONDS
    writer.wants_lock_at = NEVER
    await spin(2 * PATIENCE_SECONDS)
    seen = len(pauses)
    await spin(SECONDS)
    assert len(pauses) == seen


@pytest.mark.anyio
async def test_a_writer_that_makes_steps_costs_no_pause(pauses):
    writer = Writer()
    watch(writer, 0.0)

    def step():
        writer.steps += 1

    await spin(SECONDS, step)
    assert not pauses


@pytest.mark.anyio
async def test_a_writer_is_not_stuck_before_it_is_due(pauses):
    due = time.monotonic() + SECONDS
    writer = Writer(wants_lock_at=due)
    watch(writer, due)
    while not pauses:
        await checkpoint()
    assert pauses[0] >= due + PATIENCE_SECONDS


@pytest.mark.anyio
async def test_who_is_in_a_hurry_is_looked_after_at_once(pauses):
    due = time.monotonic() + 3600
    writer = Writer(wants_lock_at=due)
    watch(writer, due)
    writer.wants_lock_at = 0.0
    watch(writer, 0.0)
    while not pauses:
        await checkpoint()


@pytest.mark.anyio
async def test_one_loop_watches_several_writers(pauses):
    stuck, idle = Writer(), Writer(wants_lock_at=NEVER)
    watch(idle, 0.0)
    watch(stuck, 0.0)
    while len(pauses) < 3:
        await checkpoint()
    gone = weakref.ref(idle)
    del idle
    gc.collect()
    assert gone() is None


@pytest.mark.anyio
async def test_a_loop_that_is_watching_may_end():
    watch(Writer(), 0.0)
    await spin(2 * PATIENCE_SECONDS)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_each_loop_of_a_thread_watches_for_itself(pauses, backend):
    async def work():
        watch(Writer(), 0.0)
        seen = len(pauses)
        while len(pauses) < seen + 2:
            await checkpoint()

    for _ in range(2):
        anyio.run(work, backend=backend)


def test_code_without_an_event_loop_watches_nothing(pauses):
    watch(Writer(), 0.0)
    assert not pauses


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_alarm_in_a_pause_reaches_the_task(monkeypatch, backend):
    """A loop reports what is raised in a callback of its own and goes on: the task would never be timed out."""

    class Alarm(BaseException):
        """As Airflow's own."""

    def interrupt(signum, frame):
        raise Alarm

    rung = []

    def ring(_seconds):
        monkeypatch.undo()
        rung.append(True)
        signal.raise_signal(signal.SIGALRM)

    async def work():
        watch(Writer(), 0.0)
        while not rung:
            await checkpoint()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            pass

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        monkeypatch.setattr(handover.time, "sleep", ring)
        with pytest.raises(Alarm):
            anyio.run(work, backend=backend)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_an_interrupt_in_a_pause_ends_the_loop(monkeypatch):
    def interrupt(_seconds):
        raise KeyboardInterrupt

    async def work():
        watch(Writer(), 0.0)
        await spin(60)

    monkeypatch.setattr(handover.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        anyio.run(work)
