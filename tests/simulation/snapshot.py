"""All rows of a database as they are at one moment."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import asyncpg

Row = dict[str, Any]

OURS = "simulation"
TABLES = {
    "jobs": "SELECT * FROM jobs",
    "logs": "SELECT * FROM job_logs ORDER BY seq",
    "attempts": "SELECT * FROM attempts ORDER BY job_id, number",
    "verdicts": "SELECT * FROM verdicts",
    "criteria": "SELECT * FROM criteria_sets",
    "queue": "SELECT * FROM queue_entries",
    "agents": "SELECT * FROM agents",
    "dependencies": "SELECT * FROM job_dependencies",
}


@dataclass(frozen=True)
class Snapshot:
    """Rows by their key; those of `logs` and `attempts` in their order, by their job."""

    jobs: Mapping[str, Row]
    logs: Mapping[str, list[Row]]
    attempts: Mapping[str, list[Row]]
    verdicts: Mapping[str, Row]
    criteria: Mapping[tuple[str, int], Row]
    queue: Mapping[str, Row]
    agents: Mapping[str, Row]
    dependencies: Mapping[str, list[Row]]


async def take(database_url: str) -> Snapshot:
    """Read all of it in one transaction that sees no change meanwhile."""
    if database_url.startswith("sqlite://"):
        path = database_url.removeprefix("sqlite://")
        rows = await asyncio.to_thread(_of_sqlite, path)
    else:
        rows = await _of_postgres(database_url)
    return Snapshot(
        jobs={row["id"]: row for row in rows["jobs"]},
        logs=_by_job(rows["logs"]),
        attempts=_by_job(rows["attempts"]),
        verdicts={row["id"]: row for row in rows["verdicts"]},
        criteria={(row["job_id"], row["version"]): row for row in rows["criteria"]},
        queue={row["job_id"]: row for row in rows["queue"]},
        agents={row["id"]: row for row in rows["agents"]},
        dependencies=_by_job(rows["dependencies"]),
    )


def _of_sqlite(path: str) -> dict[str, list[Row]]:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN")
        return {
            name: [_plain(dict(row)) for row in connection.execute(sql)]
            for name, sql in TABLES.items()
        }


async def connect(url: str) -> Any:
    """A connection of our own to Postgres, known by its name."""
    open_ = cast("Callable[..., Awaitable[Any]]", asyncpg.connect)
    return await open_(url, server_settings={"application_name": OURS})


async def _of_postgres(url: str) -> dict[str, list[Row]]:
    connection = await connect(url)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            return {
                name: [_plain(dict(row)) for row in await connection.fetch(sql)]
                for name, sql in TABLES.items()
            }
    finally:
        await connection.close()


def _plain(row: Row) -> Row:
    """Ids as 32 hexadecimal digits on both databases."""
    return {name: _id(value) if _is_id(name) else value for name, value in row.items()}


def _is_id(name: str) -> bool:
    return name == "id" or (name.endswith("_id") and name not in ("actor_id", "owner_id"))


def _id(value: object) -> object:
    if isinstance(value, UUID):
        return value.hex
    return value.replace("-", "") if isinstance(value, str) else value


def _by_job(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["job_id"], []).append(row)
    return found
