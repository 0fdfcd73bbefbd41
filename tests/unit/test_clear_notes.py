"""What the API server notes of clears, and that no request fares otherwise for it."""

from __future__ import annotations

import json
import logging
from uuid import UUID

import pytest

from async_task_state import TaskScope
from async_task_state.clear_choice import Choice
from async_task_state.clear_notes import NotesOfClears, choices_in
from async_task_state.compat import asks_at_clear
from async_task_state.plugin import AsyncTaskStatePlugin, notes_of_clears

pytestmark = pytest.mark.anyio

PATH = "/api/v2/dags/dag/clearTaskInstances"
REGION = UUID("01234567-89ab-7def-8123-456789abcdef")


class Server:
    """What answers requests, and the one who asks."""

    def __init__(self, status=200, body=b"{}", pieces=1):
        self.status = status
        self.pieces = [body[number::pieces] for number in range(pieces)]
        self.asked = b""
        self.sent = []

    async def __call__(self, scope, receive, send):
        while (message := await receive()).get("more_body"):
            self.asked += message["body"]
        self.asked += message["body"]
        await send({"type": "http.response.start", "status": self.status, "headers": [(b"a", b"b")]})
        *first, last = self.pieces
        for piece in first:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": last})

    async def ask(self, app, body=b"", path=PATH, method="POST"):
        messages = iter(
            [
                {"type": "http.request", "body": body[:4], "more_body": True},
                {"type": "http.request", "body": body[4:], "more_body": False},
            ]
        )

        async def receive():
            return next(messages)

        async def send(message):
            self.sent.append(message)

        await app({"type": "http", "method": method, "path": path}, receive, send)
        return self.sent[0]["status"], b"".join(message.get("body", b"") for message in self.sent[1:])


def instance(**fields):
    """As an answer has it."""
    known = {"dag_id": "dag", "dag_run_id": "run", "task_id": "task", "map_index": -1}
    return {**known, "state": None, "try_number": 2, **fields}


def answer(*instances):
    return json.dumps({"task_instances": instances, "total_entries": len(instances)}).encode()


@pytest.fixture
def noted(monkeypatch):
    """What `choices_in` was asked for."""
    noted = []
    monkeypatch.setattr("async_task_state.clear_notes._is_kept_by_airflow", lambda: False)
    monkeypatch.setattr(
        "async_task_state.clear_notes.choices_in",
        lambda asked, answered, **_: noted.append((asked, answered)) or ["choice"],
    )
    return noted


@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_clear_is_noted_before_the_user_is_told_of_it(noted, pieces):
    server = Server(body=b'{"a": 1}', pieces=pieces)
    written = []
    app = NotesOfClears(server, lambda choices: written.append((choices, len(server.sent))))
    assert await server.ask(app, b'{"dry_run": false}') == (200, b"".join(server.pieces))
    assert written == [(["choice"], 0)]
    assert noted == [(b'{"dry_run": false}', b"".join(server.pieces))]
    assert server.asked == b'{"dry_run": false}'


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/api/v2/dags/dag/dagRuns/run/clear", "POST", 200),
        ("/api/v2/dags/dag/clearTaskInstances", "GET", 200),
        ("/api/v2/dags/dag/clearTaskInstances", "POST", 409),
    ],
)
async def test_nothing_is_noted_of_anything_else(noted, path, method, status):
    server = Server(status)
    app = NotesOfClears(server, lambda _: pytest.fail("noted"))
    assert await server.ask(app, b"asked", path, method) == (status, b"{}")
    assert noted == []


async def test_what_is_no_request_passes():
    passed = []

    async def app(*given):
        passed.append(given)

    await NotesOfClears(app)({"type": "lifespan"}, None, None)
    assert passed == [({"type": "lifespan"}, None, None)]


async def test_a_note_that_cannot_be_made_is_said_in_the_log_and_fails_no_clear(noted, caplog):
    def write(_):
        raise ConnectionError("the database is away")

    server = Server()
    with caplog.at_level(logging.ERROR):
        assert await server.ask(NotesOfClears(server, write)) == (200, b"{}")
    assert "not noted" in caplog.text
    assert "the database is away" in caplog.text


def test_the_plugin_brings_it_where_airflow_asks():
    middlewares = [each["middleware"](None) for each in AsyncTaskStatePlugin.fastapi_root_middlewares]
    assert [type(each) for each in middlewares] == [NotesOfClears] * asks_at_clear()
    assert type(notes_of_clears(None)) is NotesOfClears


@pytest.mark.skipif(not asks_at_clear(), reason="Airflow asks since 3.4")
@pytest.mark.parametrize(
    ("asked", "all_discards", "expected"),
    [
        ({"keep_task_state": True}, False, [(2, True, False), (3, True, True)]),
        ({"keep_task_state": "yes"}, False, [(2, True, False), (3, True, True)]),
        ({}, False, [(3, False, True)]),
        ({"keep_task_state": False}, True, [(2, False, False), (3, False, True)]),
        ({"keep_task_state": True, "dry_run": True}, True, []),
    ],
)
def test_what_was_chosen_for_each_task_instance(asked, all_discards, expected):
    asked = json.dumps({"dry_run": False, "dag_run_id": "run", **asked}).encode()
    answered = answer(instance(), instance(task_id="runs", state="restarting"))
    choices = choices_in(asked, answered, all_discards=all_discards)
    scopes = {True: TaskScope("dag", "run", "runs"), False: TaskScope("dag", "run", "task")}
    assert choices == [
        (scopes[at_work], Choice(attempt, kept, at_work)) for attempt, kept, at_work in expected
    ]


@pytest.mark.skipif(not asks_at_clear(), reason="Airflow asks since 3.4")
@pytest.mark.parametrize(
    ("fields", "index", "region"),
    [
        ({"map_index": 4}, 4, None),
        ({"map_index": 4, "region_id": str(REGION), "region_index": 4}, 4, REGION),
        ({"region_id": str(REGION), "region_index": 2}, 2, REGION),
    ],
)
def test_an_index_and_an_iteration_are_named_as_their_state_is(fields, index, region):
    asked = json.dumps({"dry_run": False, "keep_task_state": True}).encode()
    [(scope, _)] = choices_in(asked, answer(instance(**fields)), all_discards=False)
    assert scope == TaskScope("dag", "run", "task", index, region)
