"""Removing old entries of the log, and remembering that there were some."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import cast
from uuid import UUID

from tortoise.functions import Count, Max, Min

from models import JobLog, statements
from models.statements import Statement

CHUNK = 100
"""Jobs whose entries go in one transaction: a writer waits for it on SQLite."""
ARCHIVED = 'EXISTS (SELECT 1 FROM "jobs" WHERE "id" = $1 AND "archived_at" IS NOT NULL)'
REMEMBER = f"""
INSERT INTO "pruned_logs" ("job_id", "from_seq", "until_seq")
SELECT "id", $2, $3 FROM "jobs" WHERE "id" = $1 AND {ARCHIVED}
ON CONFLICT ("job_id") DO UPDATE SET "until_seq" = excluded."until_seq"
"""  # noqa: S608 - made of constants
REMOVE = f'DELETE FROM "job_logs" WHERE "job_id" = $1 AND "seq" <= $2 AND {ARCHIVED}'  # noqa: S608


@dataclass(frozen=True, slots=True)
class Pruned:
    jobs: int
    entries: int


async def prune(before: datetime) -> Pruned:
    """Remove all entries of the jobs that were archived before then.

    The jobs themselves stay, with their attempts and verdicts.
    """
    jobs = entries = 0
    while stretches := await _removable(before):
        writes = [each for stretch in stretches for each in _removal(stretch)]
        await statements.database().execute_batch(writes)
        jobs += len(stretches)
        entries += sum(stretch.entries for stretch in stretches)
    return Pruned(jobs, entries)


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Where the entries of a job stand, and how many there are."""

    job_id: UUID
    first: int
    last: int
    entries: int


async def _removable(before: datetime) -> list[_Stretch]:
    """Some of the jobs that have entries to remove."""
    found = (
        JobLog.filter(job__archived_at__lt=before)
        .annotate(first=Min("seq"), last=Max("seq"), entries=Count("seq"))
        .group_by("job_id")
        .limit(CHUNK)
    )
    rows = await found.values_list("job_id", "first", "last", "entries")
    return [_Stretch(*cast("tuple[UUID, int, int, int]", row)) for row in rows]


def _removal(stretch: _Stretch) -> tuple[Statement, Statement]:
    id, first, last = str(stretch.job_id), stretch.first, stretch.last
    return (
        Statement(REMEMBER, [id, first, last], "pruned_logs"),
        Statement(REMOVE, [id, last], "job_logs"),
    )
