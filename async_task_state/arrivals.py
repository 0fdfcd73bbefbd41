"""Which files are new: every version of a file is reported once, when it has stopped changing.

No clock but this process's own monotonic one is asked: what is new is what has not been reported, whatever its time of
modification, so that files of one moment, late files and file servers whose clock is wrong need no rule of their own.
What was reported is remembered as digests, 12 bytes a file that is still there.
"""

from __future__ import annotations

import time
from base64 import b64decode, b64encode
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import uuid4

import anyio
from anyio import to_thread

from async_task_state.digests import DIGEST_BYTES, SEGMENT_ITEMS, each_of
from async_task_state.errors import InvalidArgumentError, StaleWriterError
from async_task_state.listing import Lookout
from async_task_state.logs import Log
from async_task_state.records import damaged, reading
from async_task_state.settings import check_seconds, is_number
from async_task_state.sources import check_source
from async_task_state.text import sendable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence

    from async_task_state.listing import Version
    from async_task_state.scopes import Scope
    from async_task_state.state import AssetState

__all__ = ["Arrivals", "Watch"]

log = Log(__name__)

REPORTED: Final = "reported:"
"""The keys of what was reported, 256 digests each."""
WATERMARK: Final = "watermark"
UNCONFIRMED: Final = "unconfirmed"
"""The key of an event that may not have reached Airflow's database."""
FORGET_SECONDS: Final = 3600.0
"""How long a file must be gone before it may be forgotten: that of a file system that is not mounted comes back."""
MAX_SAMPLE: Final = 100


class Arrivals:
    """What was reported, and what was seen and has yet to stop changing.

    Args:
        saved: The state's values, of which it takes its own.
        clock: Gives seconds; only their differences count.
    """

    def __init__(self, saved: Mapping[str, Any], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._segments = [b64decode(text) for key, text in sorted(saved.items()) if key.startswith(REPORTED)]
        self._reported = {digest for segment in self._segments for digest in each_of(segment)}
        self._seen_at: dict[bytes, float] = {}
        self._gone_at: dict[bytes, float] = {}
        self._present = 0

    def __len__(self) -> int:
        return len(self._reported)

    def see(self, versions: Iterable[Version], missed: Sequence[OSError], settle: float) -> list[Version]:
        """The versions that are not reported and have not changed for `settle` seconds, the oldest first.

        Args:
            versions: What the source has now; each may come more than once.
            missed: Not empty where they may not be all.
            settle: 0 takes every one that is there.
        """
        began = self._clock()
        present: set[bytes] = set()
        unreported: dict[bytes, Version] = {}
        for version in versions:
            if version.earlier in self._reported:
                # By an older state.
                present.add(version.earlier)
                continue
            present.add(version.digest)
            if version.digest not in self._reported:
                unreported[version.digest] = version
        ended = self._clock()
        # A look takes time, and a file was seen at some moment of it.
        self._seen_at = {digest: self._seen_at.get(digest, ended) for digest in unreported}
        # One that shows nothing at all may be one at a file system that is not mounted.
        known = self._reported if present and not missed else self._gone_at.keys()
        self._gone_at = {digest: self._gone_at.get(digest, ended) for digest in known - present}
        self._present = len(present)
        settled = [
            version
            for digest, version in unreported.items()
            if not settle or began - self._seen_at[digest] >= settle
        ]
        return sorted(settled, key=lambda version: (version.modified or 0.0, version.path))

    def report(self, versions: Iterable[Version]) -> dict[str, str]:
        """Take versions for reported, and forget files that are long gone.

        Returns:
            The keys of the state that change so, and their values.
        """
        added = b"".join(version.digest for version in versions)
        self._reported.update(each_of(added))
        gone = self._long_gone()
        if gone:
            self._reported -= gone
            kept = [
                digest
                for segment in [*self._segments, added]
                for digest in each_of(segment)
                if digest not in gone
            ]
            return self._write(0, b"".join(kept))
        last = max(len(self._segments) - 1, 0)
        while last and not self._segments[last]:
            last -= 1
        return self._write(last, b"".join([*self._segments[last:], added]))

    def _long_gone(self) -> set[bytes]:
        """The files to forget; none while they are few, for every segment is written anew when some are."""
        since = self._clock() - FORGET_SECONDS
        gone = {digest for digest, at in self._gone_at.items() if at <= since}
        if len(gone) <= max(self._present, SEGMENT_ITEMS):
            return set()
        for digest in gone:
            del self._gone_at[digest]
        return gone

    def _write(self, first: int, digests: bytes) -> dict[str, str]:
        """Put digests into the segments from `first` on; those that stay empty are kept, for no key goes away."""
        size = SEGMENT_ITEMS * DIGEST_BYTES
        segments = [digests[at : at + size] for at in range(0, len(digests), size)]
        segments += [b""] * (len(self._segments) - first - len(segments))
        changed = {
            # Ten digits, so that text order is number order.
            f"{REPORTED}{number:010d}": b64encode(segment).decode()
            for number, segment in enumerate(segments, first)
            if number >= len(self._segments) or segment != self._segments[number]
        }
        self._segments[first:] = segments
        return changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """Which files to watch, and how; see `NewFilesTrigger` for the arguments.

    Raises:
        InvalidArgumentError: An argument is of the wrong type or out of range.
    """

    source: str | list[str]
    poll_interval: float = 60.0
    settle: float = 10.0
    initial: Literal["report", "skip"] = "report"
    sample: int = 10

    def __post_init__(self) -> None:
        check_source(self.source)
        if not self.source:
            raise InvalidArgumentError("source must be a path, a URL or a list of them, not an empty list")
        if self.poll_interval is None:
            raise InvalidArgumentError("poll_interval must be a number of seconds above 0, not None")
        check_seconds("poll_interval", self.poll_interval)
        if not is_number(self.settle) or self.settle < 0:
            raise InvalidArgumentError(
                f"settle must be a number of seconds of at least 0, not {self.settle!r}"
            )
        if self.initial not in ("report", "skip"):
            raise InvalidArgumentError(f"initial must be 'report' or 'skip', not {self.initial!r}")
        if type(self.sample) is not int or not 0 <= self.sample <= MAX_SAMPLE:
            raise InvalidArgumentError(
                f"sample must be an integer from 0 to {MAX_SAMPLE}, not {self.sample!r}"
            )

    async def events(self, state: AssetState, prefix: str = "") -> AsyncGenerator[dict[str, Any], None]:
        """Look at the source for ever, and yield the payload of an event whenever there are new files.

        What an event reports is durable before it is yielded, and so is that it was not confirmed. Going on after the
        yield confirms it; one that was left unconfirmed is the first that whoever opens the state next yields.

        Args:
            state: Open.
            prefix: What this watch's keys begin with, and no other's.

        Raises:
            DamagedRecordError: What an earlier holder has left cannot be read.
            StaleWriterError: Another holder has opened the state since.
            StoreUnavailableError: The store has been away for `outage_timeout`.
        """
        saved = await state.get_all()
        values = {key[len(prefix) :]: value for key, value in saved.items() if key.startswith(prefix)}
        _check(state.scope, prefix, values)
        if UNCONFIRMED in values:
            log.info(
                "firing event %s again: whether it has arrived is not known", values[UNCONFIRMED]["event_id"]
            )
            yield values[UNCONFIRMED]
            await state.delete(prefix + UNCONFIRMED)
        arrivals, watermark = Arrivals(values), values.get(WATERMARK)
        del saved, values
        lookout = Lookout(self.source, self.poll_interval)
        while True:
            skip = watermark is None and self.initial == "skip"
            settle = 0 if skip else self.settle
            settled = await lookout.look(partial(arrivals.see, settle=settle))
            if not await state.is_current():
                # Says which.
                await state.flush()
                raise StaleWriterError(f"{state.scope} has another holder")
            if settled is not None and (settled or watermark is None):
                watermark = _moved(watermark, settled)
                changes = await to_thread.run_sync(arrivals.report, settled, abandon_on_cancel=True)
                event = {UNCONFIRMED: self._payload(settled)} if settled and not skip else {}
                # The event first: a store that cannot save all at once repeats what a crash cut off, and loses nothing.
                values = {**event, **changes, WATERMARK: watermark}
                await state.checkpoint({prefix + key: value for key, value in values.items()})
                await state.flush()
                if event:
                    yield event[UNCONFIRMED]
                    await state.delete(prefix + UNCONFIRMED)
            await anyio.sleep(lookout.pause)

    def _payload(self, versions: list[Version]) -> dict[str, Any]:
        moments = [version.modified for version in versions if version.modified is not None]
        return {
            "event_id": uuid4().hex,
            "count": len(versions),
            "bytes": sum(version.size for version in versions),
            "files": [sendable(version.path) for version in versions[: self.sample]],
            "first_modified": _text(min(moments, default=None)),
            "last_modified": _text(max(moments, default=None)),
        }


def _check(scope: Scope, prefix: str, saved: Mapping[str, Any]) -> None:
    """Refuse what a watch cannot have left, by the name of its key."""
    for key, value in saved.items():
        what = f"key {prefix + key!r}"
        with reading(scope, what):
            if key.startswith(REPORTED):
                digests = b64decode(value, validate=True)
                sound = len(digests) % DIGEST_BYTES == 0
            elif key == WATERMARK:
                sound = type(value["files"]) is int and (
                    value["modified"] is None or is_number(value["modified"])
                )
            else:
                sound = key != UNCONFIRMED or (isinstance(value, dict) and isinstance(value["event_id"], str))
        if not sound:
            raise damaged(scope, what, f"it says {value!r:.200}")


def _moved(watermark: dict[str, Any] | None, versions: list[Version]) -> dict[str, Any]:
    """The watermark after these versions: how many there were, and when the newest was modified."""
    files, newest = (0, None) if watermark is None else (watermark["files"], watermark["modified"])
    moments = [version.modified for version in versions if version.modified is not None]
    return {
        "files": files + len(versions),
        "modified": max([*moments, *([] if newest is None else [newest])], default=None),
    }


def _text(moment: float | None) -> str | None:
    if moment is None:
        return None
    try:
        return datetime.fromtimestamp(moment, timezone.utc).isoformat()
    except (ValueError, OverflowError, OSError):
        # Of a file that says it is from a year that there is not.
        return None
