"""What a source of files is, and which files it has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from errno import ENAMETOOLONG
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from upath import UPath

from async_task_state.errors import InvalidArgumentError
from async_task_state.globs import Glob, magic_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from fsspec import AbstractFileSystem

    from async_task_state.places import Place

__all__ = ["Source", "check_source", "found", "modified_of", "plain_place", "plain_source"]

Source: TypeAlias = "str | os.PathLike[str] | UPath | Sequence[str | os.PathLike[str] | UPath]"
"""A directory, for all that is below it, a glob, a file, or a sequence of them."""

_Entry: TypeAlias = "tuple[str, dict[str, Any]]"

_MODIFIED: Final = (
    "mtime",
    "LastModified",
    "last_modified",
    "modified",
    "updated",
    "ETag",
    "etag",
    "created",
)
"""What file systems call the moment, or the tag, that changes with a file."""


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


def found(place: Place, missed: Callable[[OSError], object]) -> Iterable[_Entry]:
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
        return () if magic is None else _matching(file_system, root, magic, missed)
    if there["type"] != "directory":
        return [(root, there)]
    if file_system.async_impl:
        # An object store lists all that is below a prefix at once, and raises if it cannot.
        return sorted(cast("dict[str, Any]", file_system.find(root, detail=True)).items())
    return _below(file_system, root, missed)


def _matching(
    file_system: AbstractFileSystem, root: str, magic: int, missed: Callable[[OSError], object]
) -> Iterable[_Entry]:
    folder = root[:magic].rpartition("/")[0]
    glob = Glob(root[len(folder) :].lstrip("/"))
    if not (file_system.async_impl and glob.depth is None):
        return _below(file_system, folder or "/", missed, glob)
    # One listing of all; not glob(), which makes a regular expression of what a user may have written.
    entries = cast("dict[str, Any]", file_system.find(folder, detail=True))
    return (
        (name, info)
        for name, info in sorted(entries.items())
        if glob.matches(name.removeprefix(folder).strip("/"))
    )


def _below(
    file_system: AbstractFileSystem,
    root: str,
    missed: Callable[[OSError], object],
    glob: Glob | None = None,
) -> Iterator[_Entry]:
    """What walk() gives, which leaves out folders that it cannot list, as far as a glob has it; no link is followed."""
    folders = [(root, glob.start if glob else 0)]
    while folders:
        folder, reached = folders.pop()
        try:
            listing = file_system.ls(folder, detail=True)
        except OSError as error:
            missed(error)
            continue
        deeper = []
        for info in sorted(listing, key=itemgetter("name")):
            name = info["name"].rstrip("/")
            there = glob.step(reached, name.rpartition("/")[2]) if glob else 0
            if info["type"] != "directory":
                if glob is None or glob.is_match(there):
                    yield name, info
            elif name != folder and (glob is None or glob.may_hold_matches(there)):
                deeper.append((name, there))
        folders += reversed(deeper)


def modified_of(info: Mapping[str, Any]) -> Any:
    """The moment, or the tag, that a file system says changes with a file; None if it says nothing."""
    return next((info[field] for field in _MODIFIED if info.get(field) is not None), None)
