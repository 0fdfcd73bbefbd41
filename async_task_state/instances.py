"""What Airflow says of a task instance at this moment, asked from the process that works for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from async_task_state.logs import Log

if TYPE_CHECKING:
    from async_task_state.scopes import TaskScope

__all__ = ["OVER", "TRIGGERER_SECONDS", "WORKER_SECONDS", "is_users_kill", "state_in_airflow"]

log = Log(__name__)

WORKER_SECONDS: Final = 3.0
"""How long a task waits for an answer: less than Airflow gives it between SIGTERM and SIGKILL."""

TRIGGERER_SECONDS: Final = 25.0
"""How long a trigger does: the first request of a triggerer takes up to 9 seconds, and `on_kill_timeout` is 30."""

NOWHERE: Final = "unknown"
"""The state of a task where no Airflow runs that could be asked: what the killer says is then all there is."""

OVER: Final = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
"""Airflow's states of a task that no process takes up again."""


def is_users_kill(state: str | None, *, doubtful: bool, resumes: bool) -> bool:
    """Whether a kill is a user's, who wants what the task does elsewhere cancelled.

    Args:
        state: Airflow's state of the task; None if it does not answer, which is no reason to cancel anything.
        doubtful: Whether a state that says neither means that a user has cleared the task.
        resumes: Whether a task that was cleared goes on with what it has left, so that nothing is to be cancelled.
    """
    if state in OVER:
        return True
    return state is not None and not resumes and (state == "restarting" or (doubtful and state != "deferred"))


async def state_in_airflow(scope: TaskScope, *, patience: float) -> str | None:
    """The state of a task instance as Airflow has it: "removed" if it is gone, None if Airflow does not say.

    "unknown" outside of a task's process or a triggerer.

    Args:
        scope: Which one.
        patience: Seconds to wait for the answer.
    """
    from airflow.sdk.execution_time import task_runner  # noqa: PLC0415 - loaded long ago where it can answer
    from airflow.sdk.execution_time.comms import GetTaskStates  # noqa: PLC0415

    comms: Any = getattr(task_runner, "SUPERVISOR_COMMS", None)
    if comms is None:
        return NOWHERE
    question = GetTaskStates(
        dag_id=scope.dag_id,
        run_ids=[scope.run_id],
        task_ids=[scope.task_id],
        # A task in a loop has no index by which it could be asked for.
        map_index=scope.map_index if scope.map_index >= 0 and scope.region_id is None else None,
    )
    asking = asyncio.ensure_future(comms.asend(question))
    asking.add_done_callback(lambda asked: asked.cancelled() or asked.exception())
    # Not cancelled when that is too long, for the answer would then be taken for that of the next question.
    await asyncio.wait([asking], timeout=patience)
    if not asking.done() or asking.exception() is not None:
        why = repr(asking.exception()) if asking.done() else f"no answer within {patience:g} s"
        log.warning("Airflow does not say in which state %s is: %s", scope, why)
        return None
    tasks = asking.result().task_states.get(scope.run_id, {})
    names = [] if scope.map_index < 0 else [f"{scope.task_id}_{scope.map_index}"]
    if scope.map_index < 0 or scope.region_id is not None:
        # Of a loop Airflow tells the state of the latest iteration.
        names.append(scope.task_id)
    return next((str(tasks[name] or "none") for name in names if name in tasks), "removed")
