"""The settings, their defaults, and where they come from."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from datetime import timedelta
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Final, TypeGuard, TypeVar

from async_task_state.errors import InvalidArgumentError, SettingsError
from async_task_state.logs import Log

if TYPE_CHECKING:
    from async_task_state.configuration import Config

__all__ = [
    "NEVER_EXPIRE",
    "SECTION",
    "Dsn",
    "Settings",
    "allowed_protocols",
    "check_count",
    "check_executor",
    "check_seconds",
    "is_number",
    "load_settings",
    "retention_seconds",
    "settings_in",
]

T = TypeVar("T")

log = Log(__name__)

SECTION: Final = "async_task_state"

LOCAL_EXECUTORS: Final = frozenset(
    {"LocalExecutor", "SequentialExecutor", "DebugExecutor", "InProcessExecutor"}
)

ON_CLEAR: Final = ("restart", "resume")

_TRUTHS: Final = {"t": True, "true": True, "1": True, "f": False, "false": False, "0": False}

_PROTOCOL: Final = re.compile(r"[a-z][a-z0-9+._-]*")

NEVER_EXPIRE: Final = timedelta.max
"""A retention that never ends; the very object that Airflow calls `NEVER_EXPIRE`."""


class Dsn(str):
    """Where state is kept; a string that shows its kind only, for it may hold a password."""

    __slots__ = ()

    @property
    def kind(self) -> str:
        """What stands before its first colon."""
        return self.partition(":")[0]

    def __repr__(self) -> str:
        """Nothing that could be a part of a password."""
        return f"<Dsn {self.kind}:...>" if self.kind.isidentifier() else "<Dsn>"


@dataclass(frozen=True, slots=True)
class Settings:
    """How state is kept, as Airflow's config section `[async_task_state]` says it.

    Args:
        dsn: Where: `sqlite:///path`, `postgresql://...`, `conn_id:NAME` for an Airflow connection of PostgreSQL, or
            `memory:` for tests. Kept out of the repr, for it may hold a password.
        max_delay: Seconds until a checkpoint is durable, at most, while the store is reachable.
        outage_timeout: Seconds the store may be away before calls raise `StoreUnavailableError`.
        exit_timeout: Seconds that leaving a state, or the process, may take to save what is pending.
        max_value_bytes: The longest JSON of one value, in bytes.
        max_state_bytes: How much one state may hold in all, in bytes: keys and their JSON, work sets included.
        default_retention_days: Days that the state of a task is kept after it was last in use; 0 keeps it for ever.
        on_clear: What a task finds that a user has cleared: "restart" an empty state, "resume" the one it left.
        clear_on_success: Whether a task's state is deleted when it has succeeded.
        allowed_protocols: Of which protocols a source of files may be, besides a local path; names with commas between.

    Raises:
        SettingsError: A value is of the wrong type or out of range.
    """

    dsn: str
    max_delay: float = 1.0
    outage_timeout: float = 60.0
    exit_timeout: float = 5.0
    max_value_bytes: int = 1024 * 1024
    max_state_bytes: int = 256 * 1024 * 1024
    default_retention_days: float = 30.0
    on_clear: str = "restart"
    clear_on_success: bool = False
    allowed_protocols: str = "abfs,abfss,az,gcs,gs,s3,s3a"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dsn", Dsn(self.dsn))
        for name in ("max_delay", "outage_timeout", "exit_timeout", "max_value_bytes", "max_state_bytes"):
            value = getattr(self, name)
            if not is_number(value) or value <= 0:
                raise SettingsError(f"[{SECTION}] {name} must be a number above 0, not {value!r}")
        days = self.default_retention_days
        if not is_number(days) or days < 0:
            raise SettingsError(
                f"[{SECTION}] default_retention_days must be a number of at least 0, not {days!r}"
            )
        if self.on_clear not in ON_CLEAR:
            raise SettingsError(f"[{SECTION}] on_clear must be 'restart' or 'resume', not {self.on_clear!r}")
        if type(self.clear_on_success) is not bool:
            raise SettingsError(
                f"[{SECTION}] clear_on_success must be true or false, not {self.clear_on_success!r}"
            )
        protocols = ",".join(sorted(_protocols_in(self.allowed_protocols)))
        object.__setattr__(self, "allowed_protocols", protocols)

    def __repr__(self) -> str:
        shown = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name != "dsn")
        return f"Settings({', '.join(shown)})"

    @property
    def default_retention(self) -> float | None:
        """Seconds that the state of a task is kept after it was last in use; None is for ever."""
        return self.default_retention_days * 86400 or None


DEFAULTS: Final[dict[str, Any]] = {f.name: f.default for f in fields(Settings) if f.name != "dsn"}


@cache
def load_settings() -> Settings:
    """The settings of this process: Airflow's config, environment variables and secrets included.

    Read once; `load_settings.cache_clear()` makes the next call read again. Options that there are not are logged.

    Raises:
        SettingsError: An option is not of its type or out of range.
    """
    from async_task_state.configuration import plain_config  # noqa: PLC0415 - who only imports us does not pay for it

    plain = plain_config(SECTION)
    if plain is not None:
        return settings_in(plain, plain.home)
    from airflow.configuration import AIRFLOW_HOME  # noqa: PLC0415 - takes two seconds, so only when it must be asked

    from async_task_state.compat import config_with  # noqa: PLC0415 - as above

    return settings_in(config_with(SECTION, "dsn"), AIRFLOW_HOME)


def settings_in(config: Config, home: str) -> Settings:
    """The settings that a config has.

    Args:
        config: Airflow's, or what stands for it.
        home: AIRFLOW_HOME.

    Raises:
        SettingsError: As `load_settings`.
    """
    from async_task_state.misspelt import misspelt  # noqa: PLC0415 - as above

    for line in misspelt(config, SECTION, {*DEFAULTS, "dsn", "conn_id"}):
        log.warning("%s", line)
    values: dict[str, Any] = {}
    for name, default in DEFAULTS.items():
        text = config.get(SECTION, name, fallback=str(default))
        values[name] = (
            _truth(name, text) if isinstance(default, bool) else _of_type(type(default), name, text)
        )
    # What a command or a secret file prints ends with a newline.
    dsn, conn_id = (config.get(SECTION, name, fallback="").strip() for name in ("dsn", "conn_id"))
    if dsn and conn_id:
        raise SettingsError(
            f"[{SECTION}] dsn and conn_id are both set: each says where state is kept, so keep one"
        )
    if conn_id:
        dsn = f"conn_id:{conn_id}"
    elif not dsn:
        dsn = f"sqlite:///{Path(home, 'async_task_state.db')}"
    return Settings(dsn=dsn, **values)


def _truth(name: str, text: str) -> bool:
    """A truth value as Airflow reads one."""
    word = text.partition("#")[0].strip().lower()
    if word not in _TRUTHS:
        raise SettingsError(f"[{SECTION}] {name} must be true or false, not {text!r}")
    return _TRUTHS[word]


def _of_type(kind: type[T], name: str, text: str) -> T:
    try:
        return kind(text)  # type: ignore[call-arg]
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise SettingsError(f"[{SECTION}] {name} must be {what}, not {text!r}") from None


@cache
def allowed_protocols() -> frozenset[str]:
    """Of which protocols a source of files may be in this process, besides a local path; read once.

    No other setting is read, because a DAG that watches files is parsed where the dsn need not be known.

    Raises:
        SettingsError: One of them is no protocol.
    """
    from airflow.configuration import conf  # noqa: PLC0415 - takes a second, so only when asked

    name = "allowed_protocols"
    return _protocols_in(conf.get(SECTION, name, fallback=DEFAULTS[name]))


def _protocols_in(setting: object) -> frozenset[str]:
    names = {name.strip() for name in setting.split(",")} - {""} if isinstance(setting, str) else {""}
    if not all(map(_PROTOCOL.fullmatch, names)):
        raise SettingsError(
            f"[{SECTION}] allowed_protocols must be names of protocols with commas between, as in s3, gs; not {setting!r}"
        )
    return frozenset(names)


def retention_seconds(retention: timedelta | None) -> float | None:
    """Seconds to keep a key: None is as long as its state, `math.inf` for ever.

    Raises:
        InvalidArgumentError: `retention` is neither None nor a `timedelta` above 0.
    """
    if retention is None:
        return None
    if not isinstance(retention, timedelta) or retention <= timedelta(0):
        raise InvalidArgumentError(
            f"retention must be a timedelta above 0, NEVER_EXPIRE or None, not {retention!r}"
        )
    return math.inf if retention == NEVER_EXPIRE else retention.total_seconds()


@cache
def check_executor(dsn: str) -> None:
    """Refuse a store that is a file on this machine where the executor runs tasks on other machines.

    Raises:
        SettingsError: The state would be written on one machine and looked for on another.
    """
    if not dsn.startswith("sqlite:") or dsn.endswith("?single_machine=true"):
        return
    from airflow.configuration import conf  # noqa: PLC0415 - takes a second, so only when asked

    remote = [name for name in _executor_names(conf.get("core", "executor")) if not _is_local_executor(name)]
    if remote:
        raise SettingsError(
            f"{', '.join(remote)} runs tasks on other machines, and SQLite keeps state on one: set [async_task_state]"
            " dsn to a database that all of them reach; or, where everything does run on this one machine, end the"
            " dsn with ?single_machine=true"
        )


def _executor_names(setting: str) -> list[str]:
    """Class names or paths, from Airflow's `[team=][alias:]executor` lists."""
    names = (part.partition("=")[2] or part for part in setting.replace(";", ",").split(","))
    return [name.rpartition(":")[2].strip() for name in names if name.strip()]


def _is_local_executor(name: str) -> bool:
    if "." not in name:
        return name in LOCAL_EXECUTORS
    try:
        return bool(getattr(resolve_name(name), "is_local", False))
    except (ImportError, AttributeError):
        # One that is installed for the scheduler alone cannot be asked; only remote ones are.
        return False


def check_count(name: str, value: object) -> None:
    """Refuse what is no number of things.

    Raises:
        InvalidArgumentError: `value` is not an integer of at least 1.
    """
    if type(value) is not int or value < 1:
        raise InvalidArgumentError(f"{name} must be an integer of at least 1, not {value!r}")


def check_seconds(name: str, value: object) -> None:
    """Refuse what is no time to wait; None is for a default.

    Raises:
        InvalidArgumentError: `value` is neither None nor a number above 0.
    """
    if value is not None and not (is_number(value) and value > 0):
        raise InvalidArgumentError(f"{name} must be a number of seconds above 0, not {value!r}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
