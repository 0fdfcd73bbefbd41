"""Values to JSON text and back, keys checked: the one place that says what may be saved."""

from __future__ import annotations

import json
import math
import operator
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Any, NoReturn

from async_task_state.errors import InvalidKeyError, InvalidValueError, ValueTooLargeError
from async_task_state.scopes import is_storable

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from async_task_state.stores import Change

__all__ = [
    "CLEARED",
    "KILL_PREFIX",
    "MAX_DEPTH",
    "MAX_KEY_CHARS",
    "MAX_TRIES",
    "RESERVED_PREFIX",
    "check_key",
    "check_text",
    "decode",
    "encode",
    "encode_changes",
    "encode_json",
    "is_of_author",
    "kept_by_clear",
]

MAX_DEPTH = 200
"""How many lists and objects a value may have within one another: a reader deep in calls of its own can read them, too."""
MAX_KEY_CHARS = 512
RESERVED_PREFIX = "__ats:"
MAX_TRIES = f"{RESERVED_PREFIX}max_tries"
"""The key by which a later attempt can tell a user's clear, which sets that number anew, from a retry, which does not."""

CLEARED = f"{RESERVED_PREFIX}cleared"
"""The key of the attempt that began with a user's clear, for its trigger, which does not know how many tries there are."""

KILL_PREFIX = f"{RESERVED_PREFIX}kill:"
"""How the keys begin that say which `on_user_kill` a user's clear owes: `Batch.cleared` leaves them, see `kills`."""


def _number_of(value: Any) -> int:
    """The integer or truth value that an object of another library stands for, as NumPy's do.

    Raises:
        TypeError: It stands for none.
    """
    kind = type(value)
    is_truth = kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_")
    return bool(value) if is_truth else operator.index(value)


# ASCII output keeps NUL and lone surrogates escaped, which databases would refuse, and makes length in characters
# the length in bytes.
encode_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=_number_of).encode


class NotFiniteError(ValueError):
    """JSON text has a number in it that JSON does not have: NaN, an infinity, or one that is too large for a float."""


def _refuse_number(text: str) -> NoReturn:
    raise NotFiniteError(f"{text[:40]} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NotFiniteError(f"the number {text[:40]} is too large")
    return number


decode = json.JSONDecoder(parse_constant=_refuse_number, parse_float=_finite).decode
"""The value of a JSON text; a ValueError where it has none."""


def check_key(key: object, what: str = "key") -> None:
    """Refuse what cannot be a key.

    Raises:
        InvalidKeyError: `key` is not a string, is empty, is longer than 512 characters, cannot be encoded as
            UTF-8, holds a NUL, or starts with the prefix that work sets keep for themselves.
    """
    if not isinstance(key, str):
        raise InvalidKeyError(f"a {what} must be a string, not {type(key).__name__}: {key!r}")
    if not key:
        raise InvalidKeyError(f"a {what} must not be empty")
    if len(key) > MAX_KEY_CHARS:
        raise InvalidKeyError(
            f"a {what} has at most {MAX_KEY_CHARS} characters, this one {len(key)}: {key[:40]!r}..."
        )
    if key.startswith(RESERVED_PREFIX):
        raise InvalidKeyError(f"a {what} must not start with {RESERVED_PREFIX!r}, which is reserved: {key!r}")
    if not is_storable(key):
        raise InvalidKeyError(f"a {what} must be text that UTF-8 can encode, without NUL: {key!r}")


def encode(key: str, value: Any, max_bytes: int) -> str:
    """The JSON of a value, as it is at this moment.

    Tuples become arrays, so they come back as lists; everything else comes back equal. An integer or truth value of another
    library, such as NumPy's, comes back as Python's own.

    Args:
        key: Whose value it is, for the message.
        value: Any JSON value but None at the top.
        max_bytes: The longest JSON allowed.

    Raises:
        InvalidValueError: The value is None, or holds at any depth NaN, Infinity, a mapping key that is not a
            string, or anything that is not JSON; or it is nested deeper than 200 lists and objects.
        ValueTooLargeError: Its JSON is longer than `max_bytes`.
    """
    kind = type(value)
    if kind is int:
        try:
            text = repr(value)
        except ValueError as error:
            raise InvalidValueError(f"the value of {key!r} cannot be written: {error}") from None
    elif kind is str:
        text = encode_basestring_ascii(value)
    elif value is None:
        raise InvalidValueError(
            f"the value of {key!r} is None: delete({key!r}) removes a key, and so does a checkpoint or a done item with None"
        )
    else:
        try:
            _check_value(key, value, "")
            text = encode_json(value)
        except InvalidValueError:
            raise
        except RecursionError:
            raise InvalidValueError(
                f"the value of {key!r} is nested too deeply, or holds itself: {MAX_DEPTH} lists and objects within one another"
                " are allowed"
            ) from None
        except (TypeError, ValueError) as error:
            raise InvalidValueError(f"the value of {key!r} is not JSON: {error}") from None
    if len(text) > max_bytes:
        raise ValueTooLargeError(
            f"the value of {key!r} is {len(text):,} bytes of JSON; [async_task_state] max_value_bytes allows {max_bytes:,}"
        )
    # Shorter ones have no room for so many brackets.
    if len(text) > MAX_DEPTH and _may_be_deep(text) and _is_deep(value):
        raise _too_deep(key)
    return text


def check_text(key: str, text: str) -> None:
    """Refuse JSON text that could be written and not be read; what is no JSON is not looked at.

    Raises:
        InvalidValueError: It is nested deeper than 200 lists and objects, or has a number that JSON does not have.
    """
    try:
        value = decode(text)
    except RecursionError:
        raise _too_deep(key) from None
    except NotFiniteError as error:
        raise InvalidValueError(f"the value of {key!r} is not JSON: {error}") from None
    except ValueError:
        return
    if _is_deep(value):
        raise _too_deep(key)


def _may_be_deep(text: str) -> bool:
    # Two scans in C, which cost nothing beside the encoding.
    return text.count("[") + text.count("{") > MAX_DEPTH


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [each for each in level if isinstance(each, (dict, list, tuple))]
        if not level:
            return False
        level = [item for each in level for item in (each.values() if isinstance(each, dict) else each)]
    return True


def _too_deep(key: str) -> InvalidValueError:
    return InvalidValueError(
        f"the value of {key!r} is nested too deeply: {MAX_DEPTH} lists and objects within one another are allowed"
    )


def encode_changes(
    values: Mapping[str, Any], known: Container[str], max_bytes: int, *, removing: bool = True
) -> dict[str, Change]:
    """What one call records: the JSON of each value, kept as long as its state.

    Args:
        values: Keys and values; None removes a key, unless `removing` is false: then it is no value.
        known: Keys that need no check.
        max_bytes: The longest JSON allowed.
        removing: What None is.
    """
    changes: dict[str, Change] = {}
    for key, value in values.items():
        if key not in known or key.startswith(RESERVED_PREFIX):
            check_key(key)
        changes[key] = (None if value is None and removing else encode(key, value, max_bytes), None)
    return changes


def kept_by_clear(values: Mapping[str, str]) -> dict[str, Change]:
    """What stays when an author clears a state: by it a later attempt of the task knows a user's clear."""
    return {key: (values[key], None) for key in (MAX_TRIES, CLEARED) if key in values}


def is_of_author(key: str) -> bool:
    """Whether a key is an author's, or keeps what an author's work set has done."""
    return key not in (MAX_TRIES, CLEARED) and not key.startswith(KILL_PREFIX)


def _check_value(key: str, value: Any, path: str) -> None:
    """Refuse what `json` would refuse without saying where, or would change without a word."""
    if value is None or isinstance(value, (str, int)):
        return
    where = f"{key!r} at {path}" if path else repr(key)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidValueError(f"the value of {where} is {value!r}, which JSON does not have")
    elif isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise InvalidValueError(
                    f"the value of {where} has a key that is not a string but {type(name).__name__}: {name!r}"
                )
            _check_value(key, item, f"{path}.{name}" if path else name)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_value(key, item, f"{path}[{index}]")
    else:
        try:
            _number_of(value)
        except TypeError:
            way = next((name for name in ("isoformat", "tolist") if hasattr(value, name)), None)
            hint = f": save its {way}()" if way else ""
            raise InvalidValueError(
                f"the value of {where} is a {type(value).__name__}, which is not JSON{hint}"
            ) from None
