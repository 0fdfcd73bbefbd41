"""One of a crowd: a process that opens a state of its own and checkpoints until its input ends, a line of JSON a second.

    crowd.py NUMBER OUTAGE_TIMEOUT

The dsn is in its environment. The first line has how long opening took, the others the value and how late a commit was
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

DSN_VARIABLE = "ASYNC_TASK_STATE_CROWD_DSN"
EVERY = 0.1
"""Seconds between two checkpoints."""


def scope_of(number: int) -> TaskScope:
    return TaskScope("faults", "run", "crowd", number)


async def work(dsn: str, number: int, outage_timeout: float) -> None:
    settings = Settings(dsn=dsn, outage_timeout=outage_timeout, exit_timeout=outage_timeout)
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    value, worst, began = 0, 0.0, time.monotonic()
    async with TaskState(scope_of(number), store=dsn, settings=settings) as state:
        tell(opened=time.monotonic() - began)
        while not ended.done():
            value += 1
            await state.checkpoint(value=value)
            worst = max(worst, state.stats.last_lag)
            if value % 10 == 0:
                tell(value=value, worst=worst)
            await asyncio.wait([ended], timeout=EVERY)
    tell(value=value, worst=max(worst, state.stats.last_lag), end="well")


def tell(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def told(dsn: str, number: int, outage_timeout: float) -> None:
    try:
        await work(dsn, number, outage_timeout)
    except AsyncTaskStateError as error:
        tell(end=repr(error))


if __name__ == "__main__":
    asyncio.run(told(os.environ[DSN_VARIABLE], int(sys.argv[1]), float(sys.argv[2])))
    shutdown()
