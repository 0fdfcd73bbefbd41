"""A PgBouncer of a test's own, in front of a PostgreSQL server."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

EXECUTABLE = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin")
ACCOUNT = "nobody"
START_SECONDS = 30.0


class PgBouncer:
    """It pools transactions on two connections of the server's, on 127.0.0.1 and a port of its own.

    Args:
        address: The dsn of the server, whose user and password are this one's too.
        files: What it is to find in its folder, by name.
        **settings: Of its section [pgbouncer].
    """

    def __init__(self, address: str, files: dict[str, bytes] | None = None, **settings: object) -> None:
        if EXECUTABLE is None:
            pytest.skip("there is no pgbouncer here (Debian: apt-get install pgbouncer)")
        self._server = urlsplit(address)
        self._files = files or {}
        self._settings = settings

    def __enter__(self) -> PgBouncer:  # noqa: PYI034 - nobody derives from it
        self._folder = Path(tempfile.mkdtemp(prefix="async-task-state-pgbouncer-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._write()
        # It refuses to run as root.
        account = {"user": ACCOUNT, "group": pwd.getpwnam(ACCOUNT).pw_gid, "extra_groups": []}
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [EXECUTABLE, "config"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
                **(account if os.geteuid() == 0 else {}),
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self.log
                self.__exit__()
                raise AssertionError(f"PgBouncer did not come up\n{said}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder)

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()

    def dsn(self, *, host: str = "127.0.0.1", **options: str) -> str:
        """A dsn of the server's user, through this one."""
        server = self._server
        login = server.netloc.rpartition("@")[0]
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"postgresql://{login}@{host}:{self.port}{server.path}?{query}"

    def _write(self) -> None:
        server = self._server
        user, password = (
            unquote(part or "").replace('"', '""') for part in (server.username, server.password)
        )
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": "users",
            "pool_mode": "transaction",
            "default_pool_size": 2,
            "max_client_conn": 200,
            **self._settings,
        }
        lines = (f"{name} = {value}\n" for name, value in settings.items())
        config = f"[databases]\n* = host={server.hostname} port={server.port or 5432}\n[pgbouncer]\n{''.join(lines)}"
        files = {"config": config.encode(), "users": f'"{user}" "{password}"\n'.encode(), **self._files}
        for name, content in files.items():
            (self._folder / name).write_bytes(content)
        if os.geteuid() == 0:
            for path in (self._folder, *self._folder.iterdir()):
                shutil.chown(path, ACCOUNT)

    def _is_up(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
