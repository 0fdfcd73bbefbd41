"""An `execution_timeout` at any moment of a flush to a store that only awaited calls may reach."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import itertools
import logging
import signal
import sys
import warnings
from types import SimpleNamespace

import pytest
from channel import NOT_SOON, SCOPE, Airflow

from async_task_state import Settings, TaskState, alarms, awaited, pending
from async_task_state.alarms import alarm_held
from async_task_state.lifetime import drain
from async_task_state.stores import airflow as airflow_store

CALLBACK = alarms.despite_alarms(print).__code__
"""Has tests of its own, in test_alarms."""
OURS = {module.__file__ for module in (alarms, awaited, contextlib, pending, airflow_store)}


class AlarmError(BaseException):
    """As Airflow's own."""


class Process(Airflow):
    """A task's way to Airflow, which blocks: an answer that an alarm cuts short would be the next request's."""

    busy = False

    async def _request(self, what, key=None):
        with alarm_held():
            assert not self.busy
            self.busy = True
            self.requests.append((what, key))
            self.busy = False


def raise_alarm(number, frame):
    raise AlarmError


class Countdown:
    """Raises an alarm at one of the points of our code where Python lets a signal's handler run.

    They are the beginnings of functions, and the ends of calls of what is written in C. To go on after an `await`,
    which is reported as a call, too, is none.
    """

    def __init__(self, points):
        self.left = points
        self.begun = set()

    def __call__(self, frame, event, argument):
        if frame.f_code.co_filename not in OURS or frame.f_code is CALLBACK:
            return
        goes_on = frame in self.begun and frame.f_code.co_flags & inspect.CO_COROUTINE
        self.begun.add(frame)
        if event == "c_return" or (event == "call" and not goes_on):
            self.left -= 1
            if self.left < 0:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGALRM)


@pytest.fixture
def alarms():
    handler = signal.signal(signal.SIGALRM, raise_alarm)
    with warnings.catch_warnings():
        # One that was called, and then came the alarm.
        warnings.filterwarnings("ignore", "coroutine 'Airflow.* was never awaited", RuntimeWarning)
        yield
        sys.setprofile(None)
        gc.collect()
    signal.signal(signal.SIGALRM, handler)


async def author(airflow, points, recorded):
    settings = Settings(dsn="airflow:", exit_timeout=1.0)
    async with TaskState(SCOPE, attempt=1, store=airflow, settings=settings, max_delay=NOT_SOON) as state:
        await state.set("n", 0)
        recorded[:] = [0]
        sys.setprofile(Countdown(points))
        for n in (1, 2):
            await state.checkpoint(n=n)
            recorded.append(n)
            await state.flush()
            assert airflow.values["n"] == n
        sys.setprofile(None)


@pytest.mark.usefixtures("alarms")
def test_g6_nothing_is_lost_and_nobody_waits_for_ever_whenever_the_alarm_comes():
    for points in itertools.count():
        airflow, recorded = Process(), []
        try:
            asyncio.run(asyncio.wait_for(author(airflow, points, recorded), 10))
        except AlarmError:
            drain()
            # A call that the alarm cut short may have been recorded.
            assert airflow.values["n"] in (recorded[-1], recorded[-1] + 1), points
        else:
            break
    assert points > 100


def test_g5_what_cannot_be_saved_when_a_task_has_timed_out_is_said(caplog):
    airflow, recorded = Process(), []

    async def abandoned():
        state = TaskState(
            SCOPE, attempt=1, store=airflow, settings=Settings(dsn="airflow:"), max_delay=NOT_SOON
        )
        await state.__aenter__()
        await state.checkpoint(n=1)
        recorded.append(state)

    asyncio.run(abandoned())
    error = RuntimeError("Task instance not found")
    error.error = SimpleNamespace(detail={"status_code": 404})
    airflow._request = raising(error)
    with caplog.at_level(logging.ERROR, "async_task_state"):
        drain()
    assert "not saved when the task ended: " in caplog.text
    assert "'n' (Airflow does not know this attempt any more" in caplog.text


def raising(error):
    async def request(*_):
        raise error

    return request
