"""Every benchmark still runs; how fast is not asked here."""

from __future__ import annotations

import math

import pytest
from bench_all import BENCHMARKS
from bench_measure import Plan


@pytest.mark.parametrize("name", sorted(BENCHMARKS.keys() - {"airflow"}))
def test_benchmark_runs(name, tmp_path):
    if name == "sets":
        pytest.importorskip("langgraph.checkpoint.sqlite")
    lines = BENCHMARKS[name](Plan(tmp_path, repeat=2, scale=0.001))
    assert lines
    for line in lines:
        assert all(math.isfinite(value) for value in line.values)
