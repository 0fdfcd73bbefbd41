"""What only some versions of Airflow have: asked here, and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from airflow.configuration import conf
from airflow.triggers.base import BaseEventTrigger

if TYPE_CHECKING:
    from collections.abc import Collection

    from airflow.configuration import AirflowConfigParser

__all__ = ["CONFIRMS_EVENTS", "NAMES_WATCHED_ASSETS", "config_with", "watched_assets"]

CONFIRMS_EVENTS: Final = hasattr(BaseEventTrigger, "create_shared_stream_producer")
"""Whether an event trigger is told that its event is in Airflow's database: since 3.3."""

NAMES_WATCHED_ASSETS: Final = CONFIRMS_EVENTS
"""Whether an event trigger is told which assets it watches; the same version brought both."""


def config_with(section: str, option: str) -> AirflowConfigParser:
    """Airflow's config, which knows that an option is sensitive: one that is may come from a command or a secret.

    Airflow 3.1 knows what providers say of their options in its own commands only, until it is told to look.
    """
    if (section, option) not in conf.sensitive_config_values:
        from airflow.providers_manager import ProvidersManager  # noqa: PLC0415 - of Airflow 3.1 only

        ProvidersManager().initialize_providers_configuration()
    return conf


def watched_assets(trigger: Any) -> Collection[str]:
    """The names of the assets that an event trigger watches, as far as Airflow has told it."""
    accessors = getattr(trigger, "asset_state_store", None)
    # Airflow keeps them here and has no public way to list them.
    return list(getattr(accessors, "_by_name", ()))
