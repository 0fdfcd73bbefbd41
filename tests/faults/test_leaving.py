"""The promises that hold however a process stops running its own code: frozen, blocked, abandoned, ended."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import time
from signal import SIGCONT

import alarmed
import anyio
import child
import leaver
import pytest
from killing import MARGIN, PATIENCE, Left, check, spawned, take_over

from async_task_state import TaskState
from async_task_state.digests import digest_of

RECORDED = Left({"a": 2, "b": 2}, {digest_of(1)})
LONG = 3600
SHORT = 0.2


def peek(dsn) -> Left:
    """What the state holds, without taking its lease."""

    async def read():
        settings = child.settings_of(dsn, 1.0)
        async with TaskState(child.scope_of("only"), store=dsn, settings=settings, read_only=True) as state:
            return Left(await state.get_all(), set(state.work("items")._done))

    return anyio.run(read)


def until(condition, seconds):
    """Ask again and again; whether it became true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def frozen_between_commits(process, dsn) -> bool:
    """Stop a process; if it has SQLite's lock, which nobody could then take, let it go on."""
    process.freeze()
    if not dsn.startswith("sqlite:"):
        # A server takes back what a frozen client has locked.
        return True
    path = dsn.removeprefix("sqlite:///")
    with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as db:
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            process.send(SIGCONT)
            return False
    return True


@pytest.mark.parametrize("seed", range(4))
def test_g4_a_process_frozen_while_another_takes_over_changes_nothing_when_it_goes_on(dsn, seed):
    with spawned(dsn, child.__file__, "only", seed, SHORT) as process:
        assert process.listen(PATIENCE, until=child.OPENED)
        process.listen(0.3)
        assert until(lambda: frozen_between_commits(process, dsn), PATIENCE)
        seen = take_over(dsn, "only")
        process.send(SIGCONT)
        assert process.listen(PATIENCE, until=child.FENCED)
        process.wait(0)
    assert take_over(dsn, "only") == seen
    check(seed, Left(), process.reports, seen, float("-inf"))


def test_g2_what_an_abandoned_loop_has_recorded_is_saved(dsn):
    with spawned(dsn, leaver.__file__, "abandons", "only", SHORT) as process:
        assert process.listen(PATIENCE, until=leaver.ABANDONED)
        assert until(lambda: peek(dsn) == RECORDED, SHORT + MARGIN)
        process.kill()
    assert take_over(dsn, "only") == RECORDED


def test_g2_what_was_recorded_before_the_loop_was_blocked_is_saved(dsn):
    with spawned(dsn, leaver.__file__, "blocks", "only", SHORT) as process:
        assert process.listen(PATIENCE, until=child.RECORDED)
        assert until(lambda: peek(dsn) == RECORDED, SHORT + MARGIN)
        process.kill()
    assert take_over(dsn, "only") == RECORDED


@pytest.mark.parametrize(("way", "status"), [("returns", 0), ("idles", 0), ("raises", 1)])
def test_g6_an_interpreter_that_ends_saves_what_a_state_that_was_not_left_has_recorded(dsn, way, status):
    # By its name, which is harder: an interpreter that ends starts no thread that could resolve it.
    dsn = dsn.replace("127.0.0.1", "localhost")
    with spawned(dsn, leaver.__file__, way, "only", LONG) as process:
        process.wait(status)
    assert take_over(dsn, "only") == RECORDED


def test_g6_drain_saves_everything_before_a_process_leaves_without_exit_handlers(dsn):
    with spawned(dsn, leaver.__file__, "drains", "only", LONG) as process:
        process.wait(0)
    assert take_over(dsn, "only") == RECORDED


def test_g3_an_alarm_that_raises_inside_a_call_leaves_all_of_the_call_or_nothing(base_seed):
    done = subprocess.run(
        [sys.executable, alarmed.__file__, "300", str(base_seed)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
