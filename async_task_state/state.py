"""`task_state()` and `asset_state()`: whose state it is, and what comes of a user's clear."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar

from async_task_state.codec import CLEARED, MAX_TRIES, encode_changes, is_of_author
from async_task_state.compat import asks_at_clear
from async_task_state.errors import InvalidArgumentError, NoScopeError
from async_task_state.handle import State
from async_task_state.kills import TRIGGER, name_trigger, owe
from async_task_state.logs import Log
from async_task_state.opened import states_open_here
from async_task_state.records import author_values
from async_task_state.scopes import AssetScope, TaskScope, running_task
from async_task_state.settings import ON_CLEAR, check_executor, load_settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from async_task_state.clear_choice import Choice
    from async_task_state.pending import Pending
    from async_task_state.scopes import RunningTask
    from async_task_state.settings import Settings
    from async_task_state.stores import Change, Store
    from async_task_state.stores.airflow import Channel

__all__ = ["AssetState", "OnClear", "TaskState", "asset_state", "task_state"]

S = TypeVar("S", bound="TaskState")

log = Log(__name__)

KEPT: Final = " kept"
"""What comes after the attempt that began with a clear, where the user keeps the state."""

OnClear: TypeAlias = "Literal['restart', 'resume'] | Callable[[dict[str, Any]], Mapping[str, Any]]"
"""What comes of a state when a user has cleared its task; a function says what is kept of the values."""


def task_state(
    scope: TaskScope | None = None,
    *,
    attempt: int | None = None,
    store: str | Store | Channel | None = None,
    max_delay: float | None = None,
    read_only: bool = False,
    on_clear: OnClear | None = None,
    across_iterations: bool = False,
) -> TaskState:
    """The durable state of a task, to be entered with `async with`.

    Inside an `async with task_state()` of the same scope in the same context it joins that one: the same handle,
    the same lease. A run that was deleted and made again under the same id finds an empty state, whatever `on_clear`
    is.

    Args:
        scope: Whose state; None takes it, and the attempt, from the running task, or else from the state that is
            open in this context. A trigger calls `CheckpointTrigger.task_state()` instead.
        attempt: The attempt that wants to write, 0 to 1,000,000. An attempt older than one that has opened the state is
            refused. None takes the running task's where `scope` is its own, else goes on with the stored one.
        store: A dsn, `conn_id:NAME` for an Airflow connection, or a store of your own; None takes
            `[async_task_state] dsn` or `conn_id`, and then entering raises `OutsideTaskError` where no task or trigger
            runs, as while a DAG file is parsed; not with `read_only`, nor with a dsn of `memory:`.
        max_delay: Seconds until a checkpoint is durable, at most; None takes `[async_task_state] max_delay`.
        read_only: Read the state as it is when entered. Takes no lease, so it fences nobody, and cannot write.
        on_clear: What the task finds when a user has cleared it: "restart" an empty state, "resume" what it left. A
            function is called with what it left, without what work sets keep, and returns what a restart keeps.
            None takes `[async_task_state] on_clear`. Where Airflow 3.4 has asked the user, and the state is to be kept, the
            task finds what it left all the same.
        across_iterations: Of a task in a loop of Airflow 3.4, one state over all iterations, besides the one that each
            has; for a mapped task in a loop one for each map index. Iterations hold it one after the other, and the task
            instance that Airflow has made last is the newest: `attempt` counts them. A clear of the first iteration
            is a clear of this state, one of a later iteration leaves it. Outside of loops, and before Airflow 3.4, it is
            the task's own state; but a mapped task of Airflow 3.4 has one beside it, because its trigger is not told of
            loops. In a trigger call `self.task_state(across_iterations=True)`.

    Raises:
        NoScopeError: No scope was given, no task is running and no state is open; or no task is running, and
            `across_iterations` is asked for.
        InvalidArgumentError: An argument is of the wrong type or out of range; or a scope was given and
            `across_iterations`, which is about the running task.
        SettingsError: A setting is malformed, or the store is a file on this machine while the executor runs tasks
            on others.
    """
    running = instance = running_task()
    if across_iterations:
        if scope is not None:
            raise InvalidArgumentError(
                "across_iterations is for the running task: give no scope with it, or name that of the state over all"
                f" iterations without it, which has no region: TaskScope({scope.dag_id!r}, {scope.run_id!r}, {scope.task_id!r})"
            )
        if running is None:
            raise NoScopeError(
                "no task is running here, whose iterations could share a state; a trigger calls"
                " self.task_state(across_iterations=True) of CheckpointTrigger"
            )
        running = running.over or running
    if scope is None:
        opened = [handle for handle in states_open_here() if isinstance(handle, TaskState)]
        if running is not None:
            scope = running.scope
        elif opened:
            scope, store = opened[-1].scope, opened[-1]._store if store is None else store
        else:
            raise NoScopeError(
                "no task is running here, so say whose state it is: task_state(TaskScope(dag_id, run_id, task_id)),"
                " or in a trigger self.task_state() of CheckpointTrigger"
            )
    max_tries = run = begun = tried = None
    after_clear = False
    if running is not None and running.scope == scope:
        attempt = running.attempt if attempt is None else attempt
        if attempt == running.attempt:
            max_tries, run, after_clear = running.max_tries, running.run, running.after_clear
            if instance is not None:
                begun, tried = instance.begun, instance.attempt
    kept_in, settings = configured(store)
    return TaskState(
        scope,
        attempt=attempt,
        run=run,
        store=kept_in,
        settings=settings,
        max_delay=max_delay,
        read_only=read_only,
        on_clear=on_clear,
        max_tries=max_tries,
        after_clear=after_clear,
        begun=begun,
        tried=tried,
        only_inside=_is_of_deployment(store),
    )


def asset_state(
    asset: object,
    *,
    store: str | Store | None = None,
    max_delay: float | None = None,
    read_only: bool = False,
) -> AssetState:
    """The durable state of an asset, to be entered with `async with`: where a watcher or an incremental load stands.

    It is known by the asset's name, or by its URI where only that is given, and belongs to no run. Whoever opens it
    last holds it. What is saved is kept for ever, unless `set` is told otherwise.

    Args:
        asset: An Airflow `Asset` or a reference to one, an `AssetScope`, or an asset's name.
        store: As for `task_state`, and so are the others.
        max_delay: Seconds until a checkpoint is durable, at most.
        read_only: Take no lease, and do not write.

    Raises:
        InvalidArgumentError: `asset` names no asset, or another argument is of the wrong type or out of range.
        SettingsError: As for `task_state`.
    """
    if isinstance(asset, AssetScope):
        scope = asset
    else:
        scope = AssetScope(asset) if isinstance(asset, str) else AssetScope.from_airflow(asset)
    kept_in, settings = configured(store)
    return AssetState(
        scope,
        store=kept_in,
        settings=settings,
        max_delay=max_delay,
        read_only=read_only,
        only_inside=_is_of_deployment(store),
    )


def configured(store: str | Store | Channel | None) -> tuple[str | Store | Channel, Settings]:
    """The store that is given or configured, and the settings."""
    settings = load_settings()
    if store is None:
        store = settings.dsn
        check_executor(store)
    return store, settings


def _is_of_deployment(store: object) -> bool:
    """Whether a state is kept where the deployment's tasks have theirs, because no other store is named."""
    return store is None and not load_settings().dsn.startswith("memory:")


class TaskState(State):
    """One holder's handle on the state of one task; `task_state()` makes it.

    Args:
        scope: Whose state.
        on_clear: As for `task_state`.
        max_tries: Of the running task, by which a clear is known; None in a trigger.
        after_clear: Whether this is the first attempt after a clear, which is known so where Airflow has deleted the rest.
        begun: The attempt that the last clear has begun, as for `RunningTask`.
        tried: The task's attempt, where the state counts others.
        deferring: The task that defers, where it opens the state; it runs no more then.
        trigger: The class path of the trigger that the task is deferred to, where a clear owes it a call of `on_user_kill`.
        on_open: Awaited with this when it was opened for the first time, before the body.
        **options: Those of every state.
    """

    def __init__(
        self,
        scope: TaskScope,
        *,
        on_clear: OnClear | None = None,
        max_tries: int | None = None,
        after_clear: bool = False,
        begun: int | None = None,
        tried: int | None = None,
        deferring: RunningTask | None = None,
        trigger: str | None = None,
        on_open: Callable[[TaskState], Awaitable[None]] | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(scope, TaskScope):
            raise InvalidArgumentError(f"scope must be a TaskScope, not {type(scope).__name__}")
        if on_clear is not None and on_clear not in ON_CLEAR and not callable(on_clear):
            raise InvalidArgumentError(
                f"on_clear must be 'restart', 'resume' or a function, not {on_clear!r}"
            )
        super().__init__(scope, **options)
        self._task = scope
        self._on_clear = self._settings.on_clear if on_clear is None else on_clear
        self._max_tries = max_tries
        self._after_clear = after_clear
        self._begun = begun
        self._tried = tried
        self._deferring = deferring
        self._trigger = trigger
        self._on_open = on_open
        self._cleared = False
        self._owes = False
        self._found_clear = False
        self._started_over = False
        self._choice: Choice | None = None
        self._keeps_all = False

    async def __aenter__(self: S) -> S:  # noqa: PYI019 - joining gives the outer handle
        """Open the state, see `State`."""
        state = await super().__aenter__()
        if state is not self:
            return state
        on_open, self._on_open = self._on_open, None
        owes, self._owes = self._owes, False
        try:
            if owes:
                # A trigger that was killed looks for it.
                await self.flush()
            if on_open is not None:
                await on_open(self)
        except BaseException:
            await self.__aexit__(*sys.exc_info())
            raise
        return state

    @property
    def scope(self) -> TaskScope:
        """Whose state this is."""
        return self._task

    @property
    def attempt(self) -> int:
        """The attempt that holds the state; for a read-only state the newest that has held it, 0 for none."""
        self._entered()
        return self._attempt

    @property
    def cleared(self) -> bool:
        """Whether a user has cleared the task since the state was last held, as found when it was opened.

        In a trigger: whether the attempt that it belongs to began with a clear.
        """
        self._entered()
        return self._cleared

    async def _ask(self, values: dict[str, str]) -> None:
        """Ask Airflow what the user has chosen who has cleared the task."""
        self._choice = None
        if self._pending is None or self._max_tries is None or self._is_known(values):
            return
        noted, writer = values.get(MAX_TRIES), self._writer
        look = writer.look if writer is not None and writer.inline is True else None
        if noted is None:
            # Nothing was saved before, or Airflow has deleted it.
            may_be_cleared = self._after_clear if look is None else self._attempt > 1
        else:
            may_be_cleared = noted != str(self._max_tries)
        if may_be_cleared:
            from async_task_state.clear_choice import choice_at_clear  # noqa: PLC0415 - few clears, and it takes 2 ms

            tried = self._attempt if self._tried is None else self._tried
            self._choice = await choice_at_clear(self._task, tried, self._begun, look, self._deferring)

    def _begin(self, values: dict[str, str]) -> None:
        self._resumed = any(map(is_of_author, values))
        pending = self._pending
        if pending is None:
            return
        found = self._found_clear = self._finds_clear(values)
        known = self._is_known(values)
        kept = values.get(CLEARED) == f"{self._attempt}{KEPT}"
        self._keeps_all = self._choice.kept if self._choice is not None else known and kept
        self._cleared = found or (known and self._max_tries is None)
        mark = KEPT if self._keeps_all else ""
        changes: dict[str, Change] = {CLEARED: (f"{self._attempt}{mark}", None)} if found else {}
        if self._max_tries is not None and values.get(MAX_TRIES) != str(self._max_tries):
            changes[MAX_TRIES] = (str(self._max_tries), None)
        self._started_over = found and self._starts_over(values)
        if self._started_over:
            self._start_over(pending, values, changes)
            return
        # The worker says what the task is deferred to; a trigger does where that was forgotten.
        if self._max_tries is not None:
            changes |= name_trigger(values, self._trigger, self._attempt)
        elif self._trigger is not None and TRIGGER not in values:
            changes |= name_trigger({}, self._trigger, self._attempt)
        if changes:
            pending.note(changes)

    def _finds_clear(self, values: dict[str, str]) -> bool:
        """Whether a user has cleared the task since the state was last held, and nobody has acted on it yet."""
        if self._is_known(values):
            return False
        noted = values.get(MAX_TRIES)
        # Equal or not, and no more: a clear sets it by the DAG as it is then, and a scheduler that died makes attempts
        # beyond it.
        if self._max_tries is not None and noted is not None:
            return noted != str(self._max_tries)
        if self._choice is not None:
            return True
        # Airflow 3.4 deletes the note with its own store; what the cleared attempt has saved since then is left. Over
        # iterations it may be that only triggers have opened the state, which know no number of tries.
        in_turn = self._wanted_attempt is None and self._run is not None
        return self._after_clear and (in_turn or (self._is_in_airflow and asks_at_clear()))

    def _is_known(self, values: dict[str, str]) -> bool:
        """Whether the clear that the attempt began with has been acted on."""
        return values.get(CLEARED) in (str(self._attempt), f"{self._attempt}{KEPT}")

    @property
    def _is_in_airflow(self) -> bool:
        return self._writer is not None and self._writer.inline

    def _starts_over(self, values: dict[str, str]) -> bool:
        """Whether nothing of the state is left after a clear but what the author keeps."""
        choice = self._choice
        if choice is not None and choice.kept:
            return False
        if choice is not None and self._is_in_airflow and (choice.at_work or MAX_TRIES not in values):
            # Airflow has deleted the state: what there is was saved later, by the attempt that was cleared or by this one.
            return choice.at_work
        return self._on_clear != "resume"

    def _beginning(self) -> str:
        if not self._found_clear:
            return super()._beginning()
        if self._keeps_all:
            return f"{super()._beginning()}: the user who has cleared it keeps its state"
        if self._started_over:
            return "starts over: cleared by a user"
        return f"{super()._beginning()}, although a user has cleared it"

    def _start_over(self, pending: Pending, values: dict[str, str], changes: dict[str, Change]) -> None:
        """Empty the state after a clear, and keep what is owed and what the author keeps."""
        owed = owe(self._task, values, pending.lease.epoch - 1)
        kept: dict[str, Change] = {}
        if callable(self._on_clear):
            left = author_values(self._task, values)
            kept = encode_changes(self._on_clear(left), (), self._max_bytes, removing=False)
            pending.admit(kept)
            pending.room.admit_instead(pending, kept)
        self._resumed = bool(kept)
        self._owes = bool(owed)
        pending.check()
        with pending.lock:
            pending.whole(
                pending.clear,
                (),
                {**owed, **name_trigger({}, self._trigger, self._attempt), **changes, **kept},
            )
        if owed:
            log.info(
                "a user has cleared %s while it was deferred: on_user_kill is called for the attempt that was cleared, by its trigger"
                " or before the next one runs",
                self._task,
            )

    @property
    def _turn(self) -> int:
        return self._attempt

    def _joins(self, handle: State) -> bool:
        joins = super()._joins(handle)
        if joins and isinstance(handle, TaskState):
            self._cleared = handle._cleared
        return joins


class AssetState(State):
    """One holder's handle on the state of one asset; `asset_state()` makes it."""

    def __init__(self, scope: AssetScope, **options: Any) -> None:
        if not isinstance(scope, AssetScope):
            raise InvalidArgumentError(f"scope must be an AssetScope, not {type(scope).__name__}")
        super().__init__(scope, **options)
        self._asset = scope

    @property
    def scope(self) -> AssetScope:
        """Whose state this is."""
        return self._asset
