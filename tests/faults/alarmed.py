"""A process whose calls are interrupted, again and again, by an alarm whose handler raises.

    alarmed.py ROUNDS SEED

It ends with 1, and says why, if what a round has recorded is not the state after its last call or the one before.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time

from child import CALLS_A_SEED, calls, perform, scope_of, settings_of
from killing import Left, newest_call

from async_task_state import TaskState

DSN = "memory:"
PROMPT_SECONDS = 4.0
"""Less than the deadline for leaving a state: a writer that was never told would use it up."""


class Alarm(BaseException):
    """As Airflow's own."""


def interrupt(signum, frame):
    raise Alarm


def handle(seed: int) -> TaskState:
    return TaskState(scope_of(str(seed)), store=DSN, settings=settings_of(DSN, 0.002))


async def work(seed: int, returned: list[int]) -> None:
    async with handle(seed) as state:
        # Again later: an event loop reports what a callback of its own raises, and goes on.
        signal.setitimer(signal.ITIMER_REAL, random.Random(seed).uniform(0.0005, 0.003), 0.5)
        for kind, number in calls(seed):
            await perform(state, kind, number)
            returned.append(number)


async def read(seed: int) -> Left:
    async with handle(seed) as state:
        return Left(await state.get_all(), set(state.work("items")._done))


def play(seed: int) -> None:
    returned = [seed * CALLS_A_SEED - 1]
    began = time.monotonic()
    try:
        asyncio.run(work(seed, returned))
    except Alarm:
        signal.setitimer(signal.ITIMER_REAL, 0)
    took = time.monotonic() - began
    left = asyncio.run(read(seed))
    found = newest_call(seed, Left(), left, returned[-1] + 1)
    if found is None or found < returned[-1]:
        sys.exit(
            f"seed {seed}: {returned[-1]} returned, what is left is the state after {found}: {left.keys}"
        )
    if took > PROMPT_SECONDS:
        sys.exit(f"seed {seed}: leaving took {took:.1f} s, so the writer had not been told")


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, interrupt)
    for number in range(int(sys.argv[1])):
        play(int(sys.argv[2]) + number)
