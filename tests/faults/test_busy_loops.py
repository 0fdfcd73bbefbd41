"""What another process reads of a state whose event loop, or thread, never waits."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import busy
import pytest
from child import DSN_VARIABLE

from async_task_state.stores import sqlite_path
from async_task_state.writer import FLUSH_AT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECONDS = 4.0
GRACE_SECONDS = 0.3
LOOK_EVERY = 0.01
QUERY = (
    "SELECT value FROM {0}entry JOIN {0}scope ON id = scope_id"
    f" WHERE task_id = '{busy.SCOPE.task_id}' AND key = '{busy.KEY}'"
)

CASES = [
    *((kind, "asyncio") for kind in busy.EVERY),
    *((kind, where) for where in ("trio", "uvloop", "thread") for kind in ("checkpoint", "beside", "set")),
    *((kind, "sync") for kind in ("checkpoint", "done")),
]


@dataclass
class Seen:
    """What was seen of a state while its process was busy.

    Attributes:
        worst: How old the newest value was at most, in seconds.
        noise: How long this process itself took for a look and a commit of its own, at most.
        values: How many values were seen.
    """

    worst: float = 0.0
    noise: float = 0.0
    values: int = 0


def pytest_generate_tests(metafunc):
    if "run" in metafunc.fixturenames:
        metafunc.parametrize("run", range(metafunc.config.getoption("busy_runs")))


@contextmanager
def looks_at_sqlite(dsn: str) -> Iterator[Callable[[], float]]:
    path = sqlite_path(dsn)
    with (
        closing(sqlite3.connect(f"{path}.noise", isolation_level=None)) as own,
        closing(sqlite3.connect(path, isolation_level=None)) as db,
    ):
        own.execute("CREATE TABLE noise (at REAL)")

        def look() -> float:
            own.execute("INSERT INTO noise VALUES (?)", (time.time(),))
            return float(db.execute(QUERY.format("")).fetchone()[0])

        yield look


@contextmanager
def looks_at_postgres(dsn: str) -> Iterator[Callable[[], float]]:
    address, _, schema = dsn.partition("?schema=")
    loop = asyncio.new_event_loop()
    db = loop.run_until_complete(asyncpg.connect(address))
    try:
        loop.run_until_complete(db.execute("CREATE TABLE IF NOT EXISTS noise (at float8)"))

        async def look() -> float:
            await db.execute("INSERT INTO noise VALUES ($1)", time.time())
            return float(await db.fetchval(QUERY.format(f"{schema}.")))

        yield lambda: loop.run_until_complete(look())
    finally:
        loop.run_until_complete(db.close())
        loop.close()


@contextmanager
def busy_process(kind: str, where: str, dsn: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has its state open."""
    command = [sys.executable, str(Path(busy.__file__)), kind, where, str(SECONDS)]
    environment = {**os.environ, DSN_VARIABLE: dsn}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            process.kill()


def watch(dsn: str) -> Seen:
    """Look at the state for as long as its process is busy."""
    seen, values = Seen(), set()
    looks = looks_at_sqlite if dsn.startswith("sqlite:") else looks_at_postgres
    with looks(dsn) as look:
        end = time.time() + SECONDS - 2 * LOOK_EVERY
        while (began := time.time()) < end:
            value = look()
            now = time.time()
            values.add(value)
            seen.worst = max(seen.worst, began - value)
            time.sleep(LOOK_EVERY)
            seen.noise = max(seen.noise, now - began, time.time() - now - LOOK_EVERY)
    seen.values = len(values)
    return seen


@pytest.mark.parametrize(("kind", "where"), CASES, ids=["-".join(case) for case in CASES])
def test_g2_holds_in_a_loop_that_never_waits(kind, where, dsn, run, record_property):
    with busy_process(kind, where, dsn) as process:
        seen = watch(dsn)
        report = process.stdout.read().split("\n")
        assert process.wait() == 0
    calls, gap = int(report[-2].split()[0]), float(report[-2].split()[1])
    record_property("worst", round(seen.worst, 3))
    record_property("noise", round(seen.noise, 3))
    # A value grows older until the next call; where each call waits to be saved, that is no excuse.
    until_next = max(busy.EVERY[kind], 0.0 if kind == "set" else gap)
    allowed = busy.MAX_DELAY + until_next + GRACE_SECONDS + seen.noise
    assert seen.worst <= allowed, (seen, calls, gap)
    if kind == "set":
        # Each is durable before the next one begins, and none has to wait for the timer.
        assert calls > SECONDS / (busy.MAX_DELAY * FLUSH_AT)
    elif busy.EVERY[kind] < busy.MAX_DELAY:
        assert SECONDS / (busy.MAX_DELAY + until_next + seen.noise) <= seen.values + 1, (seen, calls, gap)
        assert seen.values <= SECONDS / (busy.MAX_DELAY * FLUSH_AT) + 2, (seen, calls)
    if kind == "openings":
        assert report[0] == "all open"
