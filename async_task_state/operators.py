"""Operators that go on where the last attempt stood, on the worker or in the triggerer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.configuration import conf
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException

from async_task_state.clear_choice import choice_at_clear
from async_task_state.commands import show_command
from async_task_state.errors import InvalidArgumentError, JobFailedError
from async_task_state.files import FileWork, load_processor
from async_task_state.instances import WORKER_SECONDS, is_users_kill, state_in_airflow
from async_task_state.job_calls import CALLS
from async_task_state.jobs import JobWork, after_clear
from async_task_state.places import check_allowed, check_base
from async_task_state.scopes import TaskScope
from async_task_state.sources import Source, check_source, plain_place, plain_source
from async_task_state.state import task_state
from async_task_state.text import counted, plain
from async_task_state.triggers.files import ProcessFilesTrigger
from async_task_state.triggers.jobs import RemoteJobTrigger

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from airflow.sdk import Context
    from upath import UPath

    from async_task_state.job_calls import Meaning
    from async_task_state.state import TaskState

__all__ = ["ProcessFilesOperator", "RemoteJobOperator"]


class ProcessFilesOperator(BaseOperator):
    """Processes every file of a source, and each only once, whatever dies on the way.

    A file is recorded as done when the processor returned for it. A retry, or the same attempt in a new process, goes
    on with the files that are left; what finished less than `max_delay` before a crash may be processed again.
    Deferrable or not, the state is the same, so the flag may be changed between attempts.

    The result is a dict: `status` ("failed" if a file failed, else "success"), `total`, `done`, `skipped` (done before),
    `failed`, `done_in_all`, `failures` (the first ten, each with `file` and `error`), `totals` and `elapsed` (seconds).

    Args:
        source: A directory (with all below it), a glob, a file, any of them as an fsspec URL, or a list of files.
            Templated. Every file below a directory counts, by symbolic links too: one that cannot be listed fails the task. A URL's protocol must
            be one of `[async_task_state] allowed_protocols`, and chained URLs are refused.
        base: The folder that `source` must be in and may be relative to, an absolute path or a URL: needed where `source`
            says what a user has chosen, who could read any file otherwise. What symbolic links lead to outside of it is left out
            of a folder's files, and refused as a source. Not templated.
        processor: The dotted path of `async def process(path, state)`, or of a plain function, which then runs in a
            worker thread. `path` is a `UPath`, which for a local file is a `pathlib.Path`. The state is given to the
            parameter of that name, or to a second one that has no default; a function without either is given none.
            With `deferrable=False` a function will do. When it returns a mapping, its numbers are added to `totals`, those
            of mappings within it too, in the same atomic step that records the file; what else is in it is left out, and
            the log says so. Anything else it returns is ignored. A file of which the numbers cannot be added, as NaN, has
            failed.
        concurrency: How many files are processed at once.
        max_attempts: How often one attempt of the task tries a file before it counts as failed. The task's next
            attempt tries it anew.
        on_error: "raise" fails the task at the first file that failed for good; "collect" goes on, and succeeds with
            the failures in the result, whose `status` is then "failed".
        identity: How a file is recognised: "stat" by path, size and modification time, so that one that changed is
            processed again; "path" by path alone.
        require_files: Whether a source that does not exist, or holds no file, fails the task.
        max_delay: Seconds until a finished file is durably recorded, at most; None takes
            `[async_task_state] max_delay`.
        deferrable: Whether the triggerer does the work; None takes `[operators] default_deferrable`.
        **kwargs: Those of every operator.

    Raises:
        InvalidArgumentError: An argument is of the wrong type or out of range.
        SourceNotAllowedError: `base` is not allowed; when it runs, `source` is not, or is outside of `base`.
    """

    template_fields: Sequence[str] = ("source",)
    ui_color: str = "#d5f2e3"

    def __init__(
        self,
        *,
        source: Source,
        base: str | os.PathLike[str] | UPath | None = None,
        processor: str | Callable[..., Any],
        concurrency: int = 16,
        max_attempts: int = 1,
        on_error: Literal["raise", "collect"] = "raise",
        identity: Literal["stat", "path"] = "stat",
        require_files: bool = False,
        max_delay: float | None = None,
        deferrable: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if deferrable is None:
            deferrable = conf.getboolean("operators", "default_deferrable", fallback=False)
        if deferrable and not isinstance(processor, str):
            raise InvalidArgumentError(
                "a processor that runs in the triggerer must be a dotted path, not a function: give its path, or"
                " deferrable=False"
            )
        self.source = source
        self.base = base
        self.processor = processor
        self.concurrency = concurrency
        self.max_attempts = max_attempts
        self.on_error = on_error
        self.identity = identity
        self.require_files = require_files
        self.max_delay = max_delay
        self.deferrable = deferrable
        FileWork(**self._arguments())
        if base is not None:
            check_base(plain_place(base))

    def execute(self, context: Context) -> dict[str, Any]:
        """Do the work here, or defer to the trigger that does."""
        # What mapped tasks have returned is read here, where no event loop is held up.
        self.source = source = plain_source(self.source)
        check_source(source)
        check_allowed(source, plain_place(self.base))
        if self.deferrable:
            # A wrong path is the worker's to report, before a triggerer trips over it.
            load_processor(self.processor)
            self.defer(
                trigger=ProcessFilesTrigger(**self._arguments()),
                method_name="execute_complete",
                timeout=self.execution_timeout,
            )
        return asyncio.run(self.aexecute(context))

    async def aexecute(self, context: Context) -> dict[str, Any]:  # noqa: ARG002 - Airflow's signature
        """Do the work in this process."""
        async with task_state(max_delay=self.max_delay) as state:
            result = await FileWork(**self._arguments()).run(state)
        return self._finish(result)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Take the trigger's event for the result."""
        self._tell(event, context.get("ti"))
        return self._finish(event)

    def _tell(self, event: dict[str, Any], ti: Any) -> None:
        """Say in the worker's log what the trigger's says, which people look at last."""
        if not event["total"]:
            self.log.warning("%s", plain(f"there is no file in {self.source!r}"))
        for failure in event["failures"]:
            self.log.warning("%s", plain(f"{failure['file']!r} failed: {failure['error']}"))
        if (more := event["failed"] - len(event["failures"])) > 0:
            command = (
                "async-task-state show --json" if ti is None else show_command(TaskScope.from_airflow(ti))
            )
            self.log.warning("%s failed, which this names: %s", counted(more, "more file"), command)

    def _arguments(self) -> dict[str, Any]:
        return {
            "source": plain_source(self.source),
            "base": plain_place(self.base),
            "processor": self.processor,
            "concurrency": self.concurrency,
            "max_attempts": self.max_attempts,
            "on_error": self.on_error,
            "identity": self.identity,
            "require_files": self.require_files,
            "max_delay": self.max_delay,
        }

    def _finish(self, result: dict[str, Any]) -> dict[str, Any]:
        counts = (
            f"{counted(result['done'], 'file')} done, {result['skipped']:,} done before, {result['failed']:,} failed, in"
            f" {result['elapsed']} s"
        )
        if result["status"] == "failed" and self.on_error == "raise":
            first = "; ".join(f"{failure['file']}: {failure['error']}" for failure in result["failures"])
            raise AirflowException(
                plain(
                    f"{counts}; it stopped there, because on_error is 'raise', and files after these are left: {first}"
                )
            )
        self.log.info("%s", counts)
        return result


class RemoteJobOperator(BaseOperator):
    """Submits a job to another system and waits for it, whatever dies on the way: one job is submitted, not two.

    The job's id is durable before it is polled for the first time. A retry, or the same attempt in a new process,
    goes on with a job that is still running, and takes the outcome of one that has ended without polling it again.
    When the job has failed, or is gone from its service, so has the attempt; the next attempt submits a new one. A retry
    that finds the earlier attempt's job failed submits a new one at once. A job is gone when `poll` or `result` raises
    `JobGoneError`, or `max_poll_failures` times in a row what a client or a hook raises for a 404 or 410. Deferrable or
    not, the state is the same, so the flag may be changed between attempts.

    Between `submit` and the moment its answer is durable a crash leaves a job of which nobody knows. Before `submit` is
    called an idempotency key is made durable; it is given to a `submit` that takes one, and after such a crash the same
    key is sent again, so that the service answers with the job that it already has. The next job has a new key. A
    process that is asked to end lets a submission take up to 5 more seconds. Where `submit` raises, a retry sends the
    same key, for the request may have arrived all the same; a clear takes the error's word that there is no job.

    The job is cancelled when a user marks the task as failed or as successful, or clears it. A clear cancels it before
    a new one is submitted; where that has failed `max_poll_failures` times, it is logged, and the new one is submitted
    all the same. With `[async_task_state] on_clear = resume` the job goes on instead, and so it does where a user of Airflow
    3.4 keeps the task's state at the clear, if the trigger of a deferred task has not heard of the clear before. It is
    *not* cancelled when a process dies or is shut down, when a trigger moves to another triggerer, nor when
    `execution_timeout` is over, of a deferred task or of one that runs here: the next attempt goes on with the job, and
    after the last one it is the service that must end it. On the worker Airflow sends the same signal for a user's
    action and for a shutdown, so it is asked which of them it was; if it does not answer within 3 seconds the job
    goes on. Airflow's own end of a run or a task that will not be tried again, as by `dagrun_timeout`, counts as a
    user's.

    The result is what `result` returned. What `async-task-state show` shows is the key `job` (its `id`, its `state`, the
    `status` that was polled last, its `idempotency_key`, and the `attempt` that submitted it, or saw it running or succeed
    last), `result`, and
    `earlier_jobs`, those that are to be cancelled after a clear.

    Args:
        submit: The dotted path of a function that submits the job and returns its id, any JSON value but None; a tuple
            becomes a list, and of an id that cannot be saved the job is cancelled before the error is raised. It is called with `arguments` as keywords and, if it has a parameter `idempotency_key`, with the key. Functions
            may be async, or plain, which then run in a worker thread. With `deferrable=False` a function will do.
        poll: The same of one that is called with the id and returns the status: a word, an enum's member, or an object
            with `is_terminal` and `is_successful`. It raises `async_task_state.JobGoneError` where the service knows
            no such job.
        cancel: The same of one that is called with the id and cancels the job. It may be called again for a job that
            was cancelled, for a crash may come between; if it raises and the job is found to have ended, or both calls
            say that it is gone, all is well.
        result: The same of one that is called with the id of a job that succeeded and returns what it gave, a JSON
            value of at most `[async_task_state] max_value_bytes`. May be called again after a crash.
        job: The dotted path of a class whose methods `submit`, `poll`, `cancel` and `result` are the functions: a
            subclass of `async_task_state.jobs.RemoteJob`, or a hook of Airflow's; the arguments of those names then say
            what the methods are called, "submit_run" for instance, and may be left out where the names are the same.
        job_args: The keywords it is made with, `{"databricks_conn_id": "databricks"}` for instance. Templated.
        arguments: A mapping, what `submit` is called with. Templated.
        statuses: What the service's statuses mean: a mapping to "running", "succeeded" or "failed", in addition to
            words that mean the same everywhere, as "RUNNING", "SUCCEEDED" and "FAILED". Case does not matter, and a
            member of an enum stands for its value. A status of which nothing is known, or none, counts as a poll that
            has raised.
        idempotency_argument: Where `submit` takes the idempotency key, a string of 32 letters and digits, if not as
            `idempotency_key`: "client_request_token", or within `arguments`: "json.idempotency_token".
        poll_interval: Seconds between the first polls, at most; then the interval grows by half each time. Each wait
            is a random part of it, at least half.
        max_poll_interval: Seconds between polls, at most.
        max_poll_failures: How often in a row a poll may raise, with the same waits between, until its error ends the
            attempt; the next one goes on with the job. For `cancel` and `result` too. After each failure `job` is made
            again, because its token may have expired.
        deferrable: Whether the triggerer does all of it; None takes `[operators] default_deferrable`.
        **kwargs: Those of every operator.

    Raises:
        InvalidArgumentError: An argument is missing, of the wrong type or out of range.
    """

    template_fields: Sequence[str] = ("arguments", "job_args")
    template_fields_renderers: ClassVar[dict[str, str]] = {"arguments": "json", "job_args": "json"}
    ui_color: str = "#d5e6f2"

    _loop: asyncio.AbstractEventLoop | None = None
    _kill_is_open = False

    def __init__(
        self,
        *,
        submit: str | Callable[..., Any] | None = None,
        poll: str | Callable[..., Any] | None = None,
        cancel: str | Callable[..., Any] | None = None,
        result: str | Callable[..., Any] | None = None,
        job: str | Callable[..., Any] | None = None,
        job_args: Mapping[str, Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
        statuses: Mapping[Any, Meaning] | None = None,
        idempotency_argument: str | None = None,
        poll_interval: float = 10.0,
        max_poll_interval: float = 60.0,
        max_poll_failures: int = 10,
        deferrable: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if deferrable is None:
            deferrable = conf.getboolean("operators", "default_deferrable", fallback=False)
        self.submit = submit
        self.poll = poll
        self.cancel = cancel
        self.result = result
        self.job = job
        self.job_args = job_args
        self.arguments = arguments
        self.statuses = statuses
        self.idempotency_argument = idempotency_argument
        self.poll_interval = poll_interval
        self.max_poll_interval = max_poll_interval
        self.max_poll_failures = max_poll_failures
        self.deferrable = deferrable
        for name in (*CALLS, "job") if deferrable else ():
            if callable(getattr(self, name)):
                raise InvalidArgumentError(
                    f"{name} runs in the triggerer, so it must be a dotted path, not a function: give its path, or"
                    " deferrable=False"
                )
        self._work()

    def execute(self, context: Context) -> Any:
        """See the job through here, or defer to the trigger that does."""
        self.arguments, self.job_args = _listed(self.arguments), _listed(self.job_args)
        if self.deferrable:
            work = self._work()
            # A wrong path is the worker's to report, before a triggerer trips over it.
            work.check()
            self.defer(
                trigger=RemoteJobTrigger(**self._arguments()),
                method_name="execute_complete",
                timeout=self.execution_timeout,
            )
        try:
            return asyncio.run(self.aexecute(context))
        except BaseException:
            # A signal handler that raises after on_kill() ends the loop before it is known whose kill it is.
            if self._kill_is_open:
                asyncio.run(self._cancel_if_killed())
            raise

    async def aexecute(self, context: Context) -> Any:  # noqa: ARG002 - Airflow's signature
        """See the job through in this process."""
        self._killed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        try:
            async with task_state(on_clear=after_clear()) as state:
                return self._finish(await self._run(state))
        finally:
            self._loop = None

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:  # noqa: ARG002
        """Take the trigger's event for the outcome."""
        return self._finish(event)

    def on_kill(self) -> None:
        """Cancel the job, if it is a user who ends this task."""
        loop = self._loop
        # Airflow calls this in a signal handler, where nothing can be awaited; and after execution_timeout.
        if loop is not None and not loop.is_closed():
            self._kill_is_open = True
            loop.call_soon_threadsafe(self._killed.set)

    async def _run(self, state: TaskState) -> dict[str, Any]:
        work = self._work()
        running = asyncio.create_task(work.run(state))
        killed = asyncio.create_task(self._wait_for_users_kill(state))
        try:
            await asyncio.wait([running, killed], return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
        finally:
            for task in (running, killed):
                task.cancel()
            await asyncio.wait([running, killed])
        # What kept it from finding out is no reason to cancel.
        killed.result()
        await work.cancel_job(state)
        self._kill_is_open = False
        return await work.run(state)

    async def _wait_for_users_kill(self, state: TaskState) -> None:
        while True:
            await self._killed.wait()
            self._killed.clear()
            if await self._is_users_kill(state):
                return
            self._kill_is_open = False

    async def _cancel_if_killed(self) -> None:
        async with task_state(on_clear=after_clear()) as state:
            if await self._is_users_kill(state):
                await self._work().cancel_job(state)
        self._kill_is_open = False

    async def _is_users_kill(self, state: TaskState) -> bool:
        task_state = await state_in_airflow(state.scope, patience=WORKER_SECONDS)
        resumes = after_clear() == "resume"
        if task_state == "restarting" and not resumes:
            choice = await choice_at_clear(state.scope, state.attempt + 1, None)
            resumes = choice is not None and choice.kept
        killed = is_users_kill(task_state, doubtful=False, resumes=resumes)
        what = "cancelling the job" if killed else "the job goes on"
        self.log.info("%s: the task is %s in Airflow", what, task_state)
        return killed

    def _work(self) -> JobWork:
        return JobWork(**self._arguments())

    def _arguments(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(JobWork)}

    def _finish(self, outcome: dict[str, Any]) -> Any:
        if outcome["status"] != "success":
            raise JobFailedError(outcome["job_id"], outcome["job_status"])
        self.log.info("%s", plain(f"job {outcome['job_id']!r} has succeeded: {outcome['job_status']}"))
        return outcome["result"]


def _listed(value: Any) -> Any:
    """A value with lists for Airflow's own sequences in it, which what mapped tasks have returned is."""
    if isinstance(value, Mapping):
        return {name: _listed(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview, tuple)):
        return [_listed(item) for item in value]
    return value
