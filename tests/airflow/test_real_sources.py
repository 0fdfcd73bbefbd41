"""What a user who may only trigger a DAG can make of its source, on the worker and in the triggerer: nothing but a listing."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import threading

import pytest
from journal import Journal

pytestmark = pytest.mark.timeout(300)

WATCHER = """
from airflow.sdk import DAG, Asset, AssetWatcher
from async_task_state.triggers import NewFilesTrigger

trigger = NewFilesTrigger({source!r}, asset="hostile")
with DAG("sources_watched", schedule=Asset("hostile", watchers=[AssetWatcher(name="w", trigger=trigger)])):
    pass
"""


@pytest.fixture
def host():
    """A port of this machine, and who has connected to it."""
    callers = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen():
            while True:
                try:
                    connection, caller = server.accept()
                except OSError:
                    return
                callers.append(caller)
                connection.close()

        thread = threading.Thread(target=listen)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", callers
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


def running(marker):
    """A source that makes a file where its template is rendered."""
    template = f"{{{{ cycler.__init__.__globals__.os.system('touch {marker}') }}}}"
    references = {"version": 1, "refs": {}, "gen": [{"key": template, "url": "file:///x", "dimensions": {}}]}
    return (
        "reference::data:application/.json;base64,"
        + base64.b64encode(json.dumps(references).encode()).decode()
    )


def without_us(airflow, source):
    """What becomes of a source where nothing refuses it."""
    code = f"import source_helpers; from fsspec.core import url_to_fs; fs, root = url_to_fs({source!r}); fs.ls(root)"
    environment = {**airflow.environment, "PYTHONPATH": str(airflow.dags)}
    command = [sys.executable, "-c", code]
    subprocess.run(command, env=environment, capture_output=True, timeout=100, check=False)


def states_of(airflow, dag_id, run):
    tasks = airflow.rest("GET", f"/dags/{dag_id}/dagRuns/{run}/taskInstances")["task_instances"]
    return [task["state"] for task in tasks if task["task_id"] == "files"]


def refuse_all(airflow, dag_id, sources):
    """Run it; each source must be refused, in words."""
    run = airflow.trigger(dag_id, {"sources": sources})
    airflow.wait_for_run(dag_id, run, state="failed", timeout=240)
    assert states_of(airflow, dag_id, run) == ["failed"] * len(sources)
    for number in range(len(sources)):
        assert "SourceNotAllowedError" in airflow.task_log(dag_id, run, "files", number)


@pytest.mark.parametrize("where", ["here", "deferred", "sent"])
def test_a_user_who_may_only_trigger_runs_no_code_and_reaches_no_host(airflow, tmp_path, host, where):
    address, callers = host
    marker = tmp_path / "ran"
    code = running(marker)
    sources = [
        code,
        ["/nowhere", code],
        code.replace("::", "%3A%3a"),
        f"ftp://{address}/x",
        f"http://{address}/x",
        f"simplecache::ftp://{address}/x",
        f"s3://key:secret@{address}/x",
    ]
    refuse_all(airflow, f"sources_any_{where}", sources)
    assert not marker.exists()
    assert callers == []
    # It is the refusal that keeps it from happening.
    without_us(airflow, code)
    assert marker.exists()
    without_us(airflow, f"ftp://{address}/x")
    assert callers


def test_a_watcher_of_what_nobody_allowed_is_refused_where_the_dag_is_parsed(airflow, host):
    address, callers = host
    file = airflow.dags / "sources_watched.py"

    def errors():
        return "".join(
            error["stack_trace"] for error in airflow.rest("GET", "/importErrors")["import_errors"]
        )

    file.write_text(WATCHER.format(source=f"ftp://{address}/x"))
    try:
        airflow.wait(lambda: "SourceNotAllowedError" in errors(), "the DAG is not refused", 120)
    finally:
        file.unlink()
    airflow.wait(lambda: not errors(), "the DAG is still there", 120)
    assert callers == []


@pytest.mark.parametrize("where", ["here", "deferred"])
def test_a_source_with_a_base_reads_no_file_outside(airflow, where):
    inbox, secret = airflow.home / "inbox", airflow.home / "secret.txt"
    (inbox / "deep").mkdir(parents=True, exist_ok=True)
    (inbox / "deep" / "mine.txt").write_text("mine")
    secret.write_text("secret")
    for link, target in (("link.txt", secret), ("out", airflow.home)):
        if not (inbox / link).is_symlink():
            (inbox / link).symlink_to(target)
    dag_id = f"sources_based_{where}"
    sources = [
        "../secret.txt",
        str(secret),
        f"file://{secret}",
        "link.txt",
        "out/*.txt",
        "%2e%2e/secret.txt",
        json.dumps(["deep/mine.txt", "link.txt"]),
    ]
    refuse_all(airflow, dag_id, sources)
    run = airflow.trigger(dag_id, {"sources": ["**", f"{inbox}/*/*.txt", ["deep/mine.txt"]]})
    airflow.wait_for_run(dag_id, run)
    results = [airflow.result(dag_id, run, "files", number) for number in range(3)]
    assert [(result["done"], result["totals"]) for result in results] == [(1, {"bytes": 4})] * 3
    assert "secret" not in [line.get("read") for line in Journal(airflow.home / "files.journal").lines]


@pytest.mark.parametrize("where", ["here", "deferred"])
def test_a_hostile_glob_freezes_nothing(airflow, tmp_path, where):
    for number in range(20):
        (tmp_path / f"{number:02}{'a' * 200}").touch()
    journal, until = Journal(tmp_path / "journal"), tmp_path / "until"
    ticking = airflow.trigger("ticks", {"journal": str(journal.path), "until": str(until)})
    journal.wait_for("tick", 10)
    dag_id = f"sources_any_{where}"
    # A regular expression would take longer than there is time.
    patterns = ["*?" * 14 + "!", "*?" * 60 + "!", "*a" * 60 + "!", "**/" * 60 + "*?" * 60 + "!"]
    run = airflow.trigger(dag_id, {"sources": [f"{tmp_path}/{pattern}" for pattern in patterns]})
    airflow.wait_for_run(dag_id, run, timeout=240)
    assert {airflow.result(dag_id, run, "files", number)["done"] for number in range(len(patterns))} == {0}
    journal.wait_for("tick", len(journal.having("tick")) + 10)
    until.touch()
    airflow.wait_for_run("ticks", ticking)
