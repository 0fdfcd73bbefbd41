"""Globs match what fnmatch, pathlib and fsspec say, and in a time that no pattern can make long."""

from __future__ import annotations

import fnmatch
import re
import threading
import time

import pytest
from fsspec.utils import glob_translate
from hypothesis import example, given
from hypothesis import strategies as st

from async_task_state import SourceError
from async_task_state.globs import Glob, Wildcard, magic_at

NAMES = st.text("ab-]![^.*\n\\é", max_size=8)
SEGMENTS = st.text("ab*?[]!-^.\\\n", max_size=10)


def has_reversed_range(pattern):
    """Is empty; fnmatch then reads what is left of its set again, as a negation where that begins with a "!"."""
    return any(low > high for low, high in re.findall(r"(?s)(?=(.)-(.))", pattern))


@given(SEGMENTS, NAMES)
@example("[]]", "]")
@example("[!]]", "]")
@example("[!]", "[!]")
@example("[a", "[a")
@example("[a-]", "-")
@example("[--a]", "A")
@example("[^a]", "^")
@example("*a*b", "aabb")
@example("?*?", "a")
def test_a_wildcard_matches_what_fnmatch_says(pattern, name):
    if not has_reversed_range(pattern):
        assert Wildcard(pattern).matches(name) == fnmatch.fnmatchcase(name, pattern)


def test_a_reversed_range_is_empty():
    assert not Wildcard("[b-a]").matches("a")
    assert not Wildcard("[b-a]").matches("b")
    assert Wildcard("[!b-a]").matches("b")
    assert Wildcard("[b-ac]").matches("c")


PARTS = st.one_of(
    st.just("**"), st.text("ab*?", min_size=1, max_size=3).filter(lambda part: "**" not in part)
)
PATHS = st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=5).map("/".join)


@given(st.lists(PARTS, min_size=1, max_size=5).map("/".join), PATHS)
@example("**", "a")
@example("a/**", "a")
@example("a/**/b", "a/b")
@example("**/**/a", "a")
@example("**/*", "a")
def test_a_glob_matches_what_fsspec_says(pattern, path):
    assert Glob(pattern).matches(path) == bool(re.match(glob_translate(pattern), path))


@pytest.fixture
def names(tmp_path):
    for name in ("a", "b/a", "b/b/a", "b/b/ab", "ab/a.b", "ab/b", "c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    "pattern", ["*", "*/*", "**/a", "b/**/a", "**/b/*", "a*", "?", "[ab]/[!b]*", "**/[b]/*", "b/**/*"]
)
def test_a_glob_matches_what_pathlib_says(names, pattern):
    glob = Glob(pattern)
    files = {path.relative_to(names).as_posix() for path in names.rglob("*") if path.is_file()}
    expected = {path.relative_to(names).as_posix() for path in names.glob(pattern) if path.is_file()}
    assert {file for file in files if glob.matches(file)} == expected


@pytest.mark.parametrize("pattern", ["a**", "**.csv", "x/**y/z", "***"])
def test_stars_that_are_a_part_of_a_folder_are_refused(pattern):
    with pytest.raises(SourceError, match=r"\*\* must be a whole folder"):
        Glob(pattern)


@pytest.mark.parametrize(
    ("pattern", "depth"), [("*", 1), ("a/*/b", 3), ("**", None), ("a/**/b", None), ("a/*b", 2)]
)
def test_how_deep_the_files_of_a_glob_lie(pattern, depth):
    assert Glob(pattern).depth == depth


def test_where_a_pattern_begins():
    assert [magic_at(text) for text in ("a/b", "a*", "a/?", "[")] == [None, 1, 2, 0]
    assert magic_at("[a]/b*", 3) == 5


# Each would take years with a matcher that goes back, and a regular expression would hold the interpreter's lock as long.
@pytest.mark.parametrize(
    "pattern",
    [
        "*?" * 40 + "\x01",
        "*a" * 40 + "b",
        "*[ab]" * 40 + "c",
        "*" * 100 + "?" * 100 + "\x01",
        "*a*" * 60 + "b",
    ],
)
def test_a_hostile_wildcard_is_matched_at_once(pattern):
    began = time.process_time()
    for _ in range(100):
        assert not Wildcard(pattern).matches("a" * 255)
    # 10 ms each are a hundred times what it takes.
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "pattern", ["**/a/" * 30 + "b", "**/*?/" * 30 + "b", "**/" * 100 + "b", "**/*/" * 30 + "b"]
)
def test_a_hostile_glob_is_matched_at_once(pattern):
    began = time.process_time()
    assert not Glob(pattern).matches("a/" * 60 + "a")
    assert time.process_time() - began < 1


def test_other_threads_run_while_a_hostile_wildcard_is_matched():
    done, turns = threading.Event(), 0
    wildcard = Wildcard("*[!b]" * 800 + "b")

    def match():
        for _ in range(200):
            wildcard.matches("a" * 4000)
        done.set()

    thread = threading.Thread(target=match)
    thread.start()
    while not done.is_set():
        time.sleep(0)
        turns += 1
    thread.join()
    assert turns > 10


def test_a_segment_that_comes_many_times_is_matched_once_a_name(monkeypatch):
    tried = []
    matches = Wildcard.matches

    def counted(self, text):
        tried.append(text)
        return matches(self, text)

    monkeypatch.setattr(Wildcard, "matches", counted)
    glob = Glob("**/" + "*/" * 120 + "a*/" * 120 + "*")
    assert glob.matches("/".join(["a"] * 300))
    assert len(tried) <= 2 * 300
