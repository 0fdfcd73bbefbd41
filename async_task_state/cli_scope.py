"""Which state a command is about: a task's or an asset's, as it is named on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from async_task_state.cli_check import absent
from async_task_state.errors import AsyncTaskStateError
from async_task_state.scopes import AssetScope, TaskScope
from async_task_state.stores import Wanted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from async_task_state.scopes import Scope
    from async_task_state.stores import ScopeInfo, Snapshot, Store

__all__ = ["NotFoundError", "add_one", "add_some", "find", "in_its_region", "named", "others_text"]

ASSET: Final = "\n       %(prog)s (--asset NAME | --asset-uri URI) [options]"
NEITHER: Final = "the task that is in neither"
NAMED: Final = 5


class NotFoundError(AsyncTaskStateError):
    """Nothing is stored where the command was told to look."""


def add_one(parser: argparse.ArgumentParser, *, without: str = NEITHER) -> None:
    """Add the arguments that name one state.

    Args:
        parser: The command's.
        without: What is meant where no map index is named.
    """
    parser.usage = f"%(prog)s DAG RUN TASK [--map-index N] [options]{ASSET}"
    _add_names(parser)
    parser.add_argument("--map-index", **_map_index(without))


def add_some(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name one state, or all of a run or of a mapped task."""
    parser.usage = f"%(prog)s DAG RUN [TASK [--map-index N | --all-map-indexes]] [options]{ASSET}"
    _add_names(parser)
    indexes = parser.add_mutually_exclusive_group()
    indexes.add_argument("--map-index", **_map_index(NEITHER))
    indexes.add_argument("--all-map-indexes", action="store_true", help="all that a mapped task has")


def named(args: argparse.Namespace) -> Scope:
    """The one state that the arguments name."""
    given = [args.dag_id, args.run_id, args.task_id, args.map_index, args.region_id]
    if args.asset is not None or args.asset_uri is not None:
        if any(value is not None for value in given):
            args.usage_error("an asset's state is of no DAG, run or task: name the one or the other")
        return AssetScope(args.asset, args.asset_uri)
    if args.task_id is None:
        args.usage_error("say which state: DAG RUN TASK, or --asset NAME")
    index = -1 if args.map_index is None else args.map_index
    return TaskScope(args.dag_id, args.run_id, args.task_id, index, args.region_id)


async def find(
    dsn: str, store: Store, scope: Scope, *, hint: str = "say --map-index"
) -> tuple[ScopeInfo, Snapshot]:
    """What is stored for one state.

    Args:
        dsn: Names the store.
        store: The one to look into.
        scope: Whose state.
        hint: What to do where the task is a mapped one.

    Raises:
        NotFoundError: There is nothing.
    """
    if nothing := await absent(dsn):
        raise NotFoundError(nothing)
    infos = await _alike(store, scope)
    scope = _placed(scope, infos)
    snapshot = await store.read(scope)
    info = next((info for info in infos if info.scope == scope), None)
    if snapshot is None or info is None:
        others = await others_text(store, scope, hint) or ": see async-task-state list"
        raise NotFoundError(f"nothing is stored for {scope}{others}")
    return info, snapshot


async def in_its_region(store: Store, scope: Scope) -> Scope:
    """The scope with the region that Airflow 3.4 gives loops and mapped tasks, where only one has that index.

    Raises:
        NotFoundError: Several have, and none is named.
    """
    return _placed(scope, await _alike(store, scope))


async def others_text(store: Store, scope: Scope, hint: str = "say --map-index") -> str:
    """What there is of other map indexes of a task, as the end of a sentence on the one that was named."""
    if not isinstance(scope, TaskScope):
        return ""
    infos = await store.scopes(Wanted(*scope.row[:3], limit=NAMED))
    return f"; there is for {_names(info.scope for info in infos)} ({hint})" if infos else ""


async def _alike(store: Store, scope: Scope) -> list[ScopeInfo]:
    """The state itself, or where no region is named those of its index in every region."""
    if isinstance(scope, TaskScope) and scope.region_id is None:
        return await store.scopes(Wanted(*scope.row[:4]))
    return await store.scopes(Wanted(scope=scope))


def _placed(scope: Scope, infos: Iterable[ScopeInfo]) -> Scope:
    if not isinstance(scope, TaskScope) or scope.region_id is not None:
        return scope
    alike = [info.scope for info in infos]
    if not alike or scope in alike:
        return scope
    if len(alike) > 1:
        raise NotFoundError(f"{scope} is in several regions: {_names(alike)} (say --region-id)")
    return alike[0]


def _names(scopes: Iterable[Scope]) -> str:
    return ", ".join(sorted(map(str, scopes))[:NAMED])


def _map_index(without: str) -> dict[str, Any]:
    text = f"the index of a mapped task, or the iteration of a loop; without it {without}"
    return {"type": int, "metavar": "N", "help": text}


def _add_names(parser: argparse.ArgumentParser) -> None:
    for name, metavar in (("dag_id", "DAG"), ("run_id", "RUN"), ("task_id", "TASK")):
        parser.add_argument(name, metavar=metavar, nargs="?", help=f"its {name}")
    assets = parser.add_mutually_exclusive_group()
    assets.add_argument("--asset", metavar="NAME", help="an asset instead of a task, by its name")
    assets.add_argument(
        "--asset-uri", metavar="URI", help="the same by its URI, where that was all that was known"
    )
    parser.add_argument(
        "--region-id", type=UUID, metavar="UUID", help="the region, where several have that index"
    )
