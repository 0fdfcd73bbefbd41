"""Text that a terminal and a log show as it is, on one line."""

from __future__ import annotations

__all__ = ["plain"]


def plain(text: str) -> str:
    """A text on one line, with what cannot be printed escaped as in a Python literal.

    Ids, keys and errors may hold anything: line breaks would forge lines of a log, and a terminal obeys control
    characters and marks that change the direction of writing.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
