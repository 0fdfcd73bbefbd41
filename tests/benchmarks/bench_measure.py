"""What every benchmark measures with."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from statistics import median
from typing import TYPE_CHECKING, Literal

from async_task_state import Settings, TaskScope, TaskState

if TYPE_CHECKING:
    from pathlib import Path

_numbers = count()


@dataclass(frozen=True)
class Plan:
    """How much to measure, and where.

    Args:
        folder: For databases; on a disk that counts.
        repeat: How often each thing is measured, in turn with what it is compared with.
        scale: Of the number of calls, items, states and seconds; 1 is what the targets are for.
    """

    folder: Path
    repeat: int = 5
    scale: float = 1.0

    def scaled(self, number: int, least: int = 1) -> int:
        return max(least, round(number * self.scale))

    def new_file(self) -> Path:
        return self.folder / f"{next(_numbers)}.db"


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Args:
        what: Is measured.
        unit: Of it.
        ours: A value a repetition.
        target: What the median of `values` is compared with; None where the number is only to be known.
        test: How.
        peer: What ours is compared with.
        theirs: Its values, each measured next to ours.
        compare: What is made of the two.
        note: What a reader must know of it.
    """

    what: str
    unit: str
    ours: list[float]
    target: float | None = None
    test: Literal[">=", "<=", "<", ""] = ""
    peer: str = ""
    theirs: list[float] | None = None
    compare: Literal["", "ratio", "difference"] = ""
    note: str = ""

    @property
    def values(self) -> list[float]:
        """What the target is about, a value a repetition."""
        if self.compare == "ratio":
            return [ours / theirs for ours, theirs in zip(self.ours, self.theirs or [], strict=True)]
        if self.compare == "difference":
            return [ours - theirs for ours, theirs in zip(self.ours, self.theirs or [], strict=True)]
        return self.ours

    @property
    def value(self) -> float:
        return median(self.values)

    @property
    def met(self) -> bool:
        if self.target is None:
            return True
        if self.test == ">=":
            return self.value >= self.target
        return self.value < self.target or (self.test == "<=" and self.value == self.target)


def state_in(file: Path, task_id: str = "task") -> TaskState:
    """A handle on a state in an SQLite file."""
    return state_at(f"sqlite:///{file}", task_id)


def state_at(dsn: str, task_id: str = "task") -> TaskState:
    """A handle on a state, with the default settings and without Airflow's config."""
    return TaskState(TaskScope("benchmark", "run", task_id), store=dsn, settings=Settings(dsn=dsn))
