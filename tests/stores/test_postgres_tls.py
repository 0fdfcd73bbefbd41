"""TLS to PostgreSQL, spoken by a PgBouncer in front of a server that has none."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pgbouncer import PgBouncer

from async_task_state import AsyncTaskStateError, StoreError, StoreUnavailableError, TaskScope
from async_task_state.sandbox_postgres import PostgresServer
from async_task_state.stores import Batch, open_store

SCOPE = TaskScope("dag", "run", "task")


def certificate(host):
    """A certificate that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.public_bytes(serialization.Encoding.PEM), private


@pytest.fixture(scope="module")
def pooler(postgres):
    """A PgBouncer that takes nobody without TLS, and its certificate."""
    public, private = certificate("localhost")
    tls = {"client_tls_sslmode": "require", "client_tls_cert_file": "cert", "client_tls_key_file": "key"}
    with PgBouncer(postgres.address, {"cert": public, "key": private}, **tls) as pgbouncer:
        yield pgbouncer, public


@pytest.fixture
def dsn(pooler, postgres, tmp_path, monkeypatch):
    """A dsn of the pooler, by the name in its certificate, which is in the file `right`."""
    pgbouncer, public = pooler
    # Where certificates are looked for that the dsn does not name.
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "right").write_bytes(public)
    (tmp_path / "wrong").write_bytes(certificate("localhost")[0])
    (tmp_path / "text").write_text("no certificate")

    def dsn(host="localhost", **options):
        schema = postgres.dsn().partition("schema=")[2]
        if "sslrootcert" in options:
            options["sslrootcert"] = tmp_path / options["sslrootcert"]
        return pgbouncer.dsn(host=host, schema=schema, pgbouncer="true", **options)

    return dsn


def use(dsn):
    """Save something and read it."""

    async def use():
        store = open_store(dsn)
        try:
            lease = (await store.acquire(SCOPE, 1)).lease
            assert not await store.commit([Batch(lease, {"a": ("1", None)})])
            return (await store.read(SCOPE)).entries
        finally:
            await store.close()

    return asyncio.run(use())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sslmode": "require"},
        {"sslmode": "verify-ca", "sslrootcert": "right"},
        {"sslmode": "verify-full", "sslrootcert": "right"},
        {"sslmode": "verify-ca", "sslrootcert": "right", "host": "127.0.0.1"},
    ],
)
def test_a_store_speaks_tls(dsn, options):
    assert use(dsn(**options)) == {"a": "1"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sslmode": "verify-full", "sslrootcert": "wrong"}, "certificate verify failed"),
        ({"sslmode": "verify-ca", "sslrootcert": "wrong"}, "certificate verify failed"),
        ({"sslmode": "verify-full", "sslrootcert": "right", "host": "127.0.0.1"}, "IP address mismatch"),
        ({"sslmode": "verify-full", "sslrootcert": "text"}, "sslrootcert"),
        ({"sslmode": "verify-full", "sslrootcert": "missing"}, "sslrootcert in .* cannot be read"),
        (
            {"sslmode": "verify-full", "sslcert": "/missing/cert"},
            "sslcert in .* /missing/cert cannot be read",
        ),
        ({"sslmode": "verify-full"}, "root certificate file .* does not exist"),
        ({"sslmode": "verify-fool"}, "`sslmode` parameter must be one of: .*verify-full"),
    ],
)
def test_g8_what_keeps_tls_from_coming_about_is_said_and_not_tried_again(dsn, options, said):
    with pytest.raises(AsyncTaskStateError, match=said) as caught:
        use(dsn(**options))
    assert not isinstance(caught.value, StoreUnavailableError)


def test_g8_a_server_without_tls_is_refused_where_the_dsn_asks_for_it():
    # The wheel's has none, whatever the one has that the tests share.
    with PostgresServer() as server, pytest.raises(StoreError, match="rejected SSL upgrade"):
        use(server.dsn(sslmode="require"))


def test_g8_a_server_that_insists_on_tls_refuses_who_does_without(dsn):
    with pytest.raises(StoreError, match="SSL required"):
        use(dsn(sslmode="disable"))
