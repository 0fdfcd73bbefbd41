"""By what errors of hooks and clients a service says that it has no such job."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from async_task_state.errors import JobGoneError

__all__ = ["is_gone"]

CODES: Final = frozenset({"404", "410"})
NUMBERS: Final = ("status_code", "status", "code", "http_status")
"""What clients call the status of the answer: httpx, requests, aiohttp, azure, google and kubernetes among them."""

CLASSES: Final = frozenset({"NotFound", "ResourceDoesNotExist", "ResourceNotFoundError"})
"""Of google, databricks and azure."""

# As AWS, Databricks and gRPC name it.
_NAMED = re.compile(r"not_?found|no_?such|does_?not_?exist", re.IGNORECASE)

# Hooks of Airflow put what the service answered into a text: "404:Not Found", "Response: ..., Status Code: 404".
_TEXT = re.compile(
    r"^\s*(?:404|410)\b|status(?:[ _]?code)?\W{1,3}(?:404|410)\b|\bRESOURCE_DOES_NOT_EXIST\b|\brun \d+ does not exist\b",
    re.IGNORECASE,
)


def is_gone(error: BaseException) -> bool:
    """Whether an error says that the service has no such job.

    Args:
        error: What `poll`, `cancel` or `result` has raised.
    """
    if isinstance(error, JobGoneError):
        return True
    if any(kind.__name__ == "AirflowException" for kind in type(error).__mro__):
        # Their attributes are about Airflow: a connection that is not there has the status 404.
        gone = type(error).__name__ != "AirflowNotFoundException" and _TEXT.search(str(error)) is not None
    else:
        gone = _says_so(error) or _says_so(getattr(error, "response", None))
    return gone or (error.__cause__ is not None and is_gone(error.__cause__))


def _says_so(answer: Any) -> bool:
    """Whether an error, or the answer that it holds, has the status or the name of what is not there."""
    if isinstance(answer, Mapping):
        # Of botocore.
        metadata, code = answer.get("ResponseMetadata", {}), str(answer.get("Error", {}).get("Code", ""))
        return code in CODES or str(metadata.get("HTTPStatusCode")) in CODES or bool(_NAMED.search(code))
    if type(answer).__name__ in CLASSES:
        return True
    return any(_is_not_found(getattr(answer, name, None)) for name in NUMBERS)


def _is_not_found(status: Any) -> bool:
    if callable(status):
        # Of gRPC; a method that takes arguments is something else.
        try:
            status = status()
        except TypeError:
            return False
    return str(getattr(status, "value", status)) in CODES or getattr(status, "name", None) == "NOT_FOUND"
