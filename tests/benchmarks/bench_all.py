"""Every benchmark, by the name that the command line knows it by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench_airflow import airflow
from bench_checkpoint import checkpoint, commits, lag
from bench_import import imports
from bench_set import many_sets, one_set
from bench_work import files, reopen

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench_measure import Line, Plan

BENCHMARKS: dict[str, Callable[[Plan], list[Line]]] = {
    "checkpoint": checkpoint,
    "airflow": airflow,
    "lag": lag,
    "files": files,
    "reopen": reopen,
    "set": one_set,
    "sets": many_sets,
    "commits": commits,
    "import": imports,
}
