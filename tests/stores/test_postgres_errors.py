"""What is said of an error, and whether the caller waits for it to pass."""

from __future__ import annotations

import ssl

import asyncpg
import pytest

from async_task_state import SettingsError, StoreError, StoreUnavailableError
from async_task_state.stores.postgres_errors import explained

PASSING = [
    asyncpg.TooManyConnectionsError("too many clients"),
    asyncpg.ReadOnlySQLTransactionError("read-only"),
    asyncpg.ConnectionDoesNotExistError("closed"),
    asyncpg.CannotConnectNowError("starting up"),
    asyncpg.AdminShutdownError("shut down"),
    asyncpg.DeadlockDetectedError("deadlock"),
    asyncpg.SerializationError("serialization"),
    asyncpg.QueryCanceledError("statement timeout"),
    asyncpg.IdleInTransactionSessionTimeoutError("idle"),
    asyncpg.DiskFullError("disk"),
    asyncpg.InterfaceError("connection is closed"),
    asyncpg.ProtocolError("out of step"),
    asyncpg.TargetServerAttributeNotMatched("read-write"),
    ConnectionRefusedError(111, "refused"),
    TimeoutError(),
    ssl.SSLEOFError("the server ended in the handshake"),
    ssl.SSLZeroReturnError("closed"),
]
LASTING = [
    asyncpg.InvalidPasswordError("wrong"),
    asyncpg.InvalidCatalogNameError("no such database"),
    asyncpg.InsufficientPrivilegeError("denied"),
    asyncpg.DuplicatePreparedStatementError("pooled"),
    ssl.SSLCertVerificationError("expired"),
    ValueError("not an address"),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_g5_what_waiting_may_mend_is_waited_for(error):
    assert type(explained(error, "schema")) is StoreUnavailableError


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_g5_what_waiting_does_not_mend_is_said_at_once(error):
    assert type(explained(error, "schema")) is StoreError


def test_g8_a_file_that_a_dsn_names_is_a_setting():
    assert type(explained(FileNotFoundError(2, "none", "/etc/root.crt"), "schema")) is SettingsError


def test_g8_an_error_shows_no_value():
    driver = asyncpg.DataError(
        "invalid input for query argument $3: ['hunter2'] (a sized iterable is expected)"
    )
    assert "hunter2" not in str(explained(driver, "schema"))
    server = asyncpg.NotNullViolationError("null value in column")
    server.detail = "Failing row contains (hunter2)."
    assert "hunter2" not in str(explained(server, "schema"))
