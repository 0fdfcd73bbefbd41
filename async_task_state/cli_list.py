"""`async-task-state list`: the states, a page of them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from async_task_state.stores import Position

if TYPE_CHECKING:
    from async_task_state.stores import ScopeInfo, Store

__all__ = ["add_arguments", "page", "position_text", "whole_number"]

SHOWN: Final = 100
"""How many are shown to a person who has said nothing of it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what narrows a list down."""
    parser.add_argument("--dag", metavar="DAG", help="only this DAG's")
    parser.add_argument("--run", dest="only_run", metavar="RUN", help="only this run's")
    parser.add_argument("--task", metavar="TASK", help="only this task's")
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
    ids = (args.dag, args.only_run, args.task)
    assets = True if args.assets else None
    one_more = None if limit is None else limit + 1
    infos = await store.scopes(*ids, assets=assets, limit=one_more, after=args.after)
    shown = infos[:limit]
    if len(shown) == len(infos):
        return shown, None
    matching = await store.count_scopes(*ids, assets=assets)
    return shown, f"{len(shown):,} of {matching:,} states: go on with --after {position_text(shown[-1])}"


def position_text(info: ScopeInfo) -> str:
    """What --after takes to go on behind a state."""
    return f"{info.updated_at!r}:{info.scope_id}"


def whole_number(text: str) -> int:
    """A number of things, of which there is one at least."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text!r}")
    return int(text)


def _position(text: str) -> Position:
    updated_at, _, scope_id = text.partition(":")
    try:
        return Position(float(updated_at), int(scope_id))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a position that a list has named, not {text!r}") from None
