"""What the DAGs of these tests share; imported by tasks and triggers alike."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import anyio
from airflow.triggers.base import TriggerEvent

from async_task_state.triggers import CheckpointTrigger

if TYPE_CHECKING:
    from pathlib import Path


def log_to(journal: str, **what: Any) -> None:
    """Append a line at once: what it says stays said, whatever dies next."""
    line = json.dumps({**what, "pid": os.getpid(), "at": time.time()}) + "\n"
    descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def files_journal() -> str:
    """Where the processors say what they did: a processor is told its file and no more."""
    return f"{os.environ['AIRFLOW_HOME']}/files.journal"


async def slow_lines(path: Path) -> dict[str, int]:
    """A processor: takes a moment, says that it ran, and counts."""
    await anyio.sleep(0.01)
    log_to(files_journal(), file=str(path))
    return {"files": 1, "bytes": (await anyio.Path(path).stat()).st_size}


def plain_lines(path: Path) -> dict[str, int]:
    """The same as a plain function."""
    time.sleep(0.005)
    log_to(files_journal(), file=str(path))
    return {"files": 1, "bytes": path.stat().st_size}


class Steps(CheckpointTrigger):
    """Counts to `steps`, a work item each, and tells when its author's hook is called."""

    def __init__(self, journal: str, steps: int, seconds: float = 0.02, leg: int = 1) -> None:
        super().__init__()
        self.journal = journal
        self.steps = steps
        self.seconds = seconds
        self.leg = leg

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path and the arguments."""
        arguments = {"journal": self.journal, "steps": self.steps, "seconds": self.seconds, "leg": self.leg}
        return "crash_helpers.Steps", arguments

    async def run_with_state(self, state):
        """Take the steps that are left."""
        log_to(self.journal, begun=self.leg, resumed=state.resumed)
        work = state.work("steps")
        for step in work.remaining(range(self.steps)):
            await anyio.sleep(self.seconds)
            log_to(self.journal, step=step, leg=self.leg)
            await work.done(step, sum=await state.get("sum", 0) + step)
        yield TriggerEvent({"sum": await state.get("sum"), "done": work.counts.done, "leg": self.leg})

    async def on_user_kill(self, state):
        """Tell, and what the state says."""
        log_to(self.journal, killed=await state.get("sum", 0))


class StepsInAirflow(Steps):
    """The same in Airflow's own store, which a trigger cannot reach."""

    store = "airflow:"


class StepsInStore(Steps):
    """The same in a store of its own."""

    def __init__(self, store: str | None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.store = store

    def serialize(self):
        """The class path and the arguments."""
        _, arguments = super().serialize()
        return "crash_helpers.StepsInStore", {"store": self.store, **arguments}


class FailingSteps(Steps):
    """Fails half way in the first attempt."""

    def serialize(self):
        """The class path and the arguments."""
        _, arguments = super().serialize()
        return "crash_helpers.FailingSteps", arguments

    async def run_with_state(self, state):
        """Take half of the steps, or those that are left."""
        if state.attempt == 1:
            self.steps //= 2
        async for event in super().run_with_state(state):
            if state.attempt == 1:
                raise RuntimeError("the first attempt fails")
            yield event
