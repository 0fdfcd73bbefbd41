"""What a look at a source shows is what its file system has."""

from __future__ import annotations

import os
import zipfile

import fsspec
import pytest

from async_task_state.files import list_files
from async_task_state.listing import look
from async_task_state.places import Place
from async_task_state.sources import found

FILES = ("a.csv", "b.txt", "deep/c.csv", "deep/deeper/d.csv", "deep/deeper/e", "other/f[1].csv", "z")
PATTERNS = (
    "*",
    "*.csv",
    "?.csv",
    "**",
    "**/*.csv",
    "deep/*",
    "*/*.csv",
    "d*/**/[cd].csv",
    "deep/*/*",
    "no*thing",
)


@pytest.fixture(params=["local", "memory", "flat"])
def place(request, tmp_path, monkeypatch, allow):
    """A folder with those files."""
    allow("memory")
    if request.param == "local":
        file_system, folder = fsspec.filesystem("file"), str(tmp_path / "in")
    else:
        file_system, folder = fsspec.filesystem("memory"), "memory://in"
    # A file system that is asynchronous within is listed as an object store is.
    monkeypatch.setattr(type(file_system), "async_impl", request.param == "flat")
    for name in FILES:
        file_system.makedirs(f"{folder}/{name}".rpartition("/")[0], exist_ok=True)
        file_system.pipe(f"{folder}/{name}", name.encode())
    yield folder
    file_system.rm(folder, recursive=True)


def seen(source):
    missed, refused = [], []
    versions = list(look(source, missed, refused))
    assert not missed
    assert not refused
    return versions


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_glob_matches_what_its_file_system_says(place, pattern):
    file_system, root = fsspec.core.url_to_fs(f"{place}/{pattern}")
    expected = [name for name, info in file_system.glob(root, detail=True).items() if info["type"] == "file"]
    paths = sorted(version.path for version in seen(f"{place}/{pattern}"))
    assert [fsspec.core.url_to_fs(path)[1] for path in paths] == expected


@pytest.mark.parametrize("pattern", ["*", "*.csv", "*/*.csv", "**/*.csv", "deep/*", "*/deeper/*"])
def test_a_glob_in_an_archive_matches_what_it_holds(tmp_path, pattern):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in FILES:
            archive.writestr(name, name)
    source = f"zip://{pattern}::{tmp_path}/all.zip"
    file_system, root = fsspec.core.url_to_fs(source)
    expected = [name for name, info in file_system.glob(root, detail=True).items() if info["type"] == "file"]
    missed = []
    found_here = [
        name for name, info in found(Place(file_system, root), missed.append) if info["type"] == "file"
    ]
    assert (sorted(found_here), missed) == (sorted(expected), [])
    assert expected


@pytest.mark.asyncio
async def test_the_files_and_their_names_are_those_that_are_processed(place):
    for source in (place, f"{place}/z", [f"{place}/a.csv", f"{place}/deep/c.csv"]):
        processed = {file.key.rpartition("#")[0] async for file in list_files(source, "stat")}
        assert {version.path for version in seen(source)} == processed


@pytest.mark.parametrize(
    "pattern",
    ["*?" * 40 + "\x01", "**/" + "*?" * 40 + "\x01", "**/*/" * 40 + "z", "**/" * 99 + "*?" * 40 + "\x01"],
)
def test_a_hostile_glob_reaches_no_regular_expression(place, pattern, monkeypatch):
    # Each would take years there, and hold the interpreter's lock for as long.
    monkeypatch.setattr(fsspec.AbstractFileSystem, "glob", None)
    file_system, folder = fsspec.core.url_to_fs(place)
    file_system.pipe(f"{folder}/deep/{'a' * 200}", b"")
    missed = []
    assert list(found(Place(file_system, f"{folder}/{pattern}", len(folder)), missed.append)) == []
    assert missed == []


@pytest.mark.parametrize("pattern", ["**", "**/a", "**/**/**/a", "**/0/**/0/**/a", "*/*/*/**/a"])
def test_each_folder_of_a_deep_tree_is_listed_once(tmp_path, pattern, monkeypatch):
    deep = tmp_path
    for _ in range(60):
        deep /= "0"
        (deep / "1").mkdir(parents=True)
        (deep / "loop").symlink_to(tmp_path)
    (deep / "a").touch()
    listings = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listings.append(path) or scandir(path))
    assert [version.path for version in seen(f"{tmp_path}/{pattern}")] == [str(deep / "a")]
    assert len(listings) == len(set(listings)) == 121


def test_a_glob_lists_only_folders_that_may_hold_matches(tmp_path, monkeypatch):
    for name in ("a1/x/f", "a2/y/f", "b/x/f"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    listings = []
    scandir = os.scandir
    monkeypatch.setattr(
        os, "scandir", lambda path: listings.append(os.path.relpath(path, tmp_path)) or scandir(path)
    )
    assert len(seen(f"{tmp_path}/a*/x/*")) == 1
    assert listings == [".", "a1", "a1/x", "a2"]


def test_a_pattern_longer_than_a_name_can_be_is_a_pattern(tmp_path):
    (tmp_path / "abc").touch()
    assert [version.path for version in seen(f"{tmp_path}/[{'a-z' * 100}]bc")] == [str(tmp_path / "abc")]


def test_a_name_that_looks_like_a_glob_is_a_name(place):
    [version] = seen(f"{place}/other/f[1].csv")
    assert version.path.endswith("other/f[1].csv")


def test_sizes_and_digests(place):
    versions = seen(place)
    assert {version.size for version in versions} == {len(name) for name in FILES}
    assert len({version.digest for version in versions}) == len(FILES)
    assert seen(place) == versions


def test_what_is_not_there_is_no_error(place):
    assert seen(f"{place}/nowhere") == []


def test_symbolic_links_are_left_out(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert [version.path for version in seen(str(tmp_path))] == [str(tmp_path / "file")]
