"""What the command line shows, each thing twice: as something to read and as a JSON document."""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime, timedelta, timezone
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from async_task_state.codec import RESERVED_PREFIX
from async_task_state.digests import work_records
from async_task_state.errors import DamagedRecordError
from async_task_state.items import shown_item
from async_task_state.records import author_values
from async_task_state.scopes import AssetScope
from async_task_state.story import since_text
from async_task_state.text import counted, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import RenderableType

    from async_task_state.cli_check import Check
    from async_task_state.results import Failure
    from async_task_state.scopes import Scope
    from async_task_state.stores import ScopeInfo, Snapshot
    from async_task_state.stores.holders import Holder

__all__ = [
    "Screen",
    "ago",
    "by_item",
    "checks_table",
    "clock",
    "failed_text",
    "holder",
    "holder_document",
    "info_document",
    "iso",
    "known_attempt",
    "readable",
    "scope_document",
    "state_document",
    "state_view",
    "table",
    "user_values",
    "values_view",
    "what_is_stored",
]

_TASK_KEYS: Final = ("dag_id", "run_id", "task_id", "map_index", "region_id")
SHOWN_KEYS: Final = 100
SHOWN_FAILURES: Final = 10
SHOWN_CHARS: Final = 200
"""Of the JSON text of a value."""
TRIES: Final = "tries, all attempts"
WIDE: Final = 100_000
"""A width that nothing reaches, so that what is not a terminal gets whole lines."""


class Screen:
    """Where a command writes: styled to the width of a terminal, or whole plain lines where there is none."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdout.isatty()
        self.console = self._console(stderr=False)
        self.errors = self._console(stderr=True)

    @property
    def is_live(self) -> bool:
        """Whether what was written can be drawn over."""
        return self.is_terminal and not self.console.is_dumb_terminal

    def show(self, view: RenderableType) -> None:
        """Write something to read."""
        if self.is_terminal:
            self.console.print(view)
            return
        with self.console.capture() as captured:
            self.console.print(view)
        print(*(line.rstrip() for line in captured.get().splitlines()), sep="\n", flush=True)  # noqa: T201

    def document(self, document: Any, *, indent: int | None = 2) -> None:
        """Write JSON."""
        print(json.dumps(document, indent=indent), flush=True)  # noqa: T201

    def documents(self, documents: Iterable[Any]) -> None:
        """Write one JSON list with a line for each: the encoder that indents takes ten times as long."""
        lines = ",\n".join(map(json.dumps, documents))
        print(f"[\n{lines}\n]" if lines else "[]", flush=True)  # noqa: T201

    def note(self, text: str) -> None:
        """Tell the person, and not the program that reads the output."""
        self.errors.print(Text(plain(text)))

    @staticmethod
    def _console(*, stderr: bool) -> Console:
        is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
        return Console(
            stderr=stderr,
            force_terminal=is_terminal,
            width=None if is_terminal else WIDE,
            highlight=False,
            markup=False,
            emoji=False,
        )


def scope_document(scope: Scope) -> dict[str, Any]:
    """The keys that say whose state a document is of: all of them, whether it is a task's or an asset's."""
    if isinstance(scope, AssetScope):
        return {**dict.fromkeys(_TASK_KEYS), "asset": scope.name, "asset_uri": scope.uri}
    region = None if scope.region_id is None else str(scope.region_id)
    ids = (scope.dag_id, scope.run_id, scope.task_id, scope.map_index, region)
    return {**dict(zip(_TASK_KEYS, ids, strict=True)), "asset": None, "asset_uri": None}


def info_document(info: ScopeInfo) -> dict[str, Any]:
    """A state in a listing."""
    return {
        **scope_document(info.scope),
        "attempt": known_attempt(info.attempt, info.epoch, info.holder),
        "epoch": info.epoch,
        "keys": info.keys,
        "updated_at": iso(info.updated_at),
        "holder": None if info.holder is None else holder_document(info.holder),
    }


def holder_document(holder: Holder) -> dict[str, Any]:
    """The process that has opened a state last."""
    return {
        "host": holder.host,
        "pid": holder.pid,
        "attempt": holder.attempt,
        "since": iso(holder.since),
    }


def state_document(info: ScopeInfo, snapshot: Snapshot) -> dict[str, Any]:
    """One state with everything in it."""
    return {
        **info_document(info),
        "values": user_values(snapshot),
        "work": [
            {
                "name": name,
                "done": record.done,
                "failed": len(record.failures),
                "failures": [
                    {
                        "item": failure.item,
                        "error": failure.error,
                        "tries": failure.tries,
                        "attempt": failure.attempt,
                    }
                    for failure in by_item(record.failures)
                ],
            }
            for name, record in work_records(snapshot.lease.scope, snapshot.entries).items()
        ],
    }


def state_view(info: ScopeInfo, snapshot: Snapshot, screen: Screen) -> Group:
    """One state, each part of it bounded."""
    changed = readable(info.updated_at)
    if screen.is_terminal:
        changed += f" ({ago(info.updated_at)})"
    parts: list[RenderableType] = [
        Text(plain(str(info.scope)), style="bold"),
        Text(
            f"{holder(info.scope, known_attempt(info.attempt, info.epoch, info.holder), info.epoch)}, changed {changed}"
        ),
        *_held_by(info, screen),
        Text(),
        *values_view(user_values(snapshot), SHOWN_KEYS, max_chars=SHOWN_CHARS),
    ]
    records = work_records(snapshot.lease.scope, snapshot.entries)
    if records:
        counts = table("work set", "done", "failed", right={"done", "failed"})
        for name, record in records.items():
            counts.add_row(Text(plain(name)), f"{record.done:,}", failed_text(len(record.failures)))
        parts += [Text(), counts]
    for name, record in records.items():
        if record.failures:
            failures = table(f"failed in {plain(name)}", TRIES, "error", right={TRIES})
            for failure in by_item(record.failures)[:SHOWN_FAILURES]:
                failures.add_row(
                    Text(plain(shown_item(name, failure.item))),
                    f"{failure.tries:,}",
                    Text(plain(failure.error)),
                )
            parts += [Text(), failures, *_rest(len(record.failures), SHOWN_FAILURES)]
    return Group(*parts)


def _held_by(info: ScopeInfo, screen: Screen) -> list[Text]:
    if info.holder is None:
        return []
    opened = readable(info.holder.since) + (f" ({ago(info.holder.since)})" if screen.is_terminal else "")
    return [Text(f"last opened by process {info.holder.pid} on host {plain(info.holder.host)}, {opened}")]


def what_is_stored(snapshot: Snapshot) -> str:
    """One line on what a state holds."""
    keys = counted(sum(not key.startswith(RESERVED_PREFIX) for key in snapshot.entries), "key")
    try:
        records = work_records(snapshot.lease.scope, snapshot.entries)
    except DamagedRecordError:
        # It can be cleared all the same.
        return f"{keys}, and work sets that cannot be read"
    works = (
        f"work set {name!r} ({record.done:,} done, {len(record.failures):,} failed)"
        for name, record in records.items()
    )
    return ", ".join([keys, *works])


def known_attempt(attempt: int, epoch: int, holder: Holder | None) -> int | None:
    """The attempt that a state is of; None where none is known to have opened it since it was made or cleared.

    What is not held has the number 1, so that any attempt may open it.
    """
    return None if not epoch or (holder is None and attempt == 1) else attempt


def holder(scope: Scope, attempt: int | None, epoch: int) -> str:
    """Who had it last, and how often it was had."""
    if not epoch:
        return "opened by nobody yet"
    times = f"opened or cleared {counted(epoch, 'time')}"
    return times if isinstance(scope, AssetScope) or attempt is None else f"attempt {attempt}, {times}"


def checks_table(checks: Sequence[Check]) -> Table:
    """What was checked and found."""
    answers = table("check", "result", "found")
    for check in checks:
        result = Text("ok", style="green") if check.ok else Text("failed", style="bold red")
        if check.warning:
            result = Text("warning", style="yellow")
        answers.add_row(check.name, result, Text(plain(check.detail)))
    return answers


def table(*headers: str, right: set[str] | frozenset[str] = frozenset()) -> Table:
    """A table without lines, whose cells are folded and never cut."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for header in headers:
        made.add_column(header, justify="right" if header in right else "left", overflow="fold")
    return made


def user_values(snapshot: Snapshot) -> dict[str, Any]:
    """The keys that users set, with their values."""
    return author_values(snapshot.lease.scope, snapshot.entries)


def by_item(failures: Sequence[Failure]) -> list[Failure]:
    """Failures in an order that stays the same."""
    return sorted(failures, key=lambda failure: failure.item)


def iso(timestamp: float) -> str:
    """A time for programs, in UTC."""
    return datetime.fromtimestamp(timestamp, tz=timezone.utc).isoformat(timespec="milliseconds")


def readable(timestamp: float) -> str:
    """A time as Airflow's pages show it."""
    return f"{datetime.fromtimestamp(timestamp, tz=timezone.utc):%Y-%m-%d %H:%M:%S} UTC"


def ago(timestamp: float) -> str:
    """How long ago a time is, in its largest unit."""
    return f"{since_text(max(0.0, time.time() - timestamp))} ago"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


def values_view(values: dict[str, Any], limit: int, *, max_chars: int) -> Iterator[RenderableType]:
    """Keys and their values, of each no more than is worth reading."""
    if not values:
        yield Text("no keys", style="dim")
        return
    keys = table("key", "value")
    for key, value in islice(values.items(), limit):
        keys.add_row(Text(plain(key)), Text(_json_text(value, max_chars), overflow="fold"))
    yield keys
    yield from _rest(len(values), limit)


def _json_text(value: Any, max_chars: int) -> str:
    """A value as JSON, the beginning of one that is long."""
    text = json.dumps(value, ensure_ascii=False)
    shown = "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text[:max_chars])
    more = len(text) - max_chars
    return f"{shown}… and {counted(more, 'more character')}" if more > 0 else shown


def _rest(count: int, shown: int) -> list[Text]:
    return [Text(f"and {count - shown:,} more: --json has all of them", style="dim")] if count > shown else []


def failed_text(failed: int) -> Text:
    """How many failed."""
    return Text(f"{failed:,}", style="red" if failed else "")
