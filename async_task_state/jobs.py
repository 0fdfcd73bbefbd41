"""Remote jobs: what `RemoteJobTrigger` and `RemoteJobOperator` both do, on the same state."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from random import uniform
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from uuid import uuid4

import anyio

from async_task_state.codec import decode, encode
from async_task_state.errors import (
    AsyncTaskStateError,
    InvalidArgumentError,
    InvalidValueError,
    JobCallError,
    JobGoneError,
    StateTooLargeError,
    UnknownJobStatusError,
)
from async_task_state.job_calls import STATUS_CHARS, JobDefinition, RemoteJob, mapping_of
from async_task_state.job_gone import is_gone
from async_task_state.job_records import (
    CANCELLED,
    EARLIER,
    FAILED,
    GONE,
    JOB,
    NEW,
    REFUSED,
    RUNNING,
    SUBMITTING,
    SUCCEEDED,
    earlier_jobs_of,
    is_unfinished,
    job_of,
    unfinished_jobs,
)
from async_task_state.leaving import keeping_portal
from async_task_state.logs import Log
from async_task_state.settings import NEVER_EXPIRE, check_count, check_seconds, load_settings
from async_task_state.text import told
from async_task_state.wire import fitted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from async_task_state.job_calls import JobCalls
    from async_task_state.state import OnClear, TaskState

__all__ = ["JobWork", "RemoteJob", "after_clear"]

T = TypeVar("T")

log = Log(__name__)

RESULT: Final = "result"
"""The key of what the job gave, unless that is None."""

SUBMIT_SECONDS: Final = 5.0
"""How long a submission may still take when the process is asked to end."""
GROWTH: Final = 1.5
"""By what the interval between two polls grows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobWork(JobDefinition):
    """Which job to run, and how to watch it; see `RemoteJobOperator` for the arguments.

    Raises:
        InvalidArgumentError: An argument is missing, of the wrong type or out of range.
    """

    arguments: Mapping[str, Any] | None = None
    poll_interval: float = 10.0
    max_poll_interval: float = 60.0
    max_poll_failures: int = 10

    def __post_init__(self) -> None:
        # By name: a class with slots is not the one that super() knows.
        JobDefinition.__post_init__(self)
        for name in ("poll_interval", "max_poll_interval"):
            if getattr(self, name) is None:
                raise InvalidArgumentError(f"{name} must be a number of seconds above 0, not None")
            check_seconds(name, getattr(self, name))
        if self.max_poll_interval < self.poll_interval:
            raise InvalidArgumentError(
                f"max_poll_interval must be at least poll_interval = {self.poll_interval:g} s, not"
                f" {self.max_poll_interval:g}"
            )
        check_count("max_poll_failures", self.max_poll_failures)

    async def run(self, state: TaskState) -> dict[str, Any]:
        """See the job through to its end, from wherever it stands, and say what came of it.

        Raises:
            JobCallError: A function cannot be imported or called, or `submit` returned no id.
            UnknownJobStatusError: Nobody has said what a status means.
            Exception: What the author's functions raise.
        """
        result = None
        async with self.open() as calls:
            await self._cancel_earlier(calls, state)
            job = await self._job(calls, state)
            while job["state"] == RUNNING:
                job = await self._watch(calls, state, job)
                if is_to_be_replaced(job, state.attempt):
                    log.info(
                        "job %r of attempt %d is %s: %s",
                        job["id"],
                        job["attempt"],
                        job["state"],
                        job["status"],
                    )
                    job = await self._job(calls, state)
            if job["state"] == SUCCEEDED:
                try:
                    result = await self._result(calls, state, job)
                except JobGoneError as error:
                    job = await self._gone(
                        state, {**job, "attempt": state.attempt}, error, "its result is gone"
                    )
        outcome = {
            "status": "success" if job["state"] == SUCCEEDED else "failed",
            "job_id": job.get("id"),
            "job_status": job["status"],
            "result": result,
        }
        return cast("dict[str, Any]", fitted(outcome))

    async def cancel_job(self, state: TaskState) -> None:
        """Cancel the job if it has not ended, and remember that: this attempt submits none any more."""
        async with self.open() as calls:
            await self._cancel_earlier(calls, state)
            job = await job_of(state)
            if is_unfinished(job):
                job = await self._cancel(calls, job)
            elif not is_to_be_replaced(job, state.attempt) and job["state"] not in (NEW, REFUSED):
                return
            cancelled = {"state": CANCELLED, "status": "cancelled by a user", "attempt": state.attempt}
            await _remember(state, {**job, **cancelled})

    async def _job(self, calls: JobCalls, state: TaskState) -> dict[str, Any]:
        """The job that is there, or a new one if there is none or an earlier attempt's has failed."""
        job = await job_of(state)
        if is_to_be_replaced(job, state.attempt):
            job = {"state": NEW, "status": "", "attempt": state.attempt, "idempotency_key": uuid4().hex}
        if job["state"] in (NEW, REFUSED):
            job = {**job, "state": SUBMITTING, "status": "not yet known"}
            await _remember(state, job)
        if job["state"] == SUBMITTING:
            job = await _even_if_cancelled(partial(self._submit, calls, state, job))
            log.info("submitted job %r", job["id"])
        else:
            log.info("going on with job %r, which is %s (%s)", job.get("id"), job["state"], job["status"])
        return job

    async def _submit(self, calls: JobCalls, state: TaskState, job: dict[str, Any]) -> dict[str, Any]:
        try:
            given = await calls.submit(mapping_of("arguments", self.arguments), job["idempotency_key"])
        except Exception as error:
            # A retry sends the same key, for the request may have arrived; a clear takes the error's word for it.
            await _remember(
                state,
                {**job, "state": REFUSED, "status": f"submit raised {told(error, repr)}"[:STATUS_CHARS]},
            )
            raise
        try:
            # As a later process will find it.
            job_id = decode(encode("id", given, load_settings().max_value_bytes))
            running = {"id": job_id, **job, "state": RUNNING, "status": "submitted"}
            await _remember(state, running)
        except (InvalidValueError, StateTooLargeError) as error:
            await self._disown(calls, given)
            await _remember(state, {**job, "state": CANCELLED, "status": f"{error}"[:STATUS_CHARS]})
            raise
        return running

    async def _disown(self, calls: JobCalls, job_id: Any) -> None:
        """Cancel a job whose id no later process could be given."""
        try:
            await calls.cancel(job_id)
        except Exception as error:  # noqa: BLE001 - what is wrong with the id is what is raised
            log.warning("a job whose id cannot be saved could not be cancelled and may be running: %r", error)

    async def _watch(self, calls: JobCalls, state: TaskState, job: dict[str, Any]) -> dict[str, Any]:
        """Poll until the job ends, and make its outcome durable.

        A job that is found to have failed before this attempt has seen it running is an earlier attempt's failure.
        """
        for wait in self._waits():
            try:
                meaning, status = await self._insist(calls, partial(calls.poll, job["id"]), "poll")
            except JobGoneError as error:
                return await self._gone(state, job, error, "gone")
            if meaning == FAILED:
                job = {**job, "state": FAILED, "status": status}
            elif meaning == SUCCEEDED:
                job = {**job, "state": SUCCEEDED, "status": status, "attempt": state.attempt}
            elif (status, state.attempt) != (job["status"], job["attempt"]):
                log.info("job %r is %s", job["id"], status)
                job = {**job, "status": status, "attempt": state.attempt}
                await _remember(state, job)
            if meaning != RUNNING:
                await _remember(state, job)
                break
            await anyio.sleep(wait)
        return job

    async def _gone(
        self, state: TaskState, job: dict[str, Any], error: Exception, what: str
    ) -> dict[str, Any]:
        """Remember that there is nothing more to be had of a job, so that the next attempt submits another."""
        job = {**job, "state": GONE, "status": f"{what}: {told(error)}"[:STATUS_CHARS]}
        await _remember(state, job)
        return job

    async def _result(self, calls: JobCalls, state: TaskState, job: dict[str, Any]) -> Any:
        result = await state.get(RESULT)
        if result is None:
            result = await self._insist(calls, partial(calls.result, job["id"]), "result")
            if result is not None:
                await state.set(RESULT, result)
                # As a later process will find it.
                result = await state.get(RESULT)
        return result

    async def _cancel_earlier(self, calls: JobCalls, state: TaskState) -> None:
        for job in await earlier_jobs_of(state):
            try:
                job = await self._cancel(calls, job)  # noqa: PLW2901 - with its id
            except JobCallError:
                raise
            except Exception as error:  # noqa: BLE001 - the author's; the task goes on without it
                log.warning(
                    "job %r of attempt %d could not be cancelled and may be running: %r",
                    *(job.get("id"), job["attempt"], error),
                )
            else:
                log.info("cancelled job %r of attempt %d", job.get("id"), job["attempt"])
        await state.delete(EARLIER)

    async def _cancel(self, calls: JobCalls, job: dict[str, Any]) -> dict[str, Any]:
        """Cancel a job; with the id of one whose submission was cut short, where the service can be asked for it."""
        if "id" not in job:
            if not calls.takes_key:
                log.warning(
                    "a submission was cut short and `submit` takes no idempotency key: a job may be running that is not"
                    " known here and so is not cancelled"
                )
                return job
            arguments = mapping_of("arguments", self.arguments)
            submit = partial(calls.submit, arguments, job["idempotency_key"])
            job = {"id": await self._insist(calls, submit, "submit"), **job}
        await self._insist(calls, partial(_cancelled, calls, job["id"]), "cancel")
        return job

    async def _insist(self, calls: JobCalls, call: Callable[[], Awaitable[T]], name: str) -> T:
        """What a call that may be repeated gives, however often it fails before.

        Raises:
            JobGoneError: The author has raised it; or the service has said so until the end.
            Exception: What the call has raised last.
        """
        waits, failures, renewing = self._waits(), 0, False
        while True:
            try:
                if renewing:
                    await calls.renew()
                    renewing = False
                return await call()
            except UnknownJobStatusError as error:
                # Services answer with nothing, or with a word of a proxy's, now and then.
                failed: Exception = error
            except AsyncTaskStateError:
                raise
            except Exception as error:  # noqa: BLE001 - the author's; raised below
                failed, renewing = error, True
            failures += 1
            if failures >= self.max_poll_failures:
                if is_gone(failed):
                    raise JobGoneError(f"{name} raised {told(failed, repr)}") from failed
                raise failed
            log.warning("%s has failed %d times in a row: %r", name, failures, failed)
            await anyio.sleep(next(waits))

    def _waits(self) -> Iterator[float]:
        """Seconds to wait: at least half of an interval that grows, so that many tasks do not poll in step."""
        interval = self.poll_interval
        while True:
            yield uniform(interval / 2, interval)  # noqa: S311 - no secret
            interval = min(interval * GROWTH, self.max_poll_interval)


def after_clear() -> OnClear:
    """What a clear leaves of the state: the jobs that are to be cancelled, or everything if they are to go on."""
    return "resume" if load_settings().on_clear == "resume" else unfinished_jobs


def is_to_be_replaced(job: Mapping[str, Any], attempt: int) -> bool:
    """Whether this attempt submits another job: there is none, or an earlier attempt's has failed or is gone."""
    return not job or (job["state"] in (FAILED, GONE, CANCELLED) and job["attempt"] < attempt)


async def _remember(state: TaskState, job: dict[str, Any]) -> None:
    """Make what is known of the job durable; one that may be running is not forgotten, however long it takes.

    Raises:
        StateTooLargeError: There is no room for it, even without its status.
    """
    save = partial(state.set, JOB, retention=NEVER_EXPIRE if is_unfinished(job) else None)
    try:
        await save(job)
    except StateTooLargeError as error:
        # People read it; what became of the job is what the next process needs.
        await save({**job, "status": ""})
        log.warning("the status of the job is not saved, %r: %s", job["status"], error)


async def _cancelled(calls: JobCalls, job_id: Any) -> None:
    try:
        await calls.cancel(job_id)
    except JobGoneError:
        return
    except Exception as error:
        # What has ended need not be cancelled, and some services refuse to.
        if not await _is_over(calls, job_id, denied=is_gone(error)):
            raise


async def _is_over(calls: JobCalls, job_id: Any, *, denied: bool) -> bool:
    """Whether a job that could not be cancelled is not running; `denied` is whether the service has said so before."""
    try:
        meaning, _ = await calls.poll(job_id)
    except JobGoneError:
        return True
    except Exception as error:
        if denied and is_gone(error):
            return True
        raise
    return meaning != RUNNING


async def _even_if_cancelled(call: Callable[[], Awaitable[T]]) -> T:
    """Await a call to its end though this task is cancelled meanwhile, for `SUBMIT_SECONDS` from then."""
    answers: list[T] = []
    errors: list[BaseException] = []
    ended = anyio.Event()
    shield = anyio.CancelScope(shield=True)
    call = keeping_portal(call)

    async def run() -> None:
        with shield:
            try:
                answers.append(await call())
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # noqa: BLE001 - raised below, where no group wraps it
                errors.append(error)
        ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        try:
            await ended.wait()
        except BaseException:
            shield.deadline = anyio.current_time() + SUBMIT_SECONDS
            raise
    for error in errors:
        raise error
    if not answers:
        raise JobCallError("submit was cancelled from within, and returned nothing")
    return answers[0]
