"""Text that a terminal and a log show as it is, on one line; and text that can be sent and stored anywhere."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["COMMANDING", "UNSENDABLE", "counted", "plain", "sendable", "told"]

UNSENDABLE: Final = re.compile("[\x00\ud800-\udfff]")
"""What UTF-8 cannot encode, or a database's JSON cannot hold."""

COMMANDING: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys or takes for the end of a line, in a text of several lines; and what it is not sent."""


def plain(text: str, keep: str = "") -> str:
    """A text on one line, with what cannot be printed escaped as in a Python literal.

    Ids, keys and errors may hold anything: line breaks would forge lines of a log, and a terminal obeys control
    characters and marks that change the direction of writing. What is escaped is not escaped again.

    Args:
        text: Any.
        keep: Characters that stay, as the line breaks of a text that has lines of its own.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else repr(char)[1:-1] for char in text)


def counted(number: int, noun: str, nouns: str = "") -> str:
    """How many there are of what.

    Args:
        number: How many.
        noun: What one is called.
        nouns: What several are, where that is not only an s more.
    """
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"


def sendable(text: str) -> str:
    """A text with lone surrogates, which stand for the bytes of a file's name, and NUL escaped as in a Python literal."""
    return UNSENDABLE.sub(lambda found: repr(found[0])[1:-1], text)


def told(value: Any, as_text: Callable[[Any], str] = str) -> str:
    """What an object of an author's says of itself, though its own code may raise."""
    try:
        return str(as_text(value))
    except Exception as error:  # noqa: BLE001 - the author's
        return f"<{as_text.__name__}() of this {type(value).__name__} raises {type(error).__name__}>"
