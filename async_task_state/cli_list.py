"""`async-task-state list`: the states, a page of them."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.measure import Measurement
from rich.text import Text

from async_task_state.cli_views import ago, info_document, known_attempt, readable, table
from async_task_state.digests import work_counts
from async_task_state.scopes import AssetScope
from async_task_state.stores import Position, Wanted
from async_task_state.text import counted, plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from async_task_state.cli_views import Screen
    from async_task_state.scopes import Scope
    from async_task_state.stores import ScopeInfo, Store

__all__ = ["add_arguments", "document", "listing", "page", "whole_number"]

WIDEST: Final = 100_000
DIGITS: Final = 18
"""Of a number that every database takes, at most."""
LARGEST_ID: Final = 2**63 - 1
SHOWN: Final = 100
"""How many are shown to a person who has said nothing of it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what narrows a list down."""
    parser.add_argument("--dag", type=_id, metavar="DAG", help="only this DAG's")
    parser.add_argument("--run", dest="only_run", type=_id, metavar="RUN", help="only this run's")
    parser.add_argument("--task", type=_id, metavar="TASK", help="only this task's")
    parser.add_argument("--assets", action="store_true", help="only those of assets")
    parser.add_argument(
        "--limit",
        type=whole_number,
        metavar="N",
        help=f"how many at most (default: {SHOWN}; as JSON all of them)",
    )
    parser.add_argument(
        "--after",
        type=_position,
        metavar="POSITION",
        help="go on where the list before has ended, which it names",
    )


async def page(store: Store, args: argparse.Namespace) -> tuple[list[ScopeInfo], str | None]:
    """The states that the arguments ask for, and how to see more where there are more than these."""
    limit = args.limit or (None if args.json else SHOWN)
    wanted = Wanted(
        args.dag,
        args.only_run,
        args.task,
        assets=True if args.assets else None,
        limit=None if limit is None else limit + 1,
        after=args.after,
    )
    infos = await store.scopes(wanted)
    shown = infos[:limit]
    if len(shown) == len(infos):
        return shown, None
    matching = await store.count_scopes(wanted)
    return shown, f"{len(shown):,} of {matching:,} states: go on with --after {position_text(shown[-1])}"


def document(info: ScopeInfo) -> dict[str, Any]:
    """A state in a listing."""
    return {
        **info_document(info),
        "work": [
            {"name": name, "done": done, "failed": failed}
            for name, (done, failed) in sorted(work_counts(info.own).items())
        ],
        "position": position_text(info),
    }


def position_text(info: ScopeInfo) -> str:
    """What --after takes to go on behind a state."""
    return f"{info.updated_at!r}:{info.scope_id}"


def listing(infos: Sequence[ScopeInfo], screen: Screen) -> RenderableType:
    """States to read: a table for tasks and one for assets; lines for each state where a terminal is too narrow."""
    tables = [
        _table([info for info in infos if isinstance(info.scope, AssetScope) is of_assets], screen)
        for of_assets in (False, True)
        if any(isinstance(info.scope, AssetScope) is of_assets for info in infos)
    ]
    console = screen.console
    if screen.is_terminal and any(
        Measurement.get(console, console.options.update(width=WIDEST), each).maximum > console.width
        for each in tables
    ):
        return Group(*(_lines(info) for info in infos))
    return Group(*[part for each in tables for part in (Text(), each)][1:])


def whole_number(text: str) -> int:
    """A number of things, of which there is one at least."""
    if not text.isdecimal() or not int(text[:DIGITS]) > 0 or len(text) > DIGITS:
        raise argparse.ArgumentTypeError(
            f"must be a whole number above 0 of at most {DIGITS} digits, not {text!r}"
        )
    return int(text)


def _id(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"must be UTF-8, not {text!r}") from None
    return text


def _position(text: str) -> Position:
    named = re.fullmatch(r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?):(-?\d{1,19})", text, re.ASCII)
    if named is None or abs(int(named[2])) > LARGEST_ID:
        raise argparse.ArgumentTypeError(f"must be a position that a list has named, not {text!r}")
    return Position(float(named[1]), int(named[2]))


def _table(infos: Sequence[ScopeInfo], screen: Screen) -> RenderableType:
    """A table of states that are all of tasks, or all of assets; a column only where one state has something in it."""
    rows = [{**_names(info.scope), **_facts(info, screen)} for info in infos]
    headers = [
        name for name in rows[0] if name in ALWAYS or any(row[name] not in {"", "name"} for row in rows)
    ]
    made = table(*headers, right=NUMBERS)
    for row in rows:
        made.add_row(*(Text(plain(row[header])) for header in headers))
    return made


ALWAYS: Final = frozenset({"dag", "run", "task", "map", "attempt", "asset", "keys", "changed"})
NUMBERS: Final = frozenset({"map", "attempt", "keys", "done", "failed", "process"})


def _names(scope: Scope) -> dict[str, str]:
    if isinstance(scope, AssetScope):
        # A name may look like a URI.
        return {"asset": scope.name or scope.uri or "", "known by": "uri" if scope.name is None else "name"}
    return {
        "dag": scope.dag_id,
        "run": scope.run_id,
        "task": scope.task_id,
        "map": "" if scope.map_index == -1 else str(scope.map_index),
        "region": str(scope.region_id or ""),
    }


def _facts(info: ScopeInfo, screen: Screen) -> dict[str, str]:
    shown = ago if screen.is_terminal else readable
    attempt = known_attempt(info.attempt, info.epoch, info.holder)
    attempts = (
        {} if isinstance(info.scope, AssetScope) else {"attempt": "" if attempt is None else str(attempt)}
    )
    work, holder = work_counts(info.own).values(), info.holder
    return {
        **attempts,
        "keys": f"{info.keys:,}",
        "done": f"{sum(done for done, _ in work):,}" if work else "",
        "failed": f"{sum(failed for _, failed in work):,}" if work else "",
        "changed": shown(info.updated_at),
        "host": "" if holder is None else holder.host,
        "process": "" if holder is None else str(holder.pid),
        "last opened": "" if holder is None else shown(holder.since),
    }


def _lines(info: ScopeInfo) -> Text:
    """A state in two lines."""
    holds = [counted(info.keys, "key")]
    for name, (done, failed) in sorted(work_counts(info.own).items()):
        holds.append(f"{plain(name)}: {done:,} done{f', {failed:,} failed' if failed else ''}")
    attempt = known_attempt(info.attempt, info.epoch, info.holder)
    who = [] if isinstance(info.scope, AssetScope) or attempt is None else [f"attempt {attempt}"]
    if info.holder is not None:
        who.append(
            f"last opened by process {info.holder.pid} on {plain(info.holder.host)}, {ago(info.holder.since)}"
        )
    return Text.assemble(
        (plain(str(info.scope)), "bold"),
        f"\n  {'; '.join(holds)}; changed {ago(info.updated_at)}",
        (f"\n  {', '.join(who)}" if who else "", "dim"),
        overflow="fold",
    )
