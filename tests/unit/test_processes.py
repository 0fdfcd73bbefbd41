"""Processes that are found and ended with everything that they started."""

from __future__ import annotations

import os
import signal
import sys

import psutil
import pytest

from async_task_state.processes import Component, SandboxError, uninterrupted, unwinding

SLEEPS = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPS}"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEPS!r}]); {SLEEPS}"


@pytest.fixture
def start(tmp_path, wait_for):
    started = []

    def start(code, ups=1):
        log = tmp_path / "component.log"
        component = Component("component", [sys.executable, "-c", code], dict(os.environ), log)
        started.append(component)
        wait_for(lambda: log.read_text().count("up") == ups)
        return component

    yield start
    for component in started:
        component.kill()


@pytest.fixture
def wait_for():
    def wait_for(condition):
        event = psutil.Process()
        for _ in range(1000):
            if condition():
                return
            event.cpu_percent(0.01)
        pytest.fail("not in time")

    return wait_for


def test_kill_reaches_children_whose_parent_is_dead(start, wait_for):
    component = start(PARENT, ups=2)
    assert len(component.pids) == 2
    child = psutil.Process(max(component.pids))
    os.kill(component.pid, signal.SIGKILL)
    wait_for(lambda: component.died)
    assert component.pids == [child.pid]
    component.kill()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert component.pids == []
    assert not component.running
    assert not component.died, "what was killed here has not died"


def test_freeze_and_thaw(start, wait_for):
    component = start(PARENT, ups=2)
    component.freeze()
    processes = [psutil.Process(pid) for pid in component.pids]
    wait_for(lambda: {process.status() for process in processes} == {psutil.STATUS_STOPPED})
    component.thaw()
    wait_for(lambda: psutil.STATUS_STOPPED not in {process.status() for process in processes})
    assert component.running


def test_terminate(start):
    component = start(SLEEPS)
    component.terminate()
    assert not component.running


def test_terminate_ends_what_does_not_want_to_and_says_so(start):
    component = start(STUBBORN)
    with pytest.raises(
        SandboxError, match=r"component did not end within 0.1 s of SIGTERM\n--- component.log\nup"
    ):
        component.terminate(timeout=0.1)
    assert not component.running


def test_signals_wait_for_what_must_not_be_interrupted():
    done = []

    def interrupted():
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_unwind_the_program(number):
    # Whoever started the tests may have them ignore it, as nohup does.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), unwinding():
            signal.raise_signal(number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
