"""What only some versions of Airflow have: asked here, and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from airflow.triggers.base import BaseEventTrigger

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["CONFIRMS_EVENTS", "NAMES_WATCHED_ASSETS", "watched_assets"]

CONFIRMS_EVENTS: Final = hasattr(BaseEventTrigger, "create_shared_stream_producer")
"""Whether an event trigger is told that its event is in Airflow's database: since 3.3."""

NAMES_WATCHED_ASSETS: Final = CONFIRMS_EVENTS
"""Whether an event trigger is told which assets it watches; the same version brought both."""


def watched_assets(trigger: Any) -> Collection[str]:
    """The names of the assets that an event trigger watches, as far as Airflow has told it."""
    accessors = getattr(trigger, "asset_state_store", None)
    # Airflow keeps them here and has no public way to list them.
    return list(getattr(accessors, "_by_name", ()))
