"""What only some versions of Airflow have: asked here, and nowhere else."""

from __future__ import annotations

import sys
from inspect import signature
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from airflow.configuration import AirflowConfigParser

__all__ = [
    "DAG_PARSERS",
    "asks_at_clear",
    "config_with",
    "confirms_events",
    "current_rows",
    "gates_of_loops",
    "has_task_store",
    "index_over_iterations",
    "iteration_of",
    "names_watched_assets",
    "place_in_region",
    "releases_moved_triggers",
    "takes_trigger_queue",
    "task_store_of",
    "watched_assets",
]

DAG_PARSERS: Final = frozenset({"airflow.dag_processing.dagbag", "airflow.models.dagbag"})
"""The modules that run DAG files; which of the two depends on the version."""
LOOP_GATE: Final = "LoopGateOperator"
NO_REGION: Final = UUID(int=0)


def place_in_region(task_instance: Any) -> tuple[int, UUID | None]:
    """The index that tells a task instance from others of its task, and the region in which it does; None outside of one.

    Since Airflow 3.4 every loop has a region, and every expansion of a mapped task. All iterations of a loop have the
    map index -1.

    Args:
        task_instance: A worker's, a trigger's, or the scope that Airflow makes of one.
    """
    region = getattr(task_instance, "region_id", None)
    if region == NO_REGION:
        region = None
    index = None if region is None else getattr(task_instance, "region_index", None)
    if index is None:
        index = getattr(task_instance, "map_index", None)
    return -1 if index is None else index, region


def index_over_iterations(task_instance: Any) -> int | None:
    """The index that all iterations of a loop have in common: a mapped task's, or -1; None outside of regions.

    Nothing tells a trigger whether a mapped task is in a loop, so one that is in none has such an index as well.
    """
    _, region = place_in_region(task_instance)
    return None if region is None else int(getattr(task_instance, "map_index", -1))


def iteration_of(task_instance: Any, context: Mapping[str, Any] | None = None) -> int | None:
    """The iteration of a loop that a task instance is of, as far as it is known; None outside of loops.

    Args:
        task_instance: A worker's or a trigger's.
        context: The running task's, which alone knows it of a mapped task.
    """
    loop = None if context is None else context.get("loop")
    if loop is not None:
        return int(loop.index)
    index, region = place_in_region(task_instance)
    return index if region is not None and index_over_iterations(task_instance) == -1 else None


def current_rows(model: Any, region: UUID | None) -> list[Any]:
    """Conditions for rows of Airflow's table of task instances, which since 3.4 keeps attempts that are over beside the last.

    Args:
        model: Of that table.
        region: The only one that is wanted; None takes any.
    """
    conditions = [model.working_set.is_(True)] if hasattr(model, "working_set") else []
    return conditions if region is None else [*conditions, model.region_id == region]


def gates_of_loops(model: Any) -> list[Any] | None:
    """Conditions for the rows of that table that decide whether a loop makes another iteration; None before 3.4.

    A gate ends in the transaction that makes the next iteration, of which it has one as well.
    """
    return [model.operator == LOOP_GATE] if hasattr(model, "region_id") else None


def has_task_store() -> bool:
    """Whether Airflow has a state store of its own: since 3.3."""
    try:
        from airflow.sdk.execution_time.context import TaskStateStoreAccessor  # noqa: F401, PLC0415 - takes a second
    except ImportError:
        return False
    return True


def task_store_of(trigger: Any) -> Any:
    """A trigger's accessor of its task's keys in Airflow's store; None where this Airflow gives triggers none."""
    accessor = getattr(trigger, "task_state_store", None)
    return accessor if hasattr(accessor, "aget") else None


def asks_at_clear() -> bool:
    """Whether a user who clears a task is asked what becomes of its state, and Airflow deletes it if not kept: since 3.4."""
    from airflow import __version__  # noqa: PLC0415 - loaded long ago where it matters

    major, minor = __version__.split(".")[:2]
    return (int(major), int(minor)) >= (3, 4)


def reaches_task_store(trigger: Any) -> bool:
    """Whether this Airflow lets triggers reach the task store: every trigger has an accessor then, None outside triggerers."""
    return hasattr(trigger, "task_state_store")


def releases_moved_triggers() -> bool:
    """Whether this triggerer drops a trigger that another one has taken over without calling its `on_kill`: since 3.4."""
    return hasattr(sys.modules.get("airflow.jobs.triggerer_job_runner"), "_REASSIGNED_CANCEL_MSG")


def confirms_events() -> bool:
    """Whether an event trigger is told that its event is in Airflow's database: since 3.3."""
    from airflow.triggers.base import BaseEventTrigger  # noqa: PLC0415 - takes a second

    return hasattr(BaseEventTrigger, "create_shared_stream_producer")


def names_watched_assets() -> bool:
    """Whether an event trigger is told which assets it watches; the same version brought both."""
    return confirms_events()


def config_with(section: str, option: str) -> AirflowConfigParser:
    """Airflow's config, which knows that an option is sensitive: one that is may come from a command or a secret.

    Airflow 3.1 knows what providers say of their options in its own commands only, until it is told to look.
    """
    from airflow.configuration import conf  # noqa: PLC0415 - takes a second

    if (section, option) not in conf.sensitive_config_values:
        from airflow.providers_manager import ProvidersManager  # noqa: PLC0415 - of Airflow 3.1 only

        ProvidersManager().initialize_providers_configuration()
    return conf


def takes_trigger_queue() -> bool:
    """Whether an event trigger may say which triggerers run it: since 3.4."""
    from airflow.triggers.base import BaseEventTrigger  # noqa: PLC0415 - takes a second

    return "queue" in signature(BaseEventTrigger.__init__).parameters


def watched_assets(trigger: Any) -> Collection[str]:
    """The names of the assets that an event trigger watches, as far as Airflow has told it."""
    accessors = getattr(trigger, "asset_state_store", None)
    # Airflow keeps them here and has no public way to list them.
    return list(getattr(accessors, "_by_name", ()))
