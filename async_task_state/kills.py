"""What a user's clear owes a deferred trigger: one call of its `on_user_kill`, by whichever process is alive.

While a task is deferred, a key of its state names the trigger that waits. An opening that finds a clear puts a note in
its place, in the atomic step that empties the state: which trigger's `on_user_kill` is owed, and the values that there
were. How the note becomes a call is in `claims`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from async_task_state.codec import KILL_PREFIX, RESERVED_PREFIX, decode, encode_json
from async_task_state.records import fields_of, reading, text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from async_task_state.scopes import Scope
    from async_task_state.stores import Change

__all__ = ["TRIGGER", "OwedKill", "claimed", "is_note", "name_trigger", "names_attempt", "note_key", "owe"]

TRIGGER: Final = f"{KILL_PREFIX}trigger"
"""The key that names the trigger that waits, and the claim of the one that holds the lease and makes the call."""
NOTE_PREFIX: Final = f"{KILL_PREFIX}after:"
FIELDS: Final[dict[str, Any]] = {"trigger": str, "attempt": int, "claim": (str, type(None))}
"""What names a trigger; a note has the values as well."""


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

    def claimed(self, claim: str) -> str:
        """The text of the note with a claim."""
        fields = {"trigger": self.trigger, "attempt": self.attempt, "claim": claim, "values": self.values}
        return encode_json(fields)

    @classmethod
    def parse(cls, scope: Scope, key: str, text: str) -> OwedKill:
        """Read a note.

        Raises:
            DamagedRecordError: It cannot be read.
        """
        note = cls(key=key, text=text, **fields_of(scope, key, text, **FIELDS, values=dict))
        with reading(scope, f"key {key!r}"):
            for value in note.values.values():
                decode(value)
        return note


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


def names_attempt(scope: Scope, values: Mapping[str, str], attempt: int) -> bool:
    """Whether a state names the trigger of an attempt."""
    text = values.get(TRIGGER)
    return text is not None and fields_of(scope, TRIGGER, text, **FIELDS)["attempt"] == attempt


def owe(scope: Scope, values: Mapping[str, str], epoch: int) -> dict[str, Change]:
    """The changes that an opening makes which has found a clear.

    Args:
        scope: Whose state.
        values: The state as it was found.
        epoch: The lease's that its holder had.
    """
    text = values.get(TRIGGER)
    if text is None:
        return {}
    named = fields_of(scope, TRIGGER, text, **FIELDS)
    kept = {
        key: text_of(scope, key, value)
        for key, value in values.items()
        if not key.startswith(RESERVED_PREFIX)
    }
    return {TRIGGER: (None, None), note_key(epoch): (encode_json({**named, "values": kept}), None)}


def claimed(scope: Scope, text: str, claim: str) -> str:
    """What names a trigger, with a claim."""
    return encode_json({**fields_of(scope, TRIGGER, text, **FIELDS), "claim": claim})
