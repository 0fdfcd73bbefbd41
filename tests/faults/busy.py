"""A process with a busy event loop, whose state another process watches.

    busy.py KIND WHERE SECONDS

KIND is a name of `KINDS`, WHERE a name of `WHERE`; the dsn is in its environment. It reports on its standard output when
its states are open, and at the end how many calls it has made.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import anyio
from anyio.lowlevel import checkpoint as turn_of_the_loop
from child import DSN_VARIABLE, settings_of

from async_task_state import TaskScope, TaskState
from async_task_state.sync import SyncTaskState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MAX_DELAY = 1.0
KEY = "at"
SCOPE = TaskScope("faults", "busy", "watched")
SPINNING_TASKS = 20
TRIGGERS = 500
OPENINGS = 64

EVERY: dict[str, float] = {
    "checkpoint": 0.0,
    "done": 0.0,
    "set": 0.0,
    "beside": 0.02,
    "rarely": 2.0,
    "triggers": 0.2,
    "openings": 0.0,
}
"""Seconds between two calls of each kind of loop; where it is 0, the next call comes at once."""


def handle(scope: TaskScope) -> TaskState:
    dsn = os.environ[DSN_VARIABLE]
    return TaskState(scope, store=dsn, settings=settings_of(dsn, MAX_DELAY))


class Busy:
    """What the event loop does until a moment.

    Attributes:
        calls: How many calls on the watched state were made.
        longest_gap: Seconds between two of them, at most: what is read may be so much older than the delay.
    """

    def __init__(self, kind: str, seconds: float) -> None:
        self.kind = kind
        self.end = time.time() + seconds
        self.calls = 0
        self.called_at = time.time()
        self.longest_gap = 0.0

    @property
    def running(self) -> bool:
        return time.time() < self.end

    async def spin(self) -> None:
        while self.running:
            await turn_of_the_loop()

    async def call(self, state: TaskState) -> None:
        self.calls += 1
        now = time.time()
        self.longest_gap, self.called_at = max(self.longest_gap, now - self.called_at), now
        if self.kind == "done":
            await state.work("items").done(self.calls, **{KEY: time.time()})
        elif self.kind == "set":
            await state.set(KEY, time.time())
        else:
            await state.checkpoint({KEY: time.time()})

    async def work(self, state: TaskState) -> None:
        while self.running:
            await self.call(state)
            if EVERY[self.kind]:
                await anyio.sleep(EVERY[self.kind])

    async def trigger(self, number: int) -> None:
        async with handle(TaskScope("faults", "busy", f"trigger-{number}")) as state:
            while self.running:
                await state.checkpoint({KEY: time.time()})
                await anyio.sleep(EVERY["triggers"])

    async def opening(self, number: int) -> None:
        async with handle(TaskScope("faults", "busy", f"opening-{number}")):
            pass

    async def beside(self, state: TaskState) -> None:
        """Make the calls on the watched state in one task, beside others that keep the loop busy."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.work, state)
            others: list[Callable[[], Awaitable[None]]] = [self.spin] * SPINNING_TASKS
            if self.kind == "triggers":
                others = [partial(self.trigger, number) for number in range(TRIGGERS)]
            for other in others if self.kind not in ("checkpoint", "done") else []:
                group.start_soon(other)
            if self.kind == "openings":
                async with anyio.create_task_group() as openings:
                    for number in range(OPENINGS):
                        openings.start_soon(self.opening, number)
                print("all open", flush=True)  # noqa: T201 - for the one who started it


async def run(kind: str, seconds: float) -> None:
    async with handle(SCOPE) as state:
        await state.set(KEY, time.time())
        print("open", flush=True)  # noqa: T201 - for the one who started it
        busy = Busy(kind, seconds)
        await busy.beside(state)
        print(busy.calls, busy.longest_gap, flush=True)  # noqa: T201 - for the one who started it


def run_in_a_thread(kind: str, seconds: float) -> None:
    thread = threading.Thread(target=anyio.run, args=(run, kind, seconds))
    thread.start()
    thread.join()


def run_without_awaiting(kind: str, seconds: float) -> None:
    with SyncTaskState(handle(SCOPE)) as state:
        state.set(KEY, time.time())
        print("open", flush=True)  # noqa: T201 - for the one who started it
        end, items, calls = time.time() + seconds, state.work("items"), 0
        while time.time() < end:
            calls += 1
            if kind == "done":
                items.done(calls, **{KEY: time.time()})
            else:
                state.checkpoint({KEY: time.time()})
        print(calls, 0.0, flush=True)  # noqa: T201 - for the one who started it


WHERE: dict[str, Callable[[str, float], None]] = {
    "asyncio": partial(anyio.run, run),
    "uvloop": partial(anyio.run, run, backend_options={"use_uvloop": True}),
    "trio": partial(anyio.run, run, backend="trio"),
    "thread": run_in_a_thread,
    "sync": run_without_awaiting,
}


if __name__ == "__main__":
    WHERE[sys.argv[2]](sys.argv[1], float(sys.argv[3]))
