"""Processing files: what `ProcessFilesTrigger` and `ProcessFilesOperator` both do, on the same state."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter
from itertools import islice
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import anyio.to_thread

from async_task_state.callables import generates, is_async
from async_task_state.codec import decode
from async_task_state.errors import (
    InvalidArgumentError,
    ProcessorError,
    SourceError,
    SourceNotAllowedError,
    WorkFailedError,
)
from async_task_state.items import FILES
from async_task_state.logs import Log
from async_task_state.places import check_allowed, open_place
from async_task_state.settings import check_count, check_seconds
from async_task_state.sources import check_source, found, modified_before, modified_of
from async_task_state.totals import Totals, check_sums
from async_task_state.wire import fitted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from fsspec import AbstractFileSystem
    from upath import UPath

    from async_task_state.places import Place
    from async_task_state.state import TaskState

__all__ = ["FileWork", "load_processor"]

log = Log(__name__)

TOTALS: Final = "totals"
CHUNK: Final = 500
"""How many files are looked up in one hop to a worker thread."""
BY_NAME: Final = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
BY_POSITION: Final = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class File:
    """One file to process.

    Args:
        place: The place of the source that it belongs to.
        name: What its file system calls it.
        key: What it is recognised by.
        earlier: What an older state recognises it by; None if that is the same.
        path: Where it is; None if it was not allowed when it was listed.
    """

    place: Place
    name: str
    key: str
    earlier: str | None
    path: UPath | None

    def checked_path(self) -> UPath:
        """The path, just before it is handed over.

        Raises:
            SourceNotAllowedError: It may not be; its symbolic links may lead out of the base by now.
        """
        self.place.check(self.name)
        return self.place.path_of(self.name) if self.path is None else self.path


@dataclass(frozen=True, slots=True, kw_only=True)
class FileWork:
    """Which files to process, and how; see `ProcessFilesOperator` for the arguments.

    Raises:
        InvalidArgumentError: An argument is of the wrong type or out of range.
        ProcessorError: The processor is a generator function.
    """

    source: str | list[str]
    processor: str | Callable[..., Any]
    concurrency: int = 16
    max_attempts: int = 1
    on_error: Literal["raise", "collect"] = "raise"
    identity: Literal["stat", "path"] = "stat"
    require_files: bool = False
    max_delay: float | None = None
    base: str | None = None

    def __post_init__(self) -> None:
        if self.identity not in ("stat", "path"):
            raise InvalidArgumentError(f"identity must be 'stat' or 'path', not {self.identity!r}")
        if self.on_error not in ("raise", "collect"):
            raise InvalidArgumentError(f"on_error must be 'raise' or 'collect', not {self.on_error!r}")
        if callable(self.processor):
            load_processor(self.processor)
        check_count("concurrency", self.concurrency)
        check_count("max_attempts", self.max_attempts)
        check_seconds("max_delay", self.max_delay)
        if self.base is not None and (not isinstance(self.base, str) or not self.base):
            raise InvalidArgumentError(f"base must be an absolute path, a URL or None, not {self.base!r}")

    async def run(self, state: TaskState) -> dict[str, Any]:
        """Process what remains and say what came of it; a file that failed for good makes the status "failed".

        Raises:
            InvalidArgumentError: The source is none.
            ProcessorError: The processor cannot be imported or called.
            SourceNotAllowedError: The source is not allowed here, or leaves `base`.
            SourceError: The source cannot be listed; or there is no file, and `require_files` is set.
        """
        check_source(self.source)
        # Again, because it may have been sent from a machine with other settings.
        check_allowed(self.source, self.base)
        process = with_state(load_processor(self.processor), state)
        # In memory from here on, whatever the store is.
        check_sums(state.scope, TOTALS, await state.get(TOTALS, {}))
        totals = Totals()

        def add_up(file: File, result: object) -> dict[str, Any]:
            if not isinstance(result, Mapping):
                return {}
            # In which there is nothing of a file that could not be recorded.
            sums = decode(state._values().get(TOTALS, "{}"))  # noqa: SLF001 - without a turn of the event loop
            return {TOTALS: totals.plus(sums, result, file.name)}

        files = state.work(FILES)

        def key(file: File) -> str:
            return file.earlier if file.earlier is not None and files.is_done(file.earlier) else file.key

        try:
            summary = await files.process(
                list_files(self.source, self.identity, self.base),
                process,
                key=key,
                concurrency=self.concurrency,
                max_attempts=self.max_attempts,
                on_error=self.on_error,
                record=add_up,
            )
        except WorkFailedError as error:
            summary = error.summary
        if not summary.total:
            if self.require_files:
                raise SourceError(f"there is no file in {self.source!r}, and require_files is set")
            log.warning("there is no file in %r", self.source)
        result = {
            **summary.as_event(),
            "failures": [
                {"file": path_of(failure.item, self.identity), "error": failure.error}
                for failure in summary.failures
            ],
            "totals": await state.get(TOTALS, {}),
        }
        return cast("dict[str, Any]", fitted(result))


def load_processor(processor: str | Callable[..., Any]) -> Callable[..., Any]:
    """The function that a dotted path names; a function is returned as it is.

    Raises:
        ProcessorError: The path cannot be imported, or what it names cannot be called or is a generator function.
    """
    if isinstance(processor, str):
        try:
            found: Any = resolve_name(processor)
        except Exception as error:
            raise ProcessorError(
                f"the processor {processor!r} cannot be imported ({type(error).__name__}: {error}); it must be the"
                " dotted path of a function in a module that is installed, or in the plugins folder, on workers and"
                " triggerers"
            ) from error
    else:
        found = processor
    if not callable(found) or inspect.ismodule(found):
        raise ProcessorError(f"the processor {processor!r} is a {type(found).__name__} and cannot be called")
    function: Callable[..., Any] = found
    if (why := generates(function)) is not None:
        raise ProcessorError(f"the processor {processor!r} {why}")
    return function


def with_state(processor: Callable[..., Any], state: TaskState) -> Callable[[File], Any]:
    """A processor as a function of the file alone; it is given the state where it asks for it."""
    try:
        parameters = list(inspect.signature(processor).parameters.values())[1:]
    except (TypeError, ValueError):
        # A builtin that does not say what it takes.
        parameters = []
    arguments: tuple[TaskState, ...] = ()
    named: dict[str, TaskState] = {}
    if any(each.name == "state" and each.kind in BY_NAME for each in parameters):
        named = {"state": state}
    elif parameters and parameters[0].kind in BY_POSITION and parameters[0].default is Parameter.empty:
        arguments = (state,)

    if is_async(processor):

        async def process(file: File) -> Any:
            if file.place.asks_disk:
                path = await anyio.to_thread.run_sync(file.checked_path)
            else:
                path = file.checked_path()
            return await processor(path, *arguments, **named)

        return process
    return lambda file: processor(file.checked_path(), *arguments, **named)


async def list_files(source: str | list[str], identity: str, base: str | None = None) -> AsyncIterator[File]:
    """The files of a source, in a stable order; every look at the file system is made in a worker thread."""
    chunks = _chunks(source, identity, base)
    while chunk := await anyio.to_thread.run_sync(next, chunks, None):
        for file in chunk:
            yield file


def path_of(key: str, identity: str) -> str:
    """The path within a file's key."""
    return (key.rpartition("#")[0] or key) if identity == "stat" else key


def _chunks(source: str | list[str], identity: str, base: str | None) -> Iterator[list[File]]:
    files = _found(source, identity, base) if isinstance(source, str) else _listed(source, identity, base)
    try:
        while chunk := list(islice(files, CHUNK)):
            yield chunk
    except SourceError:
        raise
    except Exception as error:
        # Client libraries of file systems raise errors of their own.
        raise SourceError(f"the source cannot be listed: {type(error).__name__}: {error}") from error


def _listed(paths: Iterable[str], identity: str, base: str | None) -> Iterator[File]:
    fresh: set[AbstractFileSystem] = set()
    for path in paths:
        place = open_place(path, base)
        if place.file_system not in fresh:
            place.file_system.invalidate_cache()
            fresh.add(place.file_system)
        try:
            info = place.file_system.info(place.root) if identity == "stat" else {}
        except FileNotFoundError:
            # Left to the processor, whose error is then recorded with the file.
            info = {}
        yield _file(place, place.root, info, identity)


def _found(source: str, identity: str, base: str | None) -> Iterator[File]:
    place = open_place(source, base)
    place.file_system.invalidate_cache()
    for name, info in found(place, _refuse):
        if info["type"] == "file":
            yield _file(place, name, info, identity)


def _refuse(error: OSError) -> None:
    """A folder that is gone was deleted meanwhile; the files of one that cannot be listed must not be left out."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _file(place: Place, name: str, info: dict[str, Any], identity: str) -> File:
    key, earlier = place.url_of(name), None
    if identity == "stat":
        modified, before, url = modified_of(info), modified_before(info), key
        key = f"{url}#{info.get('size', '')},{'' if modified is None else modified}"
        earlier = None if before is None else f"{url}#{info.get('size', '')},{before}"
    try:
        return File(place, name, key, earlier, place.path_of(name))
    except SourceNotAllowedError:
        # Raised again where it is handed over, which makes it the failure of this file alone.
        return File(place, name, key, earlier, None)
