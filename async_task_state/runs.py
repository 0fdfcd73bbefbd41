"""Which run of a DAG a state is of: one that is deleted and made again under the same id is another run."""

from __future__ import annotations

import enum
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Final
from uuid import UUID

__all__ = ["Relation", "Run", "relation", "run_of"]

IN_ORDER_OF_TIME: Final = 7
"""The version of UUID that Airflow gives its task instances."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a DAG, as far as a task, a trigger or Airflow's API server knows it.

    No number that a run keeps for good reaches a task, so a run is known by what changes only in the ways said here.

    Args:
        instance: Airflow's id of the task instance that runs in it: one for each attempt, over all its deferrals. A
            later attempt has a later one.
        started: When the run was started. Retries leave it as it is; a clear of a run that has ended changes it.
        clears: How often a user has cleared the run; goes up at every such clear.
    """

    instance: UUID | None = None
    started: datetime | None = None
    clears: int = 0

    @property
    def text(self) -> str:
        """How a store keeps it."""
        instance = "" if self.instance is None else str(self.instance)
        started = "" if self.started is None else self.started.isoformat()
        return f"{instance} {started} {self.clears}"

    @classmethod
    def parse(cls, text: str) -> Run | None:
        """What a store has kept; None where that names no run."""
        with suppress(ValueError):
            instance, started, clears = text.split(" ")
            moment = datetime.fromisoformat(started) if started else None
            if moment is None or moment.tzinfo is not None:
                return cls(UUID(instance) if instance else None, moment, int(clears))
        return None

    def completed_by(self, earlier: Run | None) -> Run:
        """This, with the start that an earlier holder has known, where this one does not know it."""
        if earlier is None or self.started is not None:
            return self
        return replace(self, started=earlier.started, clears=earlier.clears)


class Relation(enum.Enum):
    """What a run that comes is to the run that has left a state."""

    SAME = enum.auto()
    NEWER = enum.auto()
    OLDER = enum.auto()


def relation(run: Run | None, attempt: int | None, left_by: Run | None, held: int) -> Relation:
    """What a run that comes is to the run that has left a state; the same where nothing tells them apart.

    Args:
        run: The run that comes.
        attempt: Its attempt of the task, where that is known.
        left_by: The run that has left the state.
        held: The attempt that has held the state last.
    """
    if run is None or left_by is None or (run.instance is not None and run.instance == left_by.instance):
        return Relation.SAME
    # Attempts only go up within a run.
    goes_up = attempt is None or attempt > held
    if run.started is not None and left_by.started is not None:
        if run.started <= left_by.started:
            return Relation.SAME if run.started == left_by.started else Relation.OLDER
        return Relation.SAME if goes_up and run.clears > left_by.clears else Relation.NEWER
    if run.instance is None or left_by.instance is None:
        return Relation.SAME
    if run.instance < left_by.instance:
        return Relation.OLDER
    return Relation.SAME if goes_up else Relation.NEWER


def run_of(task_instance: Any, dag_run: Any = None) -> Run | None:
    """The run that a task instance of Airflow's is in; None where nothing tells it from others.

    Args:
        task_instance: A task's or a trigger's.
        dag_run: Airflow's record of the run; None takes it from the task instance, where that has one. Most triggers'
            have none.
    """
    if dag_run is None and hasattr(task_instance, "get_template_context"):
        dag_run = task_instance.get_template_context().get("dag_run")
    started = _start_of(dag_run)
    clears = 0 if started is None else dag_run.clear_number or 0
    run = Run(_instance_of(task_instance), started, clears)
    return None if run == Run() else run


def _instance_of(task_instance: Any) -> UUID | None:
    given = getattr(task_instance, "id", None)
    with suppress(ValueError):
        instance = UUID(str(given))
        return instance if instance.version == IN_ORDER_OF_TIME else None
    return None


def _start_of(dag_run: Any) -> datetime | None:
    started = getattr(dag_run, "start_date", None)
    # dag.test() starts every run of a logical date at that date, which so tells none of them from another.
    if started is None or started in (dag_run.logical_date, dag_run.run_after):
        return None
    # Airflow's own kind of datetime is not the standard library's.
    return datetime.fromtimestamp(started.timestamp(), timezone.utc)
