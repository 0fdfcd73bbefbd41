"""Symbolic links: followed, each file once, and never round in a circle or out of the base."""

from __future__ import annotations

import logging
import os

import pytest

from async_task_state.files import list_files
from async_task_state.listing import look

pytestmark = pytest.mark.anyio


def seen(source, root):
    missed, refused = [], []
    names = [version.path for version in look(str(source), missed, refused)]
    assert refused == []
    assert all(isinstance(error, FileNotFoundError) for error in missed)
    return [os.path.relpath(name, root) for name in names]


def write(file, text="x"):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    return root


async def test_a_config_map_has_each_of_its_files_once(root):
    write(root / "..2026_01_01" / "app.yaml")
    (root / "..data").symlink_to("..2026_01_01")
    (root / "app.yaml").symlink_to("..data/app.yaml")
    for source in (root, f"{root}/*.yaml", f"{root}/**", f"{root}/**/*.yaml"):
        assert seen(source, root) == ["app.yaml"]
    assert seen(f"{root}/..data/*.yaml", root) == ["..data/app.yaml"]


async def test_a_snapshot_of_links_to_blobs_has_all_of_its_files(tmp_path):
    for number in range(3):
        write(tmp_path / "models" / "blobs" / f"b{number}", "x" * number)
        link = tmp_path / "models" / "snapshots" / "main" / f"m{number}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"../../blobs/b{number}")
    snapshot = tmp_path / "models" / "snapshots" / "main"
    for source in (snapshot, f"{snapshot}/*", f"{snapshot.parent}/*/*"):
        assert seen(source, snapshot) == ["m0", "m1", "m2"]
    versions = list(look(str(snapshot), [], []))
    assert [version.size for version in versions] == [0, 1, 2]
    # With the blobs themselves, which they lead to, there are no more than those.
    assert seen(tmp_path / "models", tmp_path / "models") == ["blobs/b0", "blobs/b1", "blobs/b2"]


async def test_a_change_behind_a_link_is_another_version(tmp_path, root):
    target = write(tmp_path / "out" / "a")
    (root / "a").symlink_to(target)
    [before] = look(str(root), [], [])
    write(target, "longer")
    [after] = look(str(root), [], [])
    assert before.path == after.path == f"{root}/a"
    assert before.digest != after.digest


async def test_a_linked_folder_is_walked(tmp_path, root):
    write(tmp_path / "out" / "deep" / "b.csv")
    write(root / "a.csv")
    (root / "linked").symlink_to(tmp_path / "out")
    assert seen(root, root) == ["a.csv", "linked/deep/b.csv"]
    assert seen(f"{root}/**/*.csv", root) == ["a.csv", "linked/deep/b.csv"]
    assert seen(f"{root}/linked/*/*.csv", root) == ["linked/deep/b.csv"]
    (root / "again").symlink_to("linked")
    assert len(seen(root, root)) == 2


async def test_a_link_to_what_is_there_anyway_is_no_second_file(root):
    write(root / "2026-01" / "a.csv")
    (root / "b.csv").symlink_to("2026-01/a.csv")
    (root / "current").symlink_to("2026-01")
    assert seen(root, root) == seen(f"{root}/**/*.csv", root) == ["2026-01/a.csv"]
    assert seen(f"{root}/current/*.csv", root) == ["current/a.csv"]
    assert seen(f"{root}/c*/*.csv", root) == ["current/a.csv"]
    assert seen(f"{root}/*.csv", root) == ["b.csv"]


async def test_links_that_go_round_end(tmp_path, root):
    for folder in (root, tmp_path / "out" / "x", tmp_path / "out" / "y"):
        write(folder / "f")
        for name, target in (("up", ".."), ("self", "."), ("root", root), ("out", tmp_path / "out")):
            (folder / name).symlink_to(target)
    for n in range(8):
        (tmp_path / "out" / "x" / f"l{n}").symlink_to("../y")
        (tmp_path / "out" / "y" / f"l{n}").symlink_to("../x")
    found = seen(root, root)
    # Each of the three, by one name.
    assert found[0] == "f"
    assert len(found) == len({(root / name).stat().st_ino for name in found}) == 3
    assert len(seen(f"{root}/**/f", root)) >= 3


async def test_a_link_to_nothing_or_to_itself_is_no_file(root):
    (root / "gone").symlink_to("nowhere")
    (root / "itself").symlink_to("itself")
    write(root / "a")
    assert seen(root, root) == ["a"]


async def test_g8_a_link_does_not_lead_out_of_base(tmp_path, root, caplog):
    write(tmp_path / "secret" / "s")
    write(root / "deep" / "a")
    (root / "file").symlink_to(tmp_path / "secret" / "s")
    (root / "folder").symlink_to(tmp_path / "secret")
    (root / "inside").symlink_to("deep/a")
    (root / "up").symlink_to("..")
    for source in (".", "**", "*/*", "deep/*"):
        with caplog.at_level(logging.WARNING):
            names = [file.name async for file in list_files(source, "stat", str(root))]
        assert names == [f"{root}/deep/a"]
    assert "leads out of base" in caplog.text
    assert [file.name async for file in list_files("*", "stat", str(root))] == [f"{root}/inside"]
