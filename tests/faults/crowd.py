"""A crowd: processes that open a state of their own each, and checkpoint until their input ends, a line of JSON a second.

    crowd.py COUNT OUTAGE_TIMEOUT

The dsn is in its environment. They are forked, because to start Python so often is most of the
work. The first line of each has how long opening took, the others the value and how late a commit was
at most, the last one how it ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

from async_task_state import AsyncTaskStateError, Settings, TaskScope, TaskState
from async_task_state.lifetime import shutdown
from async_task_state.stores import postgres  # noqa: F401 - before the fork

DSN_VARIABLE = "ASYNC_TASK_STATE_CROWD_DSN"
EVERY = 0.5
"""Seconds between two checkpoints."""


def scope_of(number: int) -> TaskScope:
    return TaskScope("faults", "run", "crowd", number)


async def work(dsn: str, number: int, outage_timeout: float) -> None:
    settings = Settings(dsn=dsn, outage_timeout=outage_timeout, exit_timeout=outage_timeout)
    ended = asyncio.get_running_loop().run_in_executor(None, os.read, 0, 1)
    value, worst, began = 0, 0.0, time.monotonic()
    async with TaskState(scope_of(number), store=dsn, settings=settings) as state:
        tell(number, opened=time.monotonic() - began)
        while not ended.done():
            value += 1
            await state.checkpoint(value=value)
            worst = max(worst, state.stats.last_lag)
            if value % 2 == 0:
                tell(number, value=value, worst=worst)
            await asyncio.wait([ended], timeout=EVERY)
    tell(number, value=value, worst=max(worst, state.stats.last_lag), end="well")


def tell(number: int, **what: object) -> None:
    # One write, which the lines of others do not come into.
    os.write(1, f"{json.dumps({'number': number, **what})}\n".encode())


async def told(dsn: str, number: int, outage_timeout: float) -> None:
    try:
        await work(dsn, number, outage_timeout)
    except AsyncTaskStateError as error:
        tell(number, end=repr(error))


if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        if not os.fork():
            asyncio.run(told(os.environ[DSN_VARIABLE], number, float(sys.argv[2])))
            shutdown()
            os._exit(0)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
