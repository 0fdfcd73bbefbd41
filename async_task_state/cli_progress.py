"""What a watch knows: how far a state is, how fast it moves, and what Airflow says of its task."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from async_task_state.cli_views import known_attempt, user_values
from async_task_state.digests import work_counts, work_records
from async_task_state.scopes import TaskScope

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from async_task_state.results import Failure
    from async_task_state.scopes import Scope
    from async_task_state.stores import ScopeInfo, Snapshot

__all__ = ["NO_STATE", "Progress", "Watched", "WatchedMany", "WatchedState", "states_text"]

RATE_SECONDS: Final = 30
"""Over how long a rate is taken: long enough to smooth commits, short enough to follow a change."""

NO_STATE: Final = "no state yet"
"""Of a task instance that Airflow has not scheduled yet."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A work set at one moment of a watch.

    Args:
        name: Its name.
        done: How many of its items are done.
        failed: How many failed.
        total: How many items there are, if that is known.
        rate: Items done or failed a second, lately; None until there is something to compare with.
        failures: The items that failed, where they were read.
    """

    name: str
    done: int
    failed: int
    total: int | None
    rate: float | None
    failures: Sequence[Failure] = ()

    @property
    def left(self) -> int | None:
        """How many items are neither done nor failed; None where that is not known."""
        return None if self.total is None else max(0, self.total - self.done - self.failed)

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at this rate; None where that cannot be said."""
        if self.left is None:
            return None
        return 0.0 if not self.left else self.left / self.rate if self.rate else None

    @property
    def share(self) -> float:
        """The part of the total that is done, 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def is_done(self) -> bool:
        """Whether every item is known to be done."""
        return self.total is not None and self.done >= self.total


@dataclass(slots=True)
class Rates:
    """How many items of each work set were settled at which moment."""

    _history: dict[str, deque[tuple[float, int]]] = field(default_factory=dict)

    def rate(self, name: str, settled: int, now: float) -> float | None:
        """Items a second; None until there is something to compare with."""
        history = self._history.setdefault(name, deque())
        if history and settled < history[-1][1]:
            # Somebody cleared it.
            history.clear()
        history.append((now, settled))
        while history[0][0] < now - RATE_SECONDS:
            history.popleft()
        began, before = history[0]
        return (settled - before) / (now - began) if now > began else None


@dataclass(slots=True)
class Progress:
    """What one state holds at one moment.

    Args:
        attempt: Its newest attempt; None where none has opened it since it was cleared.
        epoch: How often it was opened or cleared.
        works: Its work sets.
        values: What its author has set; None where only a listing of many states was read.
        keys: How many that are.
    """

    attempt: int | None = None
    epoch: int = -1
    works: list[Watched] = field(default_factory=list)
    values: dict[str, Any] | None = None
    keys: int = 0

    @property
    def done(self) -> int:
        """How many items are done in the work sets shown."""
        return sum(work.done for work in self.works)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is stored."""
        return not self.works and not self.keys


@dataclass(slots=True)
class WatchedState:
    """One state: the newest progress, and the history that rates are taken from.

    Args:
        scope: Whose state.
        total: How many items there are, or the key whose value says it.
        only: The one work set to show; None shows all.
    """

    scope: Scope
    total: int | str | None = None
    only: str | None = None
    now: Progress = field(default_factory=Progress)
    changed: float | None = None
    since: float = field(default_factory=time.monotonic)
    seen: object = None
    _known_total: int | None = None
    _before: Progress | None = None
    _rates: Rates = field(default_factory=Rates)

    def __post_init__(self) -> None:
        self.find_total({})

    def take(self, snapshot: Snapshot) -> None:
        """Take in all that the state holds."""
        lease = snapshot.lease
        values = user_values(snapshot)
        self.find_total(values)
        records = work_records(lease.scope, snapshot.entries)
        counts = {name: (each.done, len(each.failures)) for name, each in records.items()}
        works = self._watched(counts, {name: each.failures for name, each in records.items()})
        attempt = known_attempt(lease.attempt, lease.epoch, snapshot.holder)
        self._set(Progress(attempt, lease.epoch, works, values, len(values)), snapshot.entries)

    def take_counts(self, info: ScopeInfo) -> None:
        """Take in what a listing says of the state."""
        works = self._watched(work_counts(info.own), {})
        self._set(
            Progress(
                known_attempt(info.attempt, info.epoch, info.holder), info.epoch, works, None, info.keys
            ),
            (info.epoch, info.keys, dict(info.own)),
        )

    def find_total(self, values: Mapping[str, Any]) -> None:
        """See how many items there are, where a key says it."""
        total = values.get(self.total) if isinstance(self.total, str) else self.total
        self._known_total = total if type(total) is int else None

    @property
    def lacks_total(self) -> bool:
        """Whether a key that has not been found yet says how many items there are."""
        return isinstance(self.total, str) and self._known_total is None

    def bring_back(self) -> bool:
        """Go back to what there was before all of it was deleted, if it was; whether it was."""
        if self._before is None or not self.now.is_empty:
            return False
        self.now = self._before
        return True

    def _set(self, progress: Progress, seen: object) -> None:
        if self.now.epoch >= 0 and seen != self.seen:
            self.changed = time.monotonic()
        if progress.is_empty and not self.now.is_empty:
            self._before = self.now
        self.now, self.seen = progress, seen

    def _watched(
        self, counts: Mapping[str, tuple[int, int]], failures: Mapping[str, Sequence[Failure]]
    ) -> list[Watched]:
        now = time.monotonic()
        return [
            Watched(
                *(name, done, failed, self._known_total, self._rates.rate(name, done + failed, now)),
                failures.get(name, ()),
            )
            for name, (done, failed) in sorted(counts.items())
            if self.only in (None, name)
        ]


@dataclass(slots=True)
class WatchedMany:
    """What a watch shows: one state, or those of all map indexes of a task.

    Args:
        scope: Whose; where no map index was named it may be that of a mapped task, which has no state itself.
        total: As of each state.
        only: The same.
        is_exact: Whether a map index was named.
        is_mapped: Whether the task has none but those of map indexes.
        is_gone: Whether there were states, and there are none any more.
        instances: The map index and the state of each task instance, as far as Airflow's database was asked.
        sums: Of a mapped task, the work sets of all map indexes, each name once.
    """

    scope: Scope
    total: int | str | None = None
    only: str | None = None
    is_exact: bool = False
    states: dict[Scope, WatchedState] = field(default_factory=dict)
    instances: Sequence[tuple[int, str | None]] = ()
    is_mapped: bool = False
    is_gone: bool = False
    sums: list[Watched] = field(default_factory=list)
    _rates: Rates = field(default_factory=Rates)

    def take(self, snapshot: Snapshot) -> None:
        """Take in the one state."""
        self.is_mapped = False
        scope = snapshot.lease.scope
        self.states = {scope: self.state(scope)}
        self.states[scope].take(snapshot)

    def take_listing(self, infos: Iterable[ScopeInfo]) -> None:
        """Take in the states of all map indexes."""
        self.is_mapped = True
        states = {}
        for info in sorted(infos, key=_by_index):
            states[info.scope] = self.state(info.scope)
            states[info.scope].take_counts(info)
        self.states = states
        named: dict[str, list[Watched]] = {}
        for state in states.values():
            for work in state.now.works:
                named.setdefault(work.name, []).append(work)
        self.sums = [self._sum(name, works) for name, works in sorted(named.items())]

    def state(self, scope: Scope) -> WatchedState:
        """What is known of a state."""
        found = self.states.get(scope)
        if found is None:
            found = self.states[scope] = WatchedState(scope, self.total, self.only)
        return found

    @property
    def done(self) -> int:
        """How many items are done in all that is shown."""
        return sum(state.now.done for state in self.states.values())

    @property
    def is_done(self) -> bool:
        """Whether every item of every work set that is shown is known to be done."""
        works = [work for state in self.states.values() for work in state.now.works]
        return bool(works) and all(work.is_done for work in works)

    def _sum(self, name: str, works: Sequence[Watched]) -> Watched:
        done, failed = sum(work.done for work in works), sum(work.failed for work in works)
        totals = [work.total for work in works if work.total is not None]
        total = sum(totals) if len(totals) == len(works) else None
        if type(self.total) is int:
            # Of those that have not begun, too.
            total = self.total * max(len(works), len(self.instances))
        rate = self._rates.rate(name, done + failed, time.monotonic())
        return Watched(name, done, failed, total, rate)

    def airflow_state(self, scope: Scope) -> str | None:
        """What Airflow says of the task instance of a state, where it says one thing."""
        index = scope.row[3]
        found = {state or "none" for known, state in self.instances if known == index}
        return found.pop() if len(found) == 1 else None

    def end(self) -> None:
        """Take note that nothing of it goes on: what is left has no pace, and takes no time."""
        for state in self.states.values():
            state.now = replace(state.now, works=[_ended(work) for work in state.now.works])
        self.sums = [_ended(work) for work in self.sums]

    def bring_back(self) -> bool:
        """Go back to what there was before it was deleted; whether it was."""
        return sum(state.bring_back() for state in self.states.values()) > 0


def states_text(instances: Iterable[tuple[int, str | None]]) -> str:
    """What Airflow says of task instances, those in the same state counted together."""
    counts = Counter(state or NO_STATE for _, state in instances)
    if sum(counts.values()) == 1:
        return next(iter(counts))
    return ", ".join(f"{count:,} {state}" for state, count in counts.most_common())


def _ended(work: Watched) -> Watched:
    return work if work.left == 0 else replace(work, rate=None)


def _by_index(info: ScopeInfo) -> tuple[int, str]:
    scope = info.scope
    return (scope.map_index, str(scope.region_id or "")) if isinstance(scope, TaskScope) else (-1, "")
