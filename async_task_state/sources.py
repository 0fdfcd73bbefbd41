"""What a source of files is, and which files it has."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from glob import has_magic
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from fsspec.utils import glob_translate
from upath import UPath

from async_task_state.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from fsspec import AbstractFileSystem

__all__ = ["Source", "check_source", "found", "is_local", "location", "modified_of", "plain_source"]

Source: TypeAlias = "str | os.PathLike[str] | UPath | Sequence[str | os.PathLike[str] | UPath]"
"""A directory, for all that is below it, a glob, a file, or a sequence of them."""

_Entry: TypeAlias = "tuple[str, dict[str, Any]]"

MAGIC: Final = re.compile(r"[*?[]")
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
    if isinstance(source, os.PathLike):
        return os.fspath(source)
    if isinstance(source, UPath):
        return str(source)
    if isinstance(source, Sequence) and not isinstance(source, (str, bytes)):
        return [plain_source(place) for place in source]
    return source


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


def found(
    file_system: AbstractFileSystem, root: str, missed: Callable[[OSError], object]
) -> Iterable[_Entry]:
    """The names and infos of what is at or below a place, or matches a glob, in a stable order.

    Args:
        file_system: Where.
        root: A directory, a file or a glob.
        missed: Is told the errors of folders that could not be listed.

    Raises:
        Exception: Whatever the file system raises when it cannot be asked at all.
    """
    # Not exists(), to which a server that does not answer is one that has no such file.
    try:
        there = file_system.info(root)
    except FileNotFoundError:
        if not has_magic(root):
            return ()
        # An object store lists all that is below a prefix at once, and raises if it cannot.
        if file_system.async_impl:
            return sorted(cast("dict[str, Any]", file_system.glob(root, detail=True)).items())
        return _matching(file_system, root, missed)
    if there["type"] != "directory":
        return [(root, there)]
    if file_system.async_impl:
        return sorted(cast("dict[str, Any]", file_system.find(root, detail=True)).items())
    return _below(file_system, root, missed)


def _matching(
    file_system: AbstractFileSystem, pattern: str, missed: Callable[[OSError], object]
) -> Iterator[_Entry]:
    root = pattern[: MAGIC.search(pattern).start()].rpartition("/")[0]  # type: ignore[union-attr]
    depth = None if "**" in pattern else pattern[len(root) :].lstrip("/").count("/") + 1
    matches = re.compile(glob_translate(pattern)).match
    return ((name, info) for name, info in _below(file_system, root or "/", missed, depth) if matches(name))


def _below(
    file_system: AbstractFileSystem,
    root: str,
    missed: Callable[[OSError], object],
    depth: int | None = None,
) -> Iterator[_Entry]:
    """What walk() gives, which leaves out folders that it cannot list."""
    folders = [(root, 1)]
    while folders:
        folder, level = folders.pop()
        try:
            listing = file_system.ls(folder, detail=True)
        except OSError as error:
            missed(error)
            continue
        deeper = []
        for info in sorted(listing, key=itemgetter("name")):
            name = info["name"].rstrip("/")
            if info["type"] != "directory":
                yield name, info
            elif name != folder and (depth is None or level < depth):
                deeper.append((name, level + 1))
        folders += reversed(deeper)


def location(file_system: AbstractFileSystem, name: str) -> str:
    """Where a file is: its path if it is local, else its URL."""
    return name if is_local(file_system) else str(file_system.unstrip_protocol(name))


def modified_of(info: Mapping[str, Any]) -> Any:
    """The moment, or the tag, that a file system says changes with a file; None if it says nothing."""
    return next((info[field] for field in _MODIFIED if info.get(field) is not None), None)


def is_local(file_system: AbstractFileSystem) -> bool:
    """Whether its files are on this machine."""
    protocol = file_system.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)
