"""Globs, matched in a time that a pattern's author cannot make long.

A pattern is a row of tests with gaps between them. All positions in the row that a text may have reached are the bits of one
number, which a shift moves on for every character at once. So nothing is tried twice, unlike in a regular expression, where
fourteen `*?` take minutes. The same is done one level up, where the texts are the folders of a path.
"""

from __future__ import annotations

import re
from typing import Final

from async_task_state.errors import SourceError

__all__ = ["Glob", "Wildcard", "magic_at"]

MAGIC: Final = re.compile(r"[*?[]")
MAX_MASKS: Final = 4096
"""How many characters a wildcard remembers the tests of."""


def magic_at(text: str, start: int = 0) -> int | None:
    """Where the first special character of a glob stands, from `start` on; None is nowhere."""
    found = MAGIC.search(text, start)
    return found and found.start()


class Wildcard:
    """One segment of a pattern: `*` stands for any text, `?` for any character, `[...]` for one of a set.

    Sets are those of `fnmatch`: `[!...]` is all others, `a-z` a range. A bracket that is not closed stands for itself.

    Args:
        pattern: Without a slash.
    """

    __slots__ = ("_any", "_end", "_ends", "_gaps", "_literals", "_masks", "_sets")

    def __init__(self, pattern: str) -> None:
        # Most patterns are a text with one gap, of which only the two ends need a look.
        head, gap, tail = pattern.partition("*")
        self._ends = (head, tail) if gap and magic_at(head + tail) is None else None
        self._any = self._gaps = 0
        self._literals: dict[str, int] = {}
        self._sets: list[tuple[_Set, int]] = []
        self._masks: dict[str, int] = {}
        bit, at = 1, 0
        while at < len(pattern):
            char, at = pattern[at], at + 1
            if char == "*":
                self._gaps |= bit
                continue
            if char == "?":
                self._any |= bit
            elif char == "[" and (end := _end_of_set(pattern, at)) is not None:
                self._sets.append((_Set(pattern[at:end]), bit))
                at = end + 1
            else:
                self._literals[char] = self._literals.get(char, 0) | bit
            bit <<= 1
        self._end = bit

    def matches(self, text: str) -> bool:
        """Whether it stands for all of a text."""
        if self._ends is not None:
            head, tail = self._ends
            return len(text) >= len(head) + len(tail) and text.startswith(head) and text.endswith(tail)
        gaps, masks = self._gaps, self._masks
        reached = 1
        for char in text:
            mask = masks.get(char)
            reached = (reached & (self._mask(char) if mask is None else mask)) << 1 | reached & gaps
            if not reached:
                return False
        return bool(reached & self._end)

    def _mask(self, char: str) -> int:
        """The positions whose test a character passes."""
        mask = self._any | self._literals.get(char, 0)
        for characters, bit in self._sets:
            if char in characters:
                mask |= bit
        if len(self._masks) < MAX_MASKS:
            self._masks[char] = mask
        return mask


class Glob:
    """A pattern of several segments, of which `**` stands for any number of folders, none included.

    Where a path stands in the pattern is a number; the walk of a tree hands it down from folder to folder.

    Args:
        pattern: Relative to the folder where the walk begins.

    Raises:
        SourceError: `**` is only a part of a segment.

    Attributes:
        start: Where a walk begins.
        depth: How many folders deep the files lie, that of the walk's beginning included; None is any depth.
    """

    __slots__ = ("_end", "_gaps", "_segments", "depth", "start")

    def __init__(self, pattern: str) -> None:
        segments = pattern.split("/")
        self.depth = None if "**" in segments else len(segments)
        if segments[-1] == "**":
            # Of all that is below a folder, the folder itself is none.
            segments.append("*")
        self.start = 1
        self._gaps = 0
        # Where each segment stands in the pattern: what comes many times is matched once.
        places: dict[str, int] = {}
        end = 1
        for segment in segments:
            if segment == "**":
                self._gaps |= end
            elif "**" in segment:
                raise SourceError(f"** must be a whole folder of a glob, and not a part of {segment[:100]!r}")
            else:
                places[segment] = places.get(segment, 0) | end
                end <<= 1
        self._segments = [(Wildcard(segment), bits) for segment, bits in places.items()]
        self._end = end

    def step(self, reached: int, name: str) -> int:
        """Where what has this name stands, in a folder that stands at `reached`; 0 is nowhere."""
        after = reached & self._gaps
        for segment, bits in self._segments:
            here = reached & bits
            if here and name and segment.matches(name):
                after |= here << 1
        return after

    def is_match(self, reached: int) -> bool:
        """Whether what stands there matches all of the pattern."""
        return bool(reached & self._end)

    def may_hold_matches(self, reached: int) -> bool:
        """Whether what is below a folder that stands there can match."""
        return bool(reached & ~self._end)

    def matches(self, path: str) -> bool:
        """Whether a path matches, relative to where a walk would begin."""
        reached = self.start
        for name in path.split("/"):
            reached = self.step(reached, name)
        return self.is_match(reached)


class _Set:
    """The characters of a `[...]`."""

    __slots__ = ("_negated", "_ranges", "_single")

    def __init__(self, text: str) -> None:
        self._negated = text.startswith("!")
        self._single: set[str] = set()
        self._ranges: list[tuple[str, str]] = []
        members = text[self._negated :]
        at = 0
        while at < len(members):
            if members[at + 1 : at + 2] == "-" and at + 2 < len(members):
                self._ranges.append((members[at], members[at + 2]))
                at += 3
            else:
                self._single.add(members[at])
                at += 1

    def __contains__(self, char: str) -> bool:
        is_in = char in self._single or any(low <= char <= high for low, high in self._ranges)
        return is_in != self._negated


def _end_of_set(pattern: str, start: int) -> int | None:
    """Where the bracket that closes a set stands; None if there is none. The first character of a set may be one."""
    first = start + pattern.startswith("!", start)
    end = pattern.find("]", first + pattern.startswith("]", first))
    return None if end < 0 else end
