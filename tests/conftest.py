"""Options and fixtures of the whole suite."""

from __future__ import annotations


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=200, help="how often tests/faults kills a process")
    parser.addoption("--seed", type=int, help="the seed of the first of them; random when not given")
