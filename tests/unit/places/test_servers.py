"""Files on servers: one that has changed is another version, and each server's files are its own."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest

from async_task_state.arrivals import Arrivals
from async_task_state.digests import digest_of
from async_task_state.files import FileWork, list_files
from async_task_state.listing import look
from async_task_state.places import Place, open_place
from async_task_state.sources import modified_before, modified_of, moment_of

pytestmark = pytest.mark.anyio

MINUTE = 60.0
JAN = 1767225600.0
"""The first of January 2026."""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Tagged(Quiet):
    """Says an ETag beside a moment."""

    tag = "one"

    def end_headers(self):
        self.send_header("ETag", f'"{type(self).tag}"')
        super().end_headers()


@contextmanager
def http_server(folder, handler=Quiet):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@contextmanager
def ftp_server(folder):
    if importlib.util.find_spec("pyftpdlib") is None:
        pytest.skip("pyftpdlib is not installed")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    # In a process of its own: it uses modules that Python warns of.
    command = [sys.executable, "-m", "pyftpdlib", "-i", "127.0.0.1", "-p", str(port), "-d", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            while not answers(port):
                assert server.poll() is None
                time.sleep(0.01)
            yield f"ftp://127.0.0.1:{port}"
        finally:
            server.kill()


def answers(port):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def write(file, text, moment):
    file.write_text(text)
    os.utime(file, (moment, moment))


def seen(source):
    missed, refused = [], []
    versions = list(look(source, missed, refused))
    assert (missed, refused) == ([], [])
    return versions


async def keys(source, identity="stat", base=None):
    return [file.key async for file in list_files(source, identity, base)]


@pytest.mark.parametrize("shape", ["file", "list"])
async def test_a_file_that_changed_over_http_is_another_version(tmp_path, allow, shape):
    pytest.importorskip("aiohttp")
    allow("http")
    file = tmp_path / "orders.csv"
    write(file, "a,b", JAN)
    with http_server(tmp_path) as address:
        url = f"{address}/orders.csv"
        source = url if shape == "file" else [url]
        [before], [key] = seen(source), await keys(source)
        assert seen(source) == [before]
        assert (before.path, before.size, before.modified) == (url, 3, JAN)
        # Of the same size.
        write(file, "x,y", JAN + MINUTE)
        [after], [changed] = seen(source), await keys(source)
    assert before.digest != after.digest
    assert key != changed
    assert after.modified == JAN + MINUTE


@pytest.mark.parametrize("source", ["a.csv", ["a.csv"], "*.csv", "."], ids=str)
async def test_a_file_that_changed_over_ftp_is_another_version(tmp_path, allow, source):
    allow("ftp")
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "a.csv"
    write(file, "a", JAN)
    with ftp_server(tmp_path) as address:
        base = f"{address}/in"
        before = await keys(source, base=base)
        assert before == [f"{base}/a.csv#1,20260101000000"] == await keys(source, base=base)
        write(file, "b", JAN + MINUTE)
        assert await keys(source, base=base) == [f"{base}/a.csv#1,20260101000100"]


async def test_a_tag_beside_a_moment_tells_versions_of_one_second_apart(tmp_path, allow, monkeypatch):
    pytest.importorskip("aiohttp")
    allow("http")
    write(tmp_path / "a", "a", JAN)
    with http_server(tmp_path, Tagged) as address:
        [before], [key] = seen(f"{address}/a"), await keys(f"{address}/a")
        monkeypatch.setattr(Tagged, "tag", "two")
        [after], [changed] = seen(f"{address}/a"), await keys(f"{address}/a")
    assert before.digest != after.digest
    assert key != changed
    assert before.modified == after.modified == JAN


async def test_a_path_on_two_servers_is_two_files(tmp_path, allow, make_state):
    allow("ftp")
    for name, text in (("h1", "one"), ("h2", "two")):
        (tmp_path / name / "in").mkdir(parents=True)
        write(tmp_path / name / "in" / "export.csv", text, JAN)
    read = []

    def note(path):
        read.append(path.read_text())

    with ftp_server(tmp_path / "h1") as first, ftp_server(tmp_path / "h2") as second:
        urls = [f"{address}/in/export.csv" for address in (first, second)]
        async with make_state() as state:
            for address, url in zip((first, second), urls, strict=True):
                base = f"{address}/in"
                assert await keys("export.csv", "path", base) == [url]
                result = await FileWork(source="export.csv", base=base, processor=note).run(state)
                assert (result["done"], result["skipped"]) == (1, 0)
    assert read == ["one", "two"]


@pytest.mark.parametrize(
    ("protocol", "options", "expected"),
    [
        ("sftp", {"host": "h1"}, "sftp://h1/in/a"),
        ("ftp", {"host": "h1", "port": 2121}, "ftp://h1:2121/in/a"),
        ("smb", {"host": "h1", "username": "ann", "password": "secret"}, "smb://ann@h1/in/a"),
        ("webhdfs", {"host": "h1", "port": 50070, "user": "a@b"}, "webhdfs://a%40b@h1:50070/in/a"),
        ("memory", {}, "memory:///in/a"),
    ],
)
async def test_a_files_url_names_its_host_and_no_password(protocol, options, expected):
    kind = type("Server", (fsspec.AbstractFileSystem,), {"protocol": protocol, "cachable": False})
    assert Place(kind(**options), "/in").url_of("/in/a") == expected


async def test_local_files_and_objects_are_called_what_they_were(tmp_path, allow):
    allow("memory")
    assert Place(fsspec.filesystem("file"), "/in").url_of("/in/a") == "/in/a"
    assert open_place("memory://in").url_of("/in/a") == "memory:///in/a"


S3 = {"LastModified": "T", "ETag": "e"}


@pytest.mark.parametrize(
    ("info", "modified", "before", "moment"),
    [
        ({"mtime": 5.5, "created": 1.0, "ino": 3}, 5.5, None, 5.5),
        ({"created": JAN}, JAN, None, JAN),
        ({}, None, None, None),
        ({"ETag": "e"}, "e", None, None),
        (S3, "T,e", "T", None),
        (
            {"last_modified": "2026-01-01T00:00:00Z", "etag": "e"},
            "2026-01-01T00:00:00Z,e",
            "2026-01-01T00:00:00Z",
            JAN,
        ),
        ({"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}, "Thu, 01 Jan 2026 00:00:00 GMT", None, JAN),
        ({"Last-Modified": "x", "ETag": "e"}, "x,e", "e", None),
        ({"modify": "20260101000000"}, "20260101000000", None, JAN),
        ({"modify": "20260101000000.123"}, "20260101000000.123", None, JAN),
        ({"modificationTime": int(JAN * 1000)}, int(JAN * 1000), None, JAN),
    ],
)
async def test_what_file_systems_say_of_a_change(info, modified, before, moment):
    assert (modified_of(info), modified_before(info), moment_of(info)) == (modified, before, moment)


@pytest.mark.filterwarnings("ignore:UPath")
async def test_what_an_older_state_has_done_or_reported_is_so_still(remembers, monkeypatch, make_state):
    """By its moment alone, without the tag that now stands beside it."""
    listing = remembers.ls
    monkeypatch.setattr(remembers, "modified", "T")
    monkeypatch.setattr(
        remembers, "ls", lambda self, path, **_: [{**each, "etag": "e"} for each in listing(self, path)]
    )
    [version] = seen("remembers:///x")
    assert version.earlier == digest_of("remembers:///x#1,T")
    older = Arrivals({"reported:0000000000": b64encode(version.earlier).decode()})
    assert older.see([version], [], 0) == []
    assert Arrivals({}).see([version], [], 0) == [version]
    work = FileWork(source="remembers:///x", processor=print)
    async with make_state() as state:
        await state.work("files").done("remembers:///x#1,T")
        assert (await work.run(state))["skipped"] == 1
    assert await keys("remembers:///x") == ["remembers:///x#1,T,e"]
