"""A process to be killed: it records as fast as it can and reports on its standard output what it was told.

    child.py RUN_ID SEED MAX_DELAY

The dsn is in its environment, for anybody can read the arguments of a process. The calls follow from the seed, so whoever knows it knows the state after each of them.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import struct
import sys
import time
from typing import TYPE_CHECKING

from async_task_state import Settings, StaleWriterError, TaskScope, TaskState
from async_task_state.digests import digest_of

if TYPE_CHECKING:
    from collections.abc import Iterator

REPORT = struct.Struct("=cqd")
"""What was told (see `BEGUN` and so on), the number of the last call that returned, when."""
BEGUN, OPENED, RECORDED, DURABLE, FENCED = b"b", b"o", b"r", b"d", b"f"
REPORT_EVERY = 32
"""Calls that only record are reported now and then; a report costs as much as they do."""

DSN_VARIABLE = "ASYNC_TASK_STATE_CHILD_DSN"

CALLS_A_SEED = 10**7
DURABLE_CALLS = ("set", "delete", "flush", "clear")


def scope_of(run_id: str) -> TaskScope:
    return TaskScope("faults", run_id, "child")


def settings_of(dsn: str, max_delay: float) -> Settings:
    return Settings(dsn=dsn, max_delay=max_delay)


def calls(seed: int) -> Iterator[tuple[str, int]]:
    """What the child of that seed does, in order: a kind of call, and a number no other call has."""
    rng = random.Random(seed)
    durable_share = rng.choice((0.0, 0.0, 0.001, 0.5))
    clear_at = rng.randrange(2000) if rng.random() < 0.2 else -1
    for index in itertools.count():
        chance = rng.random()
        if index == clear_at:
            kind = "clear"
        elif chance < durable_share:
            kind = rng.choice(("set", "delete", "flush"))
        else:
            kind = "done" if chance < (1 + durable_share) / 2 else "checkpoint"
        yield kind, seed * CALLS_A_SEED + index


def apply(kind: str, number: int, keys: dict[str, int], done: set[bytes]) -> None:
    """Make the model of a state do what a call does to the state."""
    if kind in ("done", "checkpoint"):
        keys.update(a=number, b=number, c=number)
        if kind == "done":
            done.add(digest_of(number))
    elif kind == "set":
        keys["s"] = number
    elif kind == "delete":
        keys.pop("b", None)
    elif kind == "clear":
        keys.clear()
        done.clear()


async def perform(state: TaskState, kind: str, number: int) -> None:
    """Make a call on the state."""
    if kind == "done":
        await state.work("items").done(number, a=number, b=number, c=number)
    elif kind == "checkpoint":
        await state.checkpoint(a=number, b=number, c=number)
    elif kind == "set":
        await state.set("s", number)
    elif kind == "delete":
        await state.delete("b")
    elif kind == "clear":
        await state.clear()
    else:
        await state.flush()


def report(what: bytes, number: int) -> None:
    os.write(1, REPORT.pack(what, number, time.monotonic()))


async def run(dsn: str, run_id: str, seed: int, max_delay: float) -> None:
    number = seed * CALLS_A_SEED - 1
    report(BEGUN, number)
    try:
        async with TaskState(scope_of(run_id), store=dsn, settings=settings_of(dsn, max_delay)) as state:
            report(OPENED, number)
            for kind, number in calls(seed):
                await perform(state, kind, number)
                if kind in DURABLE_CALLS:
                    report(DURABLE, number)
                elif number % REPORT_EVERY == 0:
                    report(RECORDED, number)
    except StaleWriterError:
        report(FENCED, number)


if __name__ == "__main__":
    asyncio.run(run(os.environ[DSN_VARIABLE], sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
