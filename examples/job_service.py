"""How `remote_job.py` calls a service over HTTP; belongs in the plugins folder, for the triggerer imports it.

The service is one that answers `POST /jobs` with the address of the job that it has begun, `GET` of that address with
its status, and `DELETE` of it by cancelling the job. The address is the job's id here; any JSON value will do.
"""

from __future__ import annotations

from typing import Any

import httpx


async def submit(service: str, name: str, idempotency_key: str) -> str:
    """Begin a job; a service that is sent the same key again answers with the job that it has begun."""
    answer = await request(
        "POST", f"{service}/jobs", json={"name": name}, headers={"Idempotency-Key": idempotency_key}
    )
    return answer["url"]


async def poll(job_url: str) -> str:
    """Its status."""
    return (await request("GET", job_url))["status"]


async def cancel(job_url: str) -> None:
    """End it before it has ended by itself."""
    await request("DELETE", job_url)


async def result(job_url: str) -> dict[str, str]:
    """What the task returns."""
    return {"output": f"{job_url}/output"}


async def request(method: str, url: str, **options: Any) -> Any:
    """Ask the service, and decode its answer."""
    async with httpx.AsyncClient(timeout=30) as client:
        response = await client.request(method, url, **options)
    return response.raise_for_status().json()
