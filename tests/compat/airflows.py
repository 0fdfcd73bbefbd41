"""The versions of Airflow that the library is tested with, what pip has to be asked for each, and which tests are about it."""

from __future__ import annotations

from dataclasses import dataclass

QUICK = [
    "tests/stores/test_sqlite.py",
    "tests/unit/test_across_iterations.py",
    "tests/unit/test_assets.py",
    "tests/unit/awaited/test_awaited_clears.py",
    "tests/unit/awaited/test_awaited_triggers.py",
    "tests/unit/test_clear_choice.py",
    "tests/unit/test_clear_notes.py",
    "tests/unit/test_clears.py",
    "tests/unit/test_connections.py",
    "tests/unit/test_files.py",
    "tests/unit/jobs",
    "tests/unit/test_regions.py",
    "tests/unit/test_runs.py",
    "tests/unit/test_runs_made_again.py",
    "tests/unit/places/test_base.py",
    "tests/unit/places/test_places.py",
    "tests/unit/test_settings.py",
    "tests/unit/test_sync.py",
    "tests/unit/test_triggers.py",
]
ANY_AIRFLOW = [
    # What Airflow and the libraries of another version warn of is not ours to mend.
    "-W",
    "ignore",
    # Airflow's own has come with 3.3.
    "--deselect",
    "tests/unit/test_settings.py::test_never_expire_is_airflows",
]
"""Options of pytest."""


@dataclass(frozen=True)
class Version:
    """One of Airflow's.

    Args:
        requirements: What pip is asked for; by name and number, a version before its release needs no `--pre`.
        pythons: Those that it runs on and we do.
        tests: Those of the library, without a running Airflow, that are about what this version has.
    """

    requirements: list[str]
    pythons: tuple[str, ...] = ("3.10", "3.11", "3.12", "3.13")
    tests: tuple[str, ...] = ("tests/unit", "tests/stores")


AIRFLOWS = {
    "3.1.8": Version(["apache-airflow==3.1.8"], tests=(*QUICK,)),
    # Its API server does not start with FastAPI 0.137, which it does not rule out.
    "3.2.2": Version(["apache-airflow==3.2.2", "fastapi<0.137"], tests=(*QUICK,)),
    "3.3.2": Version(["apache-airflow==3.3.2"]),
    "3.4.0b2": Version(
        ["apache-airflow==3.4.0b2", "apache-airflow-core==3.4.0b2", "apache-airflow-task-sdk==1.4.0b2"],
        ("3.11", "3.12", "3.13"),
    ),
}
