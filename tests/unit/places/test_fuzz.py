"""Whatever a source is, it is listed within its base or refused in words, and nothing that is not allowed is ever made."""

from __future__ import annotations

import os

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from placekit import handed_over

from async_task_state import InvalidArgumentError, SourceError
from async_task_state.places import check_allowed, open_place
from async_task_state.sources import check_source

PIECES = st.sampled_from(
    [
        "/", "//", ":", "::", "://", ".", "..", "~", "*", "**", "?", "[", "]", "!", "-", "@", "#", "%", "%2e", "%2F", "%3A",
        "%253a", "%00", "\\", "\x00", "\n", " ", "\ud800", "\udcff", "é", "a", "a.csv", "deep", "b.csv", "link.csv", "out",
        "within", "loop", "secret.csv", "{base}", "{parent}", "in", "bucket", "file", "local", "data", "memory", "s3", "gs",
        "reference", "simplecache", "zip", "http", "HTTP", "ftp", "base64,", "?versionId=", "127.0.0.1:1",
    ]
)  # fmt: skip
URLS = st.tuples(
    st.sampled_from(sorted(fsspec.available_protocols())), st.sampled_from(["://", ":/", ":", "::", "%3A%3A"])
).map("".join)
TEXTS = st.one_of(
    st.lists(PIECES, max_size=8).map("".join),
    st.tuples(URLS, st.lists(PIECES, max_size=6).map("".join)).map("".join),
    st.text(max_size=20),
    st.text(st.characters(categories=["Cs", "Cc", "Po", "Sm"]), max_size=20),
)
SOURCES = st.one_of(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
FUZZED = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=300
)


@pytest.fixture
def made(monkeypatch):
    """The classes of all file systems that fsspec is asked to make."""
    made = set()
    making = fsspec.spec._Cached.__call__

    def noting(cls, *args, **options):
        made.add(cls)
        return making(cls, *args, **options)

    monkeypatch.setattr(fsspec.spec._Cached, "__call__", noting)
    return made


def filled(source, base):
    """The source with the names of its base and what is around that, as a list or alone."""

    def fill(text):
        return text.replace("{base}", base).replace("{parent}", base.rpartition("/")[0])

    return fill(source) if isinstance(source, str) else [fill(text) for text in source]


def listed(source, base):
    """What is handed over; nothing where the source is refused in words."""
    try:
        source = filled(source, base)
        check_source(source)
        return [str(path) for path in handed_over(source, base)[0]]
    except (SourceError, InvalidArgumentError) as error:
        if not str(error):
            raise
        return []


@FUZZED
@given(SOURCES)
@example("memory://bucket/x")
@example("[")
@example("**x")
@example("/" * 200)
@example("a" * 300)
@example("*" * 300)
@example("loop/x")
@example("a.csv/*")
def test_no_source_leaves_its_base_or_raises_anything_else(folder, made, source):
    for path in listed(source, str(folder)):
        assert f"{os.path.realpath(path)}/".startswith(f"{folder}/")
        if isinstance(source, str):
            assert path.rpartition("/")[2] in ("a.csv", "b.csv", "c.txt")
    assert made <= {LocalFileSystem}


@FUZZED
@given(SOURCES)
@example("**")
@example("{base}/**/*.csv")
def test_no_source_leaves_a_base_that_is_a_url(bucket, made, source):
    for path in listed(source, bucket):
        assert f"{path}/".startswith("memory://bucket/in/")
        assert "/../" not in path
    assert made <= {MemoryFileSystem}


@FUZZED
@given(TEXTS)
def test_no_source_makes_what_is_not_allowed(bucket, folder, made, source):
    source = filled(source, str(folder))
    try:
        check_source(source)
        place = open_place(source)
    except (SourceError, InvalidArgumentError) as error:
        if not str(error):
            raise
    else:
        check_allowed(source)
        assert type(place.file_system) in made
    # s3 is allowed here, and has no implementation.
    assert made <= {LocalFileSystem, MemoryFileSystem}
