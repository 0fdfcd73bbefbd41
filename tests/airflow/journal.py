"""Reading what the DAGs wrote down themselves, whatever the state says."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_DELAY = 1.0
"""The default of `[async_task_state] max_delay`."""
NOISE = 1.0
"""What a loaded machine may add to it."""


def says_moved(log: str) -> bool:
    """Whether a task's log says that a trigger of it was moved: it finds out, or Airflow 3.4 drops it before it can."""
    return "taken over" in log or "reassigned" in log


class Journal:
    """The lines that the tasks and triggers of one run appended to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def having(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if name in line]

    def wait_for(self, name: str, count: int, timeout: float = 60.0) -> list[dict[str, Any]]:
        return wait_for(lambda: lines if len(lines := self.having(name)) >= count else [], timeout)

    def check_rework(self, name: str, expected: set[Any], killed_at: float, *, in_flight: int = 1) -> int:
        """Everything was done, and again only what a crash may cost; how much that was."""
        lines = self.having(name)
        counts = Counter(line[name] for line in lines)
        assert set(counts) == expected
        repeated = [line for line in lines if counts[line[name]] > 1 and line["at"] < killed_at]
        too_old = [line for line in repeated if line["at"] < killed_at - MAX_DELAY - NOISE]
        assert not too_old, f"durable {MAX_DELAY} s before the crash, and yet done again: {too_old}"
        assert max(counts.values()) <= 2
        return len(repeated)


def wait_for(condition: Callable[[], Any], timeout: float = 60.0) -> Any:
    """What a condition gives as soon as it is true."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)
    return result
