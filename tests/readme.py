"""The Python examples of the README."""

from __future__ import annotations

import re
from pathlib import Path

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)


def block(mark: str) -> str:
    """The one example that has `mark` in it."""
    [found] = [code for code in BLOCKS if mark in code]
    return str(found)
