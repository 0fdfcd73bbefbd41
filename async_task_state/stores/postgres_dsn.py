"""What a postgresql dsn says: read once, checked, its password kept out of everything that is ever shown."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from async_task_state.errors import SettingsError

__all__ = ["LIBPQ_OPTIONS", "ROLE_FORM", "PostgresDsn"]

DEFAULT_SCHEMA: Final = "async_task_state"
CONNECT_SECONDS: Final = 10.0

OUR_OPTIONS: Final = frozenset({"connect_timeout", "owner", "pgbouncer", "schema"})
FILE_OPTIONS: Final = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
LIBPQ_OPTIONS: Final = frozenset(
    {
        *FILE_OPTIONS,
        *("application_name", "database", "dbname", "gsslib", "host", "krbsrvname", "options", "passfile"),
        *("password", "port", "service", "sslmode", "sslnegotiation", "sslpassword"),
        *("ssl_max_protocol_version", "ssl_min_protocol_version", "target_session_attrs", "user"),
    }
)
"""What asyncpg understands as libpq does; anything else it would send to the server as a setting."""

# A % that begins no byte, the byte that no name may have, and what urlsplit() drops in silence.
_NEVER: Final = re.compile(r"%(?!(?!00)[0-9A-Fa-f]{2})|[\x00-\x1f\x7f\ud800-\udfff]")
ROLE_FORM: Final = r"[^$'\"\\]{1,63}"
"""The name of a role that `owner` can give."""
_PORT: Final = r"([0-5]?\d{1,4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5])"
_HOST: Final = rf"(\[[^][]+\]|/[^][,]*|[^][:,]+)(:{_PORT})?"
_HOSTS: Final = re.compile(rf"({_HOST}(,{_HOST})*)?", re.ASCII)
_FORM: Final = (
    "a postgresql dsn is postgresql://user:password@host:5432/database?option=value; in a user, a password or a name"
    " each of : / ? # [ ] @ % is written percent-encoded (@ is %40)"
)


@dataclass(frozen=True, slots=True)
class PostgresDsn:
    """Where a PostgreSQL database is and how to get in.

    Args:
        address: The dsn without its password and without the options that are ours.
        schema: Where the tables are.
        owner: To whom the schema may belong besides those who could use it anyway.
        pgbouncer: Whether a connection may be another server's at each transaction.
        connect_timeout: Seconds that connecting may take.
        password: Kept out of the repr.
        ssl_password: Of the client's key; kept out of the repr.
    """

    address: str
    schema: str = DEFAULT_SCHEMA
    owner: str | None = None
    pgbouncer: bool = False
    connect_timeout: float = CONNECT_SECONDS
    password: str | None = field(default=None, repr=False)
    ssl_password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, dsn: str) -> PostgresDsn:
        """Read a dsn.

        Raises:
            SettingsError: It is malformed. The message shows nothing that could be a part of a password.
        """
        try:
            return cls._read(dsn)
        except SettingsError as error:
            problem = str(error)
        except ValueError:
            problem = _FORM
        # Raised where neither a variable nor the error that led here holds a password: some tools show them.
        del dsn
        raise SettingsError(problem)

    @classmethod
    def _read(cls, dsn: str) -> PostgresDsn:
        """What `parse` returns, or a ValueError."""
        if _NEVER.search(dsn) or "://" not in dsn:
            raise ValueError
        parts = urlsplit(dsn)
        if parts.scheme not in ("postgresql", "postgres"):
            raise SettingsError("the dsn names a driver: write postgresql:// without it")
        strict = bool(parts.query)
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=strict, errors="strict")
        query = dict(options)
        login, at, hosts = parts.netloc.rpartition("@")
        user, _, password = login.partition(":")
        # Where a password ends up that is not encoded, or is together with what is around it.
        if "@" in login + unquote(hosts + parts.path, errors="strict") + parts.query or parts.fragment:
            raise ValueError
        if ":" in unquote(user, errors="strict"):
            raise ValueError
        if not all(map(_HOSTS.fullmatch, (hosts, query.get("host", "")))):
            raise ValueError
        _check(query, is_secret="password=" in parts.query or (not at and ":" in hosts))
        if twice := sorted(name for name in query if sum(name == other for other, _ in options) > 1):
            raise SettingsError(f"[async_task_state] dsn has {', '.join(twice)} more than once: say it once")
        own = {name: query.pop(name) for name in OUR_OPTIONS & query.keys()}
        secret = query.pop("password", None)
        ssl_password = query.pop("sslpassword", None)
        return cls(
            address=_address(f"{user}{at}", hosts, parts.path, query),
            schema=own.get("schema", DEFAULT_SCHEMA),
            owner=own.get("owner"),
            pgbouncer=own.get("pgbouncer") == "true",
            connect_timeout=float(own.get("connect_timeout", CONNECT_SECONDS)),
            password=unquote(password, errors="strict") or secret,
            ssl_password=ssl_password,
        )

    def each_host(self) -> list[PostgresDsn]:
        """The same for one host at a time, in their order: asyncpg gives all of them together one `connect_timeout`."""
        parts = urlsplit(self.address)
        query = dict(parse_qsl(parts.query))
        login, at, named = parts.netloc.rpartition("@")
        hosts = (named or query.pop("host", "")).split(",")
        ports = query.pop("port", "").split(",")
        if len(hosts) == 1 or len(ports) not in (1, len(hosts)):
            return [self]
        if query.get("target_session_attrs") == "prefer-standby":
            # By which a host may be taken because none of the others is better.
            return [self]
        ports = ports * len(hosts) if len(ports) == 1 else ports
        return [
            replace(
                self,
                address=_address(
                    f"{login}{at}",
                    host if named else "",
                    parts.path,
                    {**query, **({} if named else {"host": host}), **({"port": port} if port else {})},
                ),
            )
            for host, port in zip(hosts, ports, strict=True)
        ]

    def arguments(self) -> dict[str, Any]:
        """What `asyncpg.connect` takes.

        Raises:
            SettingsError: A file that the dsn names cannot be read.
        """
        address = self.address
        for name, path in parse_qsl(urlsplit(address).query):
            if name in FILE_OPTIONS:
                _check_file(name, path)
        if self.ssl_password is not None:
            joint = "&" if "?" in address else "?"
            address = f"{address}{joint}sslpassword={quote(self.ssl_password, safe='')}"
        settings = {} if "application_name=" in address else {"application_name": "async-task-state"}
        return {
            "dsn": address,
            # A function, for asyncpg shows its parameters in more places than it calls them.
            "password": None if self.password is None else lambda: self.password,
            "timeout": self.connect_timeout,
            "server_settings": settings,
            # A pooler gives each transaction whatever connection is free: what was prepared may be on another.
            "statement_cache_size": 0 if self.pgbouncer else 100,
        }


def _address(login: str, hosts: str, path: str, query: dict[str, str]) -> str:
    address = f"postgresql://{login}{hosts}{path}"
    return f"{address}?{urlencode(query, quote_via=quote)}" if query else address


def _check(query: dict[str, str], *, is_secret: bool) -> None:
    """Refuse options that are unknown or not what they must be, without their values."""
    unknown = sorted(query.keys() - OUR_OPTIONS - LIBPQ_OPTIONS)
    if unknown:
        # Behind a password that is not encoded, what looks like an option may be a part of it.
        named = "" if is_secret else f" {', '.join(map(repr, unknown))}"
        raise SettingsError(
            f"[async_task_state] dsn has an unknown option{named}; known are"
            f" {', '.join(sorted(OUR_OPTIONS | LIBPQ_OPTIONS))}"
        )
    for name, (form, meaning) in _VALUES.items():
        if name in query and not re.fullmatch(form, query[name], re.ASCII):
            raise SettingsError(f"{name} in [async_task_state] dsn must be {meaning}")


_VALUES: Final = {
    "schema": (
        r"(?![Pp][Gg]_)[A-Za-z_]\w{0,62}",
        "a name of up to 63 letters, digits and underscores, no digit first, and not pg_...",
    ),
    "owner": (
        ROLE_FORM,
        "the name of a role, of up to 63 characters without $, quotes and backslash",
    ),
    "pgbouncer": ("true|false", "true or false"),
    "connect_timeout": (r"(?!0*(\.0*)?$)\d{1,6}(\.\d*)?", "a number of seconds above 0"),
    "port": (rf"{_PORT}(,{_PORT})*", "a number up to 65535, or one for each host"),
}


def _check_file(name: str, path: str) -> None:
    try:
        with open(path, "rb"):  # noqa: PTH123 - no more than to see if it works
            pass
    except OSError as error:
        raise SettingsError(
            f"{name} in [async_task_state] dsn: the file {path} cannot be read ({error.strerror})"
        ) from None
