"""What can go wrong, one class a cause, all under `AsyncTaskStateError`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from async_task_state.text import plain

if TYPE_CHECKING:
    from async_task_state.results import WorkSummary
    from async_task_state.scopes import Scope

__all__ = [
    "AlreadyOpenError",
    "AsyncTaskStateError",
    "AsyncWithNeededError",
    "DamagedRecordError",
    "EscapedError",
    "EventLoopRunningError",
    "InvalidArgumentError",
    "InvalidItemError",
    "InvalidKeyError",
    "InvalidValueError",
    "JobCallError",
    "JobFailedError",
    "JobGoneError",
    "NoScopeError",
    "NotAwaitedError",
    "OutsideTaskError",
    "ProcessorError",
    "ReadOnlyStateError",
    "SettingsError",
    "SourceError",
    "SourceNotAllowedError",
    "StaleAttemptError",
    "StaleWriterError",
    "StateNotOpenError",
    "StateTooLargeError",
    "StoreError",
    "StoreUnavailableError",
    "UnknownJobStatusError",
    "UnstableItemError",
    "UntrustedSchemaError",
    "ValueTooLargeError",
    "WithNeededError",
    "WorkFailedError",
    "WriterEndedError",
]


class AsyncTaskStateError(Exception):
    """The root of every error this library raises; its text is one line, because ids and keys may hold anything."""

    _kept_characters: ClassVar[str] = ""

    def __str__(self) -> str:
        return plain(super().__str__(), self._kept_characters)


class AlreadyOpenError(AsyncTaskStateError, RuntimeError):
    """A task has opened its own state in Airflow's store twice at once, where each would overwrite what the other saves."""


class AsyncWithNeededError(AsyncTaskStateError, TypeError):
    """A state was entered with `with`, which cannot await; the message names what can."""


class EscapedError(AsyncTaskStateError):
    """Stands for an error whose text neither Airflow nor a log can carry; the message is its traceback, escaped."""

    _kept_characters = "\n\t"


class EventLoopRunningError(AsyncTaskStateError, RuntimeError):
    """A sync state was used in a thread whose event loop runs, which it would block."""


class InvalidArgumentError(AsyncTaskStateError, ValueError):
    """An argument is out of its range or of the wrong type; the message names both."""


class InvalidItemError(AsyncTaskStateError, TypeError):
    """A work item has no stable string key, so it could not be recognised by a later attempt."""


class UnstableItemError(InvalidItemError):
    """A work item's key differs from process to process, as that of a function or a set; `key=` gives it another."""


class InvalidKeyError(AsyncTaskStateError, ValueError):
    """A key is empty, too long, reserved, or not a string."""


class InvalidValueError(AsyncTaskStateError, ValueError):
    """A value is not JSON; the message names its type and its path within the value."""


class ValueTooLargeError(InvalidValueError):
    """A value's JSON is longer than `max_value_bytes` allows."""


class JobCallError(AsyncTaskStateError):
    """A function that a remote job is made of cannot be imported or called, or `submit` returned no id."""


class JobFailedError(AsyncTaskStateError):
    """A remote job has failed, or was cancelled; the task's next attempt submits a new one.

    Attributes:
        job_id: What `submit` returned.
        status: What was polled last.
    """

    def __init__(self, job_id: Any, status: str) -> None:
        super().__init__(f"job {job_id!r} has failed: {status}")
        self.job_id = job_id
        self.status = status

    def __reduce__(self) -> tuple[type[JobFailedError], tuple[Any, str]]:
        """Keep both when the error crosses a process boundary."""
        return type(self), (self.job_id, self.status)


class JobGoneError(AsyncTaskStateError):
    """A remote job, or its result, is no longer on its service; for an author's `poll`, `cancel` and `result` to raise."""


class NoScopeError(AsyncTaskStateError, RuntimeError):
    """No scope was given and no running task was found to take it from."""


class NotAwaitedError(AsyncTaskStateError, RuntimeError):
    """A state was left, and a call on it that does nothing before it is awaited never was; the message names it."""


class OutsideTaskError(AsyncTaskStateError, RuntimeError):
    """A state was opened for writing where no task or trigger runs, as while a DAG file is parsed, and no store was named."""


class ProcessorError(AsyncTaskStateError):
    """A processor's dotted path cannot be imported, or what it names cannot be called."""


class ReadOnlyStateError(AsyncTaskStateError, RuntimeError):
    """A state opened with `read_only=True` was asked to change something."""


class SettingsError(AsyncTaskStateError, ValueError):
    """A setting is unknown, malformed, or unfit for this deployment; the message names the option."""


class SourceError(AsyncTaskStateError):
    """A source of files cannot be listed, or holds no file and files were required."""


class SourceNotAllowedError(SourceError, ValueError):
    """A source is of a protocol that is not allowed, chains file systems, or leaves its `base`; the message says which."""


class StaleWriterError(AsyncTaskStateError):
    """Another holder has taken this scope's lease since; nothing of this one is written any more.

    Raised by the first call after the lease was found lost and by every call after that.
    """


class StaleAttemptError(StaleWriterError):
    """A later attempt of the same task, or a run that replaced this one, has opened this scope, so this one may not."""


class StateNotOpenError(AsyncTaskStateError, RuntimeError):
    """A state was used before `async with` entered it, after it was left, or in a forked child."""


class StateTooLargeError(AsyncTaskStateError, ValueError):
    """A state would hold more than `max_state_bytes` allows; the message names the state, the key and both numbers.

    Attributes:
        scope: Whose state.
    """

    scope: Scope | None = None


class StoreError(AsyncTaskStateError):
    """The store cannot serve: not a database of ours, corrupt, not accessible, or of a newer schema."""


class DamagedRecordError(StoreError):
    """A record of a state cannot be read: it was damaged, or a newer version of this library has written it.

    The message names the state and the record, and the command that removes the state.
    """


class StoreUnavailableError(StoreError):
    """The store does not answer at present; waiting may help.

    From a call on a state it means that the store has been away for `outage_timeout`; the message
    names what is not saved. The changes stay in memory and saving them is still being retried.
    """


class WriterEndedError(StoreUnavailableError):
    """The thread that saves states in this process has ended, by a fault that it has no answer to.

    The message says which, and what is not saved: nothing of that is tried again. A state that is opened anew gets
    a thread of its own, and finds what was durable.
    """


class UntrustedSchemaError(StoreError):
    """The PostgreSQL schema belongs to a role that could change what is done there; the message names it."""


class UnknownJobStatusError(AsyncTaskStateError):
    """A remote job has a status of which nobody has said what it means; the message names it."""


class WithNeededError(AsyncTaskStateError, TypeError):
    """A sync state was entered with `async with`; the message names what is entered so."""


class WorkFailedError(AsyncTaskStateError):
    """An item failed for good while `on_error="raise"`; the item's own error is the `__cause__`.

    Attributes:
        summary: What was done, skipped and failed until then.
    """

    def __init__(self, message: str, summary: WorkSummary) -> None:
        super().__init__(message)
        self.summary = summary

    def __reduce__(self) -> tuple[type[WorkFailedError], tuple[str, WorkSummary]]:
        """Keep the summary when the error crosses a process boundary."""
        return type(self), (self.args[0], self.summary)
