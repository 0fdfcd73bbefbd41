"""Roles of the PostgreSQL server that tests share, which may do no more than they are told."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit, urlunsplit
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Iterator

    from postgres import Postgres


class Role:
    """One that may connect.

    Args:
        postgres: Its server.
    """

    def __init__(self, postgres: Postgres) -> None:
        self.name = f"test_{uuid4().hex}"
        self.password = f"hunter2@{uuid4().hex}"
        self._postgres = postgres

    @classmethod
    @contextmanager
    def of(cls, postgres: Postgres) -> Iterator[Role]:
        role = cls(postgres)
        postgres.query(f"CREATE ROLE {role.name} LOGIN PASSWORD '{role.password}'")
        try:
            yield role
        finally:
            postgres.query(f"DROP OWNED BY {role.name} CASCADE")
            postgres.query(f"DROP ROLE {role.name}")

    def dsn(self, of: str) -> str:
        """A dsn with this role in the place of another."""
        parts = urlsplit(of)
        hosts = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{self.name}:{quote(self.password)}@{hosts}"))
