"""Watching a remote job in the triggerer."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import TriggerEvent

from async_task_state.errors import InvalidArgumentError
from async_task_state.job_calls import CALLS
from async_task_state.jobs import JobWork, after_clear
from async_task_state.triggers.checkpoint import CheckpointTrigger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from async_task_state.job_calls import Meaning
    from async_task_state.state import TaskState

__all__ = ["RemoteJobTrigger"]


class RemoteJobTrigger(CheckpointTrigger):
    """Submits a remote job and watches it in the triggerer; fires one event when it has ended.

    A trigger that goes on in another process goes on with the same job. The job is cancelled when a user clears or
    marks the task, and not when the trigger was only moved, the triggerer ends, or the task times out.

    The payload is a dict: `status` ("success" or "failed"), `job_id`, `job_status` (what was polled last) and `result`.

    Args:
        submit: See `async_task_state.operators.RemoteJobOperator`, for this and all the others; a function cannot be
            sent to the triggerer, so each is a dotted path or, with `job`, the name of a method.
        poll: As `submit`.
        cancel: As `submit`.
        result: As `submit`.
        job: The dotted path of a class.
        job_args: What it is made with.
        arguments: What `submit` is called with.
        statuses: What the service's statuses mean.
        idempotency_argument: Where `submit` takes the idempotency key.
        poll_interval: Seconds between the first polls, at most.
        max_poll_interval: Seconds between polls, at most.
        max_poll_failures: How often in a row a poll may raise.

    Raises:
        InvalidArgumentError: An argument is missing, of the wrong type or out of range.
    """

    # After a clear the state itself says which jobs are to be cancelled.
    _is_owed_kills = False

    def __init__(
        self,
        *,
        submit: str | None = None,
        poll: str | None = None,
        cancel: str | None = None,
        result: str | None = None,
        job: str | None = None,
        job_args: Mapping[str, Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
        statuses: Mapping[Any, Meaning] | None = None,
        idempotency_argument: str | None = None,
        poll_interval: float = 10.0,
        max_poll_interval: float = 60.0,
        max_poll_failures: int = 10,
    ) -> None:
        super().__init__()
        self._work = JobWork(
            submit=submit,
            poll=poll,
            cancel=cancel,
            result=result,
            job=job,
            job_args=job_args,
            arguments=arguments,
            statuses=statuses,
            idempotency_argument=idempotency_argument,
            poll_interval=poll_interval,
            max_poll_interval=max_poll_interval,
            max_poll_failures=max_poll_failures,
        )
        for name in ("job", *CALLS):
            given = getattr(self._work, name)
            if given is not None and not isinstance(given, str):
                raise InvalidArgumentError(
                    f"{name} must be a dotted path, for the triggerer calls it, not a {type(given).__name__}"
                )
        self.on_clear = after_clear()

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path and the arguments."""
        arguments = {field.name: getattr(self._work, field.name) for field in fields(self._work)}
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run_with_state(self, state: TaskState) -> AsyncGenerator[TriggerEvent, None]:
        """See the job through, and fire what came of it."""
        yield TriggerEvent(await self._work.run(state))

    async def on_user_kill(self, state: TaskState) -> None:
        """Cancel the job."""
        await self._work.cancel_job(state)
