"""Processes that are found, frozen and ended together with everything that they started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import psutil  # type: ignore[import-untyped]

from async_task_state.errors import AsyncTaskStateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["Component", "SandboxError", "is_alive", "tail_of", "uninterrupted", "unwinding"]

POLL_SECONDS: Final = 0.02
LAST_LINES: Final = 6
NOTABLE_LINES: Final = 25
INFORMATION: Final = re.compile(r'\[(info|debug) |"level":"(info|debug)"')
"""How Airflow marks a line, in its own output and in a task's log."""


class SandboxError(AsyncTaskStateError):
    """A process, or the Airflow it belongs to, did not do what was waited for; the message ends with its log."""

    _kept_characters = "\n"


class Component:
    """A process and all that it started.

    It leads a session of its own, which its children do not leave, so that they are found even when it is dead.

    Args:
        name: What to call it.
        command: What to run.
        environment: All of its environment variables.
        log: The file that takes its output; its directory becomes the working directory.
    """

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - the caller's own command
                command,
                env=environment,
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __repr__(self) -> str:
        return f"<Component {self.name} pid={self.pid}>"

    @property
    def pid(self) -> int:
        """The id of the first process."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the first process is alive."""
        # Not poll(): that would free the id, and with it the session's, for a stranger.
        return self._process.returncode is None and is_alive(self.pid)

    @property
    def died(self) -> bool:
        """Whether the first process has ended and nobody here has ended it."""
        return self._process.returncode is None and not is_alive(self.pid)

    @property
    def pids(self) -> list[int]:
        """The ids of all of its processes that are alive."""
        if self._process.returncode is not None:
            return []
        return [pid for pid in psutil.pids() if session_of(pid) == self.pid and is_alive(pid)]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every process."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def freeze(self) -> None:
        """Stop every process, with SIGSTOP."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let frozen processes go on."""
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """End every process with SIGKILL; they are gone when this returns."""
        with uninterrupted():
            while self.pids:
                self.signal(signal.SIGKILL)
                time.sleep(POLL_SECONDS)
            self._process.wait()

    def ask_to_end(self) -> None:
        """Send SIGTERM to the first process, which is how an operator ends it."""
        # Not terminate(), which takes the exit code of a process that is gone, and then its children are not found.
        if self.running:
            os.kill(self._process.pid, signal.SIGTERM)

    def terminate(self, timeout: float = 30.0) -> None:
        """End it as an operator does, and wait; every process is gone when this returns.

        Raises:
            SandboxError: The first one had not ended within `timeout` seconds, and was killed.
        """
        self.ask_to_end()
        deadline = time.monotonic() + timeout
        while self.running and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        late = self.running
        self.kill()
        if late:
            raise SandboxError(f"{self.name} did not end within {timeout:g} s of SIGTERM\n{self.tail()}")

    def tail(self) -> str:
        """The end of what it has printed."""
        return tail_of(self.log)


def is_alive(pid: int) -> bool:
    """Whether a process exists and is more than an entry that nobody has waited for."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def session_of(pid: int) -> int | None:
    """The id of a process's session; None if it is gone, or none of ours to ask."""
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def tail_of(log: Path) -> str:
    """The end of a log and, before it, what is worse than information; under the log's name."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    notable = [line for line in lines[:-LAST_LINES] if not INFORMATION.search(line)]
    return "\n".join([f"--- {log.name}", *notable[-NOTABLE_LINES:], *lines[-LAST_LINES:]])


@contextmanager
def unwinding() -> Iterator[None]:
    """Until the block is left, let SIGTERM and SIGHUP unwind the program as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in handlers.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back the signals that end a program until the block is left: what it begins, it completes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, lambda got, _frame: held.append(got)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for got in held:
            signal.raise_signal(got)
