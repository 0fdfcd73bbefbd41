"""Measures what the library promises of its speed, and prints one table: `python tests/benchmarks`.

Peers, and we next to them, are measured in turn in one run; a line shows medians, and the spread of what its target
is about.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from bench_all import BENCHMARKS
from bench_measure import Line, Plan, median
from rich.console import Console
from rich.table import Table

WIDTH = 150
SIGNS = {">=": "≥", "<=": "≤", "<": "<"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="one of them; may be repeated")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="repetitions (default: 5)")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="of the sizes (default: 1)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    progress = Console(stderr=True)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        plan = Plan(Path(folder), arguments.repeat, arguments.scale)
        for name in arguments.only or BENCHMARKS:
            with progress.status(name):
                lines += BENCHMARKS[name](plan)
    if arguments.json:
        sys.stdout.write(json.dumps([document(line) for line in lines], indent=2) + "\n")
    else:
        # What is not a terminal has no width of its own.
        console = Console(width=None if sys.stdout.isatty() else WIDTH)
        console.print(table(lines, arguments.repeat))
    return 0 if all(line.met for line in lines) else 1


def document(line: Line) -> dict[str, object]:
    return {**asdict(line), "values": line.values, "value": line.value, "met": line.met}


def table(lines: list[Line], repeat: int) -> Table:
    made = Table(title=f"medians of {repeat}", row_styles=["", "dim"])
    for column in ("what", "ours", "alternative", "compared", "target", "met", "spread"):
        made.add_column(column, justify="left" if column in ("what", "alternative") else "right")
    for line in lines:
        made.add_row(
            f"{line.what} ({line.note})" if line.note else line.what,
            f"{shown(median(line.ours))} {line.unit}",
            f"{shown(median(line.theirs))} ({line.peer})" if line.theirs else "",
            {"": "", "ratio": f"{shown(line.value)} x", "difference": f"{line.value:+.3g}"}[line.compare],
            "" if line.target is None else f"{SIGNS[line.test]} {shown(line.target)}",
            "" if line.target is None else "yes" if line.met else "[bold red]no",
            f"{shown(min(line.values))} to {shown(max(line.values))}",
        )
    return made


def shown(number: float) -> str:
    """Three digits, more where they are whole."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


if __name__ == "__main__":
    sys.exit(main())
