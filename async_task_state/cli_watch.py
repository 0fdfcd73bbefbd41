"""`async-task-state watch`: one state while it changes."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from async_task_state.cli_check import no_database
from async_task_state.cli_scope import in_its_region, others_text
from async_task_state.cli_views import (
    by_item,
    clock,
    failed_text,
    holder,
    iso,
    readable,
    scope_document,
    user_values,
    values_view,
)
from async_task_state.digests import work_records
from async_task_state.errors import StoreUnavailableError
from async_task_state.items import shown_item
from async_task_state.text import counted, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import RenderableType

    from async_task_state.cli_views import Screen
    from async_task_state.digests import WorkRecord
    from async_task_state.results import Failure
    from async_task_state.scopes import Scope
    from async_task_state.stores import Snapshot, Store

__all__ = ["WatchView", "follow", "writing"]

Write: TypeAlias = "Callable[[WatchView, str | None], None]"

WATCHED_KEYS: Final = 8
WATCHED_FAILURES: Final = 3
RATE_SECONDS: Final = 30
"""Over how long a rate is taken: long enough to smooth commits, short enough to follow a change."""


async def follow(
    dsn: str, store: Store, view: WatchView, write: Write, *, interval: float, until: int | None
) -> None:
    """Look, write, wait, until so many items are done.

    Args:
        dsn: Names the store.
        store: The one to look into.
        view: What takes in each look.
        write: Is called after each look, with what to tell if there was nothing to see.
        interval: Seconds between looks.
        until: How many items; None goes on for ever.
    """
    while True:
        write(view, await _look(dsn, store, view))
        if until is not None and view.done >= until:
            return
        await asyncio.sleep(interval)


async def _look(dsn: str, store: Store, view: WatchView) -> str | None:
    if absent := no_database(dsn):
        return f"waiting: {absent}"
    try:
        snapshot = await store.read(view.scope)
        if snapshot is None:
            view.scope = await in_its_region(store, view.scope)
            snapshot = await store.read(view.scope)
            others = "" if snapshot is not None else await others_text(store, view.scope)
    except StoreUnavailableError as error:
        return f"trying again: {error}"
    if snapshot is None:
        return f"waiting: nothing is stored yet for {view.scope}{others}"
    view.take(snapshot)
    return None


@contextmanager
def writing(screen: Screen, *, as_json: bool) -> Iterator[Write]:
    """Where a watch goes: drawn over itself on a terminal, else a line for each look."""
    if screen.is_live and not as_json:
        with Live(console=screen.console, auto_refresh=False) as live:
            yield lambda view, note: live.update(watch_view(view, note), refresh=True)
        return
    noted: str | None = None

    def write(view: WatchView, note: str | None) -> None:
        nonlocal noted
        if note is not None and note != noted:
            screen.note(note)
        noted = note
        if note is not None:
            return
        if as_json:
            screen.document(watch_document(view), indent=None)
        else:
            for line in watch_lines(view):
                screen.show(line)

    yield write


@dataclass(frozen=True, slots=True)
class Watched:
    """A work set at one moment of a watch.

    Args:
        name: Its name.
        done: How many of its items are done.
        failures: The items that failed.
        total: How many items there are, if that is known.
        rate: Items done or failed a second, lately; None until there is something to compare with.
    """

    name: str
    done: int
    failures: Sequence[Failure]
    total: int | None
    rate: float | None

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at this rate; None where that cannot be said."""
        if self.total is None:
            return None
        left = max(0, self.total - self.done - len(self.failures))
        return 0.0 if not left else left / self.rate if self.rate else None

    @property
    def share(self) -> float:
        """The part of the total that is done, 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0


@dataclass(slots=True)
class WatchView:
    """What a watch knows of one state: the newest snapshot, and the history that rates are taken from.

    Args:
        scope: Whose state.
        total: How many items there are, or the key whose value says it.
        only: The one work set to show; None shows all.
    """

    scope: Scope
    total: int | str | None = None
    only: str | None = None
    attempt: int = 0
    epoch: int = -1
    values: dict[str, Any] = field(default_factory=dict)
    works: list[Watched] = field(default_factory=list)
    changed: float | None = None
    since: float = field(default_factory=time.monotonic)
    _entries: dict[str, str] = field(default_factory=dict)
    _history: dict[str, deque[tuple[float, int]]] = field(default_factory=dict)

    def take(self, snapshot: Snapshot) -> None:
        """Take in what the store says now."""
        now = time.monotonic()
        if self.epoch >= 0 and snapshot.entries != self._entries:
            self.changed = now
        self._entries = snapshot.entries
        self.attempt, self.epoch = snapshot.lease.attempt, snapshot.lease.epoch
        self.values = user_values(snapshot)
        records = work_records(snapshot.lease.scope, snapshot.entries)
        names = records if self.only is None else [name for name in records if name == self.only]
        self.works = [self._watched(name, records[name], now) for name in names]

    @property
    def done(self) -> int:
        """How many items are done in the work sets shown."""
        return sum(work.done for work in self.works)

    def _watched(self, name: str, record: WorkRecord, now: float) -> Watched:
        history = self._history.setdefault(name, deque())
        settled = record.done + len(record.failures)
        if history and settled < history[-1][1]:
            # Somebody cleared it.
            history.clear()
        history.append((now, settled))
        while history[0][0] < now - RATE_SECONDS:
            history.popleft()
        began, before = history[0]
        rate = (settled - before) / (now - began) if now > began else None
        return Watched(name, record.done, record.failures, self._total(), rate)

    def _total(self) -> int | None:
        total = self.values.get(self.total) if isinstance(self.total, str) else self.total
        return total if type(total) is int else None


def watch_document(view: WatchView) -> dict[str, Any]:
    """One moment of a watch."""
    return {
        "time": iso(time.time()),
        **scope_document(view.scope),
        "attempt": view.attempt,
        "epoch": view.epoch,
        "values": view.values,
        "work": [
            {
                "name": work.name,
                "done": work.done,
                "failed": len(work.failures),
                "total": work.total,
                "rate": None if work.rate is None else round(work.rate, 3),
                "seconds_left": None if work.seconds_left is None else round(work.seconds_left, 1),
            }
            for work in view.works
        ],
    }


def watch_lines(view: WatchView) -> Iterator[Text]:
    """One moment of a watch, a line for each work set."""
    head = f"{readable(time.time())}  {holder(view.scope, view.attempt, view.epoch)}  "
    if not view.works:
        yield Text(f"{head}no work set, {counted(len(view.values), 'key')}")
    for work in view.works:
        parts = [
            f"{_count_text(work)} done",
            f"{len(work.failures):,} failed",
            *([] if work.rate is None else [_rate_text(work.rate)]),
            *([] if work.seconds_left is None else [f"{clock(work.seconds_left)} left"]),
        ]
        yield Text(f"{head}{plain(work.name)}: {', '.join(parts)}")


def watch_view(view: WatchView, note: str | None) -> Group:
    """One moment of a watch, to be drawn over the last."""
    if view.epoch < 0:
        return Group(Text(plain(str(view.scope)), style="bold"), Text(plain(note or ""), style="yellow"))
    now = time.monotonic()
    idle = (
        f"no change seen for {clock(now - view.since)}"
        if view.changed is None
        else f"last change {clock(now - view.changed)} ago"
    )
    parts: list[RenderableType] = [
        Text.assemble(
            (plain(str(view.scope)), "bold"),
            (f"  {holder(view.scope, view.attempt, view.epoch)}, {idle}", "dim"),
            overflow="fold",
        )
    ]
    if view.works:
        parts.append(_bars(view.works))
    for work in view.works:
        parts += [
            Text(
                f"failed: {plain(shown_item(work.name, failure.item))}: {plain(failure.error)}",
                "red",
                overflow="ellipsis",
                no_wrap=True,
            )
            for failure in by_item(work.failures)[:WATCHED_FAILURES]
        ]
    if view.values:
        parts += [Text(), *values_view(view.values, WATCHED_KEYS, max_string=60)]
    if note:
        parts.append(Text(plain(note), style="yellow"))
    return Group(*parts)


def _bars(works: Sequence[Watched]) -> Table:
    bars = Table.grid(padding=(0, 2, 0, 0))
    for work in works:
        bars.add_row(
            Text(plain(work.name)),
            ProgressBar(total=1.0, completed=work.share, width=30) if work.total else "",
            Text(_count_text(work) + ("" if work.total else " done")),
            Text("" if work.rate is None else _rate_text(work.rate)),
            Text("" if work.seconds_left is None else f"{clock(work.seconds_left)} left"),
            Text.assemble(failed_text(len(work.failures)), " failed"),
        )
    return bars


def _count_text(work: Watched) -> str:
    return f"{work.done:,}" if not work.total else f"{work.done:,} of {work.total:,} ({work.share:.0%})"


def _rate_text(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"  # noqa: PLR2004 - two digits say enough
