"""The tables of version 1, and the statements of the code that knew no other; run as a process that holds leases."""

from __future__ import annotations

import sqlite3
import sys
import time

from async_task_state.errors import StaleAttemptError
from async_task_state.scopes import TaskScope
from async_task_state.stores import Batch, Lease, Snapshot
from async_task_state.stores.postgres_connect import connect
from async_task_state.stores.postgres_dsn import PostgresDsn

SQLITE_SCHEMA = """
CREATE TABLE scope (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    dag_id TEXT NOT NULL, run_id TEXT NOT NULL, task_id TEXT NOT NULL,
    map_index INTEGER NOT NULL, region_id TEXT NOT NULL,
    attempt INTEGER NOT NULL, epoch INTEGER NOT NULL, touched_at REAL NOT NULL,
    UNIQUE (dag_id, run_id, task_id, map_index, region_id)
);
CREATE TABLE entry (
    scope_id INTEGER NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
    updated_at REAL NOT NULL, expires_at REAL,
    PRIMARY KEY (scope_id, key)
) WITHOUT ROWID;
INSERT INTO sqlite_sequence (name, seq) VALUES ('scope', 41);
PRAGMA application_id = 0x41545301;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
"""
PART_OF_A_FENCE = "id = ? AND attempt = ? AND epoch = ?"
UPSERT = (
    "INSERT INTO entry (scope_id, key, value, updated_at, expires_at) VALUES (?, ?, ?, ?, ?)"
    " ON CONFLICT (scope_id, key) DO UPDATE SET"
    " value = excluded.value, updated_at = excluded.updated_at, expires_at = excluded.expires_at"
)


class OldSQLite:
    """A file of version 1; made where there is none."""

    def __init__(self, path):
        self.db = sqlite3.connect(path, isolation_level=None, timeout=30)
        if not self.db.execute("PRAGMA user_version").fetchone()[0]:
            self.db.executescript(SQLITE_SCHEMA)
        assert self.db.execute("PRAGMA user_version").fetchone() == (1,)

    def acquire(self, scope, attempt):
        """The id, attempt and epoch of a new lease."""
        self.db.execute("BEGIN IMMEDIATE")
        held = self.db.execute(
            "SELECT id, attempt, epoch FROM scope"
            " WHERE dag_id = ? AND run_id = ? AND task_id = ? AND map_index = ? AND region_id = ?",
            scope.row,
        ).fetchone()
        if held is None:
            lease = (
                self.db.execute(
                    "INSERT INTO scope (dag_id, run_id, task_id, map_index, region_id, attempt, epoch, touched_at)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (*scope.row, attempt, 1, time.time()),
                ).lastrowid,
                attempt,
                1,
            )
        else:
            lease = (held[0], attempt, held[2] + 1)
            self.db.execute(
                "UPDATE scope SET attempt = ?, epoch = ?, touched_at = ? WHERE id = ?",
                (*lease[1:], time.time(), lease[0]),
            )
        self.db.execute("COMMIT")
        return lease

    def commit(self, lease, values, expires_at=None):
        """Write values, unless the lease is fenced; whether it was not."""
        self.db.execute("BEGIN IMMEDIATE")
        query = f"SELECT count(*) FROM scope WHERE {PART_OF_A_FENCE}"
        held = self.db.execute(query, lease).fetchone() == (1,)
        if held:
            rows = [(lease[0], key, value, time.time(), expires_at) for key, value in values.items()]
            self.db.executemany(UPSERT, rows)
        self.db.execute("COMMIT")
        return held


class OldPostgresStore:
    """What a writer asks a store for, by the statements of the version before leases had tokens."""

    def __init__(self, dsn):
        self.dsn = PostgresDsn.parse(dsn)
        self.schema = f'"{self.dsn.schema}"'
        self.db = None

    async def connection(self):
        if self.db is None:
            self.db = await connect(self.dsn)
        return self.db

    async def acquire(self, scope, attempt, run=None):
        """What is known of the run is of no use to it."""
        db = await self.connection()
        row = await db.fetchrow(
            f"INSERT INTO {self.schema}.scope AS s"
            " (dag_id, run_id, task_id, map_index, region_id, attempt, epoch, touched_at)"
            " VALUES ($1, $2, $3, $4, $5, coalesce($6::integer, 1), 1, now())"
            " ON CONFLICT (dag_id, run_id, task_id, map_index, region_id) DO UPDATE SET dag_id = excluded.dag_id,"
            " touched_at = now(), attempt = coalesce($6, s.attempt), epoch = s.epoch + 1, retry = 0"
            " RETURNING id, attempt, epoch",
            *scope.row,
            attempt,
        )
        if attempt is not None and attempt < row[1]:
            raise StaleAttemptError
        rows = await db.fetch(f"SELECT key, value FROM {self.schema}.entry WHERE scope_id = $1", row[0])
        return Snapshot(Lease(scope, *row, 0), dict(rows))

    async def commit(self, batches):
        db = await self.connection()
        return [batch.lease for batch in batches if not await self._save(db, batch)]

    async def _save(self, db, batch: Batch):
        lease = batch.lease
        async with db.transaction():
            held = await db.fetchval(
                f"SELECT id FROM {self.schema}.scope WHERE id = $1 AND attempt = $2 AND epoch = $3 FOR KEY SHARE",
                *(lease.scope_id, lease.attempt, lease.epoch),
            )
            for key, (value, _) in batch.changes.items() if held else ():
                await db.execute(
                    f"INSERT INTO {self.schema}.entry (scope_id, key, value, updated_at, expires_at)"
                    " VALUES ($1, $2, $3, now(), now() + interval '30 days') ON CONFLICT (scope_id, key) DO UPDATE"
                    " SET value = excluded.value, updated_at = excluded.updated_at, expires_at = excluded.expires_at",
                    *(lease.scope_id, key, value),
                )
        return held

    async def close(self):
        if self.db is not None:
            await self.db.close()


def say(what):
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def main():
    """Hold the state of each task that a line names until it is taken: say each number when it is saved."""
    old = OldSQLite(sys.argv[1])
    say("open")
    for line in sys.stdin:
        lease = old.acquire(TaskScope("dag", "run", line.strip()), 1)
        number = 1
        while old.commit(lease, {"number": str(number), "same": str(number)}, time.time() + 3600):
            say(number)
            # As a writer does: a lock that is taken again at once is never free for others.
            time.sleep(0.005)
            number += 1
        say("fenced")


if __name__ == "__main__":
    main()
