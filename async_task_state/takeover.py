"""What a holder is told: that its lease was taken, and what is not saved."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final

from async_task_state.codec import RESERVED_PREFIX
from async_task_state.errors import StaleWriterError
from async_task_state.scopes import AssetScope
from async_task_state.text import counted

if TYPE_CHECKING:
    from collections.abc import Collection

    from async_task_state.scopes import Scope
    from async_task_state.stores import Lease
    from async_task_state.stores.holders import Holder

__all__ = ["DELETED", "fate_of", "holder_text", "stale_error", "unsaved_text"]

NAMED_KEYS: Final = 5

DELETED: Final = "a purge has deleted it, or its database was replaced"


def stale_error(lease: Lease, *, reopened_here: bool, fate: str = "") -> StaleWriterError:
    """The error of a holder that is none any more.

    Args:
        lease: What it held.
        reopened_here: Whether this very process has opened the same attempt's state again.
        fate: What has become of the state, if that is known.
    """
    which = "this use" if isinstance(lease.scope, AssetScope) else f"attempt {lease.attempt}"
    holder = f"{which} of {lease.scope} is no longer its holder:"
    if reopened_here:
        return StaleWriterError(
            f"{holder} this very process has opened the state of the same attempt again, and nothing more of this one is"
            " saved. Open it once, outside of gather() or a task group, and give that one state to all of its coroutines"
        )
    if fate:
        return StaleWriterError(f"{holder} {fate}; nothing more of this one is saved")
    return StaleWriterError(
        f"{holder} another one has opened or cleared this state since, or a purge has deleted it, or its database has gone"
        " back to an earlier moment; nothing more of this one is saved"
    )


def fate_of(lease: Lease, scope_id: int, epoch: int, holder: Holder | None) -> str:
    """What has become of a state whose holder has lost it, by what is stored for its scope now.

    Args:
        lease: What the holder had.
        scope_id: Of what is stored.
        epoch: Of the same.
        holder: Who has it, if the store knows.
    """
    if scope_id == lease.scope_id and epoch <= lease.epoch:
        return "its database has gone back to an earlier moment"
    if holder is not None:
        return f"taken over by {holder_text(lease.scope, holder)}"
    if scope_id != lease.scope_id:
        return DELETED
    return "it was cleared, by `async-task-state clear` or a purge, and no process is known that has opened it since"


def holder_text(scope: Scope, holder: Holder) -> str:
    """Who holds a state: which attempt, unless it is an asset's, where, and since when."""
    attempt = "" if isinstance(scope, AssetScope) else f"attempt {holder.attempt} on "
    moment = datetime.fromtimestamp(holder.since, tz=timezone.utc)
    is_today = moment.date() == datetime.now(timezone.utc).date()
    since = f"{moment:%H:%M:%SZ}" if is_today else f"{moment:%Y-%m-%dT%H:%M:%SZ}"
    return f"{attempt}host {holder.host}, process {holder.pid}, since {since}"


def unsaved_text(scope: Scope, changed: Collection[str]) -> str:
    """Which keys the store does not have, for a message."""
    keys = [key for key in changed if not key.startswith(RESERVED_PREFIX)]
    named = [repr(key) for key in keys[:NAMED_KEYS]]
    if len(keys) > NAMED_KEYS:
        named.append(counted(len(keys) - NAMED_KEYS, "more key"))
    if len(keys) < len(changed):
        named.append("work progress")
    return f"{scope}: {', '.join(named) or 'nothing'}"
