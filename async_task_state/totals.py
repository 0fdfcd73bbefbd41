"""Sums of the numbers that a processor returns, file by file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from async_task_state.errors import InvalidValueError
from async_task_state.logs import Log
from async_task_state.records import damaged

if TYPE_CHECKING:
    from async_task_state.scopes import Scope

__all__ = ["Totals", "check_sums"]

log = Log(__name__)


class Totals:
    """Adds results up; what is no number is left out, and the log says so once for each name."""

    def __init__(self) -> None:
        self._left_out: set[str] = set()

    def plus(
        self, sums: Mapping[str, Any], result: Mapping[Any, Any], whose: str, path: str = ""
    ) -> dict[str, Any]:
        """The sums with one more result added, of which a mapping within it is added to the sums of that name.

        Args:
            sums: What there is so far; stays as it is.
            result: What the processor returned, or a mapping within that.
            whose: Names the file, for errors.
            path: Where in the result this one is.

        Raises:
            InvalidValueError: A name is no string, or a sum cannot be written as JSON.
        """
        added = dict(sums)
        for name, value in result.items():
            if not isinstance(name, str):
                raise InvalidValueError(
                    f"{whose}: the processor returned a mapping with a key that is not a string but"
                    f" {type(name).__name__}: {name!r}"
                )
            where, before = f"{path}{name}", added.get(name)
            if isinstance(value, Mapping) and (before is None or isinstance(before, dict)):
                added[name] = self.plus(before or {}, value, whose, f"{where}.")
            elif is_addable(value) and not isinstance(before, dict):
                added[name] = (before or 0) + as_json(value, where, whose)
                if not math.isfinite(added[name]):
                    raise InvalidValueError(
                        f"{whose}: the processor returned {value!r} for {where!r}: the total of {added[name]!r} is no JSON"
                    )
            elif value is not None:
                self._leave_out(where, value)
        return added

    def _leave_out(self, where: str, value: object) -> None:
        if where not in self._left_out:
            self._left_out.add(where)
            log.warning(
                "totals leave out %r, of which the processor returned a %s: only numbers, and mappings to numbers, are added",
                where,
                type(value).__name__,
            )


def check_sums(scope: Scope, key: str, sums: object) -> None:
    """Refuse what cannot be the sums of earlier files.

    Raises:
        DamagedRecordError: It is no mapping, or has something else in it than numbers and such mappings.
    """
    if not isinstance(sums, dict):
        raise damaged(scope, f"key {key!r}", f"it is {type(sums).__name__} and no object of sums")
    for name, value in sums.items():
        if isinstance(value, dict):
            check_sums(scope, key, value)
        elif not is_addable(value):
            raise damaged(scope, f"key {key!r}", f"its {name!r:.100} is {type(value).__name__}")


def is_addable(value: object) -> bool:
    """Whether a value is a number, of whatever library, and no truth value."""
    return isinstance(value, (Real, Decimal)) and not isinstance(value, bool)


def as_json(number: Any, where: str, whose: str) -> int | float:
    """A number as JSON has it."""
    if isinstance(number, Integral):
        return int(number)
    try:
        return float(number)
    except (ValueError, OverflowError) as error:
        raise InvalidValueError(
            f"{whose}: the processor returned a number for {where!r} that is too large for JSON: {error}"
        ) from None
