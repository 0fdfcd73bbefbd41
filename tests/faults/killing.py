"""Kills `child.py` and checks what it left against what it had been told."""

from __future__ import annotations

import itertools
import os
import random
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import anyio
import child

from async_task_state import TaskState
from async_task_state.stores import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_DELAYS = (0.01, 0.1)
MARGIN = 2.0
"""How much later than `max_delay` a machine that is busy with other things may be."""
OPENING = 0.15
"""What opening a new database takes, and a little more."""
PATIENCE = 60.0
"""For what must happen and is waited for."""


class Report(NamedTuple):
    what: bytes
    number: int
    at: float


@dataclass
class Left:
    """What a scope holds: its keys, and the digests of the items that are done."""

    keys: dict[str, int] = field(default_factory=dict)
    done: set[bytes] = field(default_factory=set)


class Child:
    """The running process and what it has reported so far."""

    def __init__(self, dsn: str, script: str, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, script, *map(str, arguments)],
            env={**os.environ, child.DSN_VARIABLE: dsn},
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._bytes = b""
        self.reports: list[Report] = []

    def listen(self, seconds: float, *, until: bytes | None = None) -> bool:
        """Take in reports, which never lets the child wait; whether the one that ends it came in time."""
        deadline = time.monotonic() + seconds
        stream = self._process.stdout
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([stream], [], [], left)[0]:
                return False
            chunk = os.read(stream.fileno(), 1 << 16)
            if not chunk:
                raise AssertionError(f"the child ended by itself, with {self._process.wait()}")
            if self._take_in(chunk, until):
                return True
        return False

    def kill(self) -> float:
        """Kill it with SIGKILL and take in its last words; when it was killed."""
        moment = time.monotonic()
        self.send(signal.SIGKILL)
        self.wait(-signal.SIGKILL)
        return moment

    def freeze(self) -> None:
        """Stop it, and wait for that: until one of its threads has the processor again, the others work on."""
        self.send(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, expected: int) -> None:
        """Take in its last words and how it ended."""
        self._take_in(self._process.communicate()[0], None)
        ended = self._process.returncode
        assert ended == expected, f"the child ended with {ended}, not {expected}"

    def _take_in(self, chunk: bytes, until: bytes | None) -> bool:
        data = self._bytes + chunk
        whole = len(data) - len(data) % child.REPORT.size
        self._bytes = data[whole:]
        new = [Report(*fields) for fields in child.REPORT.iter_unpack(data[:whole])]
        self.reports += new
        return any(report.what == until for report in new)


@contextmanager
def spawned(dsn: str, script: str, *arguments: object) -> Iterator[Child]:
    process = Child(dsn, script, *arguments)
    try:
        yield process
    finally:
        process._process.kill()
        process._process.wait()
        process._process.stdout.close()


def kill_once(dsn: str, run_id: str, seed: int, before: Left, way: str | None = None) -> Left:
    """Start a child, kill it at a random moment, check all promises; what it left."""
    chance = random.Random(f"kill {seed}")
    way = way or chance.choices(("early", "soon", "late", "overtaken"), (10, 62, 8, 20))[0]
    max_delay = chance.choice(MAX_DELAYS)
    with spawned(dsn, child.__file__, run_id, seed, max_delay) as process:
        if way == "early":
            assert process.listen(PATIENCE, until=child.BEGUN), f"seed {seed}: the process does not begin"
            process.listen(chance.uniform(0, OPENING))
            killed_at = process.kill()
        else:
            assert process.listen(PATIENCE, until=child.OPENED), f"seed {seed}: the state is not opened"
            process.listen(max_delay + MARGIN + 0.3 if way == "late" else chance.uniform(0, 0.4))
            if way == "overtaken":
                killed_at = time.monotonic()
                seen = take_over(dsn, run_id)
                assert process.listen(PATIENCE, until=child.FENCED), f"G4, seed {seed}: the stale is not told"
                process.wait(0)
            else:
                killed_at = process.kill()
    left = take_over(dsn, run_id)
    if way == "overtaken":
        assert left == seen, f"G4, seed {seed}: a stale writer has changed the state"
    check(seed, before, process.reports, left, killed_at - max_delay - MARGIN)
    return left


def take_over(dsn: str, run_id: str) -> Left:
    """Open the state, which fences whoever had it, and prove that; what the state holds."""
    return anyio.run(_take_over, dsn, run_id)


async def _take_over(dsn: str, run_id: str) -> Left:
    scope = child.scope_of(run_id)
    async with TaskState(scope, store=dsn, settings=child.settings_of(dsn, 1.0)) as state:
        left = Left(await state.get_all(), set(state.work("items")._done))
        writer, lease = state._pending._writer, state._pending.lease
        stale = replace(lease, epoch=lease.epoch - 1)
        fenced = await writer.call(writer.store.commit, [Batch(stale, {"a": ("-1", None)}, cleared=True)])
        assert stale in fenced, "G4: the lease of a killed process still counts"
        return left


def check(seed: int, before: Left, reports: list[Report], left: Left, due: float) -> None:
    """G1, G2 and G3 for what one child has left; what it had recorded by `due` must be there."""
    durable = recorded = started = seed * child.CALLS_A_SEED - 1
    for report in reports:
        if report.what == child.DURABLE:
            durable = report.number
        if report.at < due:
            recorded = report.number
        # What it has done since its last report, it has not reported; a call that is under way may have been saved.
        started = report.number + child.REPORT_EVERY + 1
    found = newest_call(seed, before, left, started)
    told = f"seed {seed}: told durable {durable}, recorded long before the kill {recorded}, begun at most {started}"
    assert found is not None, f"G3, {told}: what is left is the state after none of the calls: {left.keys}"
    assert found >= durable, f"G1, {told}: what is left is the state after {found}"
    assert found >= recorded, f"G2, {told}: what is left is the state after {found}"


def newest_call(seed: int, before: Left, left: Left, last: int) -> int | None:
    """The newest call after which the state was what is left."""
    keys, done = dict(before.keys), set(before.done)
    found = None if (keys, done) != (left.keys, left.done) else seed * child.CALLS_A_SEED - 1
    for kind, number in itertools.takewhile(lambda call: call[1] <= last, child.calls(seed)):
        child.apply(kind, number, keys, done)
        if keys == left.keys and len(done) == len(left.done) and done == left.done:
            found = number
    return found
