"""Triggers that go on where the last process stood."""

from async_task_state.triggers.checkpoint import CheckpointTrigger
from async_task_state.triggers.files import ProcessFilesTrigger
from async_task_state.triggers.jobs import RemoteJobTrigger
from async_task_state.triggers.newfiles import NewFilesTrigger

__all__ = ["CheckpointTrigger", "NewFilesTrigger", "ProcessFilesTrigger", "RemoteJobTrigger"]
