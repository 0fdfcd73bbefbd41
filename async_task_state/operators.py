"""Operators that go on where the last attempt stood, on the worker or in the triggerer."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Literal

from airflow.configuration import conf
from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException

from async_task_state.errors import InvalidArgumentError
from async_task_state.files import FileWork, Source, load_processor
from async_task_state.state import task_state
from async_task_state.triggers.files import ProcessFilesTrigger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from airflow.sdk import Context

__all__ = ["ProcessFilesOperator"]


class ProcessFilesOperator(BaseOperator):
    """Processes every file of a source, and each only once, whatever dies on the way.

    A file is recorded as done when the processor returned for it. A retry, or the same attempt in a new process, goes
    on with the files that are left; what finished less than `max_delay` before a crash may be processed again.
    Deferrable or not, the state is the same, so the flag may be changed between attempts.

    The result is a dict: `status`, `done`, `skipped` (done before), `failed`, `failures` (the first ten, each with
    `file` and `error`), `totals` and `elapsed` (seconds).

    Args:
        source: A directory (with all below it), a glob, a file, any of them as an fsspec URL, or a list of files.
            Templated.
        processor: The dotted path of `async def process(path, state)`, or of a plain function, which then runs in a
            worker thread; `state` may be left out. `path` is a `UPath`, which for a local file is a `pathlib.Path`.
            With `deferrable=False` a function will do. When it returns a mapping, its numbers are added to `totals`
            in the same atomic step that records the file; anything else it returns is ignored.
        concurrency: How many files are processed at once.
        max_attempts: How often one attempt of the task tries a file before it counts as failed. The task's next
            attempt tries it anew.
        on_error: "raise" fails the task at the first file that failed for good; "collect" goes on, and succeeds with
            the failures in the result.
        identity: How a file is recognised: "stat" by path, size and modification time, so that one that changed is
            processed again; "path" by path alone.
        require_files: Whether a source that does not exist, or holds no file, fails the task.
        max_delay: Seconds until a finished file is durably recorded, at most; None takes
            `[async_task_state] max_delay`.
        deferrable: Whether the triggerer does the work; None takes `[operators] default_deferrable`.
        **kwargs: Those of every operator.

    Raises:
        InvalidArgumentError: An argument is of the wrong type or out of range.
    """

    template_fields: Sequence[str] = ("source",)
    ui_color: str = "#d5f2e3"

    def __init__(
        self,
        *,
        source: Source,
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
        self.processor = processor
        self.concurrency = concurrency
        self.max_attempts = max_attempts
        self.on_error = on_error
        self.identity = identity
        self.require_files = require_files
        self.max_delay = max_delay
        self.deferrable = deferrable
        FileWork(**self._arguments())

    def execute(self, context: Context) -> dict[str, Any]:
        """Do the work here, or defer to the trigger that does."""
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

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Take the trigger's event for the result."""
        return self._finish(event)

    def _arguments(self) -> dict[str, Any]:
        source = os.fspath(self.source) if isinstance(self.source, os.PathLike) else self.source
        return {
            "source": source,
            "processor": self.processor,
            "concurrency": self.concurrency,
            "max_attempts": self.max_attempts,
            "on_error": self.on_error,
            "identity": self.identity,
            "require_files": self.require_files,
            "max_delay": self.max_delay,
        }

    def _finish(self, result: dict[str, Any]) -> dict[str, Any]:
        counts = "{done} files done, {skipped} done before, {failed} failed, in {elapsed} s".format_map(
            result
        )
        if result["status"] == "failed":
            first = "; ".join(f"{failure['file']}: {failure['error']}" for failure in result["failures"])
            raise AirflowException(f"{counts}: {first}")
        self.log.info("%s", counts)
        return result
