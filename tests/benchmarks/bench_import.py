"""What `import async_task_state` costs a process that may never open a state, compiled as an installed package is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

from bench_measure import Line, Plan

PROCESSES = 5
CODE = """
import sys, time
started = time.perf_counter()
import async_task_state
seconds = time.perf_counter() - started
print([seconds * 1000, sum(name.partition(".")[0] == "airflow" for name in sys.modules)])
"""


def imports(plan: Plan) -> list[Line]:
    milliseconds, modules = [], []
    with tempfile.TemporaryDirectory() as compiled:
        import_once(compiled)
        for _ in range(plan.repeat):
            seen = [import_once(compiled) for _ in range(plan.scaled(PROCESSES))]
            milliseconds.append(min(milliseconds for milliseconds, _ in seen))
            modules.append(max(modules for _, modules in seen))
    return [
        Line("import async_task_state", "ms", milliseconds, 100, "<", note=f"best of {PROCESSES} processes"),
        Line("modules of Airflow that it imports", "modules", modules, 0, "<="),
    ]


def import_once(compiled: str) -> list[float]:
    """Milliseconds and modules of Airflow, in a fresh process; what Python compiles is kept in a folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = compiled
    done = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, env=environment)
    return json.loads(done.stdout)
