"""A small service that runs jobs: it counts what is asked of it, and a test says when they end.

`POST /jobs` begins one and answers with its address; the same `Idempotency-Key` gives the same job. `GET` of that
address gives its status, and `DELETE` cancels it, with 409 if it has ended; both answer 404 where there is none.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class JobServer:
    """Serves from threads of its own; a context manager.

    Attributes:
        calls: How often the jobs of a name were submitted, polled and cancelled, as in `calls["submit", "a"]`.
    """

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self._jobs: dict[int, dict[str, Any]] = {}
        self._lost: dict[int, str] = {}
        self._begun = 0
        self._held: dict[str, threading.Event] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> JobServer:  # noqa: PYI034 - nobody derives from it
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for call in list(self._held):
            self.answer(call)
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def jobs(self, name: str) -> list[str]:
        """The statuses of the jobs of a name, the oldest first."""
        with self._lock:
            return [job["status"] for job in self._jobs.values() if job["name"] == name]

    def end(self, name: str, status: str = "SUCCEEDED") -> None:
        """End the jobs of a name that are running."""
        with self._lock:
            for job in self._jobs.values():
                if job["name"] == name and job["status"] == "RUNNING":
                    job["status"] = status

    def lose(self, name: str) -> None:
        """Forget the jobs of a name, as a service does that was set up anew."""
        with self._lock:
            for number in [number for number, job in self._jobs.items() if job["name"] == name]:
                self._lost[number] = self._jobs.pop(number)["name"]

    def hold(self, call: str) -> None:
        """Do what is asked, and do not answer."""
        self._held[call] = threading.Event()

    def answer(self, call: str) -> None:
        """Answer again."""
        self._held.pop(call).set()

    def submit(self, name: str, key: str | None) -> int:
        with self._lock:
            self.calls["submit", name] += 1
            for number, job in self._jobs.items():
                if key is not None and job["key"] == key:
                    return number
            self._begun += 1
            self._jobs[self._begun] = {"name": name, "key": key, "status": "RUNNING"}
            return self._begun

    def poll(self, number: int) -> tuple[HTTPStatus, dict[str, str]]:
        with self._lock:
            self.calls["poll", self._name(number)] += 1
            if number not in self._jobs:
                return HTTPStatus.NOT_FOUND, {}
            return HTTPStatus.OK, {"status": self._jobs[number]["status"]}

    def cancel(self, number: int) -> HTTPStatus:
        with self._lock:
            self.calls["cancel", self._name(number)] += 1
            if number not in self._jobs:
                return HTTPStatus.NOT_FOUND
            job = self._jobs[number]
            if job["status"] != "RUNNING":
                return HTTPStatus.CONFLICT
            job["status"] = "CANCELLED"
            return HTTPStatus.OK

    def _name(self, number: int) -> str:
        job = self._jobs.get(number)
        return self._lost.get(number, "") if job is None else str(job["name"])

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                number = server.submit(body["name"], self.headers["Idempotency-Key"])
                self.answer("submit", {"url": f"{server.url}/jobs/{number}"})

            def do_GET(self) -> None:
                code, document = server.poll(self.number)
                self.answer("poll", document, code)

            def do_DELETE(self) -> None:
                self.answer("cancel", {}, server.cancel(self.number))

            @property
            def number(self) -> int:
                return int(self.path.rpartition("/")[2])

            def answer(self, call: str, document: Any, code: HTTPStatus = HTTPStatus.OK) -> None:
                if call in server._held:
                    server._held[call].wait()
                text = json.dumps(document).encode()
                try:
                    self.send_response(code)
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text)
                except ConnectionError:
                    # Who asked has been killed.
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        return Handler
