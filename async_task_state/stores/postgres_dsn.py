"""What a postgresql dsn says: read once, checked, its password kept out of everything that is ever shown."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from async_task_state.errors import SettingsError

__all__ = ["LIBPQ_OPTIONS", "PostgresDsn"]

DEFAULT_SCHEMA: Final = "async_task_state"
CONNECT_SECONDS: Final = 10.0

OUR_OPTIONS: Final = frozenset({"connect_timeout", "pgbouncer", "schema"})
LIBPQ_OPTIONS: Final = frozenset(
    {
        *(
            "application_name",
            "database",
            "dbname",
            "gsslib",
            "host",
            "krbsrvname",
            "options",
            "passfile",
            "password",
        ),
        *(
            "port",
            "service",
            "sslcert",
            "sslcrl",
            "sslkey",
            "sslmode",
            "sslnegotiation",
            "sslpassword",
            "sslrootcert",
        ),
        *("ssl_max_protocol_version", "ssl_min_protocol_version", "target_session_attrs", "user"),
    }
)
"""What asyncpg understands as libpq does; anything else it would send to the server as a setting."""

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
        pgbouncer: Whether a connection may be another server's at each transaction.
        connect_timeout: Seconds that connecting may take.
        password: Kept out of the repr.
        ssl_password: Of the client's key; kept out of the repr.
    """

    address: str
    schema: str = DEFAULT_SCHEMA
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
            parts = urlsplit(dsn)
            query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        except ValueError:
            raise SettingsError(_FORM) from None
        if parts.scheme not in ("postgresql", "postgres"):
            raise SettingsError("the dsn names a driver: write postgresql:// without it")
        login, at, hosts = parts.netloc.rpartition("@")
        user, _, password = login.partition(":")
        if "@" in login + parts.path + parts.query or parts.fragment or "://" not in dsn:
            raise SettingsError(_FORM)
        unknown = query.keys() - OUR_OPTIONS - LIBPQ_OPTIONS
        if unknown:
            raise SettingsError(
                f"[async_task_state] dsn has an unknown option {', '.join(sorted(map(repr, unknown)))}; known are"
                f" {', '.join(sorted(OUR_OPTIONS | LIBPQ_OPTIONS))}"
            )
        own = {name: query.pop(name) for name in OUR_OPTIONS & query.keys()}
        secret = query.pop("password", None)
        ssl_password = query.pop("sslpassword", None)
        shown = f"{parts.scheme}://{user}{at}{hosts}{parts.path}"
        return cls(
            address=f"{shown}?{urlencode(query, quote_via=quote)}" if query else shown,
            schema=_schema(own.get("schema", DEFAULT_SCHEMA)),
            pgbouncer=_truth(own.get("pgbouncer", "false")),
            connect_timeout=_seconds(own.get("connect_timeout", str(CONNECT_SECONDS))),
            password=unquote(password) or secret,
            ssl_password=ssl_password,
        )

    def arguments(self) -> dict[str, Any]:
        """What `asyncpg.connect` takes."""
        address = self.address
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


def _schema(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,62}", text) or text.lower().startswith("pg_"):
        raise SettingsError(
            f"schema={text!r} in [async_task_state] dsn: a schema's name is up to 63 letters, digits and underscores,"
            " no digit first, and not pg_..."
        )
    return text


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise SettingsError(f"pgbouncer={text!r} in [async_task_state] dsn must be true or false")
    return text == "true"


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d{1,6}(\.\d*)?", text) or not float(text):
        raise SettingsError(
            f"connect_timeout={text!r} in [async_task_state] dsn must be a number of seconds above 0"
        )
    return float(text)
