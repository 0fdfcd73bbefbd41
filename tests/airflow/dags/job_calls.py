"""How the tasks and triggers of these tests call the job server."""

from __future__ import annotations

from typing import Any

import httpx


async def request(method: str, url: str, **options: Any) -> Any:
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        response = await client.request(method, url, **options)
    return response.raise_for_status().json()


async def submit(service: str, name: str, idempotency_key: str) -> str:
    headers = {"Idempotency-Key": idempotency_key}
    return (await request("POST", f"{service}/jobs", json={"name": name}, headers=headers))["url"]


async def poll(job_id: str) -> str:
    return (await request("GET", job_id))["status"]


async def cancel(job_id: str) -> None:
    await request("DELETE", job_id)


def result(job_id: str) -> dict[str, str]:
    return {"job": job_id}
