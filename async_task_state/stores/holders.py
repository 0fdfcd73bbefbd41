"""Which process holds a scope, as stores note it with the lease."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import cache

__all__ = ["Holder", "host_name"]


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has taken a lease, whether it is still at work or not.

    Args:
        host: The name of its machine.
        pid: Its process there.
        attempt: The attempt.
        since: When it has taken the lease, in seconds since 1970 by the store's clock.
    """

    host: str
    pid: int
    attempt: int
    since: float

    @classmethod
    def here(cls, attempt: int, since: float) -> Holder:
        """This process."""
        return cls(host_name(), os.getpid(), attempt, since)


@cache
def host_name() -> str:
    """The name of this machine, as it is set here: no server is asked for it."""
    return "".join(char if char.isprintable() else "?" for char in socket.gethostname())[:255]
