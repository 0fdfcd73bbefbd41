"""Thousands of states open in one process, each checkpointing once a second: what they cost, and how late they are.

`python bench_postgres_open.py DSN PID STATES SECONDS` measures once, in a process that does nothing else.
"""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil
from bench_measure import Line, Plan, state_at
from bench_postgres import NOTE, server

from async_task_state.lifetime import shutdown, writer_for

if TYPE_CHECKING:
    from async_task_state import TaskState
    from async_task_state.stores import Batch
    from async_task_state.stores.postgres import PostgresStore

STATES = 10_000
SECONDS = 30.0
PERIOD_SECONDS = 1.0
LOOP_PART = 5
"""The loop without us runs for a fifth of the time."""
LATEST_SECONDS = 4.0
"""How long to wait for what was recorded last: later than any target."""


def many_open(plan: Plan) -> list[Line]:
    seen: list[dict[str, float]] = []
    states, seconds = plan.scaled(STATES, least=10), max(PERIOD_SECONDS, SECONDS * plan.scale)
    with server() as postgres:
        for _ in range(plan.repeat):
            arguments = map(str, (postgres.dsn(), postgres.pid, states, seconds))
            done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE)
            seen.append(json.loads(done.stdout))
    what = f"PostgreSQL, {states:,} states, 1 checkpoint/s each"

    def line(name: str, unit: str, target: float, note: str = "", **peer: Any) -> Line:
        return Line(f"{what}: {name}", unit, [one[name] for one in seen], target, "<=", note=note, **peer)

    return [
        line("statements", "/s", 12, NOTE),
        line(
            "CPU",
            "cores",
            0.5,
            "with the server's",
            peer="the loop without us",
            theirs=[one["loop"] for one in seen],
        ),
        line("durable after, p99", "s", 2),
        line("durable after, at most", "s", 3),
    ]


@dataclass
class Track:
    """When one state's checkpoints were recorded, and how many of them are durable."""

    recorded: list[float] = field(default_factory=list)
    durable: int = 0


class Meter:
    """Sees what a store is told to commit, and when it says that it has."""

    def __init__(self, store: PostgresStore) -> None:
        self.tracks: dict[int, Track] = {}
        self.lags: list[float] = []
        self.statements = 0
        self._commit = store.commit
        store.commit = self.commit
        store._connection.db.add_query_logger(self.count)

    def track(self, state: TaskState) -> Track:
        return self.tracks.setdefault(state._pending.lease.scope_id, Track())

    def count(self, _query: object) -> None:
        self.statements += 1

    def missing(self) -> int:
        return sum(len(track.recorded) - track.durable for track in self.tracks.values())

    async def commit(self, batches: list[Batch]) -> Any:
        fenced = await self._commit(batches)
        now = time.monotonic()
        for batch in batches:
            if "n" in batch.changes:
                track = self.tracks[batch.lease.scope_id]
                saved = int(batch.changes["n"][0])
                self.lags += [now - moment for moment in track.recorded[track.durable : saved]]
                track.durable = saved
        if fenced:
            raise AssertionError(fenced)
        return fenced


async def measure(dsn: str, pid: int, states: int, seconds: float) -> dict[str, float]:
    began = time.process_time()
    end = time.monotonic() + seconds / LOOP_PART
    await asyncio.gather(*(every_period(number / states, end, []) for number in range(states)))
    loop = (time.process_time() - began) / (seconds / LOOP_PART)
    handles = [state_at(dsn, f"task-{number}") for number in range(states)]
    begin, leave = asyncio.Event(), asyncio.Event()
    opened = asyncio.Semaphore(0)

    async def one(number: int) -> None:
        async with handles[number] as state:
            opened.release()
            await begin.wait()
            await every_period(number / states, end, meter.track(state).recorded, state)
            await leave.wait()

    tasks = [asyncio.create_task(one(number)) for number in range(states)]
    for _ in tasks:
        await opened.acquire()
    # A connection's first commit also asks the server about its types.
    await handles[0].set("first", True)
    meter = Meter(writer_for(handles[0]._store, handles[0]._settings).store)
    started, cpu = time.monotonic(), cpu_seconds(pid)
    end = started + seconds
    begin.set()
    await asyncio.sleep(seconds)
    elapsed, cpu, statements = time.monotonic() - started, cpu_seconds(pid) - cpu, meter.statements
    give_up = time.monotonic() + LATEST_SECONDS
    while meter.missing() and time.monotonic() < give_up:  # noqa: ASYNC110 - the writer's thread rings no bell of ours
        await asyncio.sleep(0.1)
    lags = sorted([*meter.lags, *[math.inf] * meter.missing()])
    leave.set()
    await asyncio.gather(*tasks)
    return {
        "statements": statements / elapsed,
        "CPU": cpu / elapsed,
        "loop": loop,
        "durable after, p99": lags[math.ceil(len(lags) * 0.99) - 1],
        "durable after, at most": lags[-1],
    }


async def every_period(offset: float, end: float, times: list[float], state: TaskState | None = None) -> None:
    """Checkpoint (or only loop) once a period, noting when."""
    due = time.monotonic() + offset * PERIOD_SECONDS
    while due < end:
        await asyncio.sleep(due - time.monotonic())
        times.append(time.monotonic())
        if state is not None:
            await state.checkpoint(n=len(times))
        due += PERIOD_SECONDS


def cpu_seconds(pid: int) -> float:
    """What this process and all of the server's have used, those that have ended included."""
    first = psutil.Process(pid)
    live = [first.cpu_times(), *(child.cpu_times() for child in first.children(recursive=True))]
    ended = live[0].children_user + live[0].children_system
    return time.process_time() + ended + sum(times.user + times.system for times in live)


def main() -> None:
    dsn, pid, states, seconds = sys.argv[1:]
    seen = asyncio.run(measure(dsn, int(pid), int(states), float(seconds)))
    shutdown()
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main()
