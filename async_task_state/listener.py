"""What is done when an Airflow task ends: what is pending is saved, and what succeeded is cleaned up after."""

from __future__ import annotations

import logging
import sys
from typing import Any

from pluggy import HookimplMarker

__all__ = ["before_stopping", "on_task_instance_success"]

hookimpl = HookimplMarker("airflow")

log = logging.getLogger(__name__)


@hookimpl
def on_task_instance_success(previous_state: object, task_instance: Any) -> None:  # noqa: ARG001 - the hook's signature
    """Delete the task's state where `[async_task_state] clear_on_success` says so."""
    from async_task_state.errors import (  # noqa: PLC0415 - every Airflow process loads this
        AsyncTaskStateError,
        StaleAttemptError,
    )
    from async_task_state.settings import load_settings  # noqa: PLC0415

    # In the task's own process: what a user marks as a success in the API server has not run there.
    if not type(task_instance).__module__.startswith("airflow.sdk.") or not load_settings().clear_on_success:
        return
    from async_task_state.upkeep import clear_state_of  # noqa: PLC0415

    try:
        clear_state_of(task_instance)
    except StaleAttemptError as error:
        log.info("the state is left to a later attempt: %s", error)
    except AsyncTaskStateError as error:
        log.error("the state of a task that succeeded is not cleared: %s", error)  # noqa: TRY400 - it says all


@hookimpl
def before_stopping(component: object) -> None:  # noqa: ARG001 - the hook's signature
    """Drain every store this process has written to: Airflow's task processes leave without running `atexit`."""
    # Every Airflow process loads this; one that never opened a state has nothing to load.
    lifetime = sys.modules.get("async_task_state.lifetime")
    if lifetime is not None:
        lifetime.drain()
