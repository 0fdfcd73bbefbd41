"""An alarm in a callback of the loop neither leaves it half done nor is lost."""

from __future__ import annotations

import signal
import time

import anyio
import pytest

from async_task_state import waiting
from async_task_state.alarms import despite_alarms
from async_task_state.waiting import Waiter, wake


class Alarm(BaseException):
    """As Airflow's own."""


@pytest.fixture(autouse=True)
def _alarms_raise():
    def interrupt(signum, frame):
        raise Alarm

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_g5_an_alarm_while_waiters_are_woken_leaves_none_asleep(monkeypatch, backend):
    alarms = []
    plain_wake = Waiter.wake

    def interrupted(waiter):
        if not alarms:
            alarms.append(waiter)
            signal.raise_signal(signal.SIGALRM)
        plain_wake(waiter)

    monkeypatch.setattr(waiting.Waiter, "wake", interrupted)

    async def work():
        waiters = [Waiter(), Waiter()]
        wake(waiters)
        for waiter in waiters:
            await waiter.wait()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            pass

    with pytest.raises(Alarm):
        anyio.run(work, backend=backend)


def test_what_is_no_alarm_is_raised():
    signal.signal(signal.SIGALRM, signal.SIG_DFL)

    @despite_alarms
    def fail():
        raise ValueError("no alarm")

    with pytest.raises(ValueError, match="no alarm"):
        fail()


def test_an_interrupt_is_raised_at_once():
    calls = []

    @despite_alarms
    def interrupted():
        calls.append(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert calls == [1]


def test_what_a_callback_always_raises_is_raised():
    @despite_alarms
    def fail():
        raise ValueError("no alarm")

    with pytest.raises(ValueError, match="no alarm"):
        fail()
