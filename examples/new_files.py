"""A DAG that runs when files have arrived: once for an event, however many files it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, task

from async_task_state.triggers import NewFilesTrigger

arrivals = Asset(
    "arrivals",
    watchers=[
        AssetWatcher(
            name="new_files",
            # Each version of a file is in one event, when it has not changed for five seconds.
            trigger=NewFilesTrigger(
                "/var/arrivals/*.csv", asset="arrivals", poll_interval=10, settle=5, sample=100
            ),
        )
    ],
)

with DAG("example_new_files", schedule=arrivals):

    @task
    def load(triggering_asset_events: Any = None) -> dict[str, int]:
        """Count the files that have arrived, and the lines of those that their events name, `sample` each at most."""
        # By id, for an event may come twice; a run may be about several.
        events = {
            event.extra["payload"]["event_id"]: event.extra["payload"]
            for event in triggering_asset_events[arrivals]
        }
        named = [Path(file) for event in events.values() for file in event["files"]]
        return {
            "files": sum(event["count"] for event in events.values()),
            "lines": sum(len(file.read_text().splitlines()) for file in named),
        }

    load()
