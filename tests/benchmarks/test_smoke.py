"""Every benchmark still runs; how fast is not asked here."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
from bench_all import BENCHMARKS
from bench_measure import Plan

# Those that need a running Airflow, or a peer that only the benchmark group installs.
LARGE = {
    "airflow",
    *(() if find_spec("langgraph") else ("sets",)),
    *(
        ()
        if find_spec("langgraph") and find_spec("psycopg_pool") and find_spec("dbos")
        else ("postgres-sets",)
    ),
}


@pytest.mark.parametrize("name", sorted(BENCHMARKS.keys() - LARGE))
def test_benchmark_runs(name, tmp_path):
    lines = BENCHMARKS[name](Plan(tmp_path, repeat=2, scale=0.001))
    assert lines
    for line in lines:
        assert all(math.isfinite(value) for value in line.values)
