"""What importing the library costs."""

from __future__ import annotations

import subprocess
import sys


def test_importing_it_loads_neither_airflow_nor_an_event_loop():
    code = "import sys, async_task_state; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.split())
    assert "async_task_state" in loaded
    assert not loaded & {"airflow", "asyncio", "aiosqlite", "sqlite3", "trio"}
