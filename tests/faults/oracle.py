"""Who may write a scope, and what it may hold, after each event of an interleaving.

An event is the beginning or the end of a call. What a call does to the scope, it may do at any moment between the two;
where its outcome is unknown, also later, until a call that began after its end has fenced it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from async_task_state.stores import Lease


@dataclass(eq=False)
class Call:
    """One that has begun.

    Attributes:
        challenged: Somebody else may open or clear the scope before it ends.
        cleared: That may be a clear.
    """

    began: int
    challenged: bool
    cleared: bool
    ended: int | None = None


@dataclass(eq=False)
class Save(Call):
    """A holder's call that wants the scope to hold `view`.

    Attributes:
        stale: The lease had been taken before it began, for sure.
        found: What somebody who has opened the scope meanwhile has found.
    """

    lease: Lease = None
    view: dict[str, str] = field(default_factory=dict)
    stale: bool = False
    found: dict[str, str] | None = None


@dataclass(eq=False)
class Opening(Call):
    """Attributes:
    candidates: What the scope may have held at any moment since it began.
    """

    attempt: int | None = None
    candidates: list[dict[str, str]] = field(default_factory=list)


class Clear(Call):
    """From outside."""


class Oracle:
    """Says what must not be.

    Attributes:
        newest: The lease that counts, where that is known.
    """

    def __init__(self) -> None:
        self.newest: Lease | None = None
        # In the order in which the one can follow the other.
        self._possible: list[dict[str, str]] = [{}]
        self._now = self._opened_at = self._epoch = self._attempt = 0
        self._saving: list[Save] = []
        # Openings and clears that may have an effect yet: under way, or of unknown outcome.
        self._doubts: list[Call] = []

    @property
    def certain(self) -> bool:
        """Whether the newest lease is nobody's to take without a new call."""
        return self.newest is not None and not self._doubts

    def saves(self, lease: Lease, view: dict[str, str]) -> Save:
        call = self._begin(Save, lease=lease, view=view, stale=lease is not self.newest)
        self._saving.append(call)
        if not call.stale:
            self._may_become(view)
        return call

    def saved(self, call: Save, *, refused: bool) -> None:
        self._saving.remove(call)
        if not refused:
            assert not call.stale, "a stale write was accepted"
            if call.lease is self.newest:
                self._possible = [call.view]
            else:
                assert call.cleared or call.found in (None, call.view), (
                    "a write was accepted after an opening"
                )
            return
        assert call.stale or call.challenged, "a live writer was refused"
        assert self._possible[0] is not call.view, "a write was refused and made"
        self._possible = [held for held in self._possible if held is not call.view]
        if call.lease is self.newest:
            self.newest = None

    def opens(self, attempt: int | None) -> Opening:
        call = self._begin(Opening, attempt=attempt, candidates=list(self._possible))
        self._challenge(call)
        return call

    def opened(self, call: Opening, lease: Lease, entries: dict[str, str]) -> None:
        self._doubts.remove(call)
        assert entries in call.candidates or (not entries and call.cleared), f"an opening found {entries}"
        assert call.challenged or call.attempt is None or call.attempt >= self._attempt, "too old an attempt"
        assert lease.epoch > self._epoch or (call.challenged and lease.epoch < self._epoch), "an old epoch"
        if lease.epoch < self._epoch:
            return
        self.newest, self._opened_at = lease, self._tick()
        self._epoch, self._attempt = lease.epoch, lease.attempt
        self._possible = [entries]
        # What had ended before this began finds another epoch than it had seen.
        self._doubts = [doubt for doubt in self._doubts if doubt.ended is None or doubt.ended > call.began]
        for save in self._saving:
            if save.found is None:
                save.found = entries

    def turned_away(self, call: Opening) -> None:
        self._doubts.remove(call)
        assert call.challenged or call.attempt < self._attempt, "an attempt was turned away that is not older"

    def clears(self) -> Clear:
        call = self._begin(Clear)
        self._challenge(call)
        return call

    def cleared(self, call: Clear) -> None:
        self._doubts.remove(call)
        call.ended = self._tick()
        if self._opened_at > call.began or any(isinstance(doubt, Opening) for doubt in self._doubts):
            # Whoever opened, or may have, did so before it or after it.
            self._doubts.append(call)
        if self._opened_at < call.began:
            self._emptied()

    def lost(self, call: Call) -> None:
        """Nobody knows what has come, or will come, of it."""
        call.ended = self._tick()
        if isinstance(call, Save):
            self._saving.remove(call)

    def sees(self, contents: dict[str, str]) -> None:
        """What the scope holds now."""
        if contents in self._possible:
            self._possible = self._possible[self._possible.index(contents) :]
            return
        assert not contents, f"the scope holds {contents}, which is none of {self._possible}"
        assert any(isinstance(doubt, Clear) for doubt in self._doubts), "the scope was cleared by nobody"
        self._emptied()

    def _begin(self, kind, **fields):
        cleared = any(isinstance(doubt, Clear) for doubt in self._doubts)
        return kind(self._tick(), bool(self._doubts), cleared, **fields)

    def _challenge(self, call: Call) -> None:
        for other in (*self._saving, *self._doubts):
            other.challenged = True
            other.cleared |= isinstance(call, Clear)
        self._doubts.append(call)

    def _may_become(self, view: dict[str, str]) -> None:
        self._possible.append(view)
        for doubt in self._doubts:
            if isinstance(doubt, Opening):
                doubt.candidates.append(view)

    def _emptied(self) -> None:
        self.newest, self._attempt = None, min(self._attempt, 1)
        self._possible = []
        self._may_become({})

    def _tick(self) -> int:
        self._now += 1
        return self._now
