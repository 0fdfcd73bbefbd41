"""What a user's clear owes a deferred trigger: one call of its `on_user_kill`, by whichever process is alive.

While a task is deferred, a key of its state names the trigger that waits. An opening that finds a clear puts a note in
its place, in the atomic step that empties the state: which trigger's `on_user_kill` is owed, and the values that there
were. How the note becomes a call is in `claims`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from async_task_state.codec import KILL_PREFIX, RESERVED_PREFIX, decode, encode_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from async_task_state.stores import Change

__all__ = ["TRIGGER", "OwedKill", "claimed", "is_note", "name_trigger", "names_attempt", "note_key", "owe"]

TRIGGER: Final = f"{KILL_PREFIX}trigger"
"""The key that names the trigger that waits, and the claim of the one that holds the lease and makes the call."""
NOTE_PREFIX: Final = f"{KILL_PREFIX}after:"


@dataclass(frozen=True, slots=True)
class OwedKill:
    """A call of `on_user_kill` that is owed.

    Args:
        key: The key of the note.
        text: The note.
        trigger: The class path that the trigger's `serialize()` gave.
        attempt: The attempt that was deferred.
        claim: Drawn by the process that makes the call; None where none does.
        values: The texts of the author's keys when the task was cleared.
    """

    key: str
    text: str
    trigger: str
    attempt: int
    claim: str | None
    values: dict[str, str]

    @classmethod
    def parse(cls, key: str, text: str) -> OwedKill:
        """Read a note."""
        return cls(key=key, text=text, **decode(text))


def note_key(epoch: int) -> str:
    """The key of what a clear owes the holder of an epoch."""
    return f"{NOTE_PREFIX}{epoch}"


def is_note(key: str) -> bool:
    """Whether a key is that of a note."""
    return key.startswith(NOTE_PREFIX)


def name_trigger(values: Mapping[str, str], trigger: str | None, attempt: int) -> dict[str, Change]:
    """The change after which a state names the trigger that its task is deferred to, or none.

    Args:
        values: The state as it is.
        trigger: The class path of the trigger.
        attempt: The attempt that is deferred.
    """
    named = None if trigger is None else encode_json({"trigger": trigger, "attempt": attempt, "claim": None})
    return {} if values.get(TRIGGER) == named else {TRIGGER: (named, None)}


def names_attempt(values: Mapping[str, str], attempt: int) -> bool:
    """Whether a state names the trigger of an attempt."""
    text = values.get(TRIGGER)
    return text is not None and decode(text)["attempt"] == attempt


def owe(values: Mapping[str, str], epoch: int) -> dict[str, Change]:
    """The changes that an opening makes which has found a clear.

    Args:
        values: The state as it was found.
        epoch: The lease's that its holder had.
    """
    text = values.get(TRIGGER)
    if text is None:
        return {}
    kept = {key: value for key, value in values.items() if not key.startswith(RESERVED_PREFIX)}
    return {TRIGGER: (None, None), note_key(epoch): (encode_json({**decode(text), "values": kept}), None)}


def claimed(text: str, claim: str) -> str:
    """A note, or what names a trigger, with a claim."""
    return encode_json({**decode(text), "claim": claim})
