"""Where a source may not be: what chains file systems, and what nobody allowed."""

from __future__ import annotations

import subprocess
import sys

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from placekit import names, read
from upath import UPath

from async_task_state import SourceError, SourceNotAllowedError
from async_task_state.files import FileWork
from async_task_state.listing import look
from async_task_state.operators import ProcessFilesOperator
from async_task_state.places import MAX_CHARS, MAX_FOLDERS, check_allowed, open_place
from async_task_state.triggers import NewFilesTrigger, ProcessFilesTrigger

# What ran code before fsspec 2026.6; the template stands where a reader of the file would find a URL.
RUNS_CODE = "reference::data:application/json;base64,eyJ2ZXJzaW9uIjogMX0="

CHAINED = (
    RUNS_CODE,
    "simplecache::http://127.0.0.1:1/x",
    "filecache::s3://bucket/x",
    "zip://*.csv::/in/all.zip",
    "tar::file:///in/all.tar",
    "/in/a::b",
    "::",
    "file:///in/::x",
    "s3://bucket/a::b",
    "reference%3A%3Adata:x",
    "reference%3a:data:x",
    "reference%253A%253Adata:x",
    "reference%25253A%25253Adata:x",
    "s3://bucket/%3A%3A",
)
OTHERS = (
    "http://127.0.0.1:1/x",
    "https://127.0.0.1/x",
    "ftp://127.0.0.1/x",
    "sftp://127.0.0.1/x",
    "ssh://127.0.0.1/x",
    "smb://127.0.0.1/x",
    "webdav+http://127.0.0.1/x",
    "webhdfs://127.0.0.1/x",
    "hdfs://127.0.0.1/x",
    "hf://datasets/x",
    "github://owner:repo@main/x",
    "git://x",
    "gist://x",
    "jlab://x",
    "memory://x",
    "reference://x",
    "simplecache://x",
    "dir://x",
    "zip://x",
    "adl://store/x",
    "local:///in/x",
    "asynclocal:///in/x",
    "generic://x",
    "unheard-of://x",
    "://x",
    "a://x",
    "HTTP://127.0.0.1/x",
    "S3://bucket/x",
    "File:///in/x",
    " http://127.0.0.1/x",
    "\thttp://127.0.0.1/x",
    "ht\ntp://127.0.0.1/x",
    "/in/http://127.0.0.1/x",
)
UNCLEAR = (
    "data:,text",
    "data:application/json;base64,e30=",
    "http:/127.0.0.1/x",
    "memory:/x",
    "file:/in/x",
    "file:in/x",
    "local:/in/x",
    "C:/x",
    "file://host/in/x",
    "file://in/x",
    "file://",
    "s3://key:secret@bucket/x",
    "s3://conn@bucket/x",
    "abfs://container@account.dfs.core.windows.net/x",
    "s3://buck*/x",
    "s3://[bucket]/x",
    "s3://bucket/a\tb",
    "s3://bucket/a\nb",
    "/in/a\x00b",
    "/in/a%00b",
    "/in/\ud800",
    "x" * (MAX_CHARS + 1),
    "/" * (MAX_FOLDERS + 1),
)


@pytest.mark.parametrize("source", [*CHAINED, *OTHERS, *UNCLEAR], ids=lambda source: repr(source[:40]))
@pytest.mark.parametrize("as_list", [False, True], ids=["one", "listed"])
def test_g8_a_source_that_nobody_allowed_is_refused_at_the_call(source, as_list):
    source = ["/in", source] if as_list else source
    for call in (
        lambda: check_allowed(source),
        lambda: ProcessFilesTrigger(source, "a.b"),
        lambda: NewFilesTrigger(source, asset="orders"),
        lambda: ProcessFilesOperator(task_id="t", source=source, processor=read, deferrable=False).execute(
            {}
        ),
        lambda: ProcessFilesOperator(
            task_id="t", source=source, processor="os.stat", deferrable=True
        ).execute({}),
        lambda: list(look(source, [], [])),
        lambda: names(source),
    ):
        with pytest.raises(SourceNotAllowedError, match=r"^the source .* is not allowed|^a source of"):
            call()


@pytest.mark.parametrize(
    "source", ["/in", "in", "./a:b", "/in/a:b", "file:///in/*", "~/in", "..", "s3://bucket/a:b/*.csv"]
)
def test_what_is_plainly_a_path_or_an_allowed_url_is_allowed(source):
    check_allowed(source)
    check_allowed([source, source])


@pytest.mark.parametrize("protocol", ["s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"])
def test_the_object_stores_are_allowed_by_default(protocol):
    check_allowed(f"{protocol}://bucket/in/*.csv")


def test_the_setting_says_which_protocols_are_allowed(allow):
    allow("memory")
    check_allowed("memory://bucket/in")
    with pytest.raises(
        SourceNotAllowedError, match=r"'s3' is none of \[async_task_state\] allowed_protocols \(memory\)"
    ):
        check_allowed("s3://bucket/in")
    allow()
    with pytest.raises(SourceNotAllowedError, match=r"allowed_protocols \(empty\)"):
        check_allowed("memory://bucket/in")
    check_allowed("/in")


def test_a_chain_is_refused_whatever_the_setting_says(allow):
    allow("reference", "data", "simplecache", "memory")
    for source in (RUNS_CODE, "simplecache::memory://x"):
        with pytest.raises(SourceNotAllowedError, match="chains file systems"):
            check_allowed(source)


def test_no_password_in_the_message():
    with pytest.raises(SourceNotAllowedError) as caught:
        check_allowed("ftp://user:hunter2@host/x")
    assert "hunter2" not in str(caught.value)


def test_a_chain_in_an_object_of_universal_pathlib_is_refused(allow):
    allow("memory", "simplecache")
    with pytest.raises(SourceNotAllowedError, match="chains"):
        ProcessFilesTrigger(UPath("simplecache::memory://x"), "a.b")


def test_an_implementation_under_the_name_of_another_is_refused(allow, monkeypatch):
    allow("s3", "az")
    monkeypatch.setitem(_registry, "s3", fsspec.get_filesystem_class("reference"))
    with pytest.raises(SourceNotAllowedError, match="stands for ReferenceFileSystem here"):
        open_place("s3://bucket/x")
    monkeypatch.setitem(_registry, "s3", LocalFileSystem)
    with pytest.raises(SourceNotAllowedError, match="stands for LocalFileSystem here"):
        open_place("s3://bucket/x")


def test_a_protocol_without_an_implementation_is_an_error_of_ours(allow):
    allow("unheard-of")
    with pytest.raises(SourceError, match="'unheard-of' cannot be used here"):
        open_place("unheard-of://x")


class Steered(MemoryFileSystem):
    """An implementation that a URL tells which host to ask."""

    protocol = "steered"
    asked: list[str] = []  # noqa: RUF012 - of the test

    def __init__(self, endpoint=None, **options):
        super().__init__(**options)
        self.asked.append(endpoint)

    @staticmethod
    def _get_kwargs_from_urls(path):
        if "broken" in path:
            raise ValueError("broken")
        return {"endpoint": path.partition("?endpoint=")[2]} if "?endpoint=" in path else {}


@pytest.fixture
def steered(allow):
    allow("steered")
    fsspec.register_implementation("steered", Steered, clobber=True)
    Steered.asked.clear()
    Steered.clear_instance_cache()
    return Steered.asked


def test_a_url_that_sets_options_is_refused(steered):
    with pytest.raises(
        SourceNotAllowedError, match="it sets endpoint, which is left to base or to the environment"
    ):
        open_place("steered://bucket/x?endpoint=http://127.0.0.1")
    with pytest.raises(SourceNotAllowedError, match="Steered does not understand it"):
        open_place("steered://bucket/broken")
    assert steered == []


def test_the_options_of_base_are_its_authors(steered):
    base = "steered://bucket/x?endpoint=e"
    assert open_place(base, base).file_system.storage_options == {"endpoint": "e"}
    with pytest.raises(SourceNotAllowedError, match="sets endpoint"):
        open_place("steered://bucket/in?endpoint=evil", "steered://bucket")


@pytest.mark.filterwarnings("ignore:UPath 'steered' filesystem not explicitly implemented")
def test_a_listed_name_that_sets_options_is_not_opened(steered):
    place = open_place("steered://bucket")
    assert place.path_of("/bucket/x").protocol == "steered"
    with pytest.raises(SourceNotAllowedError, match="its name sets endpoint"):
        place.path_of("/bucket/x?endpoint=evil")
    assert steered == [None]


def test_a_listed_name_that_is_a_url_of_another_protocol_is_not_opened(bucket):
    with pytest.raises(SourceNotAllowedError, match="URL of another protocol"):
        open_place("memory://bucket").path_of("http://127.0.0.1/x")


@pytest.mark.anyio
@pytest.mark.parametrize("name", [RUNS_CODE.replace("/", "-"), "a::b", "a%3A%3Ab"])
async def test_a_file_whose_name_chains_fails_alone_and_is_not_reported(make_state, tmp_path, name):
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "good").write_text("12345")
    (inbox / name).write_text("")
    async with make_state() as state:
        result = await FileWork(source=str(inbox), processor=read, on_error="collect").run(state)
    assert (result["done"], result["failed"], result["totals"]) == (1, 1, {"bytes": 5})
    assert "chains file systems" in result["failures"][0]["error"]
    missed, refused = [], []
    assert [version.path for version in look(str(inbox), missed, refused)] == [str(inbox / "good")]
    assert (missed, len(refused)) == ([], 1)


RENDERING = """
import base64, json, sys
import jinja2
from fsspec.core import url_to_fs
from fsspec.implementations.reference import ReferenceFileSystem
from async_task_state import SourceNotAllowedError
from async_task_state.listing import look
from async_task_state.triggers import ProcessFilesTrigger

def rendering(self, gens):
    return {jinja2.Template(gen["key"]).render(): [gen["url"]] for gen in gens}

ReferenceFileSystem._process_gen = rendering
template = "{{ cycler.__init__.__globals__.os.system('touch %s') }}" % sys.argv[1]
references = {"version": 1, "refs": {}, "gen": [{"key": template, "url": "file:///x", "dimensions": {}}]}
source = "reference::data:application/.json;base64," + base64.b64encode(json.dumps(references).encode()).decode()
if sys.argv[2] == "ours":
    for ask in (lambda: list(look(source, [], [])), lambda: ProcessFilesTrigger(source, "os.stat")):
        try:
            ask()
        except SourceNotAllowedError:
            print("refused")
else:
    url_to_fs(source)
"""
"""What fsspec did before 2026.6 with a template that a source brings, which no sandbox held."""


@pytest.mark.parametrize(("asked", "refusals", "ran"), [("ours", 2, False), ("fsspec", 0, True)])
def test_a_template_that_runs_code_is_never_rendered(tmp_path, asked, refusals, ran):
    command = [sys.executable, "-W", "ignore", "-c", RENDERING, str(tmp_path / "ran"), asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert (done.stdout.count("refused"), (tmp_path / "ran").exists()) == (refusals, ran)
