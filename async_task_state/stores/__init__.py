"""What a store must do, and how a dsn becomes one.

A store knows scopes, leases and rows; of coalescing, timers, retries and work sets it knows nothing. All its methods
run on one asyncio loop, one `commit` at a time. A new store is one file: subclass
`async_task_state.testing.StoreConformance` to prove it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from async_task_state.errors import SettingsError
from async_task_state.settings import Dsn
from async_task_state.stores.wanted import EVERYTHING, Position, Wanted

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from async_task_state.runs import Run
    from async_task_state.scopes import Scope
    from async_task_state.stores.holders import Holder

__all__ = [
    "EVERYTHING",
    "Batch",
    "Change",
    "Lease",
    "Position",
    "ScopeInfo",
    "Snapshot",
    "Store",
    "Wanted",
    "is_same_store",
    "new_token",
    "open_store",
    "sqlite_path",
]

POSTGRES: Final = frozenset({"postgresql", "postgres"})
"""The kinds of its dsns."""

Change: TypeAlias = "tuple[str | None, float | None]"
"""A key's new JSON text, or None to delete it; and the seconds to keep it: None is as long as its state, `inf` for ever."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write a scope: the newest one handed out is the only one that counts.

    Args:
        scope: Whose state.
        scope_id: The store's own id of it, never used again for another.
        attempt: The holder's attempt.
        epoch: Goes up at every acquisition of the scope.
        token: Drawn at every acquisition and every clear, see `new_token`. A database that was restored, or a standby
            that was promoted, gives ids and epochs again that were given before, and never a token.
    """

    scope: Scope
    scope_id: int
    attempt: int
    epoch: int
    token: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A scope at one moment: its newest lease, and every key that has not expired, as JSON text.

    Args:
        lease: Of who has it now.
        entries: What there is.
        run: The run that it is of, as `Run.text` gives it; empty where that is not known.
        fresh: Whether the holder found what another run had left, so that all of it was deleted.
        holder: Which process has the lease, where the store knows; None in what `acquire` returns.
        saved_ago: In what `acquire` returns, how many seconds before something was saved last, where the store knows.
        ends: By when a key has expired that has an expiry, by this process's `time.monotonic`; never too early. A store may
            leave keys out, which then count against `max_state_bytes` until they are read anew.
    """

    lease: Lease
    entries: dict[str, str]
    run: str = ""
    fresh: bool = False
    holder: Holder | None = field(default=None, compare=False)
    saved_ago: float | None = field(default=None, compare=False)
    ends: Mapping[str, float] = field(default_factory=dict, compare=False)


@dataclass(slots=True)
class Batch:
    """What one holder wants changed, all of it or nothing; an empty one asks if the lease still counts.

    Args:
        lease: The holder's.
        changes: The newest change of each key.
        cleared: Every key is deleted before `changes` are made, except those with `codec.KILL_PREFIX`: others than the
            holder change those.
    """

    lease: Lease
    changes: dict[str, Change] = field(default_factory=dict)
    cleared: bool = False


@dataclass(frozen=True, slots=True)
class ScopeInfo:
    """A scope in a listing.

    Args:
        scope: Whose state.
        attempt: Its newest attempt.
        epoch: Its newest epoch; 0 where nobody has opened it yet.
        keys: How many keys authors have set.
        updated_at: When it was last changed, in seconds since 1970.
        scope_id: As in a `Lease`.
        own: The library's own keys, and how many characters the text of each has.
        holder: Which process has the lease, where the store knows.
    """

    scope: Scope
    attempt: int
    epoch: int
    keys: int
    updated_at: float
    scope_id: int = 0
    own: Mapping[str, int] = field(default_factory=dict, hash=False)
    holder: Holder | None = None


def new_token() -> int:
    """A random number of 63 bits, as databases can keep it."""
    return int.from_bytes(os.urandom(8), "big") >> 1


class Store(Protocol):
    """Keeps leases and rows. Every method raises `StoreUnavailableError` where trying again may help.

    Any other trouble is a `StoreError`. A method that raises, or is cancelled, may have taken effect.
    """

    async def acquire(self, scope: Scope, attempt: int | None, run: Run | None = None) -> Snapshot:
        """Take the scope's lease from whoever has it, with an epoch above all earlier ones and a token of its own.

        A run that was deleted and made again under its id starts over: in the same transaction every key is deleted.
        `async_task_state.stores.admission.admit` decides that, for every store alike. A store that can notes which process
        has the lease, by `async_task_state.stores.holders.Holder.here`; one that does not is as good a store.

        Args:
            scope: Whose state.
            attempt: The attempt that wants it; None goes on with the stored one (1 where there is none), or with the next
                one where `run` names another task instance than the one that has held the scope.
            run: The run that the attempt is of, where that is known.

        Raises:
            InvalidArgumentError: `attempt` is out of its range.
            StaleAttemptError: A later attempt of the run, or a newer run, has held the scope.
        """

    async def commit(self, batches: Sequence[Batch]) -> Collection[Lease]:
        """Make durable what each batch changes, all of a batch or nothing of it; at most one batch a lease.

        Returns:
            The leases that no longer count; nothing of their batches is written.
        """

    async def read(self, scope: Scope) -> Snapshot | None:
        """The scope as it is, its lease untouched; None where nobody has ever held it."""

    async def scopes(self, wanted: Wanted = EVERYTHING) -> list[ScopeInfo]:
        """The scopes that match, the most recently changed first, and of those changed at once the last made first."""

    async def count_scopes(self, wanted: Wanted = EVERYTHING) -> int:
        """How many scopes match, on whatever page."""

    async def write(
        self,
        scope: Scope,
        changes: Mapping[str, Change],
        *,
        cleared: bool = False,
        run: Run | None = None,
        expected: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> bool:
        """Make changes durable without the lease, which stays whose it is: what others than the holder wrote.

        A scope that nobody has held is made, and any attempt may open it next. So it is where what is stored is of an
        earlier run under the same id: that is deleted first, and its holder is fenced.

        Args:
            scope: Whose state.
            changes: The newest change of each key.
            cleared: As in a `Batch`.
            run: The run that writes, where that is known.
            expected: Keys and their texts: nothing is written, and no scope is made, unless each has its text, as seen in
                the transaction that writes. An empty mapping expects nothing.
            limit: How many bytes the scope may hold with them, unless they make it smaller: its keys in UTF-8 and their
                texts, as seen in the transaction that writes; `async_task_state.room.check_write` decides that, for every
                store alike. None asks nothing, and neither does a write that clears, because it makes room.

        Returns:
            Whether the changes were made.

        Raises:
            StaleAttemptError: What is stored is of a newer run.
            StateTooLargeError: The scope would hold more than `limit`; nothing is written.
        """

    async def clear(self, scope: Scope) -> int | None:
        """Delete a scope's keys, fence its holder, and let any attempt open it next.

        Returns:
            How many keys there were; None where nobody ever held the scope.
        """

    async def purge(self, now: float | None = None) -> int:
        """Delete keys that have expired, and the states of tasks that have not been in use for the default retention.

        Such a state goes at once, for every reader and for its holder, who is fenced. What stays of it is each key that
        has a retention of its own, and by what a clear is known as long as an author's key does. A scope that holds
        nothing goes as well; an asset's state has no end but that.

        Args:
            now: Seconds since 1970; None asks the store's own clock.

        Returns:
            How many keys were deleted.
        """

    async def close(self) -> None:
        """Let go of connections; the next call opens them again."""


def open_store(dsn: str, *, default_retention: float | None = None) -> Store:
    """The store that a dsn names; nothing is opened before its first call.

    Args:
        dsn: `sqlite:///path`, `postgresql://...` or `memory:` (`memory:name` for one of several).
        default_retention: Seconds that `purge` keeps a state that is not in use; None is for ever.

    Raises:
        SettingsError: The dsn is malformed or of an unknown kind. The message shows the kind only, for a dsn may
            hold a password.
    """
    # Nothing here is shown that holds a password, to a tool that shows variables either.
    dsn = Dsn(dsn)
    scheme, colon = dsn.kind, ":" in dsn
    if scheme == "memory" and colon:
        from async_task_state.stores.memory import MemoryStore  # noqa: PLC0415 - one store is loaded, not all

        return MemoryStore.shared(dsn.partition(":")[2], default_retention=default_retention)
    if scheme == "sqlite" and colon:
        from async_task_state.stores.sqlite import SQLiteStore  # noqa: PLC0415 - one store is loaded, not all

        return SQLiteStore(sqlite_path(dsn), default_retention=default_retention)
    if scheme.partition("+")[0] in POSTGRES and colon:
        from async_task_state.stores.postgres import PostgresStore  # noqa: PLC0415 - one store is loaded, not all
        from async_task_state.stores.postgres_dsn import PostgresDsn  # noqa: PLC0415

        return PostgresStore(PostgresDsn.parse(dsn), default_retention=default_retention)
    if scheme == "airflow" and colon:
        raise SettingsError(
            "the dsn airflow: is Airflow's own store, which only states can use; `airflow state-store clean` purges it"
        )
    kind = f"{scheme!r}" if colon and scheme.isidentifier() else "without a known kind before its colon"
    raise SettingsError(
        f"the dsn is {kind}; [async_task_state] dsn takes sqlite:///path,"
        " postgresql://user:password@host/database, airflow: or memory:"
    )


def is_same_store(one: object, other: object) -> bool:
    """Whether two stores, given as dsns or as themselves, are one: the same file, the same database.

    Raises:
        SettingsError: As `open_store`.
    """
    if one == other:
        return True
    file, other_file = _file_of(one), _file_of(other)
    if file is not None and other_file is not None:
        from async_task_state.stores.sqlite_file import is_same_file  # noqa: PLC0415 - one store is loaded, not all

        return is_same_file(file, other_file)
    if not (isinstance(one, str) and isinstance(other, str)):
        return False
    if not {Dsn(one).kind, Dsn(other).kind} <= POSTGRES:
        return False
    from async_task_state.stores.postgres_dsn import PostgresDsn  # noqa: PLC0415 - one store is loaded, not all

    return PostgresDsn.parse(one) == PostgresDsn.parse(other)


def _file_of(store: object) -> Path | None:
    """The file of an SQLite store."""
    if isinstance(store, str):
        return Path(sqlite_path(store)) if store.startswith("sqlite:") else None
    from async_task_state.stores.sqlite import SQLiteStore  # noqa: PLC0415 - one store is loaded, not all

    return store.path if isinstance(store, SQLiteStore) else None


def sqlite_path(dsn: str) -> str:
    """The file that a sqlite dsn names.

    Raises:
        SettingsError: The dsn is malformed.
    """
    path, _, query = dsn.removeprefix("sqlite:///").partition("?")
    if not dsn.startswith("sqlite:///") or not path.startswith("/") or path.endswith("/"):
        raise SettingsError(
            "a sqlite dsn is sqlite:/// and the absolute path of a file, so four slashes: sqlite:////var/lib/state.db"
        )
    if query not in ("", "single_machine=true"):
        raise SettingsError("a sqlite dsn takes ?single_machine=true after its path and nothing else")
    return path
