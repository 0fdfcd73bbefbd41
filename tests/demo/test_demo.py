"""The demo, as a person starts it, and what it leaves behind: nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from async_task_state.processes import is_alive

FILES = 2000

# Each starts an Airflow of its own.
pytestmark = pytest.mark.timeout(300)


class Demo:
    """A running demo, its lines as they come, and every process it has had."""

    def __init__(self, temporary, store):
        self.lines = []
        self.processes = set()
        # Tests that a shell starts in the background ignore it, and so would what they start.
        earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "async_task_state", "demo", "--files", str(FILES), "--store", store],
            env={**os.environ, "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        signal.signal(signal.SIGINT, earlier)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def read_until(self, text):
        for line in self._process.stdout:
            self.lines.append(line.rstrip())
            if text is not None and text in line:
                return
        assert text is None, self.output

    def interrupt(self):
        self._process.send_signal(signal.SIGINT)

    def wait(self):
        self.read_until(None)
        code = self._process.wait()
        self._watcher.join()
        return code

    def close(self):
        self.interrupt()
        self.wait()
        self._process.stdout.close()

    @property
    def output(self):
        return "\n".join(self.lines)

    @property
    def left(self):
        return [process for process in self.processes if process.is_running() and is_alive(process.pid)]

    def _watch(self):
        demo = psutil.Process(self._process.pid)
        while self._process.poll() is None:
            try:
                self.processes.update(demo.children(recursive=True))
            except psutil.NoSuchProcess:
                return
            threading.Event().wait(0.2)


@pytest.fixture
def store():
    return "sqlite"


@pytest.fixture
def demo(tmp_path, store):
    demo = Demo(tmp_path, store)
    yield demo
    demo.close()


def figure(name, output):
    [(measured, compared)] = re.findall(rf"^{name} +([\d,]+)(?: s)?  (.+?)(?:  +ok)?$", output, re.MULTILINE)
    return int(measured.replace(",", "")), compared


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_the_demo_shows_what_it_promises(demo, tmp_path, store):
    assert demo.wait() == 0, demo.output
    files, _ = figure("files", demo.output)
    before, _ = figure("done before the kill", demo.output)
    again, explained = figure("run again after it", demo.output)
    checkpoints, commits = figure("checkpoints", demo.output)
    size, counted = figure("bytes", demo.output)
    assert files == FILES
    assert 0 < before < FILES
    assert again <= int(re.search(r"at most ([\d,]+)", explained)[1].replace(",", ""))
    assert checkpoints == FILES + again
    assert int(re.search(r"\d+", commits)[0]) < 60
    assert f"{size:,}" in counted
    assert demo.output.count("  ok\n") == 5
    assert "SIGKILL to the triggerer" in demo.output
    assert ("the other triggerer" in demo.output) == (store == "postgres")
    assert "\x1b" not in demo.output
    assert list(tmp_path.iterdir()) == []
    assert len(demo.processes) > 8
    assert demo.left == []


@pytest.mark.parametrize(
    ("store", "when"),
    [("sqlite", "metadata database is up"), ("sqlite", "durably done"), ("postgres", "PostgreSQL is up")],
)
def test_ctrl_c_leaves_nothing(demo, tmp_path, when):
    demo.read_until(when)
    demo.interrupt()
    assert demo.wait() == 130, demo.output
    assert "nothing is left" in demo.output
    assert "Traceback" not in demo.output
    assert list(tmp_path.iterdir()) == []
    assert demo.processes
    assert demo.left == []
