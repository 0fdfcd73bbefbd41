"""The house rules that tools can check: types, style and format."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def passes(*command, cwd=ROOT):
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(320)
def test_the_package_and_its_public_api_are_typed(tmp_path):
    # As it is installed: mypy does not see that triggers/ is a part of the package.
    shutil.copytree(ROOT / "async_task_state", tmp_path / "async_task_state")
    shutil.copytree(ROOT / "triggers", tmp_path / "async_task_state" / "triggers")
    shutil.copy(ROOT / "tests" / "typing" / "api.py", tmp_path)
    passes("mypy", "--config-file", ROOT / "pyproject.toml", "async_task_state", "api.py", cwd=tmp_path)


def test_the_code_is_clean():
    passes("ruff", "check")


def test_the_code_is_formatted():
    passes("ruff", "format", "--check")
