"""Reads the records of a state: one that is damaged, or that a newer version wrote, is an error that names it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from async_task_state.codec import RESERVED_PREFIX, decode
from async_task_state.commands import clear_command
from async_task_state.errors import DamagedRecordError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from async_task_state.scopes import Scope

__all__ = ["author_values", "damaged", "decode_record", "fields_of", "reading", "text_of", "values_of"]


def damaged(scope: Scope, what: str, why: object) -> DamagedRecordError:
    """The error for a record that cannot be read.

    Args:
        scope: Whose state it is in.
        what: The record: "key 'n'" or what else names it.
        why: What is wrong with it.
    """
    return DamagedRecordError(
        f"{what} in the state of {scope} cannot be read ({why}): it was damaged, or was written by a newer version: upgrade"
        f" async-task-state, or remove the state: {clear_command(scope)}"
    )


@contextmanager
def reading(scope: Scope, what: str) -> Iterator[None]:
    """Raise what a damaged record makes the code raise that reads it as `DamagedRecordError`."""
    try:
        yield
    except RecursionError:
        raise damaged(scope, what, "it is nested too deeply") from None
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise damaged(scope, what, f"{type(error).__name__}: {str(error)[:200]}") from error


def decode_record(scope: Scope, key: str, text: object) -> Any:
    """The value of a record's JSON text.

    Raises:
        DamagedRecordError: It has none.
    """
    # Not `reading`, because every get comes by here.
    try:
        return decode(text_of(scope, key, text))
    except RecursionError:
        raise damaged(scope, f"key {key!r}", "it is nested too deeply") from None
    except ValueError as error:
        raise damaged(scope, f"key {key!r}", error) from None


def text_of(scope: Scope, key: str, text: object) -> str:
    """A record as it is, which is text.

    Raises:
        DamagedRecordError: It is not.
    """
    if not isinstance(text, str):
        raise damaged(scope, f"key {key!r}", f"it is {type(text).__name__} and no text")
    return text


def values_of(scope: Scope, entries: Mapping[str, str]) -> dict[str, Any]:
    """The values of several records.

    Raises:
        DamagedRecordError: One has none.
    """
    return {key: decode_record(scope, key, text) for key, text in entries.items()}


def author_values(scope: Scope, entries: Mapping[str, str]) -> dict[str, Any]:
    """The values of an author's own keys, without what work sets keep.

    Raises:
        DamagedRecordError: One has none.
    """
    # At once, because another thread may record.
    held = list(entries.items())
    return values_of(scope, {key: text for key, text in held if not key.startswith(RESERVED_PREFIX)})


def fields_of(scope: Scope, key: str, text: object, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """The fields of a record that is an object with these and no others.

    Args:
        scope: Whose state it is in.
        key: Its key.
        text: Its JSON text.
        **kinds: The names of the fields, and the types of their values.

    Raises:
        DamagedRecordError: It is another object, or none.
    """
    fields = decode_record(scope, key, text)
    if not isinstance(fields, dict) or fields.keys() != kinds.keys():
        raise damaged(scope, f"key {key!r}", f"it is no object of {', '.join(kinds)}")
    for name, kind in kinds.items():
        value = fields[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise damaged(scope, f"key {key!r}", f"its {name} is {type(value).__name__}")
    return fields
