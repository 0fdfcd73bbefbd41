"""Whose state it is."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from uuid import UUID

from async_task_state.compat import index_over_iterations, iteration_of, place_in_region
from async_task_state.errors import InvalidArgumentError
from async_task_state.runs import Run, run_of
from async_task_state.text import plain

__all__ = [
    "MAX_ATTEMPT",
    "MAX_NUMBER",
    "AssetScope",
    "Row",
    "RunningTask",
    "Scope",
    "TaskScope",
    "check_attempt",
    "is_storable",
    "over_iterations",
    "running_task",
    "scope_of",
]

MAX_ID_CHARS = 250
MAX_ASSET_CHARS = 1500
MAX_SCOPE_BYTES = 2600
"""What a scope's ids may have together in UTF-8: a row of an index of PostgreSQL holds 2,704, the region and the rest of it
included."""
MAX_NUMBER = 2**31
"""What a map index stays below, in Airflow's database too."""
MAX_ATTEMPT = 1_000_000
"""An attempt a minute for two years. An attempt that none can follow would lock its task out of the state."""

Row: TypeAlias = tuple[str, str, str, int, str]
"""How a store names a scope: dag_id, run_id, task_id, map_index, region_id; an asset's has no DAG."""


@dataclass(frozen=True, slots=True)
class TaskScope:
    """One task instance over all its attempts: retries, deferrals and clears share it.

    Args:
        dag_id: The DAG.
        run_id: The DAG run.
        task_id: The task.
        map_index: The index of a mapped task, or the iteration of a loop; -1 for a task that is in neither.
        region_id: The region that Airflow 3.4 gives a loop and a mapped task; None outside of one.

    Raises:
        InvalidArgumentError: An id is not a string, empty, or longer than Airflow allows (250
            characters); the three have more than 2,600 bytes together; a map index is not an integer of at least -1.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    region_id: UUID | None = None

    def __post_init__(self) -> None:
        for name in ("dag_id", "run_id", "task_id"):
            value = getattr(self, name)
            if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_CHARS or not is_storable(value):
                raise InvalidArgumentError(
                    f"{name} must be a string of 1 to {MAX_ID_CHARS} characters that UTF-8 can encode, not {value!r}"
                )
        size = len(f"{self.dag_id}{self.run_id}{self.task_id}".encode())
        if size > MAX_SCOPE_BYTES:
            raise InvalidArgumentError(
                f"dag_id, run_id and task_id may have {MAX_SCOPE_BYTES:,} bytes in UTF-8 together, not {size:,}:"
                f" shorten one of {self.dag_id!r}, {self.run_id!r} and {self.task_id!r}"
            )
        if type(self.map_index) is not int or not -1 <= self.map_index < MAX_NUMBER:
            raise InvalidArgumentError(
                f"map_index must be an integer from -1 to 2^31, not {self.map_index!r}"
            )
        if self.region_id is not None and not isinstance(self.region_id, UUID):
            raise InvalidArgumentError(f"region_id must be a UUID or None, not {self.region_id!r}")

    def __str__(self) -> str:
        index = "" if self.map_index == -1 else f"[{self.map_index}]"
        region = "" if self.region_id is None else f"@{self.region_id}"
        return plain(f"{self.dag_id}/{self.run_id}/{self.task_id}{index}{region}")

    @property
    def row(self) -> Row:
        """How a store names it."""
        region = "" if self.region_id is None else str(self.region_id)
        return self.dag_id, self.run_id, self.task_id, self.map_index, region

    @classmethod
    def from_airflow(cls, source: Any) -> TaskScope:
        """The scope of anything of Airflow's that carries a task instance's ids.

        Args:
            source: A task instance (`context["ti"]`, a trigger's `task_instance`) or Airflow's own
                `TaskScope`.

        Raises:
            InvalidArgumentError: `source` has no `dag_id`, `run_id` or `task_id`.
        """
        try:
            dag_id, run_id, task_id = source.dag_id, source.run_id, source.task_id
        except AttributeError as error:
            raise InvalidArgumentError(f"a {type(source).__name__} names no task instance: {error}") from None
        return cls(dag_id, run_id, task_id, *place_in_region(source))


@dataclass(frozen=True, slots=True)
class AssetScope:
    """One asset, whoever writes about it.

    Args:
        name: The asset's name, by which its state is known.
        uri: Its URI, where only that is known; not looked at where there is a name.

    Raises:
        InvalidArgumentError: Neither is given, or one is not a string of 1 to 1,500 characters and at most 2,600 bytes.
    """

    name: str | None = None
    uri: str | None = None

    def __post_init__(self) -> None:
        for what, value in (("name", self.name), ("uri", self.uri)):
            if value is None:
                continue
            if not isinstance(value, str) or not 0 < len(value) <= MAX_ASSET_CHARS or not is_storable(value):
                raise InvalidArgumentError(
                    f"the {what} of an asset must be a string of 1 to {MAX_ASSET_CHARS:,} characters that UTF-8 can"
                    f" encode, not {value!r}"
                )
            if (size := len(value.encode())) > MAX_SCOPE_BYTES:
                raise InvalidArgumentError(
                    f"the {what} of an asset may have {MAX_SCOPE_BYTES:,} bytes in UTF-8, not {size:,}: {value!r}"
                )
        if self.name is None and self.uri is None:
            raise InvalidArgumentError("an AssetScope needs the asset's name or its uri")

    def __eq__(self, other: object) -> bool:
        return self.row == other.row if isinstance(other, AssetScope) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.row)

    def __str__(self) -> str:
        return plain(f"asset {self.row[2]}")

    @property
    def row(self) -> Row:
        """How a store names it."""
        return (
            ("", "asset", self.name, -1, "") if self.name is not None else ("", "uri", self.uri or "", -1, "")
        )

    @classmethod
    def from_airflow(cls, source: Any) -> AssetScope:
        """The scope of anything of Airflow's that names an asset.

        Args:
            source: An `Asset`, a reference to one by name or by URI, or Airflow's own `AssetScope`.

        Raises:
            InvalidArgumentError: `source` has neither a `name` nor a `uri`.
        """
        name, uri = getattr(source, "name", None), getattr(source, "uri", None)
        if name is None and uri is None:
            raise InvalidArgumentError(
                f"a {type(source).__name__} names no asset: it has neither name nor uri"
            )
        return cls(name, uri)


Scope: TypeAlias = TaskScope | AssetScope


def scope_of(row: Row) -> Scope:
    """The scope that a store names so."""
    dag_id, run_id, task_id, map_index, region_id = row
    if not dag_id:
        return AssetScope(name=task_id) if run_id == "asset" else AssetScope(uri=task_id)
    return TaskScope(dag_id, run_id, task_id, map_index, UUID(region_id) if region_id else None)


def check_attempt(attempt: object) -> None:
    """Refuse what cannot be an attempt.

    Raises:
        InvalidArgumentError: It is neither None nor an integer from 0 to `MAX_ATTEMPT`.
    """
    if attempt is not None and (type(attempt) is not int or not 0 <= attempt <= MAX_ATTEMPT):
        raise InvalidArgumentError(f"attempt must be an integer from 0 to {MAX_ATTEMPT:,}, not {attempt!r}")


def is_storable(text: str) -> bool:
    """Whether every database takes the text: UTF-8 can encode it, and it holds no NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


@dataclass(frozen=True, slots=True)
class RunningTask:
    """What runs in this process: whose task, which attempt of it, and how many there may be.

    A user's clear raises `max_tries`; a retry does not. Of a run that was deleted and made again `run` is another.
    `after_clear` is whether this is the first attempt after a clear, as far as the number of tries tells. In a region of
    Airflow 3.4 `over` is the same for the state over all iterations: its holders are told apart by `run`, because each
    iteration counts its attempts from 1, and only the first iteration's clear is one of the whole. `begun` is the attempt
    that the last clear has begun, the first one without a clear, as far as the number of tries tells; that number and
    `retries` come from two readings of the DAG. `task_store` is the task's accessor of Airflow's own store.
    """

    scope: TaskScope
    attempt: int | None
    max_tries: int | None
    run: Run | None = None
    after_clear: bool = False
    over: RunningTask | None = None
    begun: int | None = None
    task_store: Any = field(default=None, compare=False, repr=False)


def running_task() -> RunningTask | None:
    """The Airflow task that this process is running, if it is running one."""
    # A running task has imported airflow.sdk long before; a process that has not is not worth a second of import.
    sdk = sys.modules.get("airflow.sdk")
    if sdk is None:
        return None
    try:
        context = sdk.get_current_context()
    except RuntimeError:
        return None
    ti = context["ti"]
    run = run_of(ti, context.get("dag_run"))
    attempt, max_tries = ti.try_number, getattr(ti, "max_tries", None)
    begun = _begun(ti, max_tries)
    after_clear = attempt > 1 and attempt == begun
    over = over_iterations(ti, run, context, max_tries=max_tries, after_clear=after_clear)
    store = context.get("task_state_store")
    return RunningTask(TaskScope.from_airflow(ti), attempt, max_tries, run, after_clear, over, begun, store)


def over_iterations(
    ti: Any,
    run: Run | None,
    context: Any = None,
    *,
    max_tries: int | None = None,
    after_clear: bool = False,
) -> RunningTask | None:
    """A task or trigger as a holder of the state over all iterations of its loop; None outside of regions.

    Args:
        ti: The task instance.
        run: Which run it is in, and which of the task instances there.
        context: The running task's; None in a trigger.
        max_tries: As for `RunningTask`, and so is the next.
        after_clear: Of the iteration.
    """
    index = index_over_iterations(ti)
    if index is None:
        return None
    scope = TaskScope(ti.dag_id, ti.run_id, ti.task_id, index)
    if iteration_of(ti, context):
        return RunningTask(scope, None, None, run)
    return RunningTask(scope, None, max_tries, run, after_clear)


def _begun(ti: Any, max_tries: int | None) -> int | None:
    # A clear allows as many retries again, counted from the attempt that it begins.
    retries = getattr(getattr(ti, "task", None), "retries", None)
    return None if max_tries is None or retries is None else max_tries - retries + 1
