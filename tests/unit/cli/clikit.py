"""What tests of commands in processes of their own share."""

from __future__ import annotations


def rest_of(process):
    with process:
        return process.stdout.read(), process.stderr.read()
