"""The promises of `async_task_state.stores.Store`, as tests that any store can be put to."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from unittest import SkipTest

from async_task_state.codec import MAX_KEY_CHARS, RESERVED_PREFIX
from async_task_state.errors import StaleAttemptError
from async_task_state.scopes import TaskScope
from async_task_state.stores import Batch, Lease, Snapshot
from async_task_state.testing.holders import HolderTests
from async_task_state.testing.retention import RetentionTests
from async_task_state.testing.runs import RunTests
from async_task_state.testing.scopes import ScopeTests
from async_task_state.testing.storekit import (
    DAY,
    OTHER,
    RETENTION,
    SCOPE,
    THIRD,
    entries,
    hold,
    on_its_own,
    put,
)
from async_task_state.testing.writes import WriteTests

if TYPE_CHECKING:
    from async_task_state.stores import Change, Store

__all__ = ["StoreConformance"]

NOT_REOPENED: Final = "what this store keeps ends with it, or reopen() is not overridden"

KEYS: Final = (
    *(
        "a/b",
        "a_b",
        "a%b",
        "a\\b",
        "a:b",
        "a.b",
        "a b",
        "a",
        "A",
        "a ",
        " a",
        " ",
        "a\nb",
        "\t",
        "'",
        '"',
        ";--",
    ),
    *("é", "e\u0301", "ß", "ss", "\N{ROCKET}", "\u202eabc", "\ufeff", "0", "00", "null", "$", "?", "{}"),
    *("k" * MAX_KEY_CHARS, "\N{ROCKET}" * MAX_KEY_CHARS, f"{RESERVED_PREFIX}work:a/b:0000000000"),
)
VALUES: Final = (
    *("0", "-0.0", "1.10", "1e400", "123456789012345678901234567890", "true", '""', '" "', "[]", "{}"),
    *(
        '{"b":1,"a":2,"b":3}',
        "[1, 2]",
        '"\\u0000"',
        '"\\ud800"',
        '"\\u00e9"',
        '"\'"',
        '"\\\\"',
        '"%s ? :a $1"',
    ),
    f'"{"x" * (1024 * 1024 - 2)}"',
)


class StoreConformance(HolderTests, RetentionTests, RunTests, ScopeTests, WriteTests):
    """Every promise a store makes, to be inherited by the tests of a store.

    Each test is a plain method with an event loop of its own, so any runner will do. Override `make_store`, and
    `reopen` where the data outlive a process.

    Example:
        ::

            class TestMyStore(StoreConformance):
                def make_store(self, default_retention):
                    return MyStore(tempfile.mkdtemp(), default_retention=default_retention)

                def reopen(self, store):
                    return MyStore(store.path, default_retention=store.default_retention)
    """

    @on_its_own
    async def test_first_holder_finds_nothing(self, store: Store) -> None:
        """A scope that nobody has held starts empty, with attempt 1 unless the holder says another."""
        first = await store.acquire(SCOPE, None)
        assert (first.lease.scope, first.lease.attempt, first.entries) == (SCOPE, 1, {})
        assert (await store.acquire(OTHER, 7)).lease.attempt == 7

    @on_its_own
    async def test_acquire_raises_the_epoch_and_returns_the_entries(self, store: Store) -> None:
        """A new holder gets what the one before it left, and an epoch above it."""
        first = await hold(store, {"a": "1"})
        second = await store.acquire(SCOPE, 1)
        expected = replace(first, epoch=second.lease.epoch, token=second.lease.token)
        assert second == Snapshot(expected, {"a": "1"})
        assert second.lease.epoch > first.epoch

    @on_its_own
    async def test_attempt_none_goes_on_with_the_stored_one(self, store: Store) -> None:
        """A holder that does not know its attempt continues the newest."""
        await store.acquire(SCOPE, 3)
        assert (await store.acquire(SCOPE, None)).lease.attempt == 3
        assert (await store.acquire(SCOPE, 5)).lease.attempt == 5

    @on_its_own
    async def test_attempt_zero_is_an_attempt(self, store: Store) -> None:
        """Zero is not the same as None."""
        assert (await store.acquire(SCOPE, 0)).lease.attempt == 0
        assert (await store.acquire(SCOPE, 0)).lease.attempt == 0

    @on_its_own
    async def test_g4_an_older_attempt_is_refused_and_changes_nothing(self, store: Store) -> None:
        """An attempt that comes too late cannot open the scope, and its holder does not notice."""
        held = (await store.acquire(SCOPE, 2)).lease
        refused = False
        try:
            await store.acquire(SCOPE, 1)
        except StaleAttemptError:
            refused = True
        assert refused
        assert await put(store, held, {"a": "1"}) == []
        assert await store.read(SCOPE) == Snapshot(held, {"a": "1"})

    @on_its_own
    async def test_acquisitions_at_once_get_epochs_of_their_own(self, store: Store) -> None:
        """However many ask at once, only one of them holds the newest lease."""
        leases = [s.lease for s in await asyncio.gather(*(store.acquire(SCOPE, None) for _ in range(20)))]
        assert len({lease.epoch for lease in leases}) == 20
        newest = max(leases, key=lambda lease: lease.epoch)
        fenced = await store.commit([Batch(lease) for lease in leases])
        assert set(fenced) == set(leases) - {newest}

    @on_its_own
    async def test_commit_sets_replaces_and_deletes(self, store: Store) -> None:
        """One batch does all three, and deleting what is not there is no error."""
        lease = await hold(store, {"a": "1", "b": "2"})
        changes: dict[str, Change] = {
            "a": ('"new"', None),
            "b": (None, None),
            "c": ("3", None),
            "d": (None, None),
        }
        assert list(await store.commit([Batch(lease, changes)])) == []
        assert await entries(store) == {"a": '"new"', "c": "3"}

    @on_its_own
    async def test_cleared_deletes_everything_before_the_changes(self, store: Store) -> None:
        """Clearing and setting in one batch leaves what was set."""
        lease = await hold(store, {"a": "1", "b": "2", f"{RESERVED_PREFIX}x": "3"})
        await store.commit([Batch(lease, {"b": ("4", None)}, cleared=True)])
        assert await entries(store) == {"b": "4"}
        await store.commit([Batch(lease, cleared=True)])
        assert await entries(store) == {}

    @on_its_own
    async def test_g4_a_fenced_batch_writes_nothing_while_the_others_do(self, store: Store) -> None:
        """All or nothing for each batch: a holder that lost its lease does not hold the others up."""
        stale = await hold(store, {"a": "1", "b": "2"})
        await store.acquire(SCOPE, None)
        good = [(await store.acquire(scope, 1)).lease for scope in (OTHER, THIRD)]
        bad = Batch(stale, {"a": ("9", None), "b": (None, None), "c": ("9", None)}, cleared=True)
        put: dict[str, Change] = {"k": ("1", None)}
        assert list(await store.commit([Batch(good[0], put), bad, Batch(good[1], put)])) == [stale]
        assert await entries(store) == {"a": "1", "b": "2"}
        for lease in good:
            assert await entries(store, lease.scope) == {"k": "1"}

    @on_its_own
    async def test_g4_a_lease_of_an_older_attempt_is_fenced(self, store: Store) -> None:
        """A lease must match in attempt, epoch and token, and be of a scope that is there."""
        old = (await store.acquire(SCOPE, 1)).lease
        new = (await store.acquire(SCOPE, 2)).lease
        third = (await store.acquire(THIRD, 1)).lease
        nowhere = Lease(OTHER, new.scope_id + 1000, 1, 1, 0)
        wrong = [
            *(old, nowhere, replace(new, attempt=1), replace(new, epoch=new.epoch + 1)),
            *(replace(new, token=token) for token in (new.token ^ 1, new.token ^ 1 << 62, old.token, 0)),
        ]
        row: dict[str, Change] = {"a": ("1", None)}
        rows: dict[str, Change] = {**row, "b": ("2", None)}
        gone: dict[str, Change] = {"a": (None, None)}
        for lease in wrong:
            for batch in (
                Batch(lease),
                Batch(lease, row),
                Batch(lease, rows),
                Batch(lease, gone, cleared=True),
            ):
                assert list(await store.commit([batch])) == [lease]
                assert list(await store.commit([batch, Batch(third, row)])) == [lease]
        assert await store.read(SCOPE) == Snapshot(new, {})
        assert await store.read(OTHER) is None
        assert await store.read(THIRD) == Snapshot(third, {"a": "1"})

    @on_its_own
    async def test_g4_a_token_never_comes_again(self, store: Store) -> None:
        """It is drawn at each acquisition, each clear and each time a scope is made, and is what anybody reads."""
        seen = []

        async def note() -> None:
            snapshot = await store.read(SCOPE)
            assert snapshot is not None
            seen.append(snapshot.lease)

        for _ in range(3):
            held = (await store.acquire(SCOPE, None)).lease
            await note()
            assert seen[-1] == held
            await store.write(SCOPE, {})
            assert (await store.read(SCOPE)) == Snapshot(held, {})
            await store.clear(SCOPE)
            await note()
            await store.purge(time.time() + RETENTION + DAY)
            await store.write(SCOPE, {})
            await note()
            await store.purge(time.time() + RETENTION + DAY)
        assert len({lease.token for lease in seen}) == len(seen)
        assert all(0 <= lease.token < 2**63 for lease in seen)
        assert max(lease.token for lease in seen) > 2**50

    @on_its_own
    async def test_an_empty_batch_asks_whether_the_lease_counts(self, store: Store) -> None:
        """It is fenced like any other and changes nothing."""
        old = await hold(store, {"a": "1"})
        assert list(await store.commit([Batch(old)])) == []
        new = (await store.acquire(SCOPE, None)).lease
        assert list(await store.commit([Batch(old)])) == [old]
        assert await store.read(SCOPE) == Snapshot(new, {"a": "1"})
        assert list(await store.commit([])) == []

    @on_its_own
    async def test_a_batch_sent_twice_leaves_what_it_left_once(self, store: Store) -> None:
        """A commit of which nobody knows whether it happened is sent again."""
        lease = await hold(store, {"a": "1", "b": "2"})
        for batch in (
            Batch(lease, {"b": (None, None), "c": ("3", 3600)}),
            Batch(lease, {"d": ("4", None)}, cleared=True),
        ):
            assert list(await store.commit([batch])) == []
            once = await store.read(SCOPE)
            assert list(await store.commit([batch])) == []
            assert await store.read(SCOPE) == once

    @on_its_own
    async def test_many_rows_in_a_batch(self, store: Store) -> None:
        """More than a thousand rows of one holder are one batch."""
        rows = {f"key {number}": str(number) for number in range(2500)}
        lease = await hold(store, rows)
        assert await entries(store) == rows
        await store.commit([Batch(lease, dict.fromkeys(rows, (None, None)))])
        assert await entries(store) == {}

    @on_its_own
    async def test_many_scopes_in_a_commit(self, store: Store) -> None:
        """A commit takes the batches of hundreds of holders, each to its own scope, and refuses those it must."""
        scopes = [TaskScope("dag", "run", "mapped", index) for index in range(500)]
        old: dict[str, Change] = {"gone": ("0", None), "index": ("0", None)}
        held = [(await store.acquire(scope, 1)).lease for scope in scopes]
        assert list(await store.commit([Batch(lease, old) for lease in held])) == []
        lost = {lease for index, lease in enumerate(held) if index % 100 == 7}
        for lease in lost:
            await store.acquire(lease.scope, None)
        batches = []
        for index, lease in enumerate(held):
            cleared = index % 2 == 0
            changes: dict[str, Change] = {"index": (str(index), None)}
            batches.append(Batch(lease, changes if cleared else {**changes, "gone": (None, None)}, cleared))
        assert set(await store.commit(batches)) == lost
        for index, lease in enumerate(held):
            kept = {"gone": "0", "index": "0"} if lease in lost else {"index": str(index)}
            assert await entries(store, lease.scope) == kept

    @on_its_own
    async def test_keys_are_told_apart_whatever_they_hold(self, store: Store) -> None:
        """Slash or underscore, case, accents, blanks, 512 characters: every key is its own."""
        rows = {key: str(number) for number, key in enumerate(KEYS)}
        await hold(store, rows)
        assert await entries(store) == rows

    @on_its_own
    async def test_values_come_back_to_the_byte(self, store: Store) -> None:
        """A store keeps JSON as text and does not tidy it up; a value may have 1 MiB."""
        rows = {f"k{number}": value for number, value in enumerate(VALUES)}
        await hold(store, rows)
        assert await entries(store) == rows
        assert (await store.acquire(SCOPE, None)).entries == rows

    @on_its_own
    async def test_reading_leaves_the_lease_alone(self, store: Store) -> None:
        """Anybody may look, as often as they like, and makes no scope by looking."""
        lease = await hold(store, {"a": "1"})
        assert await store.read(SCOPE) == await store.read(SCOPE) == Snapshot(lease, {"a": "1"})
        assert await put(store, lease, {"a": "2"}) == []
        assert await store.read(OTHER) is None
        assert [info.scope for info in await store.scopes()] == [SCOPE]

    @on_its_own
    async def test_clear_deletes_and_fences(self, store: Store) -> None:
        """Who held a cleared scope cannot write the old state back; who opens it next finds nothing."""
        held = await hold(store, {"a": "1", "b": "2"})
        assert await store.clear(OTHER) is None
        assert await store.clear(SCOPE) == 2
        assert await entries(store) == {}
        assert await put(store, held, {"a": "3"}) == [held]
        after = await store.acquire(SCOPE, None)
        assert (after.entries, after.lease.attempt) == ({}, 1)
        assert after.lease.epoch > held.epoch

    @on_its_own
    async def test_clear_forgets_the_attempt(self, store: Store) -> None:
        """A run that was made again counts its attempts from 1: clearing is what lets it open the state."""
        await store.acquire(SCOPE, 5)
        await store.clear(SCOPE)
        assert (await store.acquire(SCOPE, 1)).lease.attempt == 1

    @on_its_own
    async def test_clear_is_a_change(self, store: Store) -> None:
        """A scope that was cleared has changed then, and not when it was opened before."""
        await put(store, await hold(store, {"a": "1"}), {"a": "2"})
        [before] = await store.scopes()
        await store.clear(SCOPE)
        [after] = await store.scopes()
        assert after.updated_at >= before.updated_at

    @on_its_own
    async def test_what_only_removes_keys_is_a_change(self, store: Store) -> None:
        """A scope whose holder deletes the newest key, or all of them, has changed then, and not when it was opened."""
        lease = await hold(store, {"a": "1"})
        for batch in (Batch(lease, {"a": (None, None)}), Batch(lease, cleared=True)):
            await put(store, lease, {"a": "2"})
            [before] = await store.scopes()
            assert await store.commit([batch]) in ([], set())
            [after] = await store.scopes()
            assert after.updated_at >= before.updated_at

    @on_its_own
    async def test_a_closed_store_opens_again(self, store: Store) -> None:
        """Closing lets go of connections, not of data, and is no error twice or before the first use."""
        await store.close()
        lease = await hold(store, {"a": "1"})
        await store.close()
        await store.close()
        assert await store.read(SCOPE) == Snapshot(lease, {"a": "1"})
        assert await put(store, lease, {"a": "2"}) == []

    @on_its_own
    async def test_g1_what_was_committed_is_there_when_opened_again(self, store: Store) -> None:
        """Data and leases outlive the process: the holder goes on, and one that was fenced stays so."""
        old = await hold(store, {"a": "1"})
        new = await hold(store, {"b": "2"})
        await store.close()
        again = self.reopen(store)
        if again is None:
            raise SkipTest(NOT_REOPENED)
        try:
            assert await again.read(SCOPE) == Snapshot(new, {"a": "1", "b": "2"})
            assert await put(again, old, {"a": "9"}) == [old]
            assert await put(again, new, {"a": "3"}) == []
            assert await entries(store) == {"a": "3", "b": "2"}
        finally:
            await again.close()

    @on_its_own
    async def test_g4_a_holder_in_another_process_fences(self, store: Store) -> None:
        """Two stores that are open on the same data see each other's leases."""
        here = await hold(store, {"a": "1"})
        elsewhere = self.reopen(store)
        if elsewhere is None:
            raise SkipTest(NOT_REOPENED)
        try:
            there = await elsewhere.acquire(SCOPE, None)
            assert there.entries == {"a": "1"}
            assert await put(store, here, {"a": "9"}) == [here]
            assert await put(elsewhere, there.lease, {"a": "2"}) == []
            assert await store.read(SCOPE) == Snapshot(there.lease, {"a": "2"})
        finally:
            await elsewhere.close()
