"""The PostgreSQL server that tests share, each of them in a schema of its own."""

from __future__ import annotations

import asyncio
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg

from async_task_state.sandbox_postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIABLE = "ASYNC_TASK_STATE_TEST_POSTGRES"


class Postgres:
    """A server that is up.

    Args:
        address: Its dsn, without options that are ours.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.schemas: list[str] = []

    @classmethod
    @contextmanager
    def of_environment(cls) -> Iterator[Postgres]:
        given = os.environ.get(VARIABLE)
        if given is None:
            with PostgresServer() as server:
                yield cls(server.dsn())
            return
        postgres = cls(given)
        try:
            yield postgres
        finally:
            for schema in postgres.schemas:
                postgres.query(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')

    def dsn(self, **options: str) -> str:
        """A dsn with a schema that is not there yet."""
        schema = options.setdefault("schema", f"test_{uuid4().hex}")
        self.schemas.append(schema)
        joint = "&" if "?" in self.address else "?"
        return self.address + joint + "&".join(f"{name}={value}" for name, value in options.items())

    def query(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """What a statement returns, on a connection of its own."""

        async def query():
            db = await asyncpg.connect(self.address)
            try:
                return await db.fetch(statement, *arguments)
            finally:
                await db.close()

        return asyncio.run(query())
