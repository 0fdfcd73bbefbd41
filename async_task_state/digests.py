"""How a work set is kept in a state's keys: digests of items, joined to segments, and items that failed, by name.

An item is known by the 12-byte BLAKE2b digest of its key. 96 bits make two of a million items collide once in 10^17
sets. A segment holds up to 256 digests.
"""

from __future__ import annotations

import re
import struct
from base64 import b64decode, b64encode
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from hashlib import blake2b
from inspect import isroutine
from typing import TYPE_CHECKING, Any, Final, cast

from async_task_state.codec import RESERVED_PREFIX
from async_task_state.errors import InvalidItemError, UnstableItemError
from async_task_state.records import damaged, decode_record, fields_of, reading
from async_task_state.results import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from async_task_state.scopes import Scope

__all__ = [
    "DIGEST_BYTES",
    "FAILURES",
    "NUMBER_DIGITS",
    "SEGMENTS",
    "SEGMENT_ITEMS",
    "WorkRecord",
    "digest_of",
    "digests_in",
    "each_of",
    "encode_digests",
    "encoded_bytes",
    "failed_digest",
    "failure_in",
    "segment_number",
    "work_counts",
    "work_records",
]

DIGEST_BYTES: Final = 12
SEGMENT_ITEMS: Final = 256
NUMBER_DIGITS: Final = 10
"""Of a segment's number in its key, so that text order is number order."""
CODEC: Final = b"\x01"
"""The first byte of every segment: which encoding the rest is in."""
SHOWN_CHARS: Final = 200
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+>")
"""What Python writes for an object that has no text of its own."""

# Of one length.
SEGMENTS: Final = f"{RESERVED_PREFIX}work:"
FAILURES: Final = f"{RESERVED_PREFIX}fail:"


@dataclass(slots=True)
class WorkRecord:
    """What a scope's entries hold of one work set: how many items are done, and which failed."""

    done: int = 0
    failures: list[Failure] = field(default_factory=list)


def work_records(scope: Scope, entries: Mapping[str, str]) -> dict[str, WorkRecord]:
    """Every work set in a scope's entries, by name, for those who only look: no lease, no sets of digests.

    Raises:
        DamagedRecordError: A record of one cannot be read.
    """
    records: dict[str, WorkRecord] = {}
    for key, text in sorted(entries.items()):
        if not key.startswith((SEGMENTS, FAILURES)):
            continue
        name = key[len(SEGMENTS) :].rpartition(":")[0]
        record = records.setdefault(name, WorkRecord())
        if key.startswith(SEGMENTS):
            record.done += len(digests_in(scope, key, text)) // DIGEST_BYTES
        else:
            record.failures.append(failure_in(scope, key, text))
    return records


def work_counts(sizes: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """How many items of each work set are done, and how many failed, by the sizes of a scope's keys alone.

    Args:
        sizes: How many characters the text of each key has.
    """
    counts: dict[str, tuple[int, int]] = {}
    for key, size in sizes.items():
        if key.startswith((SEGMENTS, FAILURES)):
            name = key[len(SEGMENTS) :].rpartition(":")[0]
            done, failed = counts.get(name, (0, 0))
            is_segment = key.startswith(SEGMENTS)
            counts[name] = (done + _items_in(size), failed) if is_segment else (done, failed + 1)
    return counts


def _items_in(size: int) -> int:
    """Of a segment whose text has so many characters: two quotes, and four for each three bytes."""
    return max(0, (size - 2) // 4 * 3 - len(CODEC)) // DIGEST_BYTES


def encode_digests(digests: bytearray) -> str:
    """The text of a segment."""
    return f'"{b64encode(CODEC + digests).decode()}"'


def encoded_bytes(key: str, size: int) -> int:
    """How many bytes a segment takes with its key; one that is empty takes none.

    Args:
        key: Its key.
        size: How many bytes its digests have.
    """
    return len(key.encode()) + 2 + (len(CODEC) + size + 2) // 3 * 4 if size else 0


def digests_in(scope: Scope, key: str, text: str) -> bytes:
    """The digests of one segment of a work set, joined.

    Raises:
        DamagedRecordError: They cannot be read.
    """
    what = f"key {key!r}"
    value = decode_record(scope, key, text)
    with reading(scope, what):
        segment = b64decode(value, validate=True)
    if segment[:1] != CODEC:
        raise damaged(scope, what, f"it begins with {segment[:1]!r}")
    size = len(segment) - len(CODEC)
    if size % DIGEST_BYTES or size > SEGMENT_ITEMS * DIGEST_BYTES:
        raise damaged(scope, what, f"its length is {size} bytes")
    return segment[1:]


def segment_number(scope: Scope, key: str) -> int:
    """The number at the end of a segment's key.

    Raises:
        DamagedRecordError: There is none.
    """
    digits = key.rpartition(":")[2]
    if len(digits) != NUMBER_DIGITS or not (digits.isascii() and digits.isdecimal()):
        raise damaged(scope, f"key {key!r}", f"it does not end with {NUMBER_DIGITS} digits")
    return int(digits)


def failed_digest(scope: Scope, key: str) -> bytes:
    """The digest at the end of a failed item's key.

    Raises:
        DamagedRecordError: There is none.
    """
    with reading(scope, f"key {key!r}"):
        digest = bytes.fromhex(key.rpartition(":")[2])
    if len(digest) != DIGEST_BYTES:
        raise damaged(scope, f"key {key!r}", f"it does not end with {DIGEST_BYTES} bytes")
    return digest


def failure_in(scope: Scope, key: str, text: str) -> Failure:
    """An item that failed.

    Raises:
        DamagedRecordError: It cannot be read.
    """
    kinds = {"item": str, "error": str, "tries": int, "attempt": int, "attempt_tries": int}
    return Failure(**fields_of(scope, key, text, **kinds))


def each_of(digests: bytes) -> tuple[bytes, ...]:
    """Digests that are joined, one by one."""
    return struct.unpack(f"{DIGEST_BYTES}s" * (len(digests) // DIGEST_BYTES), digests)


def digest_of(item: Any, key: Callable[[Any], object] = str) -> bytes:
    """The digest of an item's key.

    Raises:
        InvalidItemError: The key is not a string.
        UnstableItemError: It differs from process to process.
    """
    is_text = type(item) is str
    if key is str and not is_text:
        _check_item(item)
    text = key(item)
    if not isinstance(text, str):
        raise InvalidItemError(
            f"the key of a work item must be a string, not {type(text).__name__}: {text!r}"
        )
    if not is_text and " at 0x" in text and _ADDRESS.search(text):
        raise _unstable(item, f"{text[:SHOWN_CHARS]!r} says where an object is in memory")
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def _check_item(item: Any) -> None:
    kind, plain = type(item), cast("Any", object)
    if (kind.__str__, kind.__repr__) == (plain.__str__, plain.__repr__):
        raise _unstable(item, "it says where an object is in memory")
    if isinstance(item, partial) or isroutine(item):
        raise _unstable(item, "a function is not its text")
    if _has_set(item):
        raise _unstable(item, "the order within a set differs from process to process")


def _has_set(value: Any) -> bool:
    if isinstance(value, (set, frozenset)):
        return True
    if isinstance(value, dict):
        return any(map(_has_set, value.values())) or any(map(_has_set, value))
    if isinstance(value, (list, tuple)):
        return any(map(_has_set, value))
    return is_dataclass(value) and any(_has_set(getattr(value, field.name, None)) for field in fields(value))


def _unstable(item: Any, why: str) -> UnstableItemError:
    return UnstableItemError(
        f"a {type(item).__name__} has no string form that stays the same: give key= to name items, or strings as items ({why})"
    )
