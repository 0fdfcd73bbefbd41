"""Notes of what users choose at a clear, made on the API server: the only place where Airflow 3.4 knows it.

Airflow deletes what it keeps of a task that is cleared, unless the user keeps it; a clear of a whole run, or by the
command line, leaves it and asks nobody. A task can see only whether there are rows, which is the same for the last two.
"""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from anyio import to_thread

from async_task_state.clear_choice import CHOICE, Choice
from async_task_state.scopes import TaskScope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Message, Receive, Send], Awaitable[None]]

__all__ = ["NotesOfClears", "choices_in", "noted_choice", "noted_choice_awaited", "write_choices"]

log = logging.getLogger(__name__)

CLEARS: Final = "/clearTaskInstances"


class NotesOfClears:
    """Middleware of the API server: notes what was chosen at a clear that has succeeded, before the user is told of it.

    Args:
        app: What answers the requests.
        write: Saves the choices.
    """

    def __init__(
        self, app: App, write: Callable[[list[tuple[TaskScope, Choice]]], None] | None = None
    ) -> None:
        self._app = app
        self._write = write_choices if write is None else write

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].endswith(CLEARS):
            await self._app(scope, receive, send)
            return
        asked, answered = bytearray(), bytearray()
        held: list[Message] = []

        async def receive_noted() -> Message:
            message = await receive()
            asked.extend(message.get("body", b""))
            return message

        async def send_noted(message: Message) -> None:
            held.append(message)
            answered.extend(message.get("body", b""))
            if message["type"] == "http.response.start" or message.get("more_body", False):
                return
            if held[0].get("status") == HTTPStatus.OK:
                await self._note(bytes(asked), bytes(answered))
            for each in held:
                await send(each)
            held.clear()

        await self._app(scope, receive_noted, send_noted)

    async def _note(self, asked: bytes, answered: bytes) -> None:
        try:
            choices = choices_in(asked, answered, all_discards=_is_kept_by_airflow())
            if choices:
                await to_thread.run_sync(self._write, choices)
        except Exception:
            # The clear has been made.
            log.exception("what was chosen at a clear is not noted: [async_task_state] on_clear decides")


def choices_in(asked: bytes, answered: bytes, *, all_discards: bool) -> list[tuple[TaskScope, Choice]]:
    """What was chosen for task instances, by a request that has succeeded and its answer.

    What is not kept is named where the task was running, because it may go on saving for a while.

    Args:
        asked: The body of the request.
        answered: That of the answer.
        all_discards: Whether all that is not kept is named.
    """
    from airflow.api_fastapi.core_api.datamodels.task_instances import (  # noqa: PLC0415 - of the API server
        ClearTaskInstancesBody,
    )

    body = ClearTaskInstancesBody.model_validate_json(asked)
    kept = getattr(body, "keep_task_state", None)
    if body.dry_run or kept is None:
        return []
    instances = json.loads(answered)["task_instances"]
    choices = [(_scope_of(instance), _choice_of(instance, kept=kept)) for instance in instances]
    return [(scope, choice) for scope, choice in choices if kept or all_discards or choice.at_work]


def write_choices(choices: Iterable[tuple[TaskScope, Choice]]) -> None:
    """Save choices in Airflow's own store, where the next clear deletes them, whatever backend is configured."""
    from airflow import state  # noqa: PLC0415 - of the API server
    from airflow.state.metastore import MetastoreBackend  # noqa: PLC0415
    from airflow.utils.session import create_session  # noqa: PLC0415

    # Only where it has regions is anything written.
    server_scope: Any = state.TaskScope
    backend = MetastoreBackend()
    with create_session() as session:
        for scope, choice in choices:
            theirs = server_scope(
                scope.dag_id,
                scope.run_id,
                scope.task_id,
                map_index=scope.map_index,
                region_id=scope.region_id or UUID(int=0),
            )
            backend.set(theirs, CHOICE, json.dumps(choice.value), session=session)


def noted_choice(scope: Any, session: Session | None) -> str | None:
    """The note for a task instance, past the configured backend; None where there is none.

    Args:
        scope: As Airflow's API server calls it.
        session: Of Airflow's database; a task's process has none.
    """
    if session is None:
        return None
    from airflow.state.metastore import MetastoreBackend  # noqa: PLC0415 - of the API server

    return MetastoreBackend().get(scope, CHOICE, session=session)


async def noted_choice_awaited(scope: Any, session: AsyncSession | None) -> str | None:
    """As `noted_choice`."""
    if session is None:
        return None
    from airflow.state.metastore import MetastoreBackend  # noqa: PLC0415 - of the API server

    return await MetastoreBackend().aget(scope, CHOICE, session=session)


def _is_kept_by_airflow() -> bool:
    from async_task_state.settings import load_settings  # noqa: PLC0415 - may be wrong, which is no matter of a clear
    from async_task_state.stores.airflow import DSN  # noqa: PLC0415

    return load_settings().dsn == DSN


def _scope_of(instance: dict[str, Any]) -> TaskScope:
    region, index = instance.get("region_id"), instance.get("region_index")
    return TaskScope(
        instance["dag_id"],
        instance["dag_run_id"],
        instance["task_id"],
        instance["map_index"] if index is None else index,
        UUID(region) if region else None,
    )


def _choice_of(instance: dict[str, Any], *, kept: bool) -> Choice:
    # One that runs is ended first, and only then replaced by the next attempt.
    at_work = instance["state"] == "restarting"
    return Choice(max(1, instance["try_number"] + at_work), kept, at_work)
