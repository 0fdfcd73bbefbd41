"""The commands that messages show, in real shells; and what a scope is called in a message."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from async_task_state import AssetScope, TaskScope
from async_task_state.commands import clear_command

HOSTILE = [
    "plain",
    "two words",
    'it\'s $HOME `id` "q" \\ %s %% !',
    'a\n"q" $HOME `id` ) ( # \\ it\'s',
    "a\n7'%d\\n\x1b[2J\x85\u202egnp\u2066\u2028\u2029",
    "-é\t1",
]


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_command_that_a_message_shows_names_the_state_in_any_shell(shell, text, tmp_path):
    command = clear_command(TaskScope(text, text, text, 3))
    assert command.isprintable()
    told = tmp_path / "async-task-state"
    told.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    told.chmod(0o755)
    path = shutil.which(shell)
    assert path is not None
    run = subprocess.run(
        [path, "-c", command], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, check=True
    )
    assert run.stdout.decode().split("\0") == ["clear", text, text, text, "--map-index", "3", ""]


def test_a_scope_is_named_on_one_line():
    text = "a\n\x1b\u202e\u2028"
    assert str(TaskScope(text, "run", "task")) == r"a\n\x1b\u202e\u2028/run/task"
    assert str(AssetScope(text)) == r"asset a\n\x1b\u202e\u2028"
