"""What a watch shows to a person: on a terminal drawn over the last, else a line for each look."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from async_task_state.cli_progress import NO_STATE, states_text
from async_task_state.cli_views import by_item, clock, failed_text, holder, readable, table, values_view
from async_task_state.items import shown_item
from async_task_state.text import counted, plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from async_task_state.cli_progress import Watched, WatchedMany, WatchedState
    from async_task_state.scopes import Scope

__all__ = ["Lines", "watch_view"]

WATCHED_KEYS: Final = 8
WATCHED_FAILURES: Final = 3
LEAST_ROWS: Final = 5
OTHER_LINES: Final = 8
"""Of a terminal, what is drawn besides the rows of map indexes."""


class Lines:
    """The lines of each look: of a mapped task one for each index that has changed, and one for all together."""

    def __init__(self) -> None:
        self._last: dict[Scope, object] = {}

    def of(self, view: WatchedMany) -> Iterator[Text]:
        """The lines of one look."""
        at = readable(time.time())
        for scope, state in view.states.items():
            facts = _facts(state)
            if view.is_mapped and self._last.get(scope) == facts:
                continue
            self._last[scope] = facts
            yield from (Text(f"{at}  {line}") for line in _state_lines(view, state))
        if view.is_mapped:
            together = f"all {counted(len(view.states), 'map index', 'map indexes')}"
            for work in view.sums:
                yield Text(f"{at}  {together}  {_work_text(work)}")
            if not view.sums:
                yield Text(f"{at}  {together}  no work set")


def _facts(state: WatchedState) -> object:
    """What makes a new line worth printing: no pace, which changes by itself."""
    now = state.now
    works = [(work.name, work.done, work.failed, work.total) for work in now.works]
    return now.attempt, now.epoch, works, None if works else now.keys


def _state_lines(view: WatchedMany, state: WatchedState) -> Iterator[str]:
    scope, now = state.scope, state.now
    name = f"{_index(scope)}  " if view.is_mapped else ""
    head = f"{name}{holder(scope, now.attempt, now.epoch)}  "
    if not now.works:
        yield f"{head}no work set, {counted(now.keys, 'key')}"
    for work in now.works:
        yield f"{head}{_work_text(work)}"


def _work_text(work: Watched) -> str:
    parts = [f"{_count_text(work)} done", f"{work.failed:,} failed", *_pace(work)]
    return f"{plain(work.name)}: {', '.join(parts)}"


def watch_view(view: WatchedMany, note: str | None, height: int) -> Group:
    """One moment of a watch, to be drawn over the last.

    Args:
        view: What is known.
        note: What to tell besides.
        height: How many lines there are.
    """
    parts: list[RenderableType] = [
        Text.assemble((plain(str(view.scope)), "bold"), (f"  {_told(view)}", "dim"), overflow="fold")
    ]
    if view.is_mapped:
        parts += _indexes(view, max(LEAST_ROWS, height - OTHER_LINES))
    else:
        parts += [part for state in view.states.values() for part in _one(state)]
    if note:
        parts.append(Text(plain(note), style="yellow"))
    return Group(*parts)


def _told(view: WatchedMany) -> str:
    """Who has it, when it has changed last, and what Airflow says."""
    parts = []
    if view.is_mapped:
        parts.append(f"state of {counted(len(view.states), 'map index', 'map indexes')}")
    else:
        parts += [holder(state.scope, state.now.attempt, state.now.epoch) for state in view.states.values()]
    if view.states:
        now = time.monotonic()
        changes = [state.changed for state in view.states.values() if state.changed is not None]
        since = min(state.since for state in view.states.values())
        parts.append(
            f"last change {clock(now - max(changes))} ago"
            if changes
            else f"no change seen for {clock(now - since)}"
        )
    if view.instances:
        parts.append(f"in Airflow: {states_text(view.instances)}")
    return ", ".join(parts)


def _one(state: WatchedState) -> Iterator[RenderableType]:
    works, values = state.now.works, state.now.values
    if works:
        bars = Table.grid(padding=(0, 2, 0, 0))
        for work in works:
            bars.add_row(*_cells(work)[:-1], Text.assemble(failed_text(work.failed), " failed"))
        yield bars
    for work in works:
        for failure in by_item(work.failures)[:WATCHED_FAILURES]:
            item = plain(shown_item(work.name, failure.item))
            yield Text(f"failed: {item}: {plain(failure.error)}", "red", overflow="ellipsis", no_wrap=True)
    if values:
        yield Text()
        yield from values_view(values, WATCHED_KEYS, max_chars=60)


def _indexes(view: WatchedMany, rows: int) -> Iterator[RenderableType]:
    """A table of the map indexes that changed last, in their order, and one of all of them together."""
    lines: list[tuple[WatchedState, Watched | None]] = []
    for state in view.states.values():
        lines += [(state, work) for work in state.now.works] or [(state, None)]
    shown = _shown(lines, rows)
    made = table(
        "map", "in Airflow", "attempt", "work set", "", "done", "pace", "failed", right={"map", "failed"}
    )
    for column in made.columns:
        # A row of two lines would push the last one out of a terminal. Without its title, the bar's gives way first.
        column.no_wrap, column.overflow = bool(column.header), "ellipsis"
    for state, work in shown:
        cells = ("", "", Text(counted(state.now.keys, "key")), "", "") if work is None else _cells(work)
        airflows, attempt = view.airflow_state(state.scope) or "", state.now.attempt
        airflows = NO_STATE if airflows == "none" else airflows
        made.add_row(_index(state.scope), airflows, "" if attempt is None else f"{attempt}", *cells)
    for work in view.sums:
        made.add_row("all", "", "", *_cells(work), style="bold")
    yield made
    if len(shown) < len(lines):
        yield Text(f"and {len(lines) - len(shown):,} more, which changed before these", style="dim")


def _shown(
    lines: Sequence[tuple[WatchedState, Watched | None]], rows: int
) -> Sequence[tuple[WatchedState, Watched | None]]:
    newest = sorted(range(len(lines)), key=lambda number: lines[number][0].changed or 0.0, reverse=True)
    return [lines[number] for number in sorted(newest[:rows])]


def _cells(work: Watched) -> tuple[RenderableType, ...]:
    return (
        Text(plain(work.name)),
        ProgressBar(total=1.0, completed=work.share, width=30) if work.total else "",
        Text(_count_text(work) + ("" if work.total else " done")),
        Text(", ".join(_pace(work))),
        failed_text(work.failed),
    )


def _index(scope: Scope) -> str:
    *_, index, region = scope.row
    return f"{index}@{region[:8]}" if region else f"{index}"


def _pace(work: Watched) -> list[str]:
    """How fast it goes and how long the rest takes, or that there is no rest."""
    if work.left == 0:
        return ["complete" if not work.failed else "none left"]
    rate = [] if work.rate is None else [_rate_text(work.rate)]
    return rate if work.seconds_left is None else [*rate, f"{clock(work.seconds_left)} left"]


def _count_text(work: Watched) -> str:
    if not work.total:
        return f"{work.done:,}"
    # One item of many that is not done is no 100 %.
    percent = 100 if work.is_done else min(99, round(100 * work.share))
    return f"{work.done:,} of {work.total:,} ({percent}%)"


def _rate_text(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"  # noqa: PLR2004 - two digits say enough
