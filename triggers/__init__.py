"""Triggers that go on where the last process stood."""

from async_task_state.triggers.checkpoint import CheckpointTrigger
from async_task_state.triggers.files import ProcessFilesTrigger

__all__ = ["CheckpointTrigger", "ProcessFilesTrigger"]
