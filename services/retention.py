"""Removing old entries of the log, and remembering that there were some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast
from uuid import UUID

from models import JobLog, statements
from models.statements import Statement

CHUNK = 100
"""Jobs whose entries go in one transaction: a writer waits for it on SQLite."""
REMEMBER = """
INSERT INTO "pruned_logs" ("job_id", "from_seq", "until_seq")
SELECT "job_id", MIN("seq"), MAX("seq") FROM "job_logs" WHERE "job_id" = $1
AND EXISTS (SELECT 1 FROM "jobs" WHERE "id" = $1 AND "archived_at" IS NOT NULL)
GROUP BY "job_id"
ON CONFLICT ("job_id") DO UPDATE SET "until_seq" = excluded."until_seq"
"""
REMOVE = """
DELETE FROM "job_logs" WHERE "job_id" = $1
AND "seq" <= (SELECT "until_seq" FROM "pruned_logs" WHERE "job_id" = $1)
"""


@dataclass(frozen=True, slots=True)
class Pruned:
    jobs: int
    entries: int


async def prune(before: datetime) -> Pruned:
    """Remove all entries of the jobs that were archived before then.

    The jobs themselves stay, with their attempts and verdicts.
    """
    jobs = entries = 0
    while True:
        found = await _archived(before)
        if not found:
            return Pruned(jobs, entries)
        entries += await JobLog.filter(job_id__in=found).count()
        writes = [each for job_id in found for each in _removal(job_id)]
        await statements.database().execute_batch(writes)
        jobs += len(found)


async def _archived(before: datetime) -> Sequence[UUID]:
    """Some of the jobs that still have entries to remove."""
    logged = JobLog.filter(job__archived_at__lt=before).distinct().limit(CHUNK)
    return cast("list[UUID]", await logged.values_list("job_id", flat=True))


def _removal(job_id: UUID) -> tuple[Statement, Statement]:
    return (
        Statement(REMEMBER, [str(job_id)], "pruned_logs"),
        Statement(REMOVE, [str(job_id)], "job_logs"),
    )
