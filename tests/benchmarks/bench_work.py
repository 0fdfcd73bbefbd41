"""Work sets: what an item costs in time and space, few or many, and what it takes to open a large one again."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from statistics import median

import anyio
from bench_measure import Line, Plan, state_in

from async_task_state.lifetime import shutdown

FEW_RUNS = 10


def files(plan: Plan) -> list[Line]:
    each: dict[int, list[float]] = {1000: [], 100_000: [], 1_000_000: []}
    stored, values = [], []
    for _ in range(plan.repeat):
        # The short runs on both sides of the long one, for the machine may be slower at one end of it.
        few = [one_run(plan.new_file(), plan.scaled(1000, least=100)) for _ in range(FEW_RUNS)]
        each[100_000].append(one_run(plan.new_file(), plan.scaled(100_000)))
        file, many = plan.new_file(), plan.scaled(1_000_000)
        each[1_000_000].append(one_run(file, many))
        few += [one_run(plan.new_file(), plan.scaled(1000, least=100)) for _ in range(FEW_RUNS)]
        each[1000].append(median(few))
        stored.append(file.stat().st_size / many)
        with closing(sqlite3.connect(file)) as db:
            values.append(db.execute("SELECT SUM(LENGTH(value)) FROM entry").fetchone()[0] / many)
    return [
        Line("process(), 100,000 files, no-op fn", "us/file", each[100_000], 20, "<"),
        Line(
            "process(), 1,000,000 files",
            "us/file",
            each[1_000_000],
            1.3,
            "<=",
            "1,000 files",
            each[1000],
            "ratio",
        ),
        Line("stored, 1,000,000 done: the file", "bytes/item", stored, 24, "<="),
        Line("stored, 1,000,000 done: the values", "bytes/item", values, 24, "<="),
    ]


def one_run(file: Path, count: int) -> float:
    """Microseconds an item; the file is closed, its log folded in, when this returns."""
    try:
        return anyio.run(process, file, count) / count * 1e6
    finally:
        shutdown()


async def process(file: Path, count: int) -> float:
    async def nothing(_path: str) -> None:
        pass

    paths = [f"/data/incoming/part-{number:07d}.csv" for number in range(count)]
    async with state_in(file) as state:
        started = time.perf_counter()
        summary = await state.work("files").process(paths, nothing)
        elapsed = time.perf_counter() - started
    if summary.done != count:
        raise AssertionError(summary)
    return elapsed


def reopen(plan: Plan) -> list[Line]:
    file, count = plan.new_file(), plan.scaled(1_000_000)
    one_run(file, count)
    seconds, growth = [], []
    for _ in range(plan.repeat):
        command = [sys.executable, __file__, str(file), str(count)]
        seen = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        seconds.append(seen["seconds"])
        growth.append(seen["megabytes"])
    return [
        Line("opening again, 1,000,000 done", "s", seconds, 2, "<"),
        Line("the same: peak memory above the imports", "MB", growth, 200, "<"),
    ]


async def open_again(file: Path, count: int) -> float:
    started = time.perf_counter()
    async with state_in(file) as state:
        done = state.work("files").counts.done
        elapsed = time.perf_counter() - started
    if done != count:
        raise AssertionError(done)
    return elapsed


def resident(what: str) -> float:
    """Memory of this process in MB: `VmRSS` now, `VmHWM` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{what}:"))
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    """Open the state of a file, in this fresh process, and say what that took."""
    before = resident("VmRSS")
    seconds = anyio.run(open_again, Path(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.write(json.dumps({"seconds": seconds, "megabytes": resident("VmHWM") - before}))


if __name__ == "__main__":
    main()
