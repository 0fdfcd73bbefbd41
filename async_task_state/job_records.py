"""What a state knows of a remote job: the records, and whether one that was read is sound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from async_task_state.errors import DamagedRecordError
from async_task_state.records import damaged

if TYPE_CHECKING:
    from collections.abc import Mapping

    from async_task_state.state import TaskState

__all__ = [
    "CANCELLED",
    "EARLIER",
    "FAILED",
    "GONE",
    "JOB",
    "NEW",
    "REFUSED",
    "RUNNING",
    "SUBMITTING",
    "SUCCEEDED",
    "earlier_jobs_of",
    "is_unfinished",
    "job_of",
    "unfinished_jobs",
]

JOB: Final = "job"
"""The key of the job: `id`, `state`, the `status` that was polled last, the `attempt` that submitted it, or saw it running
or succeed last, and its `idempotency_key`."""
EARLIER: Final = "earlier_jobs"
"""The key of the jobs that are to be cancelled first, for a user has cleared the task."""

NEW: Final = "new"
SUBMITTING: Final = "submitting"
REFUSED: Final = "refused"
RUNNING: Final = "running"
SUCCEEDED: Final = "succeeded"
FAILED: Final = "failed"
GONE: Final = "gone"
CANCELLED: Final = "cancelled"

_TO_SUBMIT: Final = (NEW, SUBMITTING, REFUSED)
_STATES: Final = (*_TO_SUBMIT, RUNNING, SUCCEEDED, FAILED, GONE, CANCELLED)


async def job_of(state: TaskState) -> dict[str, Any]:
    """The job that a state knows; empty where it knows none.

    Raises:
        DamagedRecordError: Its record is none of a job.
    """
    job: dict[str, Any] = await state.get(JOB, {})
    if job != {} and (wrong := _wrong_with(job)) is not None:
        raise damaged(state.scope, f"key {JOB!r}", wrong)
    return job


async def earlier_jobs_of(state: TaskState) -> list[dict[str, Any]]:
    """The jobs that are to be cancelled first.

    Raises:
        DamagedRecordError: Their record is none of jobs.
    """
    jobs: list[dict[str, Any]] = await state.get(EARLIER, [])
    if (wrong := _wrong_with_any(jobs)) is not None:
        raise damaged(state.scope, f"key {EARLIER!r}", wrong)
    return jobs


def is_unfinished(job: Mapping[str, Any]) -> bool:
    """Whether there is a job that may be running."""
    return job.get("state") in (SUBMITTING, RUNNING)


def unfinished_jobs(values: dict[str, Any]) -> dict[str, Any]:
    """What a clear keeps of the values of a state: the jobs that are to be cancelled.

    Raises:
        DamagedRecordError: Which they are cannot be read.
    """
    job, jobs = values.get(JOB, {}), values.get(EARLIER, [])
    wrong = _wrong_with_any(jobs) or (_wrong_with(job) if job != {} else None)
    if wrong is not None:
        raise DamagedRecordError(
            f"which jobs a clear has to cancel cannot be read from the keys {JOB!r} and {EARLIER!r} ({wrong}): they were damaged,"
            " or were written by a newer version: upgrade async-task-state, or remove the state: async-task-state clear"
        )
    unfinished = [each for each in (*jobs, job) if is_unfinished(each)]
    return {EARLIER: unfinished} if unfinished else {}


def _wrong_with_any(jobs: object) -> str | None:
    if not isinstance(jobs, list):
        return f"it is {type(jobs).__name__} and no list of jobs"
    return next((wrong for job in jobs if (wrong := _wrong_with(job)) is not None), None)


def _wrong_with(job: object) -> str | None:
    """What is wrong with the record of a job; fields that a newer version has added are not."""
    if not isinstance(job, dict):
        return f"it is {type(job).__name__} and no job"
    if job.get("state") not in _STATES:
        return f"its state is {job.get('state')!r:.100}"
    for name, kind in (("status", str), ("attempt", int)):
        if not isinstance(job.get(name), kind) or isinstance(job[name], bool):
            return f"its {name} is {job.get(name)!r:.100}"
    # One that was cancelled before it was submitted has neither.
    needed = "idempotency_key" if job["state"] in _TO_SUBMIT else "id"
    if job["state"] != CANCELLED and job.get(needed) is None:
        return f"it has no {needed}"
    return None
