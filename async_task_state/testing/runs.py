"""Tests of what a store does when a run is deleted and made again under the same id, and of who may open a state."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Final
from uuid import UUID

from async_task_state.codec import RESERVED_PREFIX
from async_task_state.errors import InvalidArgumentError, StaleAttemptError
from async_task_state.runs import Run
from async_task_state.scopes import MAX_ATTEMPT
from async_task_state.stores import Snapshot
from async_task_state.testing.storekit import OTHER, SCOPE, StoreTests, entries, on_its_own, put

if TYPE_CHECKING:
    from async_task_state.stores import Lease, Store

__all__ = ["RunTests", "run_made"]

EARLIER: Final = datetime(2026, 1, 2, 3, 4, 5, 678901, timezone.utc)
LATER: Final = EARLIER + timedelta(hours=1)
LEFT: Final = {"a": "1", f"{RESERVED_PREFIX}work:files": '"b"'}


def run_made(number: int, attempt: int, started: datetime | None = None, clears: int = 0) -> Run:
    """One of the runs under an id, as an attempt of its task knows it.

    Args:
        number: Which of them; a higher one was made later.
        attempt: Of the task.
        started: As `Run` takes it, and the next one.
        clears: The same.
    """
    # The first 48 bits are a time in milliseconds; then come the version and the variant.
    moment = number * 1_000_000 + attempt
    return Run(UUID(int=moment << 80 | 7 << 76 | 2 << 62), started, clears)


OLD: Final = run_made(1, 1, EARLIER)
NEW: Final = run_made(2, 1, LATER)


class RunTests(StoreTests):
    """What a store promises of runs, and of the attempts that may come."""

    @on_its_own
    async def test_g4_a_run_that_was_made_again_starts_over(self, store: Store) -> None:
        """It finds nothing of what the deleted run has left, and the holder of that is fenced."""
        old = await _leave(store, 1, OLD)
        new = await store.acquire(SCOPE, 1, NEW)
        assert (new.entries, new.fresh, new.lease.attempt) == ({}, True, 1)
        assert new.lease.epoch > old.epoch
        assert await put(store, old, {"a": "9"}) == [old]
        assert await put(store, new.lease, {"b": "2"}) == []
        assert await store.read(SCOPE) == Snapshot(new.lease, {"b": "2"}, NEW.text)
        # Its retry does not start over.
        again = await store.acquire(SCOPE, 2, run_made(2, 2, LATER))
        assert (again.entries, again.fresh) == ({"b": "2"}, False)

    @on_its_own
    async def test_g4_a_later_attempt_of_an_earlier_run_is_no_hindrance(self, store: Store) -> None:
        """A run that was made again counts its attempts from 1."""
        await _leave(store, 5, run_made(1, 5, EARLIER))
        new = await store.acquire(SCOPE, 1, NEW)
        assert (new.entries, new.fresh, new.lease.attempt) == ({}, True, 1)

    @on_its_own
    async def test_g4_a_run_that_was_deleted_may_not_open_the_state_of_its_successor(
        self, store: Store
    ) -> None:
        """Whatever its attempt: it can neither take nor delete what is there."""
        held = await _leave(store, 1, NEW)
        for attempt in (1, 7):
            assert await _is_refused(store, attempt, run_made(1, attempt, EARLIER))
            assert await _is_refused(store, attempt, run_made(1, attempt))
        assert await put(store, held, {"b": "2"}) == []
        assert await entries(store) == {**LEFT, "b": "2"}

    @on_its_own
    async def test_the_attempts_of_one_run_go_on_with_its_state(self, store: Store) -> None:
        """A deferral, a retry, a clear and a trigger that does not know when its run was started."""
        await _leave(store, 1, OLD)
        for attempt, run in (
            (1, OLD),
            (1, run_made(1, 1)),
            (2, run_made(1, 2, EARLIER, clears=1)),
            (3, run_made(1, 3, LATER, clears=2)),
            (4, run_made(1, 4)),
        ):
            found = await store.acquire(SCOPE, attempt, run)
            assert (found.entries, found.fresh, found.lease.attempt) == (LEFT, False, attempt)
        assert await _is_refused(store, 3, run_made(1, 3, LATER, clears=2))
        # What a trigger does not know is not forgotten: by it a run is known that was made again meanwhile.
        assert (await store.acquire(SCOPE, 5, run_made(2, 5, LATER + timedelta(hours=1), clears=2))).fresh

    @on_its_own
    async def test_who_does_not_know_its_run_goes_on_by_its_attempt(self, store: Store) -> None:
        """And leaves it known to which run the state belongs."""
        await _leave(store, 1, None)
        assert (await store.acquire(SCOPE, 1, OLD)).entries == LEFT
        for attempt in (None, 1, 4):
            assert (await store.acquire(SCOPE, attempt)).entries == LEFT
        assert await _is_refused(store, 3, None)
        assert (await store.acquire(SCOPE, 1, NEW)).fresh

    @on_its_own
    async def test_g4_task_instances_hold_a_state_in_the_order_in_which_they_were_made(
        self, store: Store
    ) -> None:
        """Iterations of a loop, which have no attempts in common: each counts as a further one."""
        first = await store.acquire(SCOPE, None, run_made(1, 2, EARLIER))
        assert await put(store, first.lease, LEFT) == []
        for made, started, clears, attempt in (
            (2, EARLIER, 0, 1),
            (2, None, 0, 1),
            (3, None, 0, 2),
            (5, EARLIER, 0, 3),
            (6, LATER, 1, 4),
        ):
            found = await store.acquire(SCOPE, None, run_made(1, made, started, clears))
            assert (found.entries, found.fresh, found.lease.attempt) == (LEFT, False, attempt)
        for run in (run_made(1, 5, LATER, 1), run_made(1, 5), run_made(1, 4, EARLIER)):
            assert await _is_refused(store, None, run)
        assert await put(store, found.lease, {"b": "2"}) == []
        again = await store.acquire(SCOPE, None, run_made(2, 1, LATER + timedelta(hours=1)))
        assert (again.entries, again.fresh, again.lease.attempt) == ({}, True, 1)

    @on_its_own
    async def test_clearing_forgets_the_run(self, store: Store) -> None:
        """Whoever comes next may open the state, of whatever run it is."""
        await _leave(store, 3, NEW)
        assert await store.clear(SCOPE) == len(LEFT)
        found = await store.acquire(SCOPE, 1, OLD)
        assert (found.entries, found.fresh, found.run) == ({}, False, OLD.text)

    @on_its_own
    async def test_what_a_newer_run_writes_without_the_lease_starts_over(self, store: Store) -> None:
        """It replaces what the deleted run has left, fences that, and is there when its own run opens the state."""
        old = await _leave(store, 3, run_made(1, 3, EARLIER))
        await store.write(SCOPE, {"b": ("2", None)}, run=Run(started=LATER))
        assert await put(store, old, {"a": "9"}) == [old]
        assert await entries(store) == {"b": "2"}
        await store.write(SCOPE, {"c": ("3", None)}, run=Run(started=LATER))
        found = await store.acquire(SCOPE, 1, NEW)
        assert (found.entries, found.fresh) == ({"b": "2", "c": "3"}, False)

    @on_its_own
    async def test_what_an_earlier_run_has_left_leaves_room(self, store: Store) -> None:
        """It is deleted before the write that finds it is measured."""
        await store.acquire(SCOPE, 1, OLD)
        await store.write(SCOPE, {"a": ("1" * 90, None)}, limit=100)
        await store.write(SCOPE, {"b": ("1" * 90, None)}, run=Run(started=LATER), limit=100)
        assert await entries(store) == {"b": "1" * 90}

    @on_its_own
    async def test_what_one_run_writes_without_the_lease_fences_nobody(self, store: Store) -> None:
        """Its own holder goes on, as when it is not known who writes."""
        held = await _leave(store, 1, OLD)
        for number, run in enumerate((OLD, Run(started=EARLIER), None)):
            await store.write(SCOPE, {"b": (str(number), None)}, run=run)
        assert await put(store, held, {"c": "3"}) == []
        assert await entries(store) == {**LEFT, "b": "2", "c": "3"}

    @on_its_own
    async def test_what_is_written_first_is_of_the_run_that_wrote_it(self, store: Store) -> None:
        """So the next run under that id does not find it."""
        await store.write(SCOPE, {"a": ("1", None)}, run=run_made(1, 4, EARLIER))
        await store.write(OTHER, {"a": ("1", None)}, run=run_made(1, 4, EARLIER))
        assert (await store.acquire(SCOPE, 1, OLD)).entries == {"a": "1"}
        assert (await store.acquire(OTHER, 1, NEW)).entries == {}

    @on_its_own
    async def test_g4_a_run_that_was_deleted_writes_nothing(self, store: Store) -> None:
        """Without the lease neither."""
        await _leave(store, 1, NEW)
        refused = False
        try:
            await store.write(SCOPE, {"a": ("9", None)}, cleared=True, run=OLD)
        except StaleAttemptError:
            refused = True
        assert refused
        assert await entries(store) == LEFT

    @on_its_own
    async def test_g8_an_attempt_that_none_could_follow_is_refused(self, store: Store) -> None:
        """Such a one would lock its task out for good."""
        lease = await _leave(store, 1, OLD)
        for attempt in (MAX_ATTEMPT + 1, 2**31 - 1, -1):
            message = ""
            try:
                await store.acquire(SCOPE, attempt, OLD)
            except InvalidArgumentError as error:
                message = str(error)
            assert message == f"attempt must be an integer from 0 to 1,000,000, not {attempt}"
        assert await put(store, lease, {"b": "2"}) == []

    @on_its_own
    async def test_the_highest_attempt_locks_no_later_run_out(self, store: Store) -> None:
        """A run that is made again goes on from it, and so does whoever comes after a clear."""
        await _leave(store, 1, OLD)
        await store.acquire(SCOPE, MAX_ATTEMPT)
        assert await _is_refused(store, 2, run_made(1, 2, EARLIER))
        assert (await store.acquire(SCOPE, 1, NEW)).lease.attempt == 1
        await store.acquire(SCOPE, MAX_ATTEMPT)
        await store.clear(SCOPE)
        assert (await store.acquire(SCOPE, 2, run_made(2, 2, LATER))).lease.attempt == 2


async def _leave(store: Store, attempt: int, run: Run | None) -> Lease:
    lease = (await store.acquire(SCOPE, attempt, run)).lease
    assert await put(store, lease, LEFT) == []
    return lease


async def _is_refused(store: Store, attempt: int | None, run: Run | None) -> bool:
    try:
        await store.acquire(SCOPE, attempt, run)
    except StaleAttemptError:
        return True
    return False
