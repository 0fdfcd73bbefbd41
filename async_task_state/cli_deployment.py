"""What `check` asks of PostgreSQL and Airflow together: are there connections enough, and may our role do no more than ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from async_task_state.cli_check import Advice
from async_task_state.cli_postgres import looking
from async_task_state.stores.postgres_sharing import ALLOWED, Allowed, spare

if TYPE_CHECKING:
    from async_task_state.stores.postgres_dsn import PostgresDsn

__all__ = ["describe_connections", "describe_role"]

BACKEND: Final = "async_task_state.backend."
PORT: Final = 5432

_AIRFLOWS: Final = """
SELECT pg_class.oid::regclass::text FROM pg_class
WHERE relname IN ('connection', 'dag_run', 'task_instance', 'variable') AND relkind IN ('r', 'p')
    AND EXISTS (SELECT FROM pg_class AS other WHERE other.relnamespace = pg_class.relnamespace AND relname = 'dag_run')
    AND has_table_privilege(pg_class.oid, 'SELECT') ORDER BY relname"""
"""Airflow's tables that this role may read."""

_ROLE_OF_ITS_OWN: Final = (
    "each DAG author who can read the dsn has that role's rights. Use a role of its own: CREATE ROLE async_task_state LOGIN"
    " PASSWORD '...' CONNECTION LIMIT {limit}; CREATE SCHEMA async_task_state AUTHORIZATION async_task_state"
)


async def describe_role(dsn: PostgresDsn) -> str:
    """Whether the role may do more than use its own tables: what it may do, whoever can read the dsn may do."""
    async with looking(dsn) as db:
        role, database, is_superuser = await db.fetchrow(
            "SELECT rolname::text, current_database()::text, rolsuper FROM pg_roles WHERE rolname = current_user"
        )
        readable = [row[0] for row in await db.fetch(_AIRFLOWS)]
    hint = _ROLE_OF_ITS_OWN.format(limit=_limit_for(_processes()[0]))
    if _is_airflows_own(dsn, role, database):
        return Advice(f"{role} is Airflow's own role ([database] sql_alchemy_conn): {hint}")
    if is_superuser:
        return Advice(f"{role} is a superuser: {hint}")
    if readable:
        return Advice(f"{role} may read Airflow's tables ({', '.join(readable)}): {hint}")
    return f"{role} may not read Airflow's tables"


async def describe_connections(dsn: PostgresDsn) -> str:
    """Whether each process that the deployment may start can have a connection."""
    needed, why = _processes()
    needs = f"up to {needed} processes have one each with one scheduler and one triggerer ({why})"
    if dsn.pgbouncer:
        return f"{needs}: the pooler's max_client_conn has to allow as many"
    async with looking(dsn) as db:
        limits = [Allowed(*row) for row in await db.fetch(ALLOWED)]
    found = "; ".join(map(str, limits))
    short = [limit for limit in limits if limit.allowed - spare(limit.allowed) < needed]
    if not short:
        return f"{needs}; {found}"
    enough = _limit_for(needed)
    raised = ", ".join(sorted({_RAISED[limit.what.split()[1]].format(enough) for limit in short}))
    return Advice(
        f"{needs}; {found}: where all are at work, some connect anew to save, and may save late. Have {raised}, lower"
        " [core] parallelism, or put PgBouncer in front, with ?pgbouncer=true in the dsn"
    )


_RAISED: Final = {
    "role": "ALTER ROLE ... CONNECTION LIMIT {}",
    "database": "ALTER DATABASE ... CONNECTION LIMIT {}",
    "server": "max_connections {} and what others need",
}


def _limit_for(needed: int) -> int:
    """The lowest limit that leaves so many when what is left for others is taken."""
    limit = needed
    while limit - spare(limit) < needed:
        limit += 1
    return limit


def _processes() -> tuple[int, str]:
    """How many processes may use the store with one scheduler and one triggerer, as far as Airflow's config says; and why."""
    from airflow.configuration import conf  # noqa: PLC0415 - takes a second, so only when asked

    tasks = conf.getint("core", "parallelism", fallback=32)
    parts = [f"{tasks} tasks by [core] parallelism for each scheduler"]
    if "Celery" in conf.get("core", "executor", fallback=""):
        workers = conf.getint("celery", "worker_concurrency", fallback=16)
        parts[0] += f", or {workers} for each Celery worker where these are fewer"
    total = tasks + 2
    parts.append("1 for each triggerer")
    if conf.get("state_store", "backend", fallback="").startswith(BACKEND):
        servers = conf.getint("api", "workers", fallback=1)
        total += servers
        parts.append(f"{servers} for each API server by [api] workers")
    return total, ", ".join([*parts, "1 for a command"])


def _is_airflows_own(dsn: PostgresDsn, role: str, database: str) -> bool:
    from airflow.configuration import conf  # noqa: PLC0415 - as above

    airflows = urlsplit(conf.get("database", "sql_alchemy_conn", fallback=""))
    if not airflows.scheme.startswith("postgres"):
        return False
    ours = [urlsplit(host.address) for host in dsn.each_host()]
    return (unquote(airflows.username or ""), unquote(airflows.path.lstrip("/"))) == (role, database) and (
        (airflows.hostname, airflows.port or PORT) in [(host.hostname, host.port or PORT) for host in ours]
    )
