"""What one look at a source of files shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from anyio import to_thread

from async_task_state.digests import digest_of
from async_task_state.errors import SourceNotAllowedError
from async_task_state.logs import Log
from async_task_state.places import open_place
from async_task_state.sources import found, modified_before, modified_of, moment_of
from async_task_state.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


__all__ = ["Lookout", "Version", "look"]

T = TypeVar("T")

log = Log(__name__)

BACKOFF_SECONDS: Final = 300.0
MAX_DOUBLINGS: Final = 16


class Version(NamedTuple):
    """A file as it was when it was seen: changed in any way, it is another version.

    Attributes:
        digest: Of its path, size, and time of modification, or tag.
        path: Its path, or its URL.
        size: In bytes; 0 where the file system does not say.
        modified: Seconds since 1970, by the clock of whoever wrote it; None where the file system does not say.
        earlier: The digest by which an older state knows it; None if that is the same.
    """

    digest: bytes
    path: str
    size: int
    modified: float | None
    earlier: bytes | None = None


class Lookout:
    """Looks at a source again and again, in a worker thread; one that cannot be listed is logged, and no error.

    Args:
        source: See `look`.
        interval: Seconds between two looks; twice as many after each that failed, up to 300 or `interval`.
    """

    def __init__(self, source: str | list[str], interval: float) -> None:
        self._source = source
        self._interval = interval
        self._failures = 0
        self._told: list[str] = []

    @property
    def pause(self) -> float:
        """Seconds until the next look."""
        grown = self._interval * 2.0 ** min(self._failures, MAX_DOUBLINGS)
        return min(grown, max(self._interval, BACKOFF_SECONDS))

    async def look(self, see: Callable[[Iterator[Version], Sequence[OSError]], T]) -> T | None:
        """What `see` makes, in the worker thread, of the files and of the errors of folders; None if the look failed.

        Args:
            see: Its second argument is complete when the first is exhausted.
        """
        missed: list[OSError] = []
        refused: list[SourceNotAllowedError] = []
        try:
            # Left behind on cancellation: a listing may take minutes, and a triggerer that ends waits for seconds.
            seen = await to_thread.run_sync(
                lambda: see(look(self._source, missed, refused), missed), abandon_on_cancel=True
            )
        except Exception as error:  # noqa: BLE001 - file systems raise what their client libraries raise
            self._failures += 1
            log.warning(
                "the source cannot be listed, trying again in %g s (%s: %s)",
                self.pause,
                type(error).__name__,
                error,
            )
            return None
        self._failures = 0
        self._tell(missed, refused)
        return seen

    def _tell(self, missed: list[OSError], refused: list[SourceNotAllowedError]) -> None:
        """Log what is left out, when that changes; a folder that is gone was deleted meanwhile."""
        unlisted = [str(error) for error in missed if not isinstance(error, FileNotFoundError)]
        told = []
        if unlisted:
            told.append(f"{counted(len(unlisted), 'folder')} cannot be listed, the first: {unlisted[0]}")
        if refused:
            told.append(f"{counted(len(refused), 'file is', 'files are')} left out, the first: {refused[0]}")
        if told and told != self._told:
            log.warning("%s; they are not reported", "; ".join(told))
        self._told = told


def look(
    source: str | list[str], missed: list[OSError], refused: list[SourceNotAllowedError]
) -> Iterator[Version]:
    """Every file that a source has, as it is now. Blocks.

    Args:
        source: A directory, for all that is below it, a glob, a file, or a list of them; each a path or an fsspec URL.
            Symbolic links are followed, and what they lead to is seen once.
        missed: Takes the errors of folders that could not be listed.
        refused: Takes those of files whose names no consumer of an event should open.

    Raises:
        SourceNotAllowedError: A place is not allowed here.
        Exception: Whatever the file system raises when it cannot be asked at all.
    """
    for text in [source] if isinstance(source, str) else source:
        place = open_place(text)
        # Many file systems remember a listing for ever.
        place.file_system.invalidate_cache()
        for name, info in found(place, missed.append):
            if info["type"] != "file":
                continue
            try:
                place.check(name)
            except SourceNotAllowedError as error:
                refused.append(error)
            else:
                yield _version(place.url_of(name), info)


def _version(path: str, info: dict[str, Any]) -> Version:
    modified, size, before = modified_of(info), info.get("size"), modified_before(info)
    earlier = None if before is None else digest_of(f"{path}#{size},{before}")
    return Version(digest_of(f"{path}#{size},{modified}"), path, size or 0, moment_of(info), earlier)
