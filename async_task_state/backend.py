"""The door for Airflow's own accessors and its Execution API: AIP-103's state backend over one of our stores."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from airflow.sdk.state import BaseStoreBackend as WorkerBackend
from airflow.sdk.state import TaskScope as WorkerTaskScope
from airflow.state import BaseStoreBackend as ServerBackend
from airflow.state import TaskScope as ServerTaskScope
from anyio import to_thread
from starlette.exceptions import HTTPException

from async_task_state.backend_refs import ref_in, ref_to, target_of
from async_task_state.clear_choice import CHOICE
from async_task_state.clear_notes import noted_choice, noted_choice_awaited
from async_task_state.codec import RESERVED_PREFIX, check_key, check_text, encode, kept_by_clear
from async_task_state.connections import resolved_here, writer_of
from async_task_state.errors import (
    AsyncTaskStateError,
    InvalidArgumentError,
    SettingsError,
    StoreError,
    StoreUnavailableError,
    ValueTooLargeError,
)
from async_task_state.lifetime import writer_for
from async_task_state.metadata import asset_name, asset_name_query, run_in, run_in_awaited
from async_task_state.records import decode_record
from async_task_state.scopes import AssetScope, TaskScope, running_task
from async_task_state.settings import SECTION, check_executor, load_settings
from async_task_state.stores import Wanted
from async_task_state.stores.admission import of_run
from async_task_state.stores.airflow import DSN as AIRFLOW
from async_task_state.upkeep import purge_sync

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from airflow.sdk.state import AssetScope as WorkerAssetScope
    from airflow.state import AssetScope as ServerAssetScope
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from async_task_state.runs import Run
    from async_task_state.scopes import Scope
    from async_task_state.settings import Settings
    from async_task_state.stores import Change, Store

    TheirTaskScope: TypeAlias = ServerTaskScope | WorkerTaskScope
    TheirAssetScope: TypeAlias = ServerAssetScope | WorkerAssetScope
    TheirScope: TypeAlias = TheirTaskScope | TheirAssetScope

__all__ = ["StateStoreBackend"]

REQUEST_SECONDS: Final = 5.0
"""How long the API server waits for the store: as long as a worker waits for the API server."""


class StateStoreBackend(ServerBackend, WorkerBackend):
    """Airflow's `task_state_store` and `asset_state_store` on the store of `[async_task_state]`.

    With `[state_store] backend = async_task_state.backend.StateStoreBackend`, what `context["task_state_store"]`,
    `ResumableJobMixin`, the Execution API and `clear_on_success` read and write are the very keys of `task_state()`;
    for `context["asset_state_store"]` those of `asset_state()`. The API server must reach the same store as the tasks.

    Values are kept as they come. A write takes no lease and fences nobody: whoever holds the state sees it after
    `await state.refresh()`, and of a key that both have written the later one stays. What work sets keep is not seen
    from here; clearing deletes it, too. What a run has left that was deleted is neither seen nor kept by one that was
    made again under its id.

    An asset's state is known by its name. On the API server, which is told an id, the name is looked up in Airflow's
    database. A reference by URI alone is resolved there, too; a worker's backend cannot, and uses the URI itself.
    An asset's values never expire.

    It can be the `[workers] state_store_backend` as well, or only that: then a task's process writes the value itself,
    and Airflow's database gets a reference. Airflow does not tell a worker's backend how long to keep a value, so one
    is kept until it is deleted, unless the API server has this backend, too, and sets its expiry.

    Every method raises `InvalidKeyError` for a key that cannot be one, `SettingsError` where `[async_task_state]` does
    not name a store that can be used from here, and `StoreUnavailableError` when the store has not answered for
    `outage_timeout`; the API server waits 5 seconds at most, and passes the reason on to the task. The asynchronous
    methods never block the event loop.
    """

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def get(self, scope: TheirScope, key: str, *, session: Session | None = None) -> str | None:
        """The JSON text of a key; None where there is none, or where it is a work set's."""
        if key == CHOICE:
            return noted_choice(scope, session)
        text: str | None = _ask(session, _get, *self._ours(scope, session), key)
        return text

    async def aget(self, scope: TheirScope, key: str, *, session: AsyncSession | None = None) -> str | None:
        """As `get`."""
        if key == CHOICE:
            return await noted_choice_awaited(scope, session)
        text: str | None = await _await(session, _get, *await self._ours_awaited(scope, session), key)
        return text

    def set(
        self,
        scope: TheirScope,
        key: str,
        value: str,
        *,
        expires_at: datetime | None = None,
        session: Session | None = None,
    ) -> None:
        """Save a value, durably when this returns.

        Args:
            scope: Whose state.
            key: 1 to 512 characters.
            value: JSON text.
            expires_at: When the key is gone, in UTC where it has no time zone; None is never.
            session: Of Airflow's database, where an asset's name is looked up.

        Raises:
            InvalidKeyError: `key` cannot be a key.
            ValueTooLargeError: `value` is longer than `[async_task_state] max_value_bytes`.
            InvalidValueError: `value` is nested deeper than 200 lists and objects, or has NaN or an infinity in it.
            StateTooLargeError: The state would hold more than `[async_task_state] max_state_bytes`, as far as it is saved.
            InvalidArgumentError: Airflow has no such asset.
        """
        _ask(session, _set, *self._ours(scope, session), key, value, expires_at)

    async def aset(
        self,
        scope: TheirScope,
        key: str,
        value: str,
        *,
        expires_at: datetime | None = None,
        session: AsyncSession | None = None,
    ) -> None:
        """As `set`."""
        await _await(session, _set, *await self._ours_awaited(scope, session), key, value, expires_at)

    def delete(self, scope: TheirScope, key: str, *, session: Session | None = None) -> None:
        """Remove a key; one that is not there, or is a work set's, is no error."""
        _ask(session, _delete, *self._ours(scope, session), key)

    async def adelete(self, scope: TheirScope, key: str, *, session: AsyncSession | None = None) -> None:
        """As `delete`."""
        await _await(session, _delete, *await self._ours_awaited(scope, session), key)

    def clear(
        self, scope: TheirScope, *, all_map_indices: bool = False, session: Session | None = None
    ) -> None:
        """Remove everything that a scope keeps, work sets too; its holder stays the holder.

        Args:
            scope: Whose state.
            all_map_indices: Every mapped instance of the task in the same run and region.
            session: Of Airflow's database, where an asset's name is looked up.
        """
        _ask(session, _clear, *self._ours(scope, session), all_map_indices)

    async def aclear(
        self, scope: TheirScope, *, all_map_indices: bool = False, session: AsyncSession | None = None
    ) -> None:
        """As `clear`."""
        await _await(session, _clear, *await self._ours_awaited(scope, session), all_map_indices)

    def cleanup(self) -> None:
        """Delete keys that have expired, and states of tasks that have not been in use for the default retention."""
        with _answered():
            _settings(None)
            # Not with `_ask`: that has to be answered within outage_timeout.
            purge_sync()

    def serialize_task_state_store_to_ref(self, *, value: Any, key: str, scope: TheirTaskScope) -> str:
        """Save a value from a task's process; what Airflow's database keeps of it instead.

        Raises:
            InvalidKeyError: `key` cannot be a key.
            InvalidValueError: `value` is not JSON, or longer than `[async_task_state] max_value_bytes`.
        """
        return self._save(scope, key, value)

    def deserialize_task_state_store_from_ref(self, stored: str) -> Any:
        """The value that a reference stands for, as it is now.

        Raises:
            StoreError: It is no reference of this backend, or the value is gone.
        """
        return _load(stored)

    def serialize_asset_state_store_to_ref(self, *, value: Any, key: str, scope: TheirAssetScope) -> str:
        """As `serialize_task_state_store_to_ref`."""
        return self._save(scope, key, value)

    def deserialize_asset_state_store_from_ref(self, stored: str) -> Any:
        """As `deserialize_task_state_store_from_ref`."""
        return _load(stored)

    def _save(self, scope: TheirScope, key: str, value: Any) -> str:
        check_key(key)
        ours, run = self._ours(scope, None)
        _ask(None, _set, ours, run, key, encode(key, value, load_settings().max_value_bytes), None)
        return ref_to(ours, key)

    def _ours(self, scope: TheirScope, session: Session | None) -> tuple[Scope, Run | None]:
        """The scope as we call it, and the run that asks, where that is known."""
        known = self._known(scope)
        if isinstance(known, TaskScope):
            return known, _running_in(known) if session is None else run_in(session, known)
        if isinstance(known, AssetScope):
            return known, None
        name = asset_name(known) if session is None else session.scalar(asset_name_query(known))
        return self._note(known, name), None

    async def _ours_awaited(
        self, scope: TheirScope, session: AsyncSession | None
    ) -> tuple[Scope, Run | None]:
        """The same."""
        known = self._known(scope)
        if isinstance(known, TaskScope):
            return known, _running_in(known) if session is None else await run_in_awaited(session, known)
        if isinstance(known, AssetScope):
            return known, None
        if session is None:
            return self._note(known, await to_thread.run_sync(asset_name, known)), None
        return self._note(known, await session.scalar(asset_name_query(known))), None

    def _known(self, scope: TheirScope) -> Scope | int:
        """The scope as we call it, or the id of an asset whose name is to be looked up."""
        if isinstance(scope, (ServerTaskScope, WorkerTaskScope)):
            return TaskScope.from_airflow(scope)
        if scope.name is not None or scope.asset_id is None:
            return AssetScope(scope.name, scope.uri)
        name = self._names.get(scope.asset_id)
        return scope.asset_id if name is None else AssetScope(name)

    def _note(self, asset_id: int, name: str | None) -> AssetScope:
        if name is None:
            raise InvalidArgumentError(f"Airflow has no asset with the id {asset_id}")
        # The name of an id never changes.
        self._names[asset_id] = name
        return AssetScope(name)


class _AnswerError(HTTPException):
    """Makes an error an answer of the API server: of any other the worker hears "internal" and not the reason."""

    def __init__(self, reason: Exception) -> None:
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        if isinstance(reason, StoreUnavailableError):
            status = HTTPStatus.SERVICE_UNAVAILABLE
        elif isinstance(reason, ValueError):
            # Not one of those that a worker takes for passing, and tries again.
            status = HTTPStatus.BAD_REQUEST
        super().__init__(status, str(reason))

    def __str__(self) -> str:
        return self.detail


@contextmanager
def _answered() -> Iterator[None]:
    """Raise errors as the same kind of error that is an answer, too."""
    try:
        yield
    except AsyncTaskStateError as error:
        kind = type(error)
        answer: type[Exception] = type(kind.__name__, (_AnswerError, kind), {})
        raise answer(error) from error


def _settings(session: object) -> Settings:
    settings = load_settings()
    if settings.dsn == AIRFLOW:
        raise SettingsError(
            f"[{SECTION}] dsn is airflow:, which keeps state by Airflow's own means, and those ask this backend where:"
            f" set [{SECTION}] dsn to a database, or [state_store] backend to Airflow's own"
        )
    check_executor(settings.dsn)
    if session is None:
        return settings
    # It waits with a connection of Airflow's database in its hand, of which there are few.
    return replace(settings, outage_timeout=min(settings.outage_timeout, REQUEST_SECONDS))


_resolved = cache(resolved_here)


def _ask(session: object, step: Callable[..., Coroutine[Any, Any, Any]], *args: object) -> Any:
    """Have a step taken on the writer's thread, and block until it is."""
    with _answered():
        settings = _settings(session)
        writer = writer_for(_resolved(settings.dsn), settings)
        return writer.ask(step, writer.store, *args)


async def _await(session: object, step: Callable[..., Coroutine[Any, Any, Any]], *args: object) -> Any:
    """Have a step taken on the writer's thread, and wait until it is."""
    with _answered():
        settings = _settings(session)
        writer = await writer_of(settings.dsn, settings)
        return await writer.call(step, writer.store, *args)


def _running_in(scope: TaskScope) -> Run | None:
    """The run of the task that this process runs, if the scope is that task's."""
    running = running_task()
    return None if running is None or running.scope != scope else running.run


async def _get(store: Store, scope: Scope, run: Run | None, key: str) -> str | None:
    if _is_hidden(key):
        return None
    snapshot = of_run(await store.read(scope), None, run)
    return None if snapshot is None else snapshot.entries.get(key)


async def _set(
    store: Store, scope: Scope, run: Run | None, key: str, text: str, expires_at: datetime | None
) -> None:
    check_key(key)
    size, limit = len(text.encode()), load_settings().max_value_bytes
    if size > limit:
        raise ValueTooLargeError(
            f"the value of {key!r} is {size:,} bytes of JSON; [{SECTION}] max_value_bytes allows {limit:,}"
        )
    check_text(key, text)
    ref = ref_in(text, scope, key)
    if ref is not None:
        if ref == ref_to(scope, key) and expires_at is None:
            return
        text = await _value_of(store, ref)
    seconds = None
    if isinstance(scope, TaskScope):
        seconds = math.inf if expires_at is None else _seconds_until(expires_at)
    gone = seconds is not None and seconds <= 0
    changes: dict[str, Change] = {key: (None, None) if gone else (text, seconds)}
    # A key that goes makes room, and nothing is counted for it.
    room = None if gone else load_settings().max_state_bytes
    await store.write(scope, changes, run=run, limit=room)


async def _delete(store: Store, scope: Scope, run: Run | None, key: str) -> None:
    if await _get(store, scope, run, key) is not None:
        await store.write(scope, {key: (None, None)}, run=run)


async def _clear(store: Store, scope: Scope, run: Run | None, all_map_indices: bool) -> None:
    scopes = [scope]
    if all_map_indices and isinstance(scope, TaskScope):
        infos = await store.scopes(Wanted(scope.dag_id, scope.run_id, scope.task_id))
        scopes = [info.scope for info in infos if getattr(info.scope, "region_id", None) == scope.region_id]
    for each in scopes:
        # Not where there is nothing: Airflow clears every task that succeeds when told to, and most keep no state.
        snapshot = of_run(await store.read(each), None, run)
        if snapshot is not None:
            await store.write(each, kept_by_clear(snapshot.entries), cleared=True, run=run)


def _load(ref: str) -> Any:
    text = _ask(None, _value_of, ref)
    with _answered():
        return decode_record(*target_of(ref), text)


async def _value_of(store: Store, ref: str) -> str:
    """The text that a reference of ours stands for."""
    scope, key = target_of(ref)
    text = await _get(store, scope, None, key)
    if text is None:
        raise StoreError(
            f"the value of {key!r} of {scope} is gone: it was deleted, or [{SECTION}] dsn names another store here than"
            " where it was saved"
        )
    return text


def _is_hidden(key: str) -> bool:
    """Whether a key is a work set's, which nobody sees from here."""
    hidden = isinstance(key, str) and key.startswith(RESERVED_PREFIX)
    if not hidden:
        check_key(key)
    return hidden


def _seconds_until(moment: datetime) -> float:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return (moment - datetime.now(timezone.utc)).total_seconds()
