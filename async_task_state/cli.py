"""The command line: look at states, watch one move, clear one, and check that they are kept well."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
from contextlib import redirect_stdout
from importlib.metadata import version
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO, TypeVar

from rich.text import Text

from async_task_state import cli_list
from async_task_state import cli_views as views
from async_task_state.cli_check import absent, checks, is_postgres, opened_by_commands, shown
from async_task_state.cli_clear import choose, clear
from async_task_state.cli_init import init_db, sql
from async_task_state.cli_list import whole_number
from async_task_state.cli_progress import WatchedMany
from async_task_state.cli_scope import NotFoundError, add_one, add_some, find, named
from async_task_state.cli_watch import follow, writing
from async_task_state.errors import AsyncTaskStateError
from async_task_state.lifetime import lent_store
from async_task_state.settings import load_settings
from async_task_state.text import counted, plain
from async_task_state.upkeep import purge_all

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from async_task_state.settings import Dsn, Settings
    from async_task_state.stores import Store

__all__ = ["main"]

T = TypeVar("T")

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130

_SCOPE_KEYS: Final = (
    "dag_id, run_id, task_id, map_index, region_id, asset, asset_uri (null where they do not apply)"
)
_ATTEMPT: Final = "attempt (null where none has opened it since it was cleared)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments; None takes the process's.

    Returns:
        The exit code: 0 ok, 1 failed, 2 wrong usage.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A terminal or a pipe may take less than what is stored.
            stream.reconfigure(errors="backslashreplace")
    parser = _parser(with_demo="demo" in argv)
    args = parser.parse_args(argv)
    if args.command == "demo" and (args.json or args.dsn is not None):
        parser.error("demo has a store of its own and prints no JSON: it takes neither --dsn nor --json")
    try:
        return int(args.run(args))
    except AsyncTaskStateError as error:
        views.Screen().note(f"error: {error}")
        return FAILED
    except KeyboardInterrupt:
        # Which is how a watch ends.
        return OK if args.command == "watch" else INTERRUPTED
    except BrokenPipeError:
        # The reader went away; what Python flushes as it exits must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with an argument on one line, whatever is in it."""

    def error(self, message: str) -> NoReturn:
        super().error(plain(message))


def _common() -> _Parser:
    """The options that may stand before the command or after it; made anew for each, for argparse shares them."""
    common = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--dsn", help="the store; without it the one that Airflow's configuration names")
    common.add_argument("--json", action="store_true", help="print JSON")
    return common


def _parser(*, with_demo: bool) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="async-task-state",
        description="The state that triggers and async tasks keep: list it, look at it, watch it grow, clear it.",
        parents=[_common()],
    )
    parser.set_defaults(dsn=None, json=False)
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('async-task-state')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")

    def add(
        name: str,
        run: Callable[[argparse.Namespace], int],
        text: str,
        *,
        more: str = "",
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}. {more}".strip(),
            parents=[_common()],
        )
        made.set_defaults(run=run, usage_error=made.error)
        return made

    listing = add(
        "list",
        _list,
        "list the states, the most recently changed first",
        more=f"As JSON: a list of objects with {_SCOPE_KEYS}, {_ATTEMPT}, epoch (how often it was opened or cleared), keys (how"
        " many), updated_at and position (what --after takes to go on behind it).",
    )
    cli_list.add_arguments(listing)
    show = add(
        "show",
        _show,
        "show one state: its keys and values, its work sets, the items that failed",
        more=f"As JSON: an object with {_SCOPE_KEYS}, {_ATTEMPT}, epoch, keys, updated_at, holder (the process that opened it"
        " last: host, pid, attempt, since; null where it is not known), values (an object) and work"
        " (a list of objects with name, done, failed and failures: item, error, tries in all attempts of the task together, and"
        " attempt, the last one that tried it).",
    )
    add_one(show)
    watch = add(
        "watch",
        _watch,
        "follow one state, or all of a mapped task, while they change and until the task has ended",
        more="A task has ended when Airflow's database says so; where that cannot be asked here, when all items are"
        " done (--total), or the state was deleted. Ctrl-C ends it, too. As JSON: for each state a line at each look,"
        f" an object with time, {_SCOPE_KEYS}, state (Airflow's, null where it is not known), {_ATTEMPT}, epoch, values (null"
        " for a mapped task) and work (a list of objects with name, done, failed, total, rate in items a second and seconds_left).",
    )
    add_one(watch, without="all that the task has")
    watch.add_argument("--work", metavar="NAME", help="only this work set")
    watch.add_argument(
        "--total",
        type=_total,
        metavar="N|KEY",
        help="how many items each work set shown has, of a mapped task that of each map index and not of all together;"
        " or the key of the state that says it: gives a bar and the time left",
    )
    watch.add_argument(
        "--interval", type=_seconds, default=1.0, metavar="S", help="seconds between looks (default: 1)"
    )
    watch.add_argument("--until", type=whole_number, metavar="N", help="end when N items are done")
    clear = add(
        "clear",
        _clear,
        "remove all that a state holds, or all states of a run, and fence whoever is writing them",
        more="Without TASK every state of the run, of every task and map index. A task or trigger that is at work on one"
        " can save nothing more: its next call raises StaleWriterError. The trigger of a deferred task begins again with an"
        " empty state, and its on_user_kill is not called: a clear of the task in Airflow calls it."
        f" As JSON: an object with {_SCOPE_KEYS} and removed (how many keys, those of work sets included); for several states with dag_id, run_id, task_id, states (how many) and removed.",
    )
    add_some(clear)
    clear.add_argument("--yes", action="store_true", help="do not ask")
    add(
        "purge",
        _purge,
        "delete keys that have expired, and states that were not in use for default_retention_days",
        more="As JSON: an object with purged (how many keys, those of work sets included).",
    )
    add(
        "check",
        _check,
        "check the settings, and that the store can be used and suits the executor",
        more="Leaves nothing behind; exits with 1 if anything is wrong. As JSON: an object with ok and checks (a list"
        " of objects with check, ok, warning and detail).",
    )
    init = add(
        "init-db",
        _init_db,
        "make the tables or bring them up to date, for applications that may not",
        more="As JSON: an object with dsn, tables (made, migrated or there) and role; or with sql.",
    )
    init.add_argument("--role", metavar="NAME", help="a role of PostgreSQL that is to use the tables")
    init.add_argument(
        "--sql", action="store_true", help="connect to nothing and print the SQL for an administrator"
    )
    demo = commands.add_parser("demo", help="kill a real Airflow's triggerer half way and see the work go on")
    if with_demo:
        from async_task_state.demo import add_arguments, run  # noqa: PLC0415 - only for those who want it

        add_arguments(demo)
        demo.set_defaults(run=run)
    return parser


def _list(args: argparse.Namespace) -> int:
    screen = views.Screen()
    ids = (args.dag, args.only_run, args.task)
    if args.assets and any(ids):
        args.usage_error(
            "--assets goes with none of --dag, --run and --task: an asset is of no DAG, run or task"
        )
    dsn, store = _open(args)
    nothing = asyncio.run(absent(dsn))
    infos, more = ([], None) if nothing else _ask(store, cli_list.page(store, args))
    if args.json:
        screen.documents(map(cli_list.document, infos))
    elif infos:
        screen.show(cli_list.listing(infos, screen))
    if not infos:
        narrowed = args.assets or any(ids) or args.after
        more = nothing or ("no state matches" if narrowed else "no state is stored yet")
    if more:
        screen.note(more)
    return OK


def _show(args: argparse.Namespace) -> int:
    screen = views.Screen()
    dsn, store = _open(args)
    info, snapshot = _ask(store, find(dsn, store, named(args)))
    if args.json:
        screen.document(views.state_document(info, snapshot))
    else:
        screen.show(views.state_view(info, snapshot, screen))
    return OK


def _watch(args: argparse.Namespace) -> int:
    screen = views.Screen()
    view = WatchedMany(
        named(args), args.total, args.work, is_exact=args.map_index is not None or args.task_id is None
    )
    dsn, store = _open(args)
    if is_postgres(dsn) and (nothing := asyncio.run(absent(dsn))):
        raise NotFoundError(nothing)
    with writing(screen, as_json=args.json) as write:
        end = _ask(store, follow(dsn, store, view, write, interval=args.interval, until=args.until))
    if end is not None:
        if args.json:
            screen.note(end)
        else:
            screen.show(Text(plain(end)))
    return OK


def _clear(args: argparse.Namespace) -> int:
    screen = views.Screen()
    dsn, store = _open(args)
    chosen = _ask(store, choose(dsn, store, args))
    if not args.yes:
        if not sys.stdin.isatty():
            screen.note("error: there is no terminal to ask on: say --yes")
            return USAGE
        screen.note(f"{chosen.name} holds {chosen.content}.")
        screen.note(chosen.fenced)
        if not _confirmed(screen, "Remove all of it? [y/N] "):
            screen.note("nothing was removed")
            return FAILED
    removed = _ask(store, clear(store, chosen))
    if args.json:
        screen.document({**chosen.document, "removed": removed})
    else:
        what = f"cleared {chosen.name}: removed {chosen.content}; whoever was writing it is fenced"
        screen.show(Text(plain(what)))
    return OK


def _confirmed(screen: views.Screen, question: str) -> bool:
    try:
        return screen.errors.input(question, markup=False).strip().lower() in {"y", "yes"}
    except EOFError:
        return False


def _purge(args: argparse.Namespace) -> int:
    screen = views.Screen()
    settings = _settings()
    dsn, store = _open(args, retention=settings.default_retention)
    nothing = asyncio.run(absent(dsn))
    if nothing:
        screen.note(nothing)
    purged = 0 if nothing else _ask(store, purge_all(store))
    if args.json:
        screen.document({"purged": purged})
    else:
        days = settings.default_retention_days
        idle = f", or whose states were not in use for {days:,g} days" if days else ""
        screen.show(Text(f"purged {counted(purged, 'key')} that had expired{idle}"))
    return OK


def _check(args: argparse.Namespace) -> int:
    screen = views.Screen()
    with _stdout_is_ours():
        found = list(checks(args.dsn))
    failed = sum(not check.ok for check in found)
    if args.json:
        answers = [
            {"check": check.name, "ok": check.ok, "warning": check.warning, "detail": check.detail}
            for check in found
        ]
        screen.document({"ok": not failed, "checks": answers})
    else:
        screen.show(views.checks_table(found))
        warned = sum(check.warning for check in found)
        well = f"states are kept, {counted(warned, 'warning')}" if warned else "all is well"
        screen.show(Text(f"{failed} of {len(found)} failed" if failed else well))
    return FAILED if failed else OK


def _init_db(args: argparse.Namespace) -> int:
    screen = views.Screen()
    dsn = _dsn(args)
    if args.sql:
        script = sql(dsn, args.role)
        if args.json:
            screen.document({"sql": script})
        else:
            sys.stdout.write(script)
        return OK
    made = asyncio.run(init_db(dsn, args.role))
    if args.json:
        screen.document({"dsn": shown(dsn), "tables": made.word, "role": args.role})
    else:
        screen.show(Text(plain(made.line)))
    return OK


def _open(args: argparse.Namespace, *, retention: float | None = None) -> tuple[str, Store]:
    dsn = _dsn(args)
    return dsn, lent_store(dsn, default_retention=retention)


def _dsn(args: argparse.Namespace) -> Dsn:
    dsn = _settings().dsn if args.dsn is None else args.dsn
    with _stdout_is_ours():
        return opened_by_commands(dsn)


def _settings() -> Settings:
    with _stdout_is_ours():
        return load_settings()


def _stdout_is_ours() -> redirect_stdout[TextIO]:
    """What Airflow logs as it is imported goes where it is no part of the output."""
    return redirect_stdout(sys.stderr)


def _ask(store: Store, question: Coroutine[Any, Any, T]) -> T:
    async def ask() -> T:
        try:
            return await question
        finally:
            await store.close()

    return asyncio.run(ask())


def _total(text: str) -> int | str:
    return whole_number(text) if text.removeprefix("-").isdecimal() else text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")
    return seconds
