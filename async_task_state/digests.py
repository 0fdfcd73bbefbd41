"""How a work set is kept in a state's keys: digests of items, joined to segments, and items that failed, by name.

An item is known by the 12-byte BLAKE2b digest of its key. 96 bits make two of a million items collide once in 10^17
sets. A segment holds up to 256 digests.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from hashlib import blake2b
from inspect import isroutine
from typing import TYPE_CHECKING, Any, Final, cast

from async_task_state.codec import RESERVED_PREFIX, decode
from async_task_state.errors import InvalidItemError, StoreError, UnstableItemError
from async_task_state.results import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "DIGEST_BYTES",
    "FAILURES",
    "SEGMENTS",
    "SEGMENT_ITEMS",
    "WorkRecord",
    "digest_of",
    "digests_in",
    "each_of",
    "encode_digests",
    "work_records",
]

DIGEST_BYTES: Final = 12
SEGMENT_ITEMS: Final = 256
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


def work_records(entries: Mapping[str, str]) -> dict[str, WorkRecord]:
    """Every work set in a scope's entries, by name, for those who only look: no lease, no sets of digests.

    Raises:
        StoreError: A newer version wrote one of them.
    """
    records: dict[str, WorkRecord] = {}
    for key, text in sorted(entries.items()):
        if not key.startswith((SEGMENTS, FAILURES)):
            continue
        name = key[len(SEGMENTS) :].rpartition(":")[0]
        record = records.setdefault(name, WorkRecord())
        if key.startswith(SEGMENTS):
            record.done += len(digests_in(text, name)) // DIGEST_BYTES
        else:
            record.failures.append(Failure(**decode(text)))
    return records


def encode_digests(digests: bytearray) -> str:
    """The text of a segment."""
    return f'"{b64encode(CODEC + digests).decode()}"'


def digests_in(text: str, name: str) -> bytes:
    """The digests of one segment of a work set, joined.

    Raises:
        StoreError: A newer version wrote it.
    """
    segment = b64decode(decode(text))
    if segment[:1] != CODEC:
        raise StoreError(f"work set {name!r} was written by a newer version: upgrade async-task-state")
    return segment[1:]


def each_of(digests: bytes) -> list[bytes]:
    """Digests that are joined, one by one."""
    return [digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES)]


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
