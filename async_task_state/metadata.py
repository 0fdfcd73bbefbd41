"""What is asked of Airflow's own database, by the state backend on the API server and by a watch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from async_task_state.compat import NO_REGION, current_rows, gates_of_loops
from async_task_state.runs import Run, run_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Select
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from async_task_state.scopes import TaskScope

__all__ = [
    "asset_name",
    "asset_name_query",
    "loop_goes_on",
    "run_in",
    "run_in_awaited",
    "task_states",
    "what_is_missing",
]


def asset_name(asset_id: int) -> str | None:
    """The name of an asset, asked with a session of its own."""
    from airflow.utils.session import create_session  # noqa: PLC0415 - a worker has no database

    with create_session() as session:
        return session.scalar(asset_name_query(asset_id))


def asset_name_query(asset_id: int) -> Select[str]:
    """What selects the name of an asset."""
    from airflow.models.asset import AssetModel  # noqa: PLC0415 - a worker has no database
    from sqlalchemy import select  # noqa: PLC0415 - a worker has no database

    return select(AssetModel.name).where(AssetModel.id == asset_id)


def run_in(session: Session, scope: TaskScope) -> Run | None:
    """The run of a task as Airflow's database has it now, which is the newest under its id; None where it has none."""
    return run_of(None, session.execute(_run_query(scope)).first())


async def run_in_awaited(session: AsyncSession, scope: TaskScope) -> Run | None:
    """The same."""
    return run_of(None, (await session.execute(_run_query(scope))).first())


def task_states(scope: TaskScope, *, all_indexes: bool) -> list[tuple[int, str | None]]:
    """The map index and the state of task instances, asked with a session of its own.

    Args:
        scope: Whose.
        all_indexes: Whether those of all map indexes are wanted.
    """
    from airflow.models.taskinstance import TaskInstance  # noqa: PLC0415 - a worker has no database
    from airflow.utils.session import create_session  # noqa: PLC0415 - a worker has no database
    from sqlalchemy import select  # noqa: PLC0415 - a worker has no database

    query = select(TaskInstance.map_index, TaskInstance.state).where(
        TaskInstance.dag_id == scope.dag_id,
        TaskInstance.run_id == scope.run_id,
        TaskInstance.task_id == scope.task_id,
        *current_rows(TaskInstance, scope.region_id),
    )
    if not all_indexes:
        query = query.where(TaskInstance.map_index == scope.map_index)
    with create_session() as session:
        rows = session.execute(query).all()
    return [(index, None if state is None else str(state)) for index, state in rows]


def what_is_missing(scope: TaskScope) -> str:
    """What Airflow does not know of a task instance that it does not have, asked with a session of its own."""
    from airflow.models.dag import DagModel  # noqa: PLC0415 - a worker has no database
    from airflow.models.taskinstance import TaskInstance  # noqa: PLC0415 - a worker has no database
    from airflow.utils.session import create_session  # noqa: PLC0415 - a worker has no database
    from sqlalchemy import select  # noqa: PLC0415 - a worker has no database

    of_run = TaskInstance.dag_id == scope.dag_id, TaskInstance.run_id == scope.run_id
    with create_session() as session:

        def has(query: Any) -> bool:
            return session.execute(query.limit(1)).first() is not None

        if has(select(TaskInstance.id).where(*of_run, TaskInstance.task_id == scope.task_id)):
            return f"no such task instance: task {scope.task_id!r} has others in that run"
        if has(_run_query(scope)):
            return f"no task {scope.task_id!r} in run {scope.run_id!r} of DAG {scope.dag_id!r}"
        if has(select(DagModel.dag_id).where(DagModel.dag_id == scope.dag_id)):
            return f"no run {scope.run_id!r} of DAG {scope.dag_id!r}"
    return f"no DAG {scope.dag_id!r}"


def loop_goes_on(scope: TaskScope, ended: Collection[str]) -> bool:
    """Whether a task may have another iteration, because it is in a region and a loop of its run has not ended.

    Args:
        scope: The task.
        ended: The states of what has ended.
    """
    from airflow.models.taskinstance import TaskInstance  # noqa: PLC0415 - a worker has no database
    from airflow.utils.session import create_session  # noqa: PLC0415 - a worker has no database
    from sqlalchemy import or_, select  # noqa: PLC0415 - a worker has no database

    model: Any = TaskInstance
    gates = gates_of_loops(model)
    if gates is None:
        return False
    of_run = [model.dag_id == scope.dag_id, model.run_id == scope.run_id, *current_rows(model, None)]
    in_region = [model.task_id == scope.task_id, model.region_id != NO_REGION]
    at_work = [*gates, or_(model.state.is_(None), model.state.not_in(ended))]
    with create_session() as session:
        return all(
            session.execute(select(model.id).where(*of_run, *conditions).limit(1)).first() is not None
            for conditions in (in_region, at_work)
        )


def _run_query(scope: TaskScope) -> Any:
    from airflow.models.dagrun import DagRun  # noqa: PLC0415 - a worker has no database
    from sqlalchemy import select  # noqa: PLC0415 - a worker has no database

    columns = DagRun.start_date, DagRun.clear_number, DagRun.logical_date, DagRun.run_after
    return select(*columns).where(DagRun.dag_id == scope.dag_id, DagRun.run_id == scope.run_id)
