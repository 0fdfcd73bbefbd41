"""Processing files in the triggerer."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

from airflow.triggers.base import TriggerEvent

from async_task_state.errors import InvalidArgumentError
from async_task_state.files import FileWork
from async_task_state.places import check_before_sending
from async_task_state.sources import Source, check_source, plain_place, plain_source
from async_task_state.triggers.checkpoint import CheckpointTrigger

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator

    from upath import UPath

    from async_task_state.state import TaskState

__all__ = ["ProcessFilesTrigger"]


class ProcessFilesTrigger(CheckpointTrigger):
    """Processes files in the triggerer, each recorded when it is done; fires one event with the counts.

    The payload is a dict: `status` ("failed" if a file failed, else "success"), `total`, `done`, `skipped`, `failed`,
    `done_in_all`, `failures` (the first ten, each with `file` and `error`), `totals` and `elapsed` (seconds).

    Args:
        source: See `async_task_state.operators.ProcessFilesOperator`, for this and all the others.
        processor: A dotted path; a function cannot be sent to the triggerer.
        base: The folder that `source` must be in.
        concurrency: How many files are processed at once.
        max_attempts: How often one attempt of the task tries a file.
        on_error: "raise" or "collect".
        identity: "stat" or "path".
        require_files: Whether a source without a file is an error.
        max_delay: Seconds until a finished file is durably recorded, at most.

    Raises:
        InvalidArgumentError: An argument is of the wrong type or out of range.
        SourceNotAllowedError: `source` is not allowed, or is outside of `base`.
    """

    def __init__(
        self,
        source: Source,
        processor: str,
        *,
        base: str | os.PathLike[str] | UPath | None = None,
        concurrency: int = 16,
        max_attempts: int = 1,
        on_error: Literal["raise", "collect"] = "raise",
        identity: Literal["stat", "path"] = "stat",
        require_files: bool = False,
        max_delay: float | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(processor, str):
            raise InvalidArgumentError(
                f"a processor that runs in the triggerer must be a dotted path, not a {type(processor).__name__}"
            )
        places, folder = plain_source(source), plain_place(base)
        check_source(places)
        self._work = FileWork(
            source=places,
            base=folder,
            processor=processor,
            concurrency=concurrency,
            max_attempts=max_attempts,
            on_error=on_error,
            identity=identity,
            require_files=require_files,
            max_delay=max_delay,
        )
        self.max_delay = max_delay
        check_before_sending(places, folder)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path and the arguments."""
        arguments = {field.name: getattr(self._work, field.name) for field in fields(self._work)}
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run_with_state(self, state: TaskState) -> AsyncGenerator[TriggerEvent, None]:
        """Process what remains and fire the counts."""
        yield TriggerEvent(await self._work.run(state))
