"""What a source of files is, and which files it has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from errno import ENAMETOOLONG
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from upath import UPath

from async_task_state.errors import InvalidArgumentError
from async_task_state.globs import Glob, magic_at
from async_task_state.walking import Entry, Walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from fsspec import AbstractFileSystem

    from async_task_state.places import Place

__all__ = [
    "Source",
    "check_source",
    "found",
    "modified_before",
    "modified_of",
    "moment_of",
    "plain_place",
    "plain_source",
]

Source: TypeAlias = "str | os.PathLike[str] | UPath | Sequence[str | os.PathLike[str] | UPath]"
"""A directory, for all that is below it, a glob, a file, or a sequence of them."""

IN_MILLISECONDS: Final = 1e11
"""A time since 1970 beyond which is none in seconds."""

_MOMENTS: Final = (
    "mtime",
    "LastModified",
    "last_modified",
    "modified",
    "updated",
    "Last-Modified",
    "modify",
    "modificationTime",
    "modification_time",
)
"""What file systems call the moment at which a file has changed, some of them to the second only."""
_TAGS: Final = ("ETag", "etag", "generation", "Content-MD5", "Digest", "sha", "blob_id")
"""What they call a tag that changes with it."""
_BEFORE: Final = (*_MOMENTS[:5], *_TAGS[:2])
"""What was asked for, until a tag beside a moment counted: the first of these."""


def plain_source(source: Any) -> Any:
    """A source as text or as a list of texts, as it is sent to a triggerer; what is no source stays as it is.

    What mapped tasks have returned is a sequence of Airflow's own, and becomes a list.
    """
    if isinstance(source, Sequence) and not isinstance(source, (str, bytes)):
        return [plain_place(place) for place in source]
    return plain_place(source)


def plain_place(place: Any) -> Any:
    """A path as text; what is none stays as it is."""
    if isinstance(place, os.PathLike):
        return os.fspath(place)
    return str(place) if isinstance(place, UPath) else place


def check_source(source: object) -> None:
    """Refuse what is no plain source.

    Raises:
        InvalidArgumentError: `source` is neither a text nor a list of texts, or one is empty.
    """
    for place in source if isinstance(source, list) else [source]:
        if not isinstance(place, str) or not place:
            what = "an empty text" if place == "" else f"a {type(place).__name__}"
            among = " in its list" if isinstance(source, list) else ""
            raise InvalidArgumentError(f"source must be a path, a URL or a list of them, not {what}{among}")


def found(place: Place, missed: Callable[[OSError], object]) -> Iterable[Entry]:
    """The names and infos of what is at or below a place, or matches its glob, in a stable order.

    Args:
        place: Where.
        missed: Is told the errors of folders that could not be listed.

    Raises:
        SourceError: The glob is none.
        Exception: Whatever the file system raises when it cannot be asked at all.
    """
    file_system, root = place.file_system, place.root
    # Not exists(), to which a server that does not answer is one that has no such file.
    try:
        there = file_system.info(root)
    except OSError as error:
        if not isinstance(error, FileNotFoundError) and error.errno != ENAMETOOLONG:
            raise
        magic = magic_at(root, place.literal)
        return () if magic is None else _described(file_system, _matching(place, magic, missed))
    if there["type"] != "directory":
        return [(root, there)]
    return _described(file_system, _within(place, missed))


def _within(place: Place, missed: Callable[[OSError], object]) -> Iterable[Entry]:
    file_system, root = place.file_system, place.root
    if file_system.async_impl:
        # An object store lists all that is below a prefix at once, and raises if it cannot.
        return sorted(cast("dict[str, Any]", file_system.find(root, detail=True)).items())
    return Walk(place, root, missed)


def _matching(place: Place, magic: int, missed: Callable[[OSError], object]) -> Iterable[Entry]:
    file_system, root = place.file_system, place.root
    folder = root[:magic].rpartition("/")[0]
    glob = Glob(root[len(folder) :].lstrip("/"))
    if not (file_system.async_impl and glob.depth is None):
        return Walk(place, folder or "/", missed, glob)
    # One listing of all; not glob(), which makes a regular expression of what a user may have written.
    entries = cast("dict[str, Any]", file_system.find(folder, detail=True))
    return (
        (name, info)
        for name, info in sorted(entries.items())
        if glob.matches(name.removeprefix(folder).strip("/"))
    )


def modified_of(info: Mapping[str, Any]) -> Any:
    """The moment and the tag that a file system says change with a file; None if it says nothing."""
    moment, tag = _first(info, _MOMENTS), _first(info, _TAGS)
    if moment is None:
        return info.get("created") if tag is None else tag
    return moment if tag is None else f"{moment},{tag}"


def modified_before(info: Mapping[str, Any]) -> Any:
    """What `modified_of` gave before a tag beside a moment counted, by which older states know a file; None if the same."""
    both = _first(info, _MOMENTS) is not None and _first(info, _TAGS) is not None
    return _first(info, _BEFORE) if both else None


def moment_of(info: Mapping[str, Any]) -> float | None:
    """The moment at which a file has changed, in seconds since 1970; None where it is not known."""
    moment = _first(info, (*_MOMENTS, "created"))
    if isinstance(moment, str):
        moment = _parsed(moment)
    if isinstance(moment, datetime):
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    if not isinstance(moment, (int, float)):
        return None
    return moment / 1000 if moment > IN_MILLISECONDS else moment


def _first(info: Mapping[str, Any], fields: Iterable[str]) -> Any:
    return next((info[field] for field in fields if info.get(field) is not None), None)


def _parsed(text: str) -> datetime | None:
    """The moment that a text says in ISO's form, in FTP's or in HTTP's."""
    with suppress(ValueError):
        return datetime.fromisoformat(text.replace("Z", "+00:00"))
    with suppress(ValueError):
        return datetime.strptime(text[:14], "%Y%m%d%H%M%S")  # noqa: DTZ007 - of no zone is UTC's
    with suppress(ValueError):
        return parsedate_to_datetime(text)
    return None


def _described(file_system: AbstractFileSystem, entries: Iterable[Entry]) -> Iterator[Entry]:
    """Entries, of which those are asked for one by one of which a listing says nothing but the name, as HTTP's do."""
    for name, info in entries:
        if info["type"] == "file" and info.get("size") is None and modified_of(info) is None:
            with suppress(FileNotFoundError):
                yield name, {**file_system.info(name), "type": "file"}
                continue
        yield name, info
