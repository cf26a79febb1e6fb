"""The workers: rows with a sign of life, and what becomes of the entries of those who give none."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from models import Worker, statements
from models.statements import Statement
from services import queue


@dataclass(frozen=True, slots=True)
class Orphan:
    """An execution whose worker is not seen any more."""

    job_id: UUID
    number: int
    worker_id: UUID


POSTGRES_CLOCK = ("now()", "now() - make_interval(secs => $1)")
SQLITE_CLOCK = (
    "strftime('%Y-%m-%d %H:%M:%f+00:00', 'now')",
    "strftime('%Y-%m-%d %H:%M:%f+00:00', 'now', '-' || $1 || ' seconds')",
)


def _clock() -> tuple[str, str]:
    """SQL of the database's time, and of the time `$1` seconds ago: machines' clocks differ."""
    return SQLITE_CLOCK if statements.is_sqlite() else POSTGRES_CLOCK


HAND_BACK = """UPDATE "queue_entries" SET "worker_id" = NULL,
    "state" = CASE WHEN "ready_at" IS NOT NULL THEN 'AWAITING'
                   WHEN "lost" >= $2 THEN 'SUSPECT' ELSE 'WAITING' END WHERE "worker_id" = $1"""
LEAVE = 'DELETE FROM "workers" WHERE "id" = $1'


async def enter(worker_id: UUID, name: str, *, alone: bool) -> None:
    """Write a worker down; `alone` says that there can be no other one alive."""
    if alone:
        await Worker.all().delete()
    now, _ = _clock()
    sql = f"""INSERT INTO "workers" ("id", "created_at", "name", "seen_at")
        VALUES ($1, {now}, $2, {now}) RETURNING 1"""  # noqa: S608 - constants
    await statements.database().fetch(sql, str(worker_id), name)


async def beat(worker_id: UUID) -> bool:
    """A sign of life; False if others have taken over all that there was, and buried the worker.

    A late one counts: as long as nobody took over, what runs there need not run again.
    """
    now, _ = _clock()
    sql = f"""UPDATE "workers" SET "seen_at" = {now} WHERE "id" = $1 RETURNING 1"""  # noqa: S608
    return bool(await statements.database().fetch_vital(sql, str(worker_id)))


async def leave(worker_id: UUID) -> None:
    """Go, and give back at once whatever is still the worker's."""
    await statements.database().execute_batch(
        [
            Statement(HAND_BACK, [str(worker_id), queue.SUSPICIOUS], "queue_entries"),
            Statement(LEAVE, [str(worker_id)], "workers"),
        ]
    )


async def orphans(lease_seconds: float) -> list[Orphan]:
    """Executions of workers that were not seen for that long."""
    _, ago = _clock()
    sql = f"""SELECT q."job_id", q."number", q."worker_id" FROM "queue_entries" q
        WHERE q."state" = 'RUNNING' AND NOT EXISTS (
            SELECT 1 FROM "workers" w WHERE w."id" = q."worker_id" AND w."seen_at" > {ago})"""  # noqa: S608 - constants
    rows = await statements.database().fetch(sql, lease_seconds)
    return [
        Orphan(queue.uuid(job_id), number, queue.uuid(worker)) for job_id, number, worker in rows
    ]


async def bury(lease_seconds: float) -> None:
    """Forget workers that were not seen for that long and have nothing left."""
    _, ago = _clock()
    sql = f"""DELETE FROM "workers" WHERE "seen_at" <= {ago} AND NOT EXISTS (
        SELECT 1 FROM "queue_entries" q WHERE q."worker_id" = "workers"."id") RETURNING 1"""  # noqa: S608 - constants
    await statements.database().fetch(sql, lease_seconds)
