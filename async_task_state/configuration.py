"""Airflow's config, read without Airflow where that gives the same: importing Airflow takes two seconds."""

from __future__ import annotations

import os
import sys
from configparser import ConfigParser
from configparser import Error as ParsingError
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["WAYS", "Config", "plain_config"]

WAYS: Final = ("_cmd", "_secret")
"""How the names of options end that say where a value is found: only Airflow follows them."""

EXPANSIONS: Final = 10
"""How often variables within variables are replaced; Airflow does so until nothing changes."""

_OFF: Final = frozenset({"", "f", "false", "0"})


class Config(Protocol):
    """The part of Airflow's config that settings are read from."""

    def get(self, section: str, option: str, /, *, fallback: str) -> str:
        """The value of an option, from the environment or the file."""

    def sections(self) -> list[str]:
        """Those that the file has."""

    def has_section(self, section: str) -> bool:
        """Whether the file has it."""

    def options(self, section: str) -> Sequence[str]:
        """Those that the file has in a section."""


class PlainConfig:
    """What the environment and the file say.

    Args:
        file: The file.
        home: AIRFLOW_HOME.
    """

    def __init__(self, file: ConfigParser, home: str) -> None:
        self.home = home
        self.sections, self.has_section, self.options = file.sections, file.has_section, file.options
        self._file = file

    def get(self, section: str, option: str, /, *, fallback: str) -> str:
        """See `Config`."""
        value = os.environ.get(_variable(section, option))
        if value is None:
            value = self._file.get(section, option, fallback=fallback)
        return _expanded(value)


class _NotPlainError(Exception):
    """Only Airflow can tell what an option is."""


def plain_config(section: str) -> PlainConfig | None:
    """What Airflow would read; None where Airflow is loaded, or must be asked.

    It is asked where an option of the section is in a secrets backend or what a command prints, and where the file is not
    plain.

    Args:
        section: The only one whose options are read.
    """
    if "airflow.configuration" in sys.modules:
        return None
    prefix = _variable(section, "")
    named = [name.removeprefix(prefix).lower() for name in os.environ if name.startswith(prefix)]
    file = _File()
    try:
        home = _expanded(os.environ.get("AIRFLOW_HOME", "~/airflow"))
        path = _expanded(os.environ.get("AIRFLOW_CONFIG", str(Path(home, "airflow.cfg"))))
        # As Airflow does, in the encoding of the locale. A directory is refused by Airflow in its own words.
        if not file.read(path) and Path(path).exists():
            return None
        config = PlainConfig(file, home)
        moved = _variable("core", "airflow_home") in os.environ or file.has_option("core", "airflow_home")
        if moved or not _is_off(config, "core", "unit_test_mode"):
            return None
        for option in [*named, *(file.options(section) if file.has_section(section) else [])]:
            if option.endswith(WAYS):
                return None
            # What cannot be read is Airflow's to refuse.
            config.get(section, option, fallback="")
    except (_NotPlainError, ParsingError, OSError, ValueError):
        return None
    return config


class _File(ConfigParser):
    def optionxform(self, optionstr: str) -> str:
        return optionstr


def _is_off(config: PlainConfig, section: str, option: str) -> bool:
    return config.get(section, option, fallback="").strip().lower() in _OFF


def _variable(section: str, option: str) -> str:
    return f"AIRFLOW__{section}__{option}".upper()


def _expanded(value: str) -> str:
    for _ in range(EXPANSIONS):
        # Not Path.expanduser(), which is for paths: a dsn is a text.
        expanded = os.path.expanduser(os.path.expandvars(value))  # noqa: PTH111
        if expanded == value:
            return value
        value = expanded
    raise _NotPlainError
