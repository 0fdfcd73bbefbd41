"""What an author says of a remote job: how it is submitted, polled and cancelled, and what its statuses mean."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from operator import attrgetter
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from anyio import to_thread

from async_task_state.callables import generates, is_async
from async_task_state.errors import InvalidArgumentError, JobCallError, UnknownJobStatusError
from async_task_state.logs import Log

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

log = Log(__name__)

__all__ = ["CALLS", "JobCalls", "JobDefinition", "Meaning", "RemoteJob", "mapping_of"]

Meaning: TypeAlias = Literal["running", "succeeded", "failed"]
MEANINGS: Final = ("running", "succeeded", "failed")

CALLS: Final = ("submit", "poll", "cancel", "result")
KEY_PARAMETER: Final = "idempotency_key"
STATUS_CHARS: Final = 500

# Words that mean the same wherever they are used. Not "completed", "finished", "done", "stopped" or "terminated": there
# are services that say so of a job that failed.
_RUNNING = """
    accepted blocked busy canceling cancelling initializing not_started pending preparing provisioning queued running
    scheduled starting submitted waiting waiting_for_retry
"""
_SUCCEEDED = "succeeded success successful"
_FAILED = "aborted canceled cancelled crashed dead error expired failed failure killed timed_out"
_WORDS: Final[dict[str, Meaning]] = {
    **dict.fromkeys(_RUNNING.split(), "running"),
    **dict.fromkeys(_SUCCEEDED.split(), "succeeded"),
    **dict.fromkeys(_FAILED.split(), "failed"),
}


class RemoteJob:
    """A service's jobs as methods, for an author who prefers a class; its dotted path is given as `job`.

    Methods may be async, or plain, which then run in a worker thread. One that is an async context manager is entered
    for as long as a job is watched; after a call that failed another object is made and entered in its place, because a
    token may have expired. Any other class with such methods, as a hook of Airflow's, will do as well.
    """

    if TYPE_CHECKING:
        submit: Callable[..., Any]
        """Called with the job's arguments as keywords; returns its id, any JSON value but None."""
        poll: Callable[..., Any]
        """Called with the id; returns the status, or raises `JobGoneError`."""
        cancel: Callable[..., Any]
        """Called with the id, maybe more than once."""

    def result(self, job_id: Any) -> Any:  # noqa: ARG002 - for those who override it
        """What a job that succeeded gave: any JSON value.

        Args:
            job_id: What `submit` returned.
        """
        return None

    def meaning_of(self, status: Any) -> Meaning | None:  # noqa: ARG002 - for those who override it
        """What a status means; for one that is no plain word.

        Args:
            status: What `poll` returned.

        Returns:
            "running", "succeeded" or "failed"; None where `statuses` shall say it.
        """
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDefinition:
    """Which functions a job is made of; see `RemoteJobOperator` for the arguments.

    Raises:
        InvalidArgumentError: An argument is missing or of the wrong type.
    """

    submit: str | Callable[..., Any] | None = None
    poll: str | Callable[..., Any] | None = None
    cancel: str | Callable[..., Any] | None = None
    result: str | Callable[..., Any] | None = None
    job: str | Callable[..., Any] | None = None
    job_args: Mapping[str, Any] | None = None
    statuses: Mapping[Any, Meaning] | None = None
    idempotency_argument: str | None = None

    def __post_init__(self) -> None:
        for name in (*CALLS, "job"):
            value = getattr(self, name)
            optional = name in ("job", "result") or self.job is not None
            if not (callable(value) or (isinstance(value, str) and value) or (optional and value is None)):
                raise InvalidArgumentError(
                    f"{name} must be the dotted path of a function, or with `job` the name of one of its methods, not"
                    f" {value!r}"
                )
        statuses = {
            _text(status): meaning for status, meaning in mapping_of("statuses", self.statuses).items()
        }
        for status, meaning in statuses.items():
            if meaning not in MEANINGS:
                raise InvalidArgumentError(
                    f"statuses must say 'running', 'succeeded' or 'failed' of {status!r}, not {meaning!r}"
                )
        if self.statuses is not None:
            # As text, as it is stored: a member of an enum cannot be sent to the triggerer.
            object.__setattr__(self, "statuses", statuses)

    def check(self) -> None:
        """Find every function, so that a wrong path is known before anything is begun.

        Raises:
            JobCallError: One cannot be imported or called.
        """
        self.functions_of(self.make())

    @asynccontextmanager
    async def open(self) -> AsyncIterator[JobCalls]:
        """The functions, while the job that they are methods of, if any, is entered.

        Raises:
            JobCallError: One cannot be imported or called.
        """
        calls = JobCalls(self)
        try:
            await calls.renew()
            yield calls
        finally:
            await calls.close()

    def make(self) -> Any:
        """A new object of the class that is given as `job`; None where none is."""
        if self.job is None:
            return None
        return _loaded("job", self.job)(**mapping_of("job_args", self.job_args))

    def functions_of(self, owner: Any) -> dict[str, Callable[..., Any] | None]:
        """Every function by its name, as methods of `owner` where there is one.

        Raises:
            JobCallError: One cannot be imported or called.
        """
        return {name: self._function(name, owner) for name in CALLS}

    def _function(self, name: str, owner: Any) -> Callable[..., Any] | None:
        wanted = getattr(self, name)
        if owner is None or callable(wanted):
            return None if wanted is None else _loaded(name, wanted)
        try:
            function = attrgetter(wanted or name)(owner)
        except AttributeError as error:
            if name == "result" and wanted is None:
                return None
            raise JobCallError(f"{name}: {error}; say which method it is, as in {name}='...'") from error
        return _callable(name, wanted or name, function)


class JobCalls:
    """The functions of a job, found and ready to be called."""

    def __init__(self, definition: JobDefinition) -> None:
        self._definition = definition
        self._exits = AsyncExitStack()
        self._owner: Any = None
        self._functions: dict[str, Callable[..., Any] | None] = {}
        self._words = {**_WORDS, **{_word(text): what for text, what in (definition.statuses or {}).items()}}

    async def renew(self) -> None:
        """Make and enter the job, in place of the one that there was: its token or its connection may be of no use.

        Raises:
            JobCallError: A function cannot be imported or called.
            Exception: What the author's class raises.
        """
        if self._functions and self._definition.job is None:
            return
        try:
            await self.close()
        except Exception as error:  # noqa: BLE001 - what is of no use may not leave in order
            log.warning("the job's object has not closed in order: %r", error)
        owner = self._definition.make()
        if hasattr(type(owner), "__aenter__"):
            owner = await self._exits.enter_async_context(owner)
        self._owner, self._functions = owner, self._definition.functions_of(owner)

    async def close(self) -> None:
        """Leave the job, where it was entered."""
        exits, self._exits = self._exits, AsyncExitStack()
        await exits.aclose()

    @property
    def takes_key(self) -> bool:
        """Whether `submit` is given an idempotency key."""
        return self._key_path is not None

    @property
    def _key_path(self) -> str | None:
        return self._definition.idempotency_argument or self._key_parameter()

    async def submit(self, arguments: Mapping[str, Any], key: str) -> Any:
        """Submit a job and return its id.

        Raises:
            JobCallError: There was none.
        """
        path = self._key_path
        if path is not None:
            arguments = _with(arguments, path.split("."), key)
        job_id = await self._call("submit", **arguments)
        if job_id is None:
            raise JobCallError("submit returned None: it must return the id of the job it has submitted")
        return job_id

    async def poll(self, job_id: Any) -> tuple[Meaning, str]:
        """What the status of a job means, and the status as text."""
        status = await self._call("poll", job_id)
        return self._meaning(status), _text(status)

    async def cancel(self, job_id: Any) -> None:
        """Cancel a job."""
        await self._call("cancel", job_id)

    async def result(self, job_id: Any) -> Any:
        """What a job that succeeded gave."""
        return await self._call("result", job_id)

    async def _call(self, name: str, /, *args: Any, **named: Any) -> Any:
        function = self._functions[name]
        if function is None:
            return None
        if is_async(function):
            return await function(*args, **named)
        # Abandoned, for a shutdown must not wait for a request that hangs.
        answer = await to_thread.run_sync(partial(function, *args, **named), abandon_on_cancel=True)
        return await answer if inspect.isawaitable(answer) else answer

    def _key_parameter(self) -> str | None:
        """The name of the parameter for the key, where `submit` has one."""
        submit: Any = self._functions["submit"]
        try:
            return KEY_PARAMETER if KEY_PARAMETER in inspect.signature(submit).parameters else None
        except ValueError:
            # A builtin that does not say what it takes.
            return None

    def _meaning(self, status: Any) -> Meaning:
        meaning = self._owner.meaning_of(status) if isinstance(self._owner, RemoteJob) else None
        if meaning is None and hasattr(status, "is_terminal") and hasattr(status, "is_successful"):
            # As the states of Databricks's hook say it.
            meaning = ("succeeded" if status.is_successful else "failed") if status.is_terminal else "running"
        if meaning is None:
            meaning = self._words.get(_word(_text(status)))
        if meaning not in MEANINGS:
            raise UnknownJobStatusError(
                f"poll returned {_text(status)!r} ({type(status).__name__}), which is not known to mean that the job is"
                " running, has succeeded or has failed: say so, as in statuses={'COMPLETED': 'succeeded'}"
            )
        return meaning


def mapping_of(name: str, value: Any) -> Mapping[str, Any]:
    """A mapping that may be left out.

    Raises:
        InvalidArgumentError: It is something else.
    """
    if value is not None and not isinstance(value, Mapping):
        raise InvalidArgumentError(f"{name} must be a mapping, not {type(value).__name__}: {value!r}")
    return value or {}


def _loaded(name: str, wanted: str | Callable[..., Any]) -> Callable[..., Any]:
    found: Any = wanted
    if isinstance(wanted, str):
        try:
            found = resolve_name(wanted)
        except Exception as error:
            raise JobCallError(
                f"{name}={wanted!r} cannot be imported ({type(error).__name__}: {error}); it must be a dotted path in a"
                " module that is installed, or in the plugins folder, on workers and triggerers"
            ) from error
    return _callable(name, wanted, found)


def _callable(name: str, wanted: object, found: Any) -> Callable[..., Any]:
    if not callable(found):
        raise JobCallError(f"{name}={wanted!r} is a {type(found).__name__} and cannot be called")
    function: Callable[..., Any] = found
    if (why := generates(function)) is not None:
        raise JobCallError(f"{name}={wanted!r} {why}")
    return function


def _with(arguments: Mapping[str, Any], path: list[str], value: str) -> dict[str, Any]:
    """The arguments with one more, at any depth; the caller's own stay as they are."""
    name, *rest = path
    if rest:
        inner = arguments.get(name, {})
        if not isinstance(inner, Mapping):
            raise InvalidArgumentError(
                f"idempotency_argument: {name!r} is a {type(inner).__name__} in `arguments`, not a mapping"
            )
        return {**arguments, name: _with(inner, rest, value)}
    return {**arguments, name: value}


def _text(status: Any) -> str:
    """A status as a person reads it, which is also how it is stored."""
    plain = status.value if isinstance(status, Enum) else status
    return str(plain)[:STATUS_CHARS]


def _word(text: str) -> str:
    return text.strip().casefold().replace("-", "_").replace(" ", "_")
