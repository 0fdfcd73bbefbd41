"""Durable async state for Airflow's deferrable triggers and async tasks."""

from async_task_state.errors import (
    AsyncTaskStateError,
    EventLoopRunningError,
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
from async_task_state.scopes import AssetScope, TaskScope
from async_task_state.settings import NEVER_EXPIRE, Settings
from async_task_state.state import AssetState, TaskState, asset_state, task_state
from async_task_state.sync import (
    SyncAssetState,
    SyncTaskState,
    SyncWorkSet,
    asset_state_sync,
    task_state_sync,
)
from async_task_state.work import Failure, WorkCounts, WorkSet, WorkSummary

__all__ = [
    "NEVER_EXPIRE",
    "AssetScope",
    "AssetState",
    "AsyncTaskStateError",
    "EventLoopRunningError",
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
    "SyncAssetState",
    "SyncTaskState",
    "SyncWorkSet",
    "TaskScope",
    "TaskState",
    "ValueTooLargeError",
    "WorkCounts",
    "WorkFailedError",
    "WorkSet",
    "WorkSummary",
    "asset_state",
    "asset_state_sync",
    "task_state",
    "task_state_sync",
]
