"""Walking a tree of files, the links in it included: every file once, and no folder without end.

What a link leads to is no second file where the walk comes to it without the link. Links wait until all else has been seen, so
that a file is called by its own name where it has one here. A linked folder is walked once, known by its device and inode.
"""

from __future__ import annotations

import os
from errno import ELOOP
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias

from async_task_state.logs import Log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from async_task_state.globs import Glob
    from async_task_state.places import Place

__all__ = ["Entry", "Walk"]

Entry: TypeAlias = "tuple[str, dict[str, Any]]"

INTERNAL: str = ".."
"""How the folders and links begin that Kubernetes keeps in the volume of a ConfigMap or a Secret, beside links to its files."""

log = Log(__name__)


class Walk:
    """What is below a folder, as far as a glob has it, in a stable order.

    Args:
        place: On which file system, and the base that no link may lead out of.
        root: The folder.
        missed: Is told the errors of folders that could not be listed; `walk()` of fsspec leaves them out.
        glob: None is everything.
    """

    def __init__(
        self, place: Place, root: str, missed: Callable[[OSError], object], glob: Glob | None = None
    ) -> None:
        self._place = place
        self._missed = missed
        self._glob = glob
        self._root = root
        self._real_root = os.path.realpath(root) if place.is_local else root
        self._folders = [(root, glob.start if glob else 0, False)]
        self._links: list[tuple[str, int, bool]] = []
        self._followed: set[tuple[int, int, int]] = set()

    def __iter__(self) -> Iterator[Entry]:
        while self._folders or self._links:
            while self._folders:
                yield from self._list(*self._folders.pop())
            links, self._links = self._links, []
            for link in links:
                yield from self._follow(*link)
            self._folders.reverse()

    def _list(self, folder: str, reached: int, linked: bool) -> Iterator[Entry]:
        if linked and not self._is_first(folder, reached):
            return
        try:
            listing = self._place.file_system.ls(folder, detail=True)
        except OSError as error:
            self._missed(error)
            return
        deeper = []
        for info in sorted(listing, key=itemgetter("name")):
            name = info["name"].rstrip("/")
            base = name.rpartition("/")[2]
            there = self._glob.step(reached, base) if self._glob else 0
            if info.get("islink") or info["type"] == "link":
                if not base.startswith(INTERNAL):
                    self._links.append((name, there, linked))
            elif info["type"] != "directory":
                if self._matches(there) and not (linked and self._is_seen(name)):
                    yield name, info
            elif name != folder and self._goes_into(base, there):
                deeper.append((name, there, linked))
        self._folders += reversed(deeper)

    def _follow(self, name: str, there: int, linked: bool) -> Iterator[Entry]:
        place = self._place
        try:
            info = place.file_system.info(name)
        except OSError as error:
            # One that leads nowhere, or to itself, is as a file that is gone.
            if error.errno != ELOOP:
                self._missed(error)
            return
        if place.leads_out(name):
            log.warning("%r is left out: it leads out of base", name)
        elif info["type"] == "file":
            if self._matches(there) and not self._is_seen(name):
                yield name, info
        # Where nothing tells a loop there is one step.
        elif (
            info["type"] == "directory"
            and self._goes_into(name.rpartition("/")[2], there)
            and not (self._is_no_news(name) if place.is_local else linked)
        ):
            self._folders.append((name, there, True))

    def _matches(self, there: int) -> bool:
        return self._glob is None or self._glob.is_match(there)

    def _goes_into(self, base: str, there: int) -> bool:
        return not base.startswith(INTERNAL) and (self._glob is None or self._glob.may_hold_matches(there))

    def _is_seen(self, name: str) -> bool:
        """Whether the walk comes to what this leads to without a link."""
        if not self._place.is_local:
            return False
        real = os.path.realpath(name)
        inside = os.path.relpath(real, self._real_root)
        # A folder above is none that the walk comes to.
        if inside == "." or any(part.startswith(INTERNAL) for part in inside.split("/")):
            return inside == "."
        return self._glob is None or self._glob.matches(inside)

    def _is_no_news(self, name: str) -> bool:
        """Whether a link to a folder leads to one that it is in, or that the walk comes to anyway."""
        folder = os.path.realpath(name)
        here = os.path.realpath(name.rpartition("/")[0] or "/")
        return os.path.commonpath([folder, here]) == folder or (self._glob is None and self._is_seen(name))

    def _is_first(self, folder: str, reached: int) -> bool:
        """Whether a folder in a linked tree was not walked before, from where the glob stands."""
        if not self._place.is_local:
            return True
        try:
            found = os.stat(folder)  # noqa: PTH116 - a name of a file system
        except OSError as error:
            self._missed(error)
            return False
        folders = len(self._followed)
        self._followed.add((found.st_dev, found.st_ino, reached))
        return len(self._followed) > folders
