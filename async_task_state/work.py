"""Which items of a collection are done: a set that grows by a few bytes an item and is never rewritten.

Digests of items are appended to a tail of 256; the tail is an ordinary key, encoded when a batch leaves; a full one is
sealed, never to be written again. So N items are N/256 keys, a flush writes at most one tail, and a store needs to know
nothing of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from async_task_state.codec import check_key, encode, encode_changes, encode_json
from async_task_state.digests import (
    DIGEST_BYTES,
    FAILURES,
    NUMBER_DIGITS,
    SEGMENT_ITEMS,
    SEGMENTS,
    digest_of,
    digests_in,
    each_of,
    encode_digests,
    encoded_bytes,
    failed_digest,
    failure_in,
    segment_number,
)
from async_task_state.errors import InvalidKeyError, ValueTooLargeError
from async_task_state.pauses import must_pause, pause, pause_if_due
from async_task_state.results import Failure, WorkCounts, WorkSummary
from async_task_state.room import FEW, entry_bytes
from async_task_state.text import told

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Iterator, Mapping

    from async_task_state.handle import State
    from async_task_state.pending import Pending
    from async_task_state.stores import Change

__all__ = ["WorkSet"]

T = TypeVar("T")

MAX_NAME_CHARS: Final = 200
MAX_ERROR_CHARS: Final = 1000
MAX_ITEM_CHARS: Final = 4096
"""How much of a failed item's key is kept to be shown; its digest says which it is."""
FAILURE_BYTES: Final = 200
"""What is recorded of a failure besides its two texts, at most."""
BYTES_A_CHAR: Final = 12
"""In JSON, at most."""


class WorkSet:
    """Which items of one collection are done or failed; `TaskState.work(name)` gives it.

    An item is known by its key, which is `str(item)` unless a method says otherwise. Work is done at least once: an
    item is recorded as done only after it was done, and what was recorded less than `max_delay` before a crash may be
    done again.
    """

    def __init__(self, state: State, name: str, values: Mapping[str, str]) -> None:
        check_key(name, "work set's name")
        if len(name) > MAX_NAME_CHARS:
            raise InvalidKeyError(
                f"a work set's name has at most {MAX_NAME_CHARS} characters, this one {len(name)}"
            )
        self._state = state
        self._name = name
        self._dones = state._calls.kind(f"work({name!r}).done")
        self._segments = f"{SEGMENTS}{name}:"
        self._failed_keys = f"{FAILURES}{name}:"
        self._done: set[bytes] = set()
        self._failures: dict[bytes, Failure] = {}
        self._tail = bytearray()
        self._tail_number = 0
        self._read(values)()

    @property
    def name(self) -> str:
        """The name it was asked for with."""
        return self._name

    @property
    def counts(self) -> WorkCounts:
        """How many items are done and how many failed, over all attempts."""
        self._state._readable()
        return WorkCounts(len(self._done), len(self._failures))

    @property
    def failures(self) -> list[Failure]:
        """The items that failed and are not done since."""
        self._state._readable()
        return list(self._failures.values())

    def is_done(self, item: Any) -> bool:
        """Whether the item was recorded as done, by this attempt or an earlier one."""
        self._state._readable()
        return digest_of(item) in self._done

    def remaining(self, items: Iterable[T], *, key: Callable[[T], str] = str) -> Iterator[T]:
        """The items that are left to do, in their order: not done, and not recorded as failed by this attempt.

        What failed in an earlier attempt of the task is among them.

        Args:
            items: All of them; taken one by one as the result is iterated.
            key: Gives an item's key.

        Raises:
            InvalidItemError: A key is not a string, or says where an object is in memory and not which it is.
        """
        self._state._readable()
        for item in items:
            digest = digest_of(item, key)
            if digest not in self._done and not self._given_up(digest, tries=1):
                yield item

    def done(self, item: Any, **values: Any) -> Coroutine[Any, Any, None]:
        """Record an item as done, and values with it: in one atomic step, as cheap as a checkpoint.

        Args:
            item: Which; recording it twice is no error.
            **values: Keys of the state and their new values, as for `TaskState.checkpoint`: None removes a key.

        Raises:
            InvalidItemError: The item has no stable string form.
            InvalidKeyError: A key cannot be one; nothing is recorded.
            InvalidValueError: A value is not JSON; nothing is recorded.
            StateTooLargeError: The state would hold more than `[async_task_state] max_state_bytes`; nothing is recorded.
        """
        pending = self._record_done(digest_of(item), values)
        calls = self._dones
        if must_pause(pending):
            return calls.then(pause, pending)
        calls.waiting += 1
        return calls.recorded()

    def failed(self, item: Any, error: BaseException | str) -> Coroutine[Any, Any, None]:
        """Record that an item failed; a later attempt of the task will try it again.

        Args:
            item: Which.
            error: Why; its type and message are kept, the first 1,000 characters.

        Raises:
            InvalidItemError: The item has no stable string form.
            StateTooLargeError: As for `done`.
        """
        pending = self._record_failed(digest_of(item), str(item), error)
        return self._state._calls.kind(f"work({self._name!r}).failed").then(pause_if_due, pending)

    def process(
        self,
        items: Iterable[T] | AsyncIterable[T],
        # Any, for a type checker that may choose between Awaitable[R] and R finds neither.
        fn: Callable[[T], Any],
        *,
        key: Callable[[T], str] = str,
        concurrency: int = 16,
        max_attempts: int = 1,
        on_error: Literal["raise", "collect"] = "raise",
        record: Callable[[T, Any], Mapping[str, Any]] | None = None,
    ) -> Coroutine[Any, Any, WorkSummary]:
        """Call `fn` with each item that is left to do, and record each as done when its call returned.

        An item whose call raises is tried again, up to `max_attempts` times, and then recorded as failed. The same
        attempt of the task does not try it again, even when a new process goes on with it; the next attempt does.

        Args:
            items: All items, done or not; taken one by one, no faster than they are processed.
            fn: An async function, or a plain one, which then runs in a worker thread.
            key: Gives an item's key.
            concurrency: How many calls run at once, at most.
            max_attempts: How often this attempt of the task tries an item.
            on_error: What an item that failed for good does: "raise" cancels the calls that are running and raises;
                "collect" goes on, and the summary says which failed. With "collect" an item of which the result cannot
                be recorded, or that has no key, has failed, too.
            record: Called with an item and what `fn` returned for it; the values it returns are recorded in the same
                atomic step as the item. Not awaited, so a running total can be kept in it.

        Raises:
            WorkFailedError: An item failed for good and `on_error` is "raise".
            InvalidItemError: A key is not a string, or not a stable one.
            StateTooLargeError: This state would hold more than `[async_task_state] max_state_bytes`, whatever `on_error` is:
                there is no room for the items to come either. What is done stays recorded.
            InvalidArgumentError: `fn` cannot be called or is a generator function, a number is below 1, or `on_error` is
                neither of the two.
        """
        from async_task_state.processing import Run  # noqa: PLC0415 - it imports this module

        run = Run(self, fn, key, concurrency, max_attempts, on_error, record)
        return self._state._calls.lazy(f"work({self._name!r}).process", run.over(items))

    def _record_done(self, digest: bytes, values: Mapping[str, Any]) -> Pending:
        pending = self._state._writable()
        if pending.error is not None or pending._writer.trouble is not None:
            pending.check()
        changes: dict[str, Change] = {}
        if values:
            changes = encode_changes(values, pending.values, self._state._max_bytes)
            pending.admit(changes)
        with pending.lock:
            # As in `record`.
            if pending._batch_bytes > pending._near or len(changes) > FEW:
                pending.room.admit(pending, changes, self._growth_by(digest), self._name)
            if digest not in self._done:
                place = self._tail, len(self._tail), self._tail_key, self._tail_number
                pending.whole(self._add_done, digest, pending, changes, *place)
            else:
                pending.whole(self._add, digest, pending, changes)
        return pending

    def _add_done(
        self,
        digest: bytes,
        pending: Pending,
        changes: dict[str, Change],
        tail: bytearray,
        end: int,
        key: str,
        number: int,
    ) -> None:
        """A step: it is told where the digest goes, so that it goes there once."""
        tail[end:] = digest
        if len(tail) < SEGMENT_ITEMS * DIGEST_BYTES:
            pending.produce(key, self._encode_tail)
        else:
            changes[key] = (encode_digests(tail), None)
            pending.settle_producer(key)
            self._begin_tail(number + 1)
        self._add(digest, pending, changes)
        self._done.add(digest)

    def _add(self, digest: bytes, pending: Pending, changes: dict[str, Change]) -> None:
        """A step: what is done has not failed."""
        if digest in self._failures:
            changes[self._failed_keys + digest.hex()] = (None, None)
        pending.add(changes)
        self._failures.pop(digest, None)

    def _record_failed(self, digest: bytes, item: str, error: BaseException | str) -> Pending:
        text = error if isinstance(error, str) else f"{type(error).__name__}: {told(error)}"
        pending = self._state._writable()
        pending.check()
        attempt = self._state._turn
        key = self._failed_keys + digest.hex()
        with pending.lock:
            earlier = self._failures.get(digest)
            tries = (
                1 if earlier is None else earlier.tries + 1,
                attempt,
                1 if earlier is None or earlier.attempt != attempt else earlier.attempt_tries + 1,
            )
            limit = self._state._max_bytes
            failure = Failure(item[:MAX_ITEM_CHARS], text[:MAX_ERROR_CHARS], *tries)
            try:
                change = (encode(key, failure, limit), None)
            except ValueTooLargeError:
                room = max(0, limit - FAILURE_BYTES) // BYTES_A_CHAR // 2
                failure = Failure(item[:room], text[:room], *tries)
                change = (encode(key, failure, limit), None)
            if pending._batch_bytes > pending._near:
                replaced = 0 if key in pending.values else self._failure_bytes(digest)
                pending.room.admit(pending, {key: change}, -replaced, self._name)
            self._failures[digest] = failure
            pending.whole(pending.add, {key: change})
        return pending

    @property
    def prefixes(self) -> tuple[str, str]:
        """How the keys of its records begin, up to the last colon."""
        return self._segments, self._failed_keys

    @property
    def held_bytes(self) -> int:
        """How many bytes its records have, with their keys; under the lock of the state."""
        key, number = self._tail_key, self._tail_number
        segments = number * encoded_bytes(key, SEGMENT_ITEMS * DIGEST_BYTES) + encoded_bytes(
            key, len(self._tail)
        )
        return segments + sum(map(self._failure_bytes, self._failures))

    def _growth_by(self, digest: bytes) -> int:
        """By how many bytes it grows with one more item that is done."""
        if digest in self._done:
            return -self._failure_bytes(digest)
        key, size = self._tail_key, len(self._tail)
        growth = encoded_bytes(key, size + DIGEST_BYTES) - encoded_bytes(key, size)
        return growth - self._failure_bytes(digest)

    def _failure_bytes(self, digest: bytes) -> int:
        failure = self._failures.get(digest)
        return 0 if failure is None else entry_bytes(self._failed_keys + digest.hex(), encode_json(failure))

    def _given_up(self, digest: bytes, tries: int) -> bool:
        """Whether this attempt of the task has tried an item that often and failed."""
        failure = self._failures.get(digest)
        return failure is not None and failure.attempt == self._state._turn and failure.attempt_tries >= tries

    def _read(self, values: Mapping[str, str]) -> Callable[[], None]:
        """Read what a state holds of this set; what takes it in.

        Raises:
            DamagedRecordError: A record cannot be read.
        """
        done: set[bytes] = set()
        failures: dict[bytes, Failure] = {}
        last, number = b"", 0
        scope = self._state._scope
        for key in self._keys_in(values):
            if key.startswith(self._failed_keys):
                failures[failed_digest(scope, key)] = failure_in(scope, key, values[key])
                continue
            last = digests_in(scope, key, values[key])
            done.update(each_of(last))
            number = segment_number(scope, key)
        if len(last) == SEGMENT_ITEMS * DIGEST_BYTES:
            last, number = b"", number + 1

        def take_in() -> None:
            self._done, self._failures = done, failures
            self._begin_tail(number, last)

        return take_in

    def _take_out(self, values: dict[str, str]) -> None:
        """Remove from a state's copy what this set holds now."""
        for key in self._keys_in(values):
            del values[key]

    def _keys_in(self, values: Mapping[str, str]) -> list[str]:
        # To the last colon: another set's name may begin with this one's and a colon.
        prefixes = self.prefixes
        return sorted(
            key for key in values if key.startswith(prefixes) and key[: key.rindex(":") + 1] in prefixes
        )

    def _reload(self, values: dict[str, str]) -> Callable[[], None]:
        take_in = self._read(values)

        def reload() -> None:
            take_in()
            self._take_out(values)

        return reload

    def _forget(self) -> None:
        self._done.clear()
        self._failures.clear()
        self._begin_tail(0)

    def _begin_tail(self, number: int, digests: bytes = b"") -> None:
        self._tail = bytearray(digests)
        self._tail_number = number
        self._tail_key = f"{self._segments}{number:0{NUMBER_DIGITS}d}"

    def _encode_tail(self) -> str:
        return encode_digests(self._tail)
