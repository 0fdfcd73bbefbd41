"""A process that records without leaving its state, says so on its standard output, and then goes one way or another.

    leaver.py WAY RUN_ID MAX_DELAY

The dsn is in its environment.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

from child import DSN_VARIABLE, RECORDED, report, scope_of, settings_of

from async_task_state import TaskState
from async_task_state.lifetime import drain

ABANDONED = b"a"


async def record(dsn: str, run_id: str, max_delay: float, *, idle: bool = False) -> TaskState:
    state = await TaskState(scope_of(run_id), store=dsn, settings=settings_of(dsn, max_delay)).__aenter__()
    if idle:
        # As a minute without use does.
        await state._writer.call(state._writer.store.close)
    await state.checkpoint(a=1, b=1)
    await state.work("items").done(1, a=2, b=2)
    report(RECORDED, 2)
    return state


async def returns(*args) -> None:
    await record(*args)


async def idles(*args) -> None:
    await record(*args, idle=True)


async def raises(*args) -> None:
    await record(*args)
    sys.exit("as told")


async def drains(*args) -> None:
    await record(*args)
    drain()
    os._exit(0)


async def blocks(*args) -> None:
    await record(*args)
    time.sleep(3600)  # noqa: ASYNC251 - the fault itself


async def waits(*args) -> None:
    await record(*args)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    await asyncio.Event().wait()


def abandons(*args) -> None:
    """What `execution_timeout` does: an alarm whose handler raises, and a loop that nobody runs any more."""

    def give_up(signum, frame):
        raise TimeoutError

    signal.signal(signal.SIGALRM, give_up)
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(waits(*args))
    except TimeoutError:
        report(ABANDONED, 2)
        signal.pause()


def main(way: str, run_id: str, max_delay: str) -> None:
    dsn = os.environ[DSN_VARIABLE]
    if way == "abandons":
        abandons(dsn, run_id, float(max_delay))
    else:
        ways = {"returns": returns, "idles": idles, "raises": raises, "drains": drains, "blocks": blocks}
        asyncio.run(ways[way](dsn, run_id, float(max_delay)))


if __name__ == "__main__":
    main(*sys.argv[1:])
