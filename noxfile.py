"""What is checked before a release, each in an environment of its own: `nox -l` lists it, `nox -s NAME` runs it.

`nox -s compat` is every Airflow on every Python, `nox -s "compat(3.4.0b2, 3.12)"` one of them: the unit tests, the tests of
stores and the demo. What follows `--` is run in their place: `nox -s "compat(3.4.0b2, 3.12)" -- tests` the whole suite.
A Python that is not on the path is skipped; `nox -s lowest` needs uv.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "tests" / "compat"))

from airflows import AIRFLOWS, ANY_AIRFLOW, QUICK  # noqa: E402 - of the tests

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["lint", "types", "unit"]
nox.options.reuse_venv = "yes"
nox.options.default_venv_backend = "uv|virtualenv"

PROJECT = nox.project.load_toml("pyproject.toml")
TOOLS = nox.project.dependency_groups(PROJECT, "test")
TYPING = "tests/unit/test_typing.py"
CELLS = [
    nox.param(python, version, id=f"{version}, {python}")
    for version, airflow in AIRFLOWS.items()
    for python in airflow.pythons
]


def install(session: nox.Session, *requirements: str) -> None:
    """Install the library, from the checkout, and what tests need."""
    # Most of what is installed is never imported: compiling it would take as long as the rest.
    session.install("--no-compile", "-e", ".", *requirements, *TOOLS)


def run_tests(session: nox.Session, *tests: str) -> None:
    """Run tests, or what the command line says in their place, whatever Airflow the caller's environment is about."""
    for name in [name for name in session.env if "AIRFLOW" in name]:
        session.env[name] = None
    # Not as a module of Python's: that would look for ours in the checkout, where triggers/ stands elsewhere.
    session.run("pytest", "-q", *(session.posargs or tests))


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format."""
    session.install(*[tool for tool in TOOLS if tool.startswith("ruff")])
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Types of the package and of its public API."""
    install(session)
    run_tests(session, TYPING)


@nox.session
def unit(session: nox.Session) -> None:
    """The unit tests."""
    install(session)
    run_tests(session, "tests/unit", "-n", "2")


@nox.session
def stores(session: nox.Session) -> None:
    """Stores, and what survives when processes and servers are killed."""
    install(session)
    run_tests(session, "tests/stores", "tests/faults", "-n", "2")


@nox.session
def airflow(session: nox.Session) -> None:
    """A real Airflow."""
    install(session)
    run_tests(session, "tests/airflow")


@nox.session
@nox.parametrize(("python", "version"), CELLS)
def compat(session: nox.Session, version: str) -> None:
    """Every Airflow on every Python: the unit tests, those of stores, and the demo."""
    install(session, *AIRFLOWS[version].requirements)
    session.env["PYTEST_ADDOPTS"] = shlex.join(ANY_AIRFLOW)
    run_tests(session, "-n", "2", "--ignore", TYPING, *AIRFLOWS[version].tests)
    if not session.posargs:
        session.run("async-task-state", "demo")


@nox.session(python="3.10", venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """The oldest versions that the package admits, which uv finds: the tests that are about Airflow's versions."""
    # Airflow 3.1.0 does not start with what it admits of structlog.
    session.install("--resolution", "lowest-direct", "-e", ".", *AIRFLOWS["3.1.8"].requirements)
    session.install(*TOOLS)
    session.env["PYTEST_ADDOPTS"] = shlex.join(ANY_AIRFLOW)
    run_tests(session, "-n", "2", *QUICK)


@nox.session
def wheel(session: nox.Session) -> None:
    """The built wheel, without the checkout."""
    session.install("build")
    built = session.create_tmp()
    session.run("python", "-m", "build", "-q", "--outdir", built, ".")
    session.install("--no-compile", "--force-reinstall", "--no-deps", *map(str, Path(built).glob("*.whl")))
    session.install("--no-compile", "async-task-state")
    with session.chdir(built):
        session.run("async-task-state", "demo")
