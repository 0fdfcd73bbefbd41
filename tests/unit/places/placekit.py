"""What a source hands over."""

from __future__ import annotations

import anyio

from async_task_state import SourceNotAllowedError
from async_task_state.files import list_files


async def read(path):
    return {"bytes": len(path.read_text())}


def handed_over(source, base=None):
    """What is handed over, and the reasons for what is not."""
    handed, refused = [], []

    async def all_of_it():
        async for file in list_files(source, "path", base):
            try:
                handed.append(file.checked_path())
            except SourceNotAllowedError as error:
                refused.append(str(error))

    anyio.run(all_of_it)
    return handed, refused


def names(source, base=None):
    """The same by name."""
    handed, refused = handed_over(source, base)
    return sorted(path.name for path in handed), refused
