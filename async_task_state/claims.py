"""How the call of `on_user_kill` that a clear owes is made once: by the process that claims its note.

A claim and the removal of a note are writes without the lease that expect the note as it was read, so that one of
several claimants gets it. Where a claimant dies before it has removed the note, the next one takes it over after a while:
then the call may be made twice.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from async_task_state.codec import RESERVED_PREFIX
from async_task_state.errors import AsyncTaskStateError
from async_task_state.kills import TRIGGER, OwedKill, claimed, is_note, names_attempt, note_key
from async_task_state.records import values_of
from async_task_state.state import TaskState
from async_task_state.stores.airflow import INDEX

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from async_task_state.stores import Snapshot

__all__ = [
    "claim_lease",
    "claim_note",
    "forget_trigger",
    "goes_on_after_clear",
    "held_values",
    "is_owed_to",
    "keeps_all",
    "notes_of",
    "private_state",
    "remove",
    "wait_for_note",
]

LOOK_SECONDS: Final = 0.2
NOTE_SECONDS: Final = 5.0
"""How long an opening that has taken the lease may take to save what it has found."""


async def claim_lease(state: TaskState, claim: str) -> None:
    """Claim the call for the trigger that holds the lease, so that an opening which finds a clear finds the claim too.

    Raises:
        StaleWriterError: Another holder has opened the state.
    """
    pending = state._pending
    if pending is not None and (text := pending.values.get(TRIGGER)) is not None:
        pending.note({TRIGGER: (claimed(state.scope, text, claim), None)})
        await pending.flush()


def forget_trigger(state: TaskState | None) -> None:
    """Name no trigger any more, because it has fired, or its `on_user_kill` was called; not where it has been replaced."""
    pending = None if state is None else state._pending
    if pending is not None and TRIGGER in pending.values:
        with suppress(AsyncTaskStateError):
            pending.note({TRIGGER: (None, None)})


def goes_on_after_clear(state: TaskState) -> bool:
    """Whether a task that was cleared goes on with what it has left, so that a clear kills nothing."""
    return state._on_clear == "resume"


def keeps_all(state: TaskState) -> bool:
    """Whether the user who has cleared the task keeps what it has left."""
    return state._keeps_all


def is_owed_to(note: OwedKill, state: TaskState) -> bool:
    """Whether a note is of the same trigger as the one that has opened a state."""
    return note.trigger == state._trigger


def notes_of(state: TaskState) -> list[OwedKill]:
    """The notes that there were when a state was opened."""
    return [OwedKill.parse(state.scope, key, text) for key, text in state._values().items() if is_note(key)]


def held_values(state: TaskState) -> dict[str, str]:
    """The texts of the author's keys, as a holder has them."""
    return {key: text for key, text in state._values().items() if not key.startswith(RESERVED_PREFIX)}


async def wait_for_note(state: TaskState) -> str | None:
    """The key of the note of the clear by which a trigger has lost its lease; None where it was no clear.

    An opening that has taken the lease may not have saved yet what it has found.
    """
    pending = state._pending
    if pending is None or state._trigger is None:
        return None
    key = note_key(pending.lease.epoch)
    give_up = time.monotonic() + NOTE_SECONDS
    while True:
        snapshot = await _read(state)
        if snapshot is None:
            return None
        if key in snapshot.entries:
            return key
        attempt = pending.lease.attempt
        undecided = snapshot.lease.attempt > attempt and names_attempt(state.scope, snapshot.entries, attempt)
        if not undecided or time.monotonic() > give_up:
            return None
        await asyncio.sleep(LOOK_SECONDS)


async def claim_note(state: TaskState, key: str, claim: str, *, patience: float = 0.0) -> OwedKill | None:
    """Claim the call that a note owes; None where it has been made elsewhere, or is being made.

    Args:
        state: A handle on the state, whether it has the lease or not.
        key: The note's.
        claim: Drawn by the claimant; a note that has it already is given.
        patience: Seconds after which the claim of another process counts as abandoned; 0 leaves it alone.
    """
    seen, since = "", 0.0
    while True:
        snapshot = await _read(state)
        if snapshot is None or key not in snapshot.entries:
            return None
        note = OwedKill.parse(state.scope, key, snapshot.entries[key])
        if note.claim == claim:
            return note
        now = time.monotonic()
        if note.text != seen:
            seen, since = note.text, now
        if note.claim is None or (patience and now - since > patience):
            # What came of it is read: a write of which it is not known whether it happened is sent again.
            await _replace(state, note, note.claimed(claim))
        elif patience:
            await asyncio.sleep(LOOK_SECONDS)
        else:
            return None


async def remove(state: TaskState, note: OwedKill) -> None:
    """Remove a note whose call has been made, unless another process has claimed it meanwhile."""
    await _replace(state, note, None)


def private_state(state: TaskState, values: Mapping[str, str], attempt: int | None = None) -> TaskState:
    """A state for one call of `on_user_kill` after a clear: what is recorded in it goes the way of what was cleared.

    Args:
        state: A handle on the task's own.
        values: The texts of its keys.
        attempt: The attempt that was deferred; None for that of `state`.
    """
    attempt = state.attempt if attempt is None else attempt
    left = TaskState(
        state.scope,
        attempt=attempt,
        store=_PrivateChannel(values_of(state.scope, values)),
        settings=state._settings,
    )
    # Nothing resumes.
    left._is_told = False
    return left


class _PrivateChannel:
    """Keys that one handle has to itself."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values
        self._values[INDEX] = dict.fromkeys(values)

    async def get(self, key: str) -> Any:
        """See `Channel`."""
        return self._values.get(key)

    async def set(self, key: str, value: Any, retention: timedelta) -> None:  # noqa: ARG002 - it does not last
        """See `Channel`."""
        self._values[key] = value

    async def delete(self, key: str) -> None:
        """See `Channel`."""
        self._values.pop(key, None)

    async def clear(self) -> None:
        """See `Channel`."""
        self._values.clear()


async def _read(state: TaskState) -> Snapshot | None:
    writer: Any = state._writer
    snapshot: Snapshot | None = await writer.call(writer.store.read, state.scope)
    return snapshot


async def _replace(state: TaskState, note: OwedKill, text: str | None) -> None:
    writer: Any = state._writer
    write = partial(writer.store.write, expected={note.key: note.text})
    await writer.call(write, state.scope, {note.key: (text, None)})
