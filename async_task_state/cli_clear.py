"""`async-task-state clear`: one state, or all of a mapped task or of a run, after saying how much that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from async_task_state.cli_check import absent
from async_task_state.cli_scope import NotFoundError, find, named
from async_task_state.cli_views import known_attempt, scope_document, what_is_stored
from async_task_state.digests import work_counts
from async_task_state.scopes import TaskScope
from async_task_state.stores import Wanted
from async_task_state.text import counted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from async_task_state.scopes import Scope
    from async_task_state.stores import Store

__all__ = ["Chosen", "choose", "clear"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is to be cleared.

    Args:
        scopes: Whose states.
        name: What they are called together.
        content: What they hold.
        fenced: What becomes of who is at work on them.
        document: What names them in JSON.
    """

    scopes: Sequence[Scope]
    name: str
    content: str
    fenced: str
    document: dict[str, Any]


async def choose(dsn: str, store: Store, args: argparse.Namespace) -> Chosen:
    """Find what the arguments name.

    Raises:
        NotFoundError: Nothing is stored for it.
    """
    if args.task_id is None and (args.map_index is not None or args.all_map_indexes):
        args.usage_error("a map index is of a TASK; DAG RUN alone is all that the run has")
    several = args.all_map_indexes or (args.run_id is not None and args.task_id is None)
    of_asset = args.asset is not None or args.asset_uri is not None
    return await (_several if several and not of_asset else _one)(dsn, store, args)


async def clear(store: Store, chosen: Chosen) -> int:
    """Clear it; how many rows there were."""
    return sum([await store.clear(scope) or 0 for scope in chosen.scopes])


async def _one(dsn: str, store: Store, args: argparse.Namespace) -> Chosen:
    info, snapshot = await find(
        dsn, store, named(args), hint="say --map-index, or --all-map-indexes for all of them"
    )
    attempt = known_attempt(info.attempt, info.epoch, info.holder)
    known = isinstance(info.scope, TaskScope) and attempt is not None
    return Chosen(
        [info.scope],
        str(info.scope),
        what_is_stored(snapshot),
        f"If its attempt {attempt} is still at work it is fenced: it can save nothing more."
        if known
        else "Whoever is still at work on it is fenced: it can save nothing more.",
        scope_document(info.scope),
    )


async def _several(dsn: str, store: Store, args: argparse.Namespace) -> Chosen:
    if nothing := await absent(dsn):
        raise NotFoundError(nothing)
    ids = (args.dag_id, args.run_id, args.task_id)
    name = "/".join(part for part in ids if part is not None)
    infos = [
        info
        for info in await store.scopes(Wanted(*ids))
        if isinstance(info.scope, TaskScope) and args.region_id in (None, info.scope.region_id)
    ]
    if not infos:
        raise NotFoundError(f"nothing is stored for {name}: see async-task-state list")
    keys, states = counted(sum(info.keys for info in infos), "key"), counted(len(infos), "state")
    tasks = counted(len({info.scope.row[2] for info in infos}), "task")
    sets = sum(len(work_counts(info.own)) for info in infos)
    works = f" and {counted(sets, 'work set')}" if sets else ""
    return Chosen(
        [info.scope for info in infos],
        name,
        f"{keys}{works} in {states}{f' of {tasks}' if args.task_id is None else ''}",
        "Whoever is still at work on one of them is fenced: it can save nothing more.",
        {**dict(zip(("dag_id", "run_id", "task_id"), ids, strict=True)), "states": len(infos)},
    )
