"""What leaves by way of Airflow: as much as its wire and its database hold, and no more.

Airflow sends msgpack, whose integers have 64 bits and whose text is UTF-8, and keeps JSON, which on PostgreSQL has neither
NUL nor NaN. A message that does not fit ends the process that sends it: a triggerer with all its triggers.
"""

from __future__ import annotations

import math
import re
from traceback import format_exception
from typing import TYPE_CHECKING, Any, Final

from async_task_state.codec import decode
from async_task_state.errors import EscapedError, InvalidValueError
from async_task_state.text import UNSENDABLE, sendable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from async_task_state.stores import Change

__all__ = ["carried", "check_changes", "check_payload", "fitted"]

SMALLEST: Final = -(2**63)
LARGEST: Final = 2**64 - 1

_SUSPECT: Final = re.compile(r"\d{19}|\\ud[89a-f]")
"""What the JSON of a value has in it that Airflow's wire may not carry."""


def fitted(value: Any) -> Any:
    """A JSON value with text for what does not fit: numbers beyond 64 bits, NaN and infinities in digits or words."""
    if isinstance(value, str):
        return sendable(value)
    if isinstance(value, dict):
        return {sendable(name): fitted(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [fitted(item) for item in value]
    return value if _unfit_number(value) is None else str(value)


def carried(error: BaseException, unfit: re.Pattern[str] = UNSENDABLE) -> BaseException:
    """An error itself where Airflow can carry its traceback, else one whose message is that traceback, escaped.

    Args:
        error: Any.
        unfit: What cannot be carried.
    """
    text = "".join(format_exception(type(error), error, error.__traceback__))
    return EscapedError(sendable(text)) if unfit.search(text) else error


def check_changes(changes: Mapping[str, Change]) -> None:
    """Refuse changes of a state that Airflow's own store keeps, and that could not be sent to it.

    Raises:
        InvalidValueError: A value has a number beyond 64 bits, or a lone surrogate.
    """
    for key, (text, _) in changes.items():
        if text is not None and _SUSPECT.search(text):
            for where, what in _unfit(decode(text), "", nul=False):
                raise InvalidValueError(
                    f"the value of {key!r}{where} has {what}, which Airflow cannot send to its own store: save it as text"
                )


def check_payload(payload: Any) -> None:
    """Refuse the payload of an event that would end the triggerer.

    Raises:
        InvalidValueError: It does not fit.
    """
    for where, what in _unfit(payload, "", nul=True):
        raise InvalidValueError(
            f"the event's payload{where} has {what}, which Airflow cannot send: send it as text that UTF-8 can encode"
        )
    from airflow.sdk.execution_time.comms import _msgpack_enc_hook  # noqa: PLC0415 - loaded by now, in a triggerer
    from msgspec.msgpack import Encoder  # noqa: PLC0415 - as above

    try:
        Encoder(enc_hook=_msgpack_enc_hook).encode(payload)
    except Exception as error:
        raise InvalidValueError(
            f"the event's payload cannot be sent by Airflow ({type(error).__name__}: {error}): make it plain data"
        ) from error


def _unfit(value: Any, path: str, *, nul: bool) -> Iterator[tuple[str, str]]:
    """Where a value does not fit, and with what."""
    where = f" at {path}" if path else ""
    if isinstance(value, str):
        found = UNSENDABLE.search(value)
        if found is not None and (nul or found[0] != "\x00"):
            yield where, f"the character {found[0]!r}"
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _unfit(name, path, nul=nul)
            yield from _unfit(item, f"{path}[{name!r}]", nul=nul)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, item in enumerate(value):
            yield from _unfit(item, f"{path}[{index}]", nul=nul)
    elif (what := _unfit_number(value)) is not None:
        yield where, what


def _unfit_number(value: Any) -> str | None:
    if isinstance(value, int) and not SMALLEST <= value <= LARGEST:
        return "an integer of more than 64 bits"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value!r}"
    return None
