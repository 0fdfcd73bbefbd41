"""A streaming standby of a PostgreSQL server, which can be kept from hearing more and promoted all the same."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from pathlib import Path
from tempfile import mkdtemp

import asyncpg

from async_task_state.sandbox_postgres import USER, PostgresServer

PATIENCE = 30


class Standby(PostgresServer):
    """A copy of a server that is up, on a port of its own; it follows that server until it is cut off."""

    def __init__(self, primary: PostgresServer) -> None:
        super().__init__()
        self.password = primary.password
        self._primary = primary
        self._wheel = primary._wheel

    def _initialise(self) -> None:
        self._folder = Path(mkdtemp(prefix="async-task-state-standby-")).resolve()
        if self._account is not None:
            os.chown(self._folder, self._account.pw_uid, self._account.pw_gid)
        address = f"host=127.0.0.1 port={self._primary.port} user={USER} password={self.password}"
        how = ["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"]
        copied = subprocess.run(
            [self._wheel.bin_path / "pg_basebackup", "-D", self._folder / "data", "-d", address, *how],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            check=False,
            **self._as_account(),
        )
        assert copied.returncode == 0, copied.stdout.decode()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def lag(self) -> None:
        """Have everything that the primary has, and from now on nothing more."""
        written = ask(self._primary, "SELECT pg_current_wal_lsn()::text")
        self._wait(f"SELECT pg_last_wal_replay_lsn() >= '{written}'::pg_lsn")
        ask(self, "ALTER SYSTEM SET primary_conninfo = ''")
        ask(self, "SELECT pg_reload_conf()")
        self._wait("SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver)")

    def promote(self) -> None:
        """Become a primary."""
        assert ask(self, "SELECT pg_promote()")

    def _wait(self, condition: str) -> None:
        give_up = time.monotonic() + PATIENCE
        while not ask(self, condition):
            assert time.monotonic() < give_up, condition
            time.sleep(0.01)


def ask(server: PostgresServer, query: str) -> object:
    """What one statement returns."""

    async def ask():
        db = await asyncpg.connect(server.dsn())
        try:
            return await db.fetchval(query)
        finally:
            await db.close()

    return asyncio.run(ask())
