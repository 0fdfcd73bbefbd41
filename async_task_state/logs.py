"""The library's log lines: one line each, whatever they are about, and no errors of their own."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Final

from async_task_state.text import COMMANDING, plain
from async_task_state.wire import carried

__all__ = ["Log"]

NUMBERS: Final = (int, float)


class Log:
    """The logger of a module.

    A filter or handler that raises cannot end the thread that logs, nor hide what it was doing: the line goes to
    stderr then, with what was raised.

    Args:
        name: The module's.
    """

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def info(self, message: str, *args: object) -> None:
        """Log at INFO; `args` as for the standard library's loggers, here and below."""
        self._write(logging.INFO, message, args, None)

    def warning(self, message: str, *args: object, exc_info: BaseException | None = None) -> None:
        """Log at WARNING, with the traceback of `exc_info`, escaped where a terminal would obey it."""
        self._write(logging.WARNING, message, args, exc_info)

    def error(self, message: str, *args: object, exc_info: BaseException | None = None) -> None:
        """Log at ERROR, with the traceback of `exc_info`."""
        self._write(logging.ERROR, message, args, exc_info)

    def _write(
        self, level: int, message: str, args: tuple[object, ...], exc_info: BaseException | None
    ) -> None:
        shown = [arg if isinstance(arg, NUMBERS) else _Plain(arg) for arg in args]
        exc_info = None if exc_info is None else carried(exc_info, COMMANDING)
        try:
            self._logger.log(level, message, *shown, exc_info=exc_info, stacklevel=3)
        except Exception as trouble:  # noqa: BLE001 - a filter or a handler may raise anything
            # Where there is no stderr, as in a service, there is nowhere left to report to.
            with contextlib.suppress(Exception):
                line = message % tuple(shown)
                sys.stderr.write(
                    f"{logging.getLevelName(level)} {self._logger.name}: {line}"
                    f" (not logged, because logging has raised {_Plain(trouble)!r})\n"
                )


class _Plain:
    """An argument of a log line that formats as text on one line."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return plain(str(self._value))

    def __repr__(self) -> str:
        return plain(repr(self._value))
