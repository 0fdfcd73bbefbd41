"""Every benchmark, by the name that the command line knows it by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench_airflow import airflow
from bench_checkpoint import checkpoint, commits, lag
from bench_import import imports
from bench_postgres_commit import commit
from bench_postgres_growth import growth
from bench_postgres_open import many_open
from bench_postgres_processes import processes
from bench_postgres_set import many_sets as many_postgres_sets
from bench_postgres_set import one_set as one_postgres_set
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
    "postgres-commit": commit,
    "postgres-set": one_postgres_set,
    "postgres-sets": many_postgres_sets,
    "postgres-open": many_open,
    "postgres-processes": processes,
    "postgres-growth": growth,
}
