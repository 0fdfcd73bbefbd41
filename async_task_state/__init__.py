"""Durable async state for Airflow's deferrable triggers and async tasks."""

from async_task_state.errors import (
    AsyncTaskStateError,
    InvalidArgumentError,
    InvalidItemError,
    InvalidKeyError,
    InvalidValueError,
    NoScopeError,
    ProcessorError,
    ReadOnlyStateError,
    SettingsError,
    SourceError,
    StaleAttemptError,
    StaleWriterError,
    StateNotOpenError,
    StoreError,
    StoreUnavailableError,
    ValueTooLargeError,
    WorkFailedError,
)
from async_task_state.pending import Stats
from async_task_state.scopes import TaskScope
from async_task_state.settings import NEVER_EXPIRE, Settings
from async_task_state.state import TaskState, task_state
from async_task_state.work import Failure, WorkCounts, WorkSet, WorkSummary

__all__ = [
    "NEVER_EXPIRE",
    "AsyncTaskStateError",
    "Failure",
    "InvalidArgumentError",
    "InvalidItemError",
    "InvalidKeyError",
    "InvalidValueError",
    "NoScopeError",
    "ProcessorError",
    "ReadOnlyStateError",
    "Settings",
    "SettingsError",
    "SourceError",
    "StaleAttemptError",
    "StaleWriterError",
    "StateNotOpenError",
    "Stats",
    "StoreError",
    "StoreUnavailableError",
    "TaskScope",
    "TaskState",
    "ValueTooLargeError",
    "WorkCounts",
    "WorkFailedError",
    "WorkSet",
    "WorkSummary",
    "task_state",
]
