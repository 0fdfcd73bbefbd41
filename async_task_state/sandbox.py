"""A throw-away Airflow with a home, a port and processes of its own, for the demo, tests and benchmarks."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import sys
import time
from contextlib import ExitStack, closing, suppress
from http import HTTPStatus
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx

from async_task_state.environment import environment_of
from async_task_state.instances import OVER
from async_task_state.processes import Component, SandboxError, tail_of, uninterrupted, unwinding

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["NotFoundError", "Sandbox", "SandboxError"]

T = TypeVar("T")

POLL_SECONDS: Final = 0.1
START_SECONDS: Final = 180.0
LOG_IN_SECONDS: Final = 5.0
STOP_SECONDS: Final = 5.0
PORT_TRIES: Final = 5
JOBS: Final = {"scheduler": "SchedulerJob", "dag-processor": "DagProcessorJob", "triggerer": "TriggererJob"}


class NotFoundError(SandboxError):
    """The REST API knows no such thing."""


class Sandbox:
    """A throw-away Airflow: a temporary home, SQLite, the LocalExecutor, and api-server, scheduler, dag-processor and
    triggerer as real processes.

    A context manager, or `start` and `stop`. It reads and changes nothing of the user's own Airflow. A DAG is active
    as soon as it is found. The dags folder is on every process's PYTHONPATH, so that a module beside the DAGs can be
    imported everywhere, in the triggerer too.

    Args:
        dags: Files and folders to copy into the dags folder.
        dsn: Of the store that tasks and triggers use; None is an SQLite file in the home.
        config: Airflow's options by section, over those that make it small and quick.
        keep: Leave the home in place.
        report: Called with a line about each step of `start`.

    Attributes:
        home: AIRFLOW_HOME; the output of each process is in a file there.
        url: Where the user interface is.
        environment: The environment variables of every process.
    """  # noqa: D205 - what it is takes two lines

    def __init__(
        self,
        *dags: Path,
        dsn: str | None = None,
        config: Mapping[str, Mapping[str, object]] | None = None,
        keep: bool = False,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self.home = Path()
        self.environment: dict[str, str] = {}
        self.url = ""
        self._sources = dags
        self._dsn = dsn
        self._config = config or {}
        self._keep = keep
        self._report = report
        self._components: list[Component] = []
        self._client = httpx.Client(trust_env=False)
        self._exits = ExitStack()

    def __enter__(self) -> Sandbox:  # noqa: PYI034 - nobody derives from it
        """Start. Until the block is left, SIGTERM and SIGHUP end it as Ctrl-C does."""
        with ExitStack() as exits:
            exits.enter_context(unwinding())
            exits.callback(self.stop)
            self.start()
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._exits.close()

    @property
    def dags(self) -> Path:
        """The dags folder."""
        return self.home / "dags"

    @property
    def dsn(self) -> str:
        """The dsn of the store that tasks and triggers use."""
        return self._dsn or f"sqlite:///{self.home / 'async_task_state.db'}"

    @property
    def triggerers(self) -> list[Component]:
        """The triggerers that are alive, the oldest first."""
        return [component for component in self._of("triggerer") if component.running]

    def start(self) -> None:
        """Make the home, start every process, and return when all of them are up.

        Raises:
            SandboxError: One of them did not come up; nothing is left then.
        """
        try:
            with uninterrupted():
                self.home = Path(mkdtemp(prefix="async-task-state-")).resolve()
            self.dags.mkdir()
            for source in self._sources:
                (shutil.copytree if source.is_dir() else shutil.copy)(source, self.dags / source.name)
            self.environment = environment_of(self.home, self.dsn, self._config)
            self._make_database()
            self._start_components()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process, with SIGTERM and a few seconds later with SIGKILL, and remove the home."""
        with uninterrupted():
            self._stop_components()
            self._client.close()
            if not self._keep and self.home.is_absolute():
                shutil.rmtree(self.home, ignore_errors=True)

    def start_triggerer(self) -> Component:
        """Start one more triggerer; it is up when this returns."""
        known = self._jobs("triggerer")
        triggerer = self._spawn("triggerer")
        self.wait(lambda: self._jobs("triggerer") - known, f"{triggerer.name} is not up")
        return triggerer

    def rest(self, method: str, path: str, json: object = None, **params: Any) -> Any:
        """Call Airflow's REST API and return its answer, decoded.

        Args:
            method: Of HTTP.
            path: What comes after `/api/v2`.
            json: The body.
            **params: Of the query.

        Raises:
            NotFoundError: There is no such thing.
            SandboxError: The API server refused, or does not answer.
        """
        try:
            response = self._client.request(method, f"/api/v2{path}", json=json, params=params)
        except httpx.HTTPError as error:
            raise self._failure(f"{method} {path}: {error!r}") from error
        if response.status_code == HTTPStatus.NOT_FOUND:
            raise NotFoundError(f"{method} {path}: {response.text}")
        if response.is_error:
            raise self._failure(f"{method} {path}: {response.status_code} {response.text}")
        return response.json() if response.content else None

    def wait(self, condition: Callable[[], T], complaint: str, timeout: float = START_SECONDS) -> T:
        """Return what a condition gives as soon as it is true.

        Args:
            condition: Asked ten times a second.
            complaint: What the error says if it never is.
            timeout: Seconds to go on asking.

        Raises:
            SandboxError: It is not true within `timeout` seconds, or a process has died that nobody killed.
        """
        deadline = time.monotonic() + timeout
        while True:
            # Before it is asked, for it may wait for just that.
            dead = [component.name for component in self._components if component.died]
            if result := condition():
                return result
            if dead:
                raise self._failure(f"{complaint}: {', '.join(dead)} died")
            if time.monotonic() > deadline:
                raise self._failure(f"{complaint} after {timeout:g} s")
            time.sleep(POLL_SECONDS)

    def wait_for_dag(self, dag_id: str, timeout: float = 60.0) -> None:
        """Return when the dag-processor has found a DAG.

        Raises:
            SandboxError: It has not within `timeout` seconds, or a file cannot be imported.
        """

        def found() -> bool:
            for error in self.rest("GET", "/importErrors")["import_errors"]:
                raise SandboxError(f"{error['filename']} cannot be imported\n{error['stack_trace']}")
            return any(dag["dag_id"] == dag_id for dag in self.rest("GET", "/dags", limit=100)["dags"])

        self.wait(found, f"DAG {dag_id!r} was not found", timeout)

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Begin a run of a DAG, once it is found; the run's id."""
        self.wait_for_dag(dag_id)
        run = self.rest("POST", f"/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": dict(conf or {})})
        return str(run["dag_run_id"])

    def task_instance(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """A task instance as the REST API shows it: `state`, `try_number`, `pid`, `trigger`, `triggerer_job`."""
        instance: dict[str, Any] = self.rest("GET", task_path(dag_id, run_id, task_id, map_index))
        return instance

    def wait_for_task(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        map_index: int = -1,
        *,
        state: str = "success",
        timeout: float = 60.0,
    ) -> dict[str, Any]:
        """Wait until a task instance is in a state, and return it as `task_instance` does.

        Raises:
            SandboxError: It is not within `timeout` seconds, or has ended in another state.
        """
        return self._wait_for_state(task_path(dag_id, run_id, task_id, map_index), state, timeout)

    def wait_for_run(
        self, dag_id: str, run_id: str, *, state: str = "success", timeout: float = 120.0
    ) -> dict[str, Any]:
        """Wait until a run is in a state, and return it as the REST API shows it.

        Raises:
            SandboxError: It is not within `timeout` seconds, or has ended in another state.
        """
        return self._wait_for_state(f"/dags/{dag_id}/dagRuns/{run_id}", state, timeout)

    def result(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> Any:
        """What a task instance returned."""
        path = f"{task_path(dag_id, run_id, task_id)}/xcomEntries/return_value"
        return self.rest("GET", path, map_index=map_index, deserialize=True)["value"]

    def task_pid(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> int:
        """The id of the process that runs a task instance's own code.

        Raises:
            SandboxError: It runs in no process now.
        """
        instance = self.task_instance(dag_id, run_id, task_id, map_index)
        pid = instance["pid"]
        if instance["state"] != "running" or not any(pid in c.pids for c in self._of("scheduler")):
            raise SandboxError(f"{dag_id}/{run_id}/{task_id}[{map_index}] runs in no process: {instance}")
        return int(pid)

    def task_log(self, dag_id: str, run_id: str, task_id: str = "*", map_index: int = -1) -> str:
        """What a task instance has logged, in all its attempts, on workers and triggerers; `*` is every task."""
        index = "" if map_index == -1 else f"map_index={map_index}/"
        folder = f"logs/dag_id={dag_id}/run_id={run_id}/task_id={task_id}/{index}"
        logs = sorted(self.home.glob(f"{folder}**/*.log*"))
        return "\n".join(log.read_text() for log in logs)

    def _make_database(self) -> None:
        migration = self._spawn("db", "migrate")
        self.wait(lambda: not migration.running, "the metadata database is not made")
        migration.kill()
        self._components.remove(migration)
        database = self.home / "airflow.db"
        if not database.exists():
            raise SandboxError(f"the metadata database was not made\n{migration.tail()}")
        # Readers do not wait for a writer then; the file remembers it.
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        self._say("metadata database")

    def _start_components(self) -> None:
        """Start them at once; again on another port if somebody took the one that was free a moment ago."""
        for _ in range(PORT_TRIES):
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = probe.getsockname()[1]
            self.url = f"http://127.0.0.1:{port}"
            self.environment["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] = f"{self.url}/execution/"
            self._client = httpx.Client(base_url=self.url, timeout=30, trust_env=False)
            api_server = self._spawn("api-server", "--port", str(port))
            for name in JOBS:
                self._spawn(name)
            if self._wait_for_api(api_server):
                break
            complaint = api_server.tail()
            self._stop_components()
            if "address already in use" not in complaint:
                raise SandboxError(f"the API server did not start\n{complaint}")
        else:
            raise SandboxError(f"each of {PORT_TRIES} ports was taken as soon as it was chosen")
        self._say("api-server")
        for name in JOBS:
            self.wait(lambda name=name: self._jobs(name), f"{name} is not up")  # type: ignore[misc]
            self._say(name)

    def _wait_for_api(self, api_server: Component) -> bool:
        """Log in as soon as it answers; False if it ended instead."""
        self.wait(lambda: not api_server.running or self._log_in(), "the API server does not answer")
        return api_server.running

    def _log_in(self) -> bool:
        try:
            response = self._client.get("/auth/token", timeout=LOG_IN_SECONDS)
        except httpx.TransportError:
            return False
        # Whoever took the port may answer, too.
        if response.is_success:
            self._client.headers["Authorization"] = f"Bearer {response.json()['access_token']}"
        return response.is_success

    def _stop_components(self) -> None:
        for component in self._components:
            component.thaw()
            component.ask_to_end()
        deadline = time.monotonic() + STOP_SECONDS
        while any(component.running for component in self._components) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        for component in self._components:
            component.kill()
        self._components.clear()

    def _spawn(self, command: str, *arguments: str) -> Component:
        number = 1 + len(self._of(command))
        name = command if number == 1 else f"{command}-{number}"
        # Whoever reads a log reads the file.
        quiet = ["--skip-serve-logs"] if command in ("scheduler", "triggerer") else []
        line = [sys.executable, "-m", "airflow", command, *arguments, *quiet]
        with uninterrupted():
            component = Component(name, line, self.environment, self.home / f"{name}.log")
            self._components.append(component)
        return component

    def _of(self, command: str) -> list[Component]:
        return [component for component in self._components if component.name.startswith(command)]

    def _jobs(self, name: str) -> set[int]:
        """The ids of Airflow's records of the running processes of one kind."""
        jobs = self.rest("GET", "/jobs", job_type=JOBS[name], limit=100)["jobs"]
        return {job["id"] for job in jobs if job["state"] == "running"}

    def _wait_for_state(self, path: str, state: str, timeout: float) -> dict[str, Any]:
        seen: dict[str, Any] = {"state": "not there"}

        def reached() -> bool:
            with suppress(NotFoundError):
                seen.update(self.rest("GET", path))
            if seen["state"] in OVER and seen["state"] != state:
                raise self._failure(f"{path} is {seen['state']}, not {state}")
            return bool(seen["state"] == state)

        self.wait(reached, f"{path} is not {state}", timeout)
        return seen

    def _failure(self, complaint: str) -> SandboxError:
        """An error that shows the end of every log."""
        logs = [*sorted(self.home.glob("*.log")), *sorted(self.home.glob("logs/dag_id=*/**/*.log*"))]
        return SandboxError("\n".join([complaint, *map(tail_of, logs)]))

    def _say(self, what: str) -> None:
        if self._report is not None:
            self._report(f"{what} is up")


def task_path(dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str:
    """Where the REST API shows a task instance."""
    path = f"/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
    return path if map_index == -1 else f"{path}/{map_index}"
