"""The workers: rows with a sign of life, and what becomes of the entries of those who give none."""

from __future__ import annotations

import math
import time
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


class Watch:
    """How well a process could see the others' signs of life lately.

    It looks every `usual` seconds. While the database is away it is blind, and so is nobody seen
    of those who were cut off with it: they get their time to be seen again.
    """

    def __init__(self, usual: float) -> None:
        self._usual = usual
        self._looked_at = math.inf
        self._back_at = -math.inf
        self._blind = 0.0

    def look(self, now: float) -> None:
        """The database has answered, at `now` in seconds."""
        gap, seeing = now - self._looked_at, self._looked_at - self._back_at
        self._looked_at = now
        if gap > 2 * self._usual:
            before = self._blind + seeing if seeing < self._blind else 0.0
            self._back_at, self._blind = now, before + gap

    def suffices(self, lease_seconds: float) -> bool:
        """Whether a worker whose lease is over is lost: it could have been seen.

        Its last sign of life may be a third of the lease older than the blindness.
        """
        watched = self._looked_at - self._back_at
        return watched >= lease_seconds or self._blind < lease_seconds * 2 / 3


POSTGRES_CLOCK = ("now()", '"seen_at" <= now() - make_interval(secs => "lease_seconds")')
SQLITE_CLOCK = (
    "strftime('%Y-%m-%d %H:%M:%f+00:00', 'now')",
    """"seen_at" <=
        strftime('%Y-%m-%d %H:%M:%f+00:00', 'now', '-' || "lease_seconds" || ' seconds')""",
)


def _clock() -> tuple[str, str]:
    """SQL of the database's time, and of whether a worker's lease is over by it.

    Machines' clocks differ, and workers' leases may: each is judged by its own.
    """
    return SQLITE_CLOCK if statements.is_sqlite() else POSTGRES_CLOCK


HAND_BACK = """UPDATE "queue_entries" SET "worker_id" = NULL,
    "state" = CASE WHEN "ready_at" IS NOT NULL THEN 'AWAITING'
                   WHEN "lost" >= $2 THEN 'SUSPECT' ELSE 'WAITING' END WHERE "worker_id" = $1"""
BURY = """DELETE FROM "workers" WHERE "id" = $1 AND {over} RETURNING 1"""
LEAVE = 'DELETE FROM "workers" WHERE "id" = $1'


async def enter(worker_id: UUID, name: str, lease_seconds: float, *, alone: bool) -> None:
    """Write a worker down; `alone` says that there can be no other one alive."""
    if alone:
        await Worker.all().delete()
    now, _ = _clock()
    sql = f"""INSERT INTO "workers" ("id", "created_at", "name", "seen_at", "lease_seconds")
        VALUES ($1, {now}, $2, {now}, $3) RETURNING 1"""  # noqa: S608 - constants
    await statements.database().fetch(sql, str(worker_id), name, lease_seconds)


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


async def orphans(watch: Watch) -> list[Orphan]:
    """Executions of workers whose lease is over, and who could have been seen."""
    _, over = _clock()
    sql = f"""SELECT q."job_id", q."number", q."worker_id", COALESCE(w."lease_seconds", 0)
        FROM "queue_entries" q LEFT JOIN "workers" w ON w."id" = q."worker_id"
        WHERE q."state" = 'RUNNING' AND (w."id" IS NULL OR {over})"""  # noqa: S608 - constants
    rows = await statements.database().fetch(sql)
    watch.look(time.monotonic())  # not before: this very answer may have been held up
    return [
        Orphan(queue.uuid(job_id), number, queue.uuid(worker))
        for job_id, number, worker, lease in rows
        if watch.suffices(lease)
    ]


async def bury(watch: Watch) -> None:
    """Forget workers whose lease is over, and that have nothing left."""
    _, over = _clock()
    sql = f"""SELECT "id", "lease_seconds" FROM "workers" WHERE {over} AND NOT EXISTS (
        SELECT 1 FROM "queue_entries" q WHERE q."worker_id" = "workers"."id")"""  # noqa: S608 - constants
    for id, lease in await statements.database().fetch(sql):
        if watch.suffices(lease):
            await statements.database().fetch(BURY.format(over=over), str(id))
