"""A process that uses one SQLite file as it is told, a command a line; it answers each with a line."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Worker:
    """The process, as its test sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def tell(self, *command: object) -> str:
        """Have a command obeyed; what is answered."""
        self._process.stdin.write(" ".join(map(str, command)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        assert not answer.startswith("error"), f"{command}: {answer}"
        return answer

    def end(self) -> None:
        """Let it end by itself, as an interpreter does that has nothing more to do."""
        self._process.stdin.close()
        assert self._process.wait() == 0

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._process.kill()
        self._process.wait()


@contextmanager
def started(count: int) -> Iterator[list[Worker]]:
    """So many processes, each the holder of a state of its own: map index 0, 1 and so on."""
    with ExitStack() as stack:
        processes = []
        for index in range(count):
            process = subprocess.Popen(
                [sys.executable, str(Path(__file__)), str(index)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        yield [Worker(process) for process in processes]


class _Obedient:
    """What the process does."""

    def __init__(self, index: int) -> None:
        from async_task_state import TaskScope  # noqa: PLC0415 - the test itself needs none of it

        self._scope = TaskScope("dag", "run", "task", index)
        self._states = []

    async def open(self, dsn: str) -> str:
        """Open the state, by whatever name of its file."""
        from async_task_state import Settings, TaskState, state  # noqa: PLC0415 - as above

        settings = Settings(dsn=dsn, outage_timeout=5.0)
        # Airflow's configuration takes a second.
        state.load_settings = lambda: settings
        opened = TaskState(self._scope, store=dsn, settings=settings)
        self._states.append(await opened.__aenter__())
        return "open"

    async def read(self, dsn: str) -> str:
        """Open the state to look at it."""
        from async_task_state import Settings, TaskState  # noqa: PLC0415 - as above

        state = TaskState(self._scope, store=dsn, settings=Settings(dsn=dsn), read_only=True)
        self._states.append(await state.__aenter__())
        return "read"

    async def purge(self, dsn: str) -> str:
        """Purge it."""
        from async_task_state import purge  # noqa: PLC0415 - as above

        return f"purged {await purge(dsn)}"

    async def set(self, value: str) -> str:
        """Save a value."""
        await self._states[-1].set("n", int(value))
        return f"current {await self._states[-1].is_current()}"

    async def get(self, dsn: str, task_id: str) -> str:
        """What another state of the file has."""
        from async_task_state import Settings, TaskScope, TaskState  # noqa: PLC0415 - as above
        from async_task_state.lifetime import shutdown  # noqa: PLC0415 - as above

        scope = TaskScope("dag", "run", task_id)
        async with TaskState(scope, store=dsn, settings=Settings(dsn=dsn), read_only=True) as state:
            value = await state.get("n")
        shutdown()
        return str(value)

    async def close(self) -> str:
        """Leave the state, and close the file."""
        from async_task_state.lifetime import shutdown  # noqa: PLC0415 - as above

        while self._states:
            await self._states.pop().__aexit__(None, None, None)
        shutdown()
        return "closed"


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    import asyncio  # noqa: PLC0415 - as above
    import logging  # noqa: PLC0415 - as above

    logging.disable()
    obedient = _Obedient(int(sys.argv[1]))
    _say("ready")

    async def serve() -> None:
        while line := await asyncio.to_thread(sys.stdin.readline):
            name, *args = line.split()
            try:
                answer = await getattr(obedient, name)(*args)
            except Exception as error:  # noqa: BLE001 - its test says what is no error
                answer = f"error {type(error).__name__} {error}"
            _say(answer)

    asyncio.run(serve())


if __name__ == "__main__":
    main()
