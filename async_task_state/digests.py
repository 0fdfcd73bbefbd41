"""How a work set is kept in a state's keys: digests of items, joined to segments, and items that failed, by name.

An item is known by the 12-byte BLAKE2b digest of its key. 96 bits make two of a million items collide once in 10^17
sets. A segment holds up to 256 digests.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, cast

from async_task_state.codec import RESERVED_PREFIX, decode
from async_task_state.errors import InvalidItemError, StoreError
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
        InvalidItemError: The key is not a string, or says where an object is in memory and not which it is.
    """
    text = key(item)
    if not isinstance(text, str):
        raise InvalidItemError(
            f"the key of a work item must be a string, not {type(text).__name__}: {text!r}"
        )
    kind, plain = type(item), cast("Any", object)
    if key is str and (kind.__str__, kind.__repr__) == (plain.__str__, plain.__repr__):
        raise InvalidItemError(
            f"a {type(item).__name__} has no string form that stays the same: give key= to name items"
        )
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
