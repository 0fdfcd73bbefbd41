"""What a source hands over."""

from __future__ import annotations

import os

import anyio

from async_task_state import SourceNotAllowedError
from async_task_state.files import list_files


async def read(path):
    return {"bytes": len(path.read_text())}


def names(source, base=None):
    """What is handed over, by name, and what is not, with the reason."""
    handed, refused = [], []

    async def all_of_it():
        async for file in list_files(source, "path", base):
            try:
                handed.append(os.path.basename(str(file.checked_path())))  # noqa: PTH119 - of URLs, too
            except SourceNotAllowedError as error:
                refused.append(str(error))

    anyio.run(all_of_it)
    return sorted(handed), refused
