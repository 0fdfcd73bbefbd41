"""What Airflow's database keeps of a value that a worker's backend has saved: a reference, which names scope and key."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from async_task_state.codec import decode, encode_json
from async_task_state.errors import StoreError
from async_task_state.scopes import AssetScope, scope_of

if TYPE_CHECKING:
    from async_task_state.scopes import Scope

__all__ = ["ref_in", "ref_to", "target_of"]

REF_PREFIX: Final = "async_task_state:1:"
MARKER: Final = "__airflow_state_ref__"
"""The key under which Airflow's accessors wrap what a worker's backend calls its reference."""
WRAPPED_REF: Final = f'{{"{MARKER}": "{REF_PREFIX}'


def ref_to(scope: Scope, key: str) -> str:
    """The reference to a key."""
    return REF_PREFIX + encode_json([*scope.row, key])


def target_of(ref: str) -> tuple[Scope, str]:
    """The scope and the key that a reference names.

    Raises:
        StoreError: It is no reference of ours.
    """
    if not ref.startswith(REF_PREFIX):
        raise StoreError(
            "this is no reference of StateStoreBackend but of the state store backend that was configured before:"
            f" {ref[:200]!r}"
        )
    try:
        *row, key = decode(ref.removeprefix(REF_PREFIX))
        return scope_of(tuple(row)), key
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise StoreError(
            f"this reference to a value is damaged, or of a newer version: {ref[:200]!r}"
        ) from None


def ref_in(text: str, scope: Scope, key: str) -> str | None:
    """What a worker's backend has saved the value of a key under, if it sent that instead.

    A task may name its own state and no other's; an asset, which anybody may read, also by its URI.
    """
    wrapped = text.startswith(WRAPPED_REF)
    if wrapped and text == json.dumps({MARKER: ref_to(scope, key)}):
        return ref_to(scope, key)
    if wrapped and isinstance(scope, AssetScope):
        ref: str = decode(text)[MARKER]
        return ref if isinstance(target_of(ref)[0], AssetScope) else None
    return None
