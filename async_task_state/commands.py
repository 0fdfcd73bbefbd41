"""Commands for a shell that messages show, on one line, of ids and paths that may hold anything."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from async_task_state.scopes import AssetScope

if TYPE_CHECKING:
    from async_task_state.scopes import Scope

__all__ = ["clear_command", "shell_command", "show_command"]


def clear_command(scope: Scope) -> str:
    """The command that removes a state."""
    return shell_command("async-task-state", "clear", *_names(scope))


def show_command(scope: Scope) -> str:
    """The command that prints all of a state."""
    return shell_command("async-task-state", "show", "--json", *_names(scope))


def shell_command(*words: str) -> str:
    """A command that any shell reads as these words, without anything that a terminal obeys."""
    command = " ".join(map(shlex.quote, words))
    if command.isprintable():
        return command
    # The whole of it is printed, because a shell takes the line breaks off the end of what it is given by a command.
    return f"eval \"$(printf '{''.join(map(_printed, command))}')\""


def _printed(char: str) -> str:
    return char if char.isprintable() and char not in "\\'%" else _octal(char)


def _octal(char: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in char.encode(errors="surrogateescape"))


def _names(scope: Scope) -> list[str]:
    # An id may begin with a dash, and is no option then.
    if isinstance(scope, AssetScope):
        return [f"--asset-uri={scope.uri}" if scope.name is None else f"--asset={scope.name}"]
    index = [] if scope.map_index == -1 else ["--map-index", str(scope.map_index)]
    region = [] if scope.region_id is None else ["--region-id", str(scope.region_id)]
    ids = [scope.dag_id, scope.run_id, scope.task_id]
    return [*index, *region, *(["--"] if any(name.startswith("-") for name in ids) else []), *ids]
