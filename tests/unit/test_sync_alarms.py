"""An `execution_timeout` at any moment of a call that blocks: the call ends, and the timeout arrives."""

from __future__ import annotations

import asyncio.base_events
import asyncio.events
import contextlib
import enum
import gc
import itertools
import logging
import selectors
import signal
import sys
import time

import pytest

from async_task_state import Settings, TaskScope, TaskState, alarms, sync
from async_task_state.sync import SyncTaskState

CODE = {
    module.__file__
    for module in (sync, alarms, asyncio.base_events, asyncio.events, contextlib, enum, selectors, signal)
}
SOON_SECONDS = 0.2
SETTINGS = Settings(dsn="memory:alarms", exit_timeout=0.1)


class AlarmError(BaseException):
    """As Airflow's own."""


class Countdown:
    """Raises an alarm where the so manieth function begins, or call of C ends, of the code that runs a blocking call."""

    def __init__(self, points):
        self.left = points

    def __call__(self, frame, event, argument):
        if frame.f_code.co_filename in CODE and event in ("call", "c_return"):
            self.left -= 1
            if self.left < 0:
                sys.setprofile(None)
                # As Python does, of the code that is interrupted.
                signal.getsignal(signal.SIGALRM)(signal.SIGALRM, frame)


def raise_alarm(number, frame):
    raise AlarmError


@pytest.fixture
def _alarms(monkeypatch):
    handler = signal.signal(signal.SIGALRM, raise_alarm)
    # What asyncio caught is logged where it would be lost.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    # Python itself loses what is raised in __del__, as in that of an event loop of an earlier test.
    gc.disable()
    yield
    gc.enable()
    sys.setprofile(None)
    signal.setitimer(signal.ITIMER_REAL, 0)
    logging.getLogger("asyncio").setLevel(logging.NOTSET)
    signal.signal(signal.SIGALRM, handler)


@pytest.mark.timeout(60)
@pytest.mark.usefixtures("_alarms")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("call", [lambda state: state.checkpoint(n=1), lambda state: state.set("n", 1)])
def test_g6_a_blocking_call_ends_and_the_alarm_arrives_whenever_it_comes(call):
    for points in itertools.count():
        countdown = Countdown(points)
        # As of an execution_timeout that is far away.
        signal.setitimer(signal.ITIMER_REAL, 3600)
        with SyncTaskState(
            TaskState(TaskScope("dag", "run", str(points)), store=SETTINGS.dsn, settings=SETTINGS)
        ) as state:
            arrived = False
            try:
                sys.setprofile(countdown)
                call(state)
                sys.setprofile(None)
                if countdown.left < 0:
                    # Put off, so that it reaches the task.
                    time.sleep(SOON_SECONDS)
            except AlarmError:
                arrived = True
            assert arrived == (countdown.left < 0), points
            assert signal.getsignal(signal.SIGALRM) is raise_alarm, points
        if countdown.left >= 0:
            break
    assert points > 30
