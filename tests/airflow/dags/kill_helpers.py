"""A trigger that watches a job of its own, and says when its author's hook is called for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
from airflow.triggers.base import TriggerEvent
from crash_helpers import log_to

from async_task_state.triggers import CheckpointTrigger

if TYPE_CHECKING:
    from async_task_state import TaskState


class WatchJob(CheckpointTrigger):
    """Begins a job, and waits for a file that says that it has ended."""

    def __init__(self, journal: str, job: str) -> None:
        super().__init__()
        self.journal = journal
        self.job = job

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path and the arguments."""
        return "kill_helpers.WatchJob", {"journal": self.journal, "job": self.job}

    async def run_with_state(self, state: TaskState) -> Any:
        """Begin it, once an attempt, and wait."""
        job = f"{self.job} of {state.attempt}"
        await state.set("job", job)
        log_to(self.journal, begun=job, attempt=state.attempt, cleared=state.cleared)
        while not await anyio.Path(f"{self.journal}.end").exists():
            await state.checkpoint(polls=await state.get("polls", 0) + 1)
            await anyio.sleep(0.2)
        yield TriggerEvent(job)

    async def on_user_kill(self, state: TaskState) -> None:
        """Say which job is cancelled."""
        log_to(self.journal, killed=await state.get("job"))
