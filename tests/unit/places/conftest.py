"""Folders and buckets to choose from."""

from __future__ import annotations

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile


@pytest.fixture
def folder(tmp_path):
    """What a user may choose from, with files and links beside it that are out of reach."""
    root = tmp_path / "in"
    for name in ("in/a.csv", "in/deep/b.csv", "in/deep/c.txt", "secret.csv", "input/d.csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (root / "link.csv").symlink_to(tmp_path / "secret.csv")
    (root / "out").symlink_to(tmp_path)
    (root / "within").symlink_to(root / "deep")
    (root / "loop").symlink_to(root / "loop")
    return root


@pytest.fixture
def bucket(allow):
    """The same in memory, with keys that only an object store has."""
    allow("memory", "s3")
    memory = fsspec.filesystem("memory")
    for name in ("in/a.csv", "in/deep/b.csv", "secret.csv", "input/d.csv", "in/../secret.csv"):
        memory.store[f"/bucket/{name}"] = MemoryFile(memory, f"/bucket/{name}", name.encode())
    yield "memory://bucket/in"
    memory.store.clear()
