"""Tools for the tests of those who build on this library: stores, and triggers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from async_task_state.testing.conformance import StoreConformance

if TYPE_CHECKING:
    from async_task_state.testing.triggers import TriggerRun, run_trigger

__all__ = ["StoreConformance", "TriggerRun", "run_trigger"]


def __getattr__(name: str) -> Any:
    # A store's author need not wait for Airflow to load.
    if name in ("TriggerRun", "run_trigger"):
        from async_task_state.testing import triggers  # noqa: PLC0415 - the point of it

        return getattr(triggers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
