"""Firing an asset's event when files arrive."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from async_task_state.arrivals import Watch
from async_task_state.compat import confirms_events, names_watched_assets, takes_trigger_queue, watched_assets
from async_task_state.digests import digest_of
from async_task_state.errors import InvalidArgumentError, NoScopeError, StaleWriterError
from async_task_state.places import check_before_sending
from async_task_state.scopes import AssetScope
from async_task_state.sources import plain_source
from async_task_state.state import AssetState, configured
from async_task_state.stores.airflow import DSN as AIRFLOW_DSN

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Hashable, Sequence

    from async_task_state.sources import Source
    from async_task_state.stores import Store

__all__ = ["NewFilesTrigger"]

CONFIRM_SECONDS: Final = 5.0
"""After which an event is taken for safe where Airflow does not say; it hands events on once a second."""

SHOWN_NAME_CHARS: Final = 1000

_starting: ContextVar[NewFilesTrigger] = ContextVar("async_task_state_starting")


class NewFilesTrigger(BaseEventTrigger):
    """Fires an asset's event when files have appeared or changed: one event, however many they are.

    Every version of a file is reported once, when its size and time of modification have not changed for `settle`
    seconds: over all restarts, whatever its time of modification, under a new name again, and again when it has
    changed. What was reported is durable before the event leaves, as state of the asset and source.

    An event is never lost. It is fired again, as it was and with the same `event_id`, if the triggerer ends, by SIGTERM
    or SIGKILL, or the trigger is moved to another one, before Airflow has said that the event is in its database, a
    second or two after it was fired. Airflow before 3.3 does not say so: there it is taken to be in the database after
    five seconds. With the dsn `airflow:`, which saves keys one by one, a crash between two of them may report files again
    under another id.

    Airflow runs it while a DAG that is not paused is scheduled on the asset. Give an asset one for each source.

    The payload, which the DAG's tasks find as `extra["payload"]` of `context["triggering_asset_events"]`, is a dict:
    `event_id`, `count`, `bytes`, `files` (the oldest of them), `first_modified` and `last_modified` (as ISO 8601, or
    None).

    Args:
        source: A directory, for all that is below it, a glob, a file, or a list of them; each a path or an fsspec URL, of
            one of `[async_task_state] allowed_protocols`.
        asset: The name under which the state is kept; None takes that of the asset that Airflow says this trigger
            watches. Needed where several assets watch alike, for one trigger then serves them all, as many as there
            are at the moment; and on Airflow before 3.3. Under another name a watch begins anew.
        poll_interval: Seconds between two looks at the source; more while it cannot be listed.
        settle: Seconds that a file must not have changed, so that one that is being written is not reported; 0
            reports what is seen.
        initial: Whether files that are there when the asset's state is new are news: "report" or "skip".
        sample: How many files a payload names, at most 100.
        queue: The trigger queue of Airflow 3.4, which says what triggerers run it.

    Raises:
        InvalidArgumentError: An argument is of the wrong type or out of range, or `asset` is needed.
        SourceNotAllowedError: `source` is not allowed.

    Attributes:
        store: A dsn or a store of its own; None takes `[async_task_state] dsn`.
    """

    store: str | Store | None = None

    def __init__(
        self,
        source: Source,
        *,
        asset: str | None = None,
        poll_interval: float = 60.0,
        settle: float = 10.0,
        initial: Literal["report", "skip"] = "report",
        sample: int = 10,
        queue: str | None = None,
    ) -> None:
        if queue is not None and not takes_trigger_queue():
            raise InvalidArgumentError(
                f"this version of Airflow has no queues for triggers that watch assets: leave out queue={queue!r}"
            )
        super().__init__(**({} if queue is None else {"queue": queue}))  # type: ignore[no-untyped-call]
        if asset is not None:
            AssetScope(asset)
        elif not names_watched_assets():
            raise InvalidArgumentError(
                "this version of Airflow does not tell a trigger which asset it watches: give its name as asset="
            )
        self._asset = asset
        self._watch = Watch(
            source=plain_source(source),
            poll_interval=poll_interval,
            settle=settle,
            initial=initial,
            sample=sample,
        )
        check_before_sending(self._watch.source)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path and the arguments."""
        return f"{type(self).__module__}.{type(self).__qualname__}", {
            "asset": self._asset,
            **asdict(self._watch),
        }

    @property
    def scope(self) -> AssetScope:
        """Whose state it keeps: a scope beside the asset's own, or else it and the asset's tasks would fence each other.

        In Airflow's own store, which has none but those of assets and fences nobody, the asset's.

        Raises:
            NoScopeError: Airflow has not said which asset this trigger watches.
        """
        name = self._asset_name
        if configured(self.store)[0] == AIRFLOW_DSN:
            return AssetScope(name)
        # So much of the name, for a scope's has a limit.
        return AssetScope(f"{name[:SHOWN_NAME_CHARS]}#{self._key}")

    @property
    def _asset_name(self) -> str:
        names = watched_assets(self) if self._asset is None else [self._asset]
        if not names:
            raise NoScopeError(
                f"{type(self).__name__} watches no asset: use it in Asset(watchers=[AssetWatcher(...)]), or give asset="
            )
        if len(names) > 1:
            raise NoScopeError(
                f"{type(self).__name__} watches several assets ({', '.join(sorted(names))}), and which they are changes"
                " with the DAGs that are paused: give asset=, a name under which the state is kept"
            )
        return next(iter(names))

    @property
    def _key(self) -> str:
        """Names this watch among those of all sources and assets, by a digest: a URL may hold a password."""
        source = self._watch.source
        return f"new_files-{digest_of([self._asset_name, *([source] if isinstance(source, str) else source)]).hex()}"

    async def run(self) -> AsyncGenerator[TriggerEvent, None]:
        """Watch for ever, where Airflow does not say what has become of an event."""
        try:
            async with aclosing(self.payloads()) as payloads:
                async for payload in payloads:
                    yield TriggerEvent(payload)
                    await asyncio.sleep(CONFIRM_SECONDS)
        except StaleWriterError as error:
            raise self._taken_over() from error

    async def payloads(self) -> AsyncGenerator[dict[str, Any], None]:
        """The payloads of all events to come; going on after one says that it has arrived."""
        store, settings = configured(self.store)
        async with (
            AssetState(self.scope, store=store, settings=settings) as state,
            aclosing(self._watch.events(state, f"{self._key}:")) as payloads,
        ):
            async for payload in payloads:
                yield payload

    def shared_stream_key(self) -> Hashable | None:
        """Makes Airflow run this trigger in the mode in which it says what has become of an event; shares nothing."""
        if not confirms_events():
            return None
        # Airflow makes the producer next, in this context, and does not tell it for whom.
        _starting.set(self)
        return type(self).__qualname__, id(self)

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> Any:  # noqa: ARG003 - Airflow's signature
        """What looks at the source."""
        return _Deliveries(_starting.get())

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        """Fire what the producer has found."""
        async for delivery in shared_stream:
            if delivery is None:
                raise self._taken_over()
            yield TriggerEvent(delivery.payload)
            delivery.taken = True

    def _taken_over(self) -> asyncio.CancelledError:
        """What ends a trigger without a word: to fail would be noise, for the other one does the work."""
        self.log.info("another trigger has taken over the state of %s", self.scope)
        return asyncio.CancelledError()


@dataclass(slots=True)
class _Delivery:
    """An event on its way: whether Airflow has taken it, and whether it is in Airflow's database."""

    payload: dict[str, Any]
    taken: bool = False
    arrived: asyncio.Event = field(default_factory=asyncio.Event)


class _Deliveries:
    """Airflow's `SharedStreamProducer` of one trigger: hands out an event, and waits until it has arrived."""

    def __init__(self, trigger: NewFilesTrigger) -> None:
        self._trigger = trigger

    async def open_stream(self) -> AsyncGenerator[tuple[_Delivery | None, _Delivery | None], None]:
        """The events, each after the one before it has arrived; None when another trigger has taken over."""
        try:
            async with aclosing(self._trigger.payloads()) as payloads:
                async for payload in payloads:
                    delivery = _Delivery(payload)
                    yield delivery, delivery
                    await delivery.arrived.wait()
        except StaleWriterError:
            yield None, None
            # A stream that ends is an error to Airflow.
            await asyncio.Event().wait()

    async def advance(self, batch: Sequence[Any]) -> None:
        """Take note of what has arrived."""
        for delivery, outcome in batch:
            # Airflow counts an event that it was cancelled with in its hands, before it took it, as one it did not need.
            if delivery is not None and delivery.taken and outcome.is_clean:
                delivery.arrived.set()

    def get_advance_lane(self, _delivery: _Delivery | None) -> None:
        """One after the other."""

    async def aclose(self) -> None:
        """Nothing is left open."""
