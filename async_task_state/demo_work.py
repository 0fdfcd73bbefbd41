"""What the demo does with each file, and the journal that says so whatever the state says."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakKeyDictionary

import anyio

if TYPE_CHECKING:
    from async_task_state.state import TaskState

__all__ = ["Ran", "count_ran", "measure", "read_journal"]

SECONDS: Final = 0.05
"""What a file waits for, as real ones wait for a service: without it all are done before anybody can be killed."""

JOURNAL: Final = "demo.journal"

_commits_told: WeakKeyDictionary[TaskState, int] = WeakKeyDictionary()


class Ran(NamedTuple):
    """One call that ran to its end: when that was, in which process, with which file."""

    at: float
    pid: int
    path: str


async def measure(path: Path, state: TaskState) -> dict[str, int]:
    """The processor: read a file; what it returns is added to the totals as the file is recorded.

    The commits are those that this process has made since it last told.
    """
    content = await anyio.Path(path).read_bytes()
    await anyio.sleep(SECONDS)
    commits = state.stats.commits
    new_commits = commits - _commits_told.get(state, 0)
    _commits_told[state] = commits
    write_journal(Path(os.environ["AIRFLOW_HOME"]), path)
    return {"files": 1, "bytes": len(content), "commits": new_commits}


def write_journal(home: Path, path: Path) -> None:
    """Append a line in one write: a process that is killed leaves all of it or nothing."""
    journal = os.open(home / JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(journal, f"{time.time():.6f} {os.getpid()} {path}\n".encode())
    finally:
        os.close(journal)


def count_ran(home: Path) -> int:
    """How many calls have run to their end so far."""
    journal = home / JOURNAL
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def read_journal(home: Path) -> list[Ran]:
    """Every call that ran to its end, in order."""
    lines = (home / JOURNAL).read_text().splitlines()
    return [Ran(float(at), int(pid), path) for at, pid, path in (line.split(" ", 2) for line in lines)]
