"""The files of the SQLite store: made and kept private, and recognised; never opened.

POSIX takes every lock on a file from a process that closes any descriptor of it. So a database file that is there is
SQLite's alone: opened and closed here, SQLite in another process would believe to be the last to use it, and delete
the log that this process goes on writing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from pathlib import Path
from typing import Final, TypeAlias

from async_task_state.commands import shell_command
from async_task_state.errors import StoreError

__all__ = [
    "Identity",
    "check_names",
    "has_log_alone",
    "identity_of",
    "is_same_file",
    "modes_for_others",
    "own_files",
    "provide",
]

Identity: TypeAlias = "tuple[int, int] | None"
"""The device and the inode of a file; None where there is none."""

OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
OWN_FILES: Final = ("", "-wal", "-shm")
"""What SQLite adds to the path of a database for each of its files."""

_creating: Final = threading.Lock()


def provide(path: Path) -> None:
    """Make the database file where there is none, and see that it is its owner's alone.

    Raises:
        StoreError: It can be neither made nor written.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        try:
            # SQLite would make it for everybody to read; and nobody else of this process may use it before it is closed.
            with _creating:
                os.close(os.open(os.path.realpath(path), flags, 0o600))
        except FileExistsError:
            _check_writable(path)
            _close_to_others(path)
    except OSError as error:
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise StoreError(
                f"the directory {Path(os.path.realpath(path)).parent} for the database does not exist;"
                " make it, or change [async_task_state] dsn"
            ) from error
        raise StoreError(
            f"the database {path} cannot be opened for writing ({error.strerror});"
            " change its directory's permissions, or [async_task_state] dsn"
        ) from error


def modes_for_others(path: Path) -> dict[Path, int]:
    """The files of a database that others than their owner may use in any way, and their modes."""
    return {
        file: stat.S_IMODE(status.st_mode)
        for file, status in _statuses(path).items()
        if status.st_mode & OTHERS
    }


def own_files(path: Path) -> list[Path]:
    """Where SQLite keeps a database, its log and the index of that."""
    return [Path(f"{os.path.realpath(path)}{ending}") for ending in OWN_FILES]


def has_log_alone(path: Path) -> bool:
    """Whether a database has a log without the index that every process that has it open made, or shares."""
    _, log, index = own_files(path)
    return log.exists() and not index.exists()


def check_names(path: Path) -> None:
    """Refuse a database file that has several names.

    Raises:
        StoreError: It has hard links.
    """
    if (names := path.stat().st_nlink) > 1:
        raise StoreError(
            f"{path} has {names} names (hard links), and processes that open it by different ones corrupt it, because"
            " SQLite keeps a log by the name: remove all names but one, find them with"
            f" {shell_command('find', str(path.parent), '-samefile', str(path))}"
        )


def identity_of(path: Path) -> Identity:
    """What tells a file from one that is put in its place."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def is_same_file(one: Path, other: Path) -> bool:
    """Whether two paths lead to one file, which need not be there yet."""
    one, other = Path(os.path.realpath(one)), Path(os.path.realpath(other))
    if one == other:
        return True
    # By another name in its folder once it is there, or in the same folder by another path.
    found, folder = identity_of(one), identity_of(one.parent)
    return (found is not None and found == identity_of(other)) or (
        one.name == other.name and folder is not None and folder == identity_of(other.parent)
    )


def _check_writable(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not os.access(path, os.R_OK | os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _close_to_others(path: Path) -> None:
    """Make the files of a database their owner's alone, where that is this user."""
    mine = {file: status for file, status in _statuses(path).items() if status.st_uid == os.geteuid()}
    for file, status in mine.items():
        if status.st_mode & OTHERS:
            # Not every file system has modes; `check` says where they are wrong.
            with contextlib.suppress(OSError):
                file.chmod(stat.S_IMODE(status.st_mode) & ~OTHERS)


def _statuses(path: Path) -> dict[Path, os.stat_result]:
    """The status of each file of a database that is there."""
    found = {}
    for file in own_files(path):
        with contextlib.suppress(FileNotFoundError):
            found[file] = file.stat()
    return found
