"""A small service that runs jobs, with the functions by which a task calls it.

A job has the name that it was submitted with, and runs until a test ends it. The server counts what is asked of it.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import httpx

URL_VARIABLE = "JOB_SERVER_URL"


class JobServer:
    """Serves from a thread of its own; a context manager.

    Attributes:
        jobs: Every job there is, by id: `name`, `key` and `status`.
        calls: How often each job, by name, was submitted, polled and cancelled, as in `calls["submit", "a"]`.
        hold: While it is clear, the answer to a submission is not sent, though the job has begun.
    """

    def __init__(self) -> None:
        self.jobs: dict[int, dict[str, Any]] = {}
        self.calls: Counter[tuple[str, str]] = Counter()
        self.hold = threading.Event()
        self.hold.set()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> JobServer:  # noqa: PYI034 - nobody derives from it
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hold.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def named(self, name: str) -> list[dict[str, Any]]:
        """The jobs of that name, the oldest first."""
        with self._lock:
            return [{"id": number, **job} for number, job in self.jobs.items() if job["name"] == name]

    def end(self, name: str, status: str = "SUCCEEDED") -> None:
        """End the jobs of that name that are running."""
        with self._lock:
            for job in self.jobs.values():
                if job["name"] == name and job["status"] == "RUNNING":
                    job["status"] = status

    def submit(self, name: str, key: str | None) -> int:
        with self._lock:
            self.calls["submit", name] += 1
            for number, job in self.jobs.items():
                if key is not None and job["key"] == key:
                    return number
            self.jobs[len(self.jobs) + 1] = {"name": name, "key": key, "status": "RUNNING"}
            return len(self.jobs)

    def poll(self, number: int) -> str:
        with self._lock:
            self.calls["poll", self.jobs[number]["name"]] += 1
            return self.jobs[number]["status"]

    def cancel(self, number: int) -> bool:
        """Whether there was anything to cancel."""
        with self._lock:
            job = self.jobs[number]
            self.calls["cancel", job["name"]] += 1
            running = job["status"] == "RUNNING"
            if running:
                job["status"] = "CANCELLED"
            return running

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "{}")
                number = server.submit(body["name"], self.headers["Idempotency-Key"])
                server.hold.wait()
                self.answer({"id": number})

            def do_GET(self) -> None:
                self.answer({"status": server.poll(self.number)})

            def do_DELETE(self) -> None:
                self.answer({}, HTTPStatus.OK if server.cancel(self.number) else HTTPStatus.CONFLICT)

            @property
            def number(self) -> int:
                return int(urlsplit(self.path).path.rpartition("/")[2])

            def answer(self, document: dict[str, Any], code: HTTPStatus = HTTPStatus.OK) -> None:
                text = json.dumps(document).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


async def request(method: str, path: str, **options: Any) -> Any:
    async with httpx.AsyncClient(base_url=os.environ[URL_VARIABLE], trust_env=False) as client:
        response = await client.request(method, path, timeout=30, **options)
    response.raise_for_status()
    return response.json()


async def submit(name: str, idempotency_key: str) -> int:
    answer = await request("POST", "/jobs", json={"name": name}, headers={"Idempotency-Key": idempotency_key})
    return answer["id"]


async def submit_without_key(name: str) -> int:
    return (await request("POST", "/jobs", json={"name": name}))["id"]


async def poll(job_id: int) -> str:
    return (await request("GET", f"/jobs/{job_id}"))["status"]


async def cancel(job_id: int) -> None:
    await request("DELETE", f"/jobs/{job_id}")


async def result(job_id: int) -> dict[str, int]:
    return {"job": job_id}
