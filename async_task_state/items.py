"""What an item is called where people read it: a file by its path, without what tells its versions apart."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["FILES", "shown_item"]

FILES: Final = "files"
"""The work set of `ProcessFilesOperator` and its trigger."""
_VERSION: Final = re.compile(r"(?<=.)#\d*,[^#]*$", re.DOTALL)


def shown_item(work_set: str, key: str) -> str:
    """An item's key as people want to read it; the whole key stays in what programs read.

    Args:
        work_set: The name of the work set that the item is of.
        key: The item's key.
    """
    return _VERSION.sub("", key) if work_set == FILES else key
