"""Settings that nobody reads, because their names are misspelt."""

from __future__ import annotations

import os
from difflib import get_close_matches
from typing import TYPE_CHECKING

from async_task_state.configuration import WAYS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from async_task_state.configuration import Config

__all__ = ["misspelt"]


def misspelt(conf: Config, section: str, options: Collection[str]) -> Iterator[str]:
    """A line for each option of the section that there is not, and for each section that is nearly its name.

    Args:
        conf: Airflow's config: what its file has, to which the environment is added here.
        section: The section's name.
        options: Those that it has.
    """
    given = {(name, option) for name in conf.sections() for option in _options(conf, name)}
    for variable in os.environ:
        prefix, _, rest = variable.partition("__")
        name, _, option = rest.partition("__")
        if prefix == "AIRFLOW" and option:
            given.add((name.lower(), option.lower()))
    for name in sorted({name for name, _ in given} - {section}):
        if get_close_matches(name.lower().replace("-", "_"), [section], cutoff=0.85):
            yield f"the section [{name}] is read by nothing: did you mean [{section}]?"
    for option in sorted({option for name, option in given if name == section}):
        plain = next((option.removesuffix(way) for way in WAYS if option.endswith(way)), option)
        if plain not in options:
            near = get_close_matches(plain, options, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(options))}"
            yield f"[{section}] {option} is read by nothing: {hint}"


def _options(conf: Config, section: str) -> list[str]:
    return list(conf.options(section)) if conf.has_section(section) else []
