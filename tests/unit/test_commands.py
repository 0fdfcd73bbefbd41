"""The commands that messages show, in real shells; and what a scope is called in a message."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from async_task_state import AssetScope, TaskScope
from async_task_state.cli import _parser
from async_task_state.cli_scope import named
from async_task_state.commands import clear_command, shell_command

HOSTILE = [
    "plain",
    "two words",
    'it\'s $HOME `id` "q" \\ %s %% !',
    'a\n"q" $HOME `id` ) ( # \\ it\'s',
    "a\n7'%d\\n\x1b[2J\x85\u202egnp\u2066\u2028\u2029",
    "-é\t1",
    "--yes",
    "a\n",
    "-\n\n",
]
SCOPES = {
    "task": lambda text: TaskScope(text, text, text, 3),
    "asset": AssetScope,
    "uri": lambda text: AssetScope(uri=text),
}


def words_of(command, shell, folder):
    """What the program is given that a shell starts."""
    for program in ("async-task-state", "chmod"):
        told = folder / program
        told.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
        told.chmod(0o755)
    path = shutil.which(shell)
    assert path is not None
    run = subprocess.run(
        [path, "-c", command], env={"PATH": f"{folder}:/usr/bin:/bin"}, capture_output=True, check=True
    )
    return os.fsdecode(run.stdout).split("\0")[:-1]


@pytest.mark.parametrize("kind", SCOPES)
@pytest.mark.parametrize("shell", ["sh", "dash", "bash"])
@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_command_that_a_message_shows_names_the_state_in_any_shell(shell, text, kind, tmp_path):
    scope = SCOPES[kind](text)
    command = clear_command(scope)
    assert command.isprintable()
    args = _parser(with_demo=False).parse_args(words_of(command, shell, tmp_path))
    assert (args.command, named(args)) == ("clear", scope)


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_command_names_a_file_whose_name_is_no_text(shell, tmp_path):
    name = os.fsdecode(b"/a\xff\n b'\n")
    command = shell_command("chmod", "600", name)
    assert command.isprintable()
    assert words_of(command, shell, tmp_path) == ["600", name]


def test_a_scope_is_named_on_one_line():
    text = "a\n\x1b\u202e\u2028"
    assert str(TaskScope(text, "run", "task")) == r"a\n\x1b\u202e\u2028/run/task"
    assert str(AssetScope(text)) == r"asset a\n\x1b\u202e\u2028"
