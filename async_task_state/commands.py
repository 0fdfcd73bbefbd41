"""Commands for a shell that messages show, of ids that may hold anything."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from async_task_state.scopes import AssetScope

if TYPE_CHECKING:
    from async_task_state.scopes import Scope

__all__ = ["clear_command", "shell_word"]


def clear_command(scope: Scope) -> str:
    """The command that removes a state."""
    return " ".join(["async-task-state clear", *map(shell_word, _names(scope))])


def shell_word(text: str) -> str:
    """A word that a shell takes for `text`, on one line and without anything that a terminal obeys.

    Any shell does, but for a text that ends with a line break: only such as bash and zsh can write that as one word.
    """
    if text.isprintable():
        return shlex.quote(text)
    if not text.endswith("\n"):
        # After -- because it may begin with a dash. A shell takes the line breaks off the end of what is printed.
        return f"\"$(printf -- '{''.join(map(_printed, text))}')\""
    return f"$'{''.join(map(_escaped, text))}'"


def _printed(char: str) -> str:
    return char if char.isprintable() and char not in "\\'%" else _octal(char)


def _escaped(char: str) -> str:
    if char in "\\'":
        return f"\\{char}"
    return char if char.isprintable() else _octal(char)


def _octal(char: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in char.encode())


def _names(scope: Scope) -> list[str]:
    if isinstance(scope, AssetScope):
        return ["--asset-uri", scope.uri or ""] if scope.name is None else ["--asset", scope.name]
    index = [] if scope.map_index == -1 else ["--map-index", str(scope.map_index)]
    region = [] if scope.region_id is None else ["--region-id", str(scope.region_id)]
    return [scope.dag_id, scope.run_id, scope.task_id, *index, *region]
