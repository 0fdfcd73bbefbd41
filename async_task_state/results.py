"""What a state and its work sets tell of themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Failure", "Stats", "WorkCounts", "WorkSummary"]


@dataclass(frozen=True, slots=True)
class Stats:
    """What a state has cost since it was opened.

    Attributes:
        recorded: Calls that changed something.
        coalesced: Those of them that cost no commit, for a later one was saved with them.
        commits: Transactions that saved changes of this state.
        bytes: JSON bytes saved.
        last_lag: Seconds from the oldest change of the last commit to its being durable.
    """

    recorded: int = 0
    coalesced: int = 0
    commits: int = 0
    bytes: int = 0
    last_lag: float = 0.0


@dataclass(frozen=True, slots=True)
class Failure:
    """An item that failed.

    Attributes:
        item: Its key.
        error: The error's type and message, at most 1,000 characters.
        tries: How often it was tried, over all attempts of the task.
        attempt: The last attempt of the task that tried it.
        attempt_tries: How often that one did.
    """

    item: str
    error: str
    tries: int = 1
    attempt: int = 0
    attempt_tries: int = 1


@dataclass(frozen=True, slots=True)
class WorkCounts:
    """How many items are done, and how many are recorded as failed and not done since."""

    done: int
    failed: int


@dataclass(frozen=True, slots=True)
class WorkSummary:
    """What one call of `WorkSet.process` did.

    Attributes:
        done: Items finished by this call.
        skipped: Items that were done before.
        failed: Items that failed, by this call or so that this attempt did not try them again.
        failures: The first ten of them.
        elapsed: Seconds it took.
    """

    done: int
    skipped: int
    failed: int
    failures: tuple[Failure, ...]
    elapsed: float

    def as_event(self) -> dict[str, Any]:
        """A payload for a `TriggerEvent`: counts, the first failures by name and error, seconds."""
        return {
            "status": "failed" if self.failed else "success",
            "done": self.done,
            "skipped": self.skipped,
            "failed": self.failed,
            "failures": [{"item": failure.item, "error": failure.error} for failure in self.failures],
            "elapsed": round(self.elapsed, 3),
        }
