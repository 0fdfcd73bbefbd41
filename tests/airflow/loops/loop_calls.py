"""What the tasks and triggers in loops call: each call is a line of the journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk import BaseOperator
from airflow.triggers.base import TriggerEvent
from crash_helpers import files_journal, log_to

from async_task_state import task_state_sync
from async_task_state.triggers import CheckpointTrigger

if TYPE_CHECKING:
    from pathlib import Path


class CountTrigger(CheckpointTrigger):
    """Counts, in the state over all iterations and in the iteration's own."""

    def serialize(self):
        return "loop_calls.CountTrigger", {}

    async def run_with_state(self, state):
        async with self.task_state(across_iterations=True) as over:
            await over.set("n", await over.get("n", 0) + 1)
            await state.set("n", await state.get("n", 0) + 1)
            yield TriggerEvent([await over.get("n"), await state.get("n"), over.attempt])


class CountIterations(BaseOperator):
    """The same on the worker, by the sync door, or in the triggerer."""

    def __init__(self, *, deferrable, **kwargs):
        super().__init__(**kwargs)
        self.deferrable = deferrable

    def execute(self, context):
        if self.deferrable:
            self.defer(trigger=CountTrigger(), method_name="execute_complete")
        with task_state_sync() as state, task_state_sync(across_iterations=True) as over:
            over.set("n", over.get("n", 0) + 1)
            state.set("n", state.get("n", 0) + 1)
            counted = [over.get("n"), state.get("n"), over.attempt]
        log_to(files_journal(), of=self.dag.dag_id, counted=counted)

    def execute_complete(self, context, event):
        with task_state_sync(across_iterations=True) as over:
            log_to(files_journal(), of=self.dag.dag_id, counted=[over.get("n"), *event[1:]])


def read(path: Path) -> dict[str, int]:
    """A processor."""
    log_to(files_journal(), file=path.name, of=path.parent.name)
    return {"bytes": path.stat().st_size}


def submit(name: str, idempotency_key: str) -> str:
    log_to(files_journal(), submitted=name, key=idempotency_key)
    return idempotency_key


def poll(job_id: str) -> str:
    return "SUCCEEDED"


def cancel(job_id: str) -> None:
    log_to(files_journal(), cancelled=job_id)


def result(job_id: str) -> str:
    return job_id
