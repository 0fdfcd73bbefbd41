"""Saves what is pending before an Airflow process leaves by `os._exit`, which runs no `atexit`."""

from __future__ import annotations

import sys

from pluggy import HookimplMarker

__all__ = ["before_stopping"]

hookimpl = HookimplMarker("airflow")


@hookimpl
def before_stopping(component: object) -> None:  # noqa: ARG001 - the hook's signature
    """Drain every store this process has written to."""
    # Every Airflow process loads this; one that never opened a state has nothing to load.
    lifetime = sys.modules.get("async_task_state.lifetime")
    if lifetime is not None:
        lifetime.drain()
