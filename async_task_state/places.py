"""Where files may be looked for: on this machine, on file systems that a setting allows, and below the base, if there is one.

A source may say what a user said who may do no more than trigger a DAG. fsspec takes any text for a chain of file systems,
some of which ask any host, or run what the text holds; so only one that is plainly a path or an allowed URL gets that far.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

from anyio.lowlevel import current_token
from fsspec import get_filesystem_class
from fsspec.core import url_to_fs
from fsspec.registry import known_implementations
from upath import UPath

from async_task_state.errors import SourceError, SourceNotAllowedError
from async_task_state.globs import magic_at
from async_task_state.settings import SECTION, allowed_protocols

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fsspec import AbstractFileSystem

__all__ = ["Place", "check_allowed", "check_base", "check_before_sending", "open_place"]

LOCAL: Final = "file"
MAX_CHARS: Final = 4096
MAX_FOLDERS: Final = 256
SHOWN_CHARS: Final = 200

_NAMES_PROTOCOL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
"""What fsspec, universal_pathlib or an implementation may take for a protocol, with slashes after it or without."""
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f]")
_USER: Final = re.compile(r"//[^/]*@")


@dataclass(frozen=True, slots=True)
class Place:
    """One place of a source, on a file system that may be asked.

    Args:
        file_system: Where it is.
        root: A directory, a file or a glob there.
        literal: How many characters at the beginning of `root` are no pattern.
        base: The folder there that no file may lie outside of, its symbolic links followed; None is any.

    Attributes:
        is_local: Whether its files are on this machine.
    """

    file_system: AbstractFileSystem
    root: str
    literal: int = 0
    base: str | None = None

    is_local: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_local", LOCAL in _protocols_of(self.file_system))

    @property
    def asks_disk(self) -> bool:
        """Whether `check` waits for this machine's disks, which an event loop must not."""
        return self.is_local and self.base is not None

    def url_of(self, name: str) -> str:
        """Where a file is: its path if it is local, else its URL, with the host that its file system has been made for."""
        if self.is_local:
            return name
        url = str(self.file_system.unstrip_protocol(name))
        protocol, slashes, path = url.partition("://")
        host = host_of(self.file_system)
        return f"{protocol}{slashes}{host}/{path.lstrip('/')}" if host and path.startswith("/") else url

    def path_of(self, name: str) -> UPath:
        """A file as what a processor is given.

        Raises:
            SourceNotAllowedError: See `check`.
        """
        self.check(name)
        if self.is_local:
            return UPath(name)
        url = self.url_of(name)
        path: UPath = UPath(url, **self.file_system.storage_options)
        if path.protocol not in _protocols_of(self.file_system):
            raise _refused(url, f"universal_pathlib takes it for one of protocol {path.protocol!r}")
        return path

    def leads_out(self, name: str) -> bool:
        """Whether a local name leads out of the base by its links, if there is a base."""
        return self.is_local and self.base is not None and not _is_below(os.path.realpath(name), self.base)

    def check(self, name: str) -> None:
        """Refuse a file that may not be handed over, whatever has happened since it was listed.

        Args:
            name: What the file system calls it.

        Raises:
            SourceNotAllowedError: Its name is one that fsspec could take for something else, or it is outside of the base.
        """
        if ":" in name or "%" in name:
            _check_chain(name)
        if self.is_local:
            if self.leads_out(name):
                raise _refused(name, f"it leads to {os.path.realpath(name)!r}, outside of base")
            return
        url = self.url_of(name)
        if "://" in name and name.partition("://")[0] not in allowed_protocols():
            raise _refused(url, "its name is a URL of another protocol")
        set_here = _options_of(type(self.file_system), url)
        if not set_here.items() <= self.file_system.storage_options.items():
            raise _refused(url, f"its name sets {', '.join(set_here)}")
        if self.base is not None and (_climbs(url) or not _is_below(name, self.base)):
            raise _refused(url, "it is outside of base")


def check_allowed(source: str | list[str], base: str | None = None) -> None:
    """Refuse places that may not be asked; nothing is asked yet.

    Args:
        source: One place, or several.
        base: The folder that they must be in.

    Raises:
        SourceNotAllowedError: A place is of a protocol that is not allowed, chains file systems, sets options of one, is
            too long, or leaves `base`; or `base` is no such folder.
    """
    if base is not None:
        check_base(base)
    for place in [source] if isinstance(source, str) else source:
        _resolved(place, base)


def check_before_sending(source: str | list[str], base: str | None = None) -> None:
    """`check_allowed`, where a trigger is made that a triggerer will run, and not where the triggerer makes it again.

    An error there would end Airflow's triggerer, and all triggers with it; what a trigger runs is checked when it runs.

    Raises:
        SourceNotAllowedError: See `check_allowed`.
    """
    try:
        # Only the triggerer makes triggers within its loop.
        current_token()
    except RuntimeError:
        check_allowed(source, base)


def check_base(base: str) -> None:
    """Refuse what cannot be the folder that sources must be in.

    Raises:
        SourceNotAllowedError: It is neither an absolute path nor the URL of a folder that is allowed.
    """
    try:
        protocol, path = _parsed(base, _authority(base))
    except SourceNotAllowedError as error:
        raise SourceNotAllowedError(f"base: {error}") from None
    if protocol == LOCAL and not path.startswith("/"):
        raise SourceNotAllowedError(f"base must be an absolute path or a URL, not {_shown(base)}")
    if protocol != LOCAL and not path.strip("/"):
        raise SourceNotAllowedError(f"base must name a bucket or a folder, which {_shown(base)} does not")
    if _climbs(base):
        raise SourceNotAllowedError(f"base must not have a .. in it, as {_shown(base)} has")


def open_place(place: str, base: str | None = None) -> Place:
    """A place on its file system, which is made if need be. Blocks.

    Args:
        place: A directory, a file or a glob, as a path or as a URL; relative to `base`, if there is one.
        base: The folder that it must be in.

    Raises:
        SourceNotAllowedError: See `check_allowed`; or symbolic links lead out of `base`.
        SourceError: The protocol is allowed, and has no implementation here.
        Exception: Whatever the file system raises when it is made.
    """
    protocol, path, folder = _resolved(place, base)
    file_system_class = _class_of(protocol, place)
    url = f"{protocol}://{path}"
    set_here = _options_of(file_system_class, url)
    if set_here and not (base and set_here.items() <= _options_of(file_system_class, base).items()):
        raise _refused(place, f"it sets {', '.join(set_here)}, which is left to base or to the environment")
    file_system, root = url_to_fs(url)
    if folder is None:
        return Place(file_system, root)
    base_root = file_system_class._strip_protocol(f"{protocol}://{folder}")  # noqa: SLF001 - its only way to compare
    literal = len(base_root)
    if protocol == LOCAL:
        base_root = os.path.realpath(base_root)
        # A name that looks like a pattern may be that of a link.
        for part in {root, _folder_of(root, literal)}:
            if not _is_below(real := os.path.realpath(part), base_root):
                raise _refused(place, f"it leads to {real!r}, outside of base {base!r}")
    elif not _is_below(root, base_root):
        raise _refused(place, f"it is outside of base {base!r}")
    return Place(file_system, root, literal, base_root)


def _resolved(place: str, base: str | None) -> tuple[str, str, str | None]:
    """The protocol of a place, its path, and the part of the path that is the base."""
    if base is None:
        return *_parsed(place), None
    authority = _authority(base)
    base_protocol, folder = _parsed(base, authority)
    protocol, path = _parsed(place, authority)
    if _climbs(place):
        raise _refused(place, "it has a .. in it, which could lead out of base")
    is_relative = "://" not in place and not place.startswith("/")
    if base_protocol == LOCAL:
        folders, names = _names(folder), _names(path)
        if is_relative:
            names = folders + names
        elif protocol != LOCAL or names[: len(folders)] != folders:
            raise _refused(place, f"it is outside of base {base!r}")
        return LOCAL, "/" + "/".join(names), "/" + "/".join(folders)
    folder = folder.rstrip("/")
    if is_relative:
        path = "/".join([folder, *_names(path)])
    elif protocol != base_protocol or not _is_below(path, folder):
        raise _refused(place, f"it is outside of base {_shown(base)}")
    return base_protocol, path, folder


def _parsed(place: str, trusted: str = "") -> tuple[str, str]:
    """The protocol of a place, and what comes after it.

    Args:
        place: What a user may have written.
        trusted: A user and host that it may name, because the DAG's author has.
    """
    _check_text(place)
    protocol, slashes, path = place.partition("://")
    if not slashes:
        if _NAMES_PROTOCOL.match(place):
            raise _refused(
                place, "it begins like a URL and is none; a file of such a name is written with ./ before it"
            )
        return LOCAL, place
    if protocol == LOCAL:
        if not path.startswith("/"):
            raise _refused(place, "it names a host; a local file's URL has three slashes")
        return LOCAL, path
    allowed = allowed_protocols()
    if protocol not in allowed:
        raise _refused(
            place,
            f"the protocol {protocol[:SHOWN_CHARS]!r} is none of [{SECTION}] allowed_protocols"
            f" ({', '.join(sorted(allowed)) or 'empty'})",
        )
    authority = path.partition("/")[0]
    if authority != trusted and "@" in authority:
        raise _refused(place, "only base may name a user; connections of Airflow are not looked up")
    if authority != trusted and magic_at(authority) is not None:
        raise _refused(place, "it has a pattern where its bucket or host belongs")
    if _CONTROLS.search(place):
        raise _refused(place, "it has a control character")
    return protocol, path


def _check_text(place: str) -> None:
    if len(place) > MAX_CHARS or place.count("/") > MAX_FOLDERS:
        raise SourceNotAllowedError(
            f"a source of {len(place):,} characters and {place.count('/'):,} slashes is not allowed: at most {MAX_CHARS:,}"
            f" and {MAX_FOLDERS}"
        )
    try:
        os.fsencode(place)
    except UnicodeEncodeError:
        raise _refused(place, "it has a character that no file name can have") from None
    if any("\x00" in text for text in _decodings(place)):
        raise _refused(place, "it has a character that no file name can have")
    _check_chain(place)


def _check_chain(place: str) -> None:
    if any("::" in text for text in _decodings(place)):
        raise _refused(place, "it has a ::, which chains file systems")


def _decodings(text: str) -> Iterator[str]:
    """A text, and what it is when it has been percent-decoded once, twice and so on."""
    yield text
    while "%" in text and (decoded := unquote(text)) != text:
        text = decoded
        yield text


def _climbs(text: str) -> bool:
    """Whether a text has a .. between slashes, or what a client of some service may take for one."""
    return any(".." in re.split(r"[/\\]", decoded) for decoded in _decodings(text))


def _folder_of(root: str, literal: int) -> str:
    """The folder where a walk begins: all of a root that has no pattern."""
    magic = magic_at(root, literal)
    return root if magic is None else root[:magic].rpartition("/")[0] or "/"


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _authority(url: str) -> str:
    """Who is asked for what: all between the protocol and the path."""
    return url.partition("://")[2].partition("/")[0]


def _class_of(protocol: str, place: str) -> type[AbstractFileSystem]:
    """What fsspec has under an allowed name, if it is that and nothing else."""
    try:
        file_system_class: Any = get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise SourceError(f"the protocol {protocol!r} cannot be used here: {error}") from error
    known = known_implementations.get(protocol, {}).get("class")
    aliases = {name for name, other in known_implementations.items() if other["class"] == known}
    allowed = {protocol, *allowed_protocols(), *aliases}
    if allowed.isdisjoint(names := _protocols_of(file_system_class)):
        raise _refused(
            place, f"its protocol stands for {file_system_class.__name__} here, which is of {names!r}"
        )
    return file_system_class  # type: ignore[no-any-return]


def _protocols_of(file_system: Any) -> tuple[str, ...]:
    names = file_system.protocol
    return (names,) if isinstance(names, str) else tuple(names)


def host_of(file_system: AbstractFileSystem) -> str:
    """What a URL says of the host of a file system whose names do not: its user and port with it, and no password."""
    options = file_system.storage_options
    host, port = options.get("host"), options.get("port")
    if not isinstance(host, str):
        return ""
    user = options.get("username") or options.get("user")
    return f"{quote(str(user), safe='')}@" * bool(user) + host + (f":{port}" if port else "")


def _options_of(file_system_class: Any, url: str) -> dict[str, Any]:
    """What a URL tells an implementation to do otherwise than it would."""
    try:
        return dict(file_system_class._get_kwargs_from_urls(url))  # noqa: SLF001 - what url_to_fs() does
    except Exception as error:
        raise _refused(url, f"{file_system_class.__name__} does not understand it ({error})") from error


def _refused(place: str, why: str) -> SourceNotAllowedError:
    return SourceNotAllowedError(f"the source {_shown(place)} is not allowed: {why}")


def _shown(place: str) -> str:
    """The beginning of a place as it may be logged: without a password."""
    shown = _USER.sub("//***@", place)
    return repr(shown if len(shown) <= SHOWN_CHARS else f"{shown[:SHOWN_CHARS]}...")
