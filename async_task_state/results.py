"""What a state tells of itself."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Stats"]


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
