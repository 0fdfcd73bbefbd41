"""What went wrong with PostgreSQL, and whether waiting may mend it."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

import asyncpg

from async_task_state.errors import AsyncTaskStateError, SettingsError, StoreError, StoreUnavailableError

__all__ = ["TROUBLE", "explained"]

TROUBLE: Final = (
    *(asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError),
    *(OSError, asyncio.TimeoutError, ValueError),
)
"""What the driver, TLS and the network raise."""

# Classes of SQLSTATE, and single ones.
PASSING: Final = (
    "08",  # the connection
    "25P03",  # idle in a transaction, as a process that was frozen is
    "40",  # serialization, deadlock
    "42P01",  # the tables were dropped: connecting again makes them
    "53",  # connections, memory or disk used up
    "55",  # locked, not ready
    "57",  # shut down, crashed, cancelled
    "58",  # its disk
)
READ_ONLY: Final = "25006"
"""A standby, until it is promoted or the dsn's next host is asked."""
DATA: Final = "22"
POOLED: Final = ("26000", "42P05")
FORBIDDEN: Final = "42501"


def explained(error: Exception, schema: str) -> AsyncTaskStateError:
    """Our error for one of asyncpg, Python's ssl or the network; never with a value or a password in it.

    Args:
        error: What was raised.
        schema: The schema of the tables, for the statement that helps.
    """
    if isinstance(error, asyncpg.ConnectionDoesNotExistError) and isinstance(error.__cause__, TROUBLE):
        # Why it does not: what the server said last, or what the network did.
        return explained(error.__cause__, schema)
    if isinstance(error, asyncpg.PostgresError):
        return _of_server(error, schema)
    return _of_client(error)


def _of_client(error: Exception) -> AsyncTaskStateError:
    if isinstance(error, asyncpg.ClientConfigurationError):
        return SettingsError(f"[async_task_state] dsn: {error}")
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return StoreUnavailableError(f"no host of [async_task_state] dsn is what it asks for: {error}")
    cut = isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError))
    if (isinstance(error, ssl.SSLError) and not cut) or "rejected SSL upgrade" in str(error):
        return StoreError(
            f"no TLS connection to PostgreSQL: {error}; see sslmode and sslrootcert in [async_task_state] dsn"
        )
    if isinstance(error, OSError) and error.filename is not None and not error.filename.startswith("/."):
        return SettingsError(f"a file that [async_task_state] dsn names cannot be read: {error}")
    if isinstance(error, ValueError):
        return StoreError(f"PostgreSQL cannot be used: {error}")
    what = str(error) or type(error).__name__
    return StoreUnavailableError(f"PostgreSQL cannot be reached: {what}")


def _of_server(error: asyncpg.PostgresError, schema: str) -> StoreError:
    # Not str(error): its detail shows the row.
    code, text = error.sqlstate or "", error.args[0] if error.args else ""
    if code.startswith(DATA):
        # Its text shows the value.
        return StoreError(f"PostgreSQL says {code}: it cannot keep a value or a name that it was given")
    if code == READ_ONLY:
        return StoreUnavailableError(
            f"PostgreSQL says {code}: {text}; where [async_task_state] dsn names several hosts, add"
            " ?target_session_attrs=read-write"
        )
    if code.startswith(PASSING):
        return StoreUnavailableError(f"PostgreSQL says {code}: {text}")
    if code == FORBIDDEN:
        return StoreError(
            f"PostgreSQL says {code}: {text}; let an administrator run what"
            f" `async-task-state init-db --sql --role ROLE` prints: GRANT USAGE ON SCHEMA {schema} TO ROLE; GRANT"
            f" SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO ROLE"
        )
    if code in POOLED:
        return StoreError(
            f"PostgreSQL says {code}: {text}; behind PgBouncer or another pooler of transactions, add ?pgbouncer=true to"
            " [async_task_state] dsn"
        )
    return StoreError(f"PostgreSQL says {code}: {text}")
