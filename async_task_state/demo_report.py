"""What the demo shows while it runs, and what it has found at the end."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from async_task_state.cli_views import table
from async_task_state.text import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from async_task_state.cli_views import Screen
    from async_task_state.demo_work import Ran

__all__ = ["Findings", "Stage", "findings_table"]

SHOWN_FILES: Final = 5
MARKS: Final = {True: Text("ok", "green"), False: Text("FAILED", "bold red"), None: Text("")}
LINE_SECONDS: Final = 1.0
"""How often progress is told where it cannot be drawn over."""


class Stage:
    """Lines that stay, each with its time, and on a terminal one under them that says what goes on."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._began = time.monotonic()
        self._told = (0.0, 0)
        self._bar: Progress | None = None
        if screen.is_live:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                # The rest of the line takes up to 75 columns.
                BarColumn(max(4, min(30, screen.console.width - 76))),
                TextColumn("{task.fields[count]}"),
                TimeElapsedColumn(),
                console=screen.console,
                transient=True,
            )
            self._bar.add_task("", total=None, count="")

    def __enter__(self) -> Stage:  # noqa: PYI034 - nobody derives from it
        """Begin to draw."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the lines, and nothing under them."""
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """How long it has been going on."""
        return time.monotonic() - self._began

    def say(self, text: str, style: str = "") -> None:
        """Add a line that stays."""
        self._screen.show(Text.assemble((f"{self.seconds:5.1f} s  ", "dim"), (plain(text), style)))

    def doing(self, what: str) -> None:
        """Say what goes on now."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=what)

    def progress(self, done: int, total: int, size: int) -> None:
        """Say how far it is."""
        count = f"{done:,} of {total:,} durably done, {size / 1e6:,.1f} MB"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, count=count)
        elif done != self._told[1] and time.monotonic() - self._told[0] >= LINE_SECONDS:
            self._told = (time.monotonic(), done)
            self.say(count)


@dataclass(frozen=True)
class Findings:
    """What was seen, each thing from where it cannot be mistaken.

    Args:
        sizes: Every file and its size, from the operating system.
        ran: Every call of the processor that ran to its end, from its journal.
        result: What the operator returned.
        durable: How many files were done when the triggerer was dead, from the store.
        killed_at: When it was killed.
        killed: Its processes.
        max_delay: Seconds that a finished file may go unrecorded.
        seconds: How long it all took.
    """

    sizes: Mapping[str, int]
    ran: Sequence[Ran]
    result: Mapping[str, Any]
    durable: int
    killed_at: float
    killed: Sequence[int]
    max_delay: float
    seconds: float

    def rows(self) -> list[Row]:
        """Each figure, what it is held against, and whether it is as promised."""
        runs = Counter(ran.path for ran in self.ran)
        again = len(self.ran) - len(runs)
        late = [
            ran for ran in self.ran if ran.at >= self.killed_at - self.max_delay and ran.pid in self.killed
        ]
        resumed_at = min((ran.at for ran in self.ran if ran.pid not in self.killed), default=math.nan)
        working = self.killed_at - self.ran[0].at + self.ran[-1].at - resumed_at
        totals, size = self.result["totals"], sum(self.sizes.values())
        strange = sorted(runs.keys() ^ self.sizes.keys())
        return [
            Row(
                "files",
                f"{len(runs):,}",
                f"{len(self.sizes):,}, by a journal that is kept apart from the state"
                + "".join(f"; wrong: {path}" for path in strange[:SHOWN_FILES]),
                ok=not strange and totals["files"] == len(self.sizes),
            ),
            Row(
                "done before the kill",
                f"{self.durable:,}",
                f"{self.result['skipped']:,} skipped by the next triggerer, {self.result['done']:,} left to do",
                ok=0 < self.durable < len(self.sizes) and self.result["skipped"] == self.durable,
            ),
            Row(
                "run again after it",
                f"{again:,}",
                f"at most {len(late):,}: what was finished less than max_delay = {self.max_delay:g} s before it",
                ok=again <= len(late),
            ),
            Row(
                "checkpoints",
                f"{len(self.ran):,}",
                f"in {totals['commits']:,} database commits",
                ok=totals["commits"] < len(self.ran),
            ),
            Row("bytes", f"{totals['bytes']:,}", f"{size:,} counted by os.stat", ok=totals["bytes"] == size),
            Row(
                "time",
                f"{self.seconds:.0f} s",
                f"{working:.1f} s of it reading; {resumed_at - self.killed_at:.1f} s from the kill to going on",
            ),
        ]


class Row(NamedTuple):
    """A line of the table: a figure, and what it is held against."""

    what: str
    figure: str
    against: str
    ok: bool | None = None


def findings_table(rows: Sequence[Row]) -> Table:
    """The figures to read."""
    made = table("", "measured", "compared with", "", right={"measured"})
    for row in rows:
        mark = MARKS[row.ok]
        made.add_row(Text(row.what, "bold"), row.figure, Text(plain(row.against)), mark)
    return made
