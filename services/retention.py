"""Removing old entries of the log, and remembering that there were some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast
from uuid import UUID

from tortoise.functions import Count, Max, Min

from models import Job, JobLog
from models.statements import Statement
from services import audit, verification
from services.actors import SYSTEM, Actor
from services.transactions import current, unannounced
from services.values import public_id

CHUNK = 100
"""Jobs whose entries go in one transaction: a writer waits for it on SQLite."""
REMEMBER = """
INSERT INTO "pruned_logs" ("job_id", "from_seq", "until_seq", "head") VALUES ($1, $2, $3, $4)
ON CONFLICT ("job_id") DO UPDATE SET "until_seq" = excluded."until_seq", "head" = excluded."head"
WHERE "pruned_logs"."until_seq" < excluded."until_seq"
"""
REMOVE = 'DELETE FROM "job_logs" WHERE "job_id" = $1 AND "seq" <= $2'


@dataclass(slots=True)
class Pruned:
    """`broken` are jobs that keep their logs, which are not as they were written."""

    jobs: int = 0
    entries: int = 0
    broken: int = 0


class _Overtaken(Exception):
    """A job was changed meanwhile, or somebody else prunes it too."""


async def prune(before: datetime, by: Actor = SYSTEM) -> Pruned:
    """Remove all entries of the jobs that were archived before then.

    The jobs themselves stay, with their attempts and verdicts. What is removed is told in the
    audit log; a broken chain stays, since nobody could tell of it any more.
    """
    total, after = Pruned(), UUID(int=0)
    while stretches := await _removable(before, after):
        sound = [each for each in stretches if await _is_sound(each)]
        try:
            await _remove(sound, by)
        except _Overtaken:  # what may still go is read anew
            continue
        after = stretches[-1].job.id
        total.jobs += len(sound)
        total.entries += sum(each.entries for each in sound)
        total.broken += len(stretches) - len(sound)
    return total


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Where the entries of a job stand, how many there are, and the hash of the last."""

    job: Job
    first: int
    last: int
    entries: int
    head: str


async def _removable(before: datetime, after: UUID) -> list[_Stretch]:
    """Some of the jobs that have entries to remove, by their ids."""
    found = (
        JobLog.filter(job__archived_at__lt=before, job_id__gt=after)
        .annotate(first=Min("seq"), last=Max("seq"), entries=Count("seq"))
        .group_by("job_id")
        .order_by("job_id")
        .limit(CHUNK)
    )
    rows = await found.values_list("job_id", "first", "last", "entries")
    stood = [cast("tuple[UUID, int, int, int]", row) for row in rows]
    jobs = await Job.in_bulk([job_id for job_id, *_ in stood], "id")
    ends = await JobLog.in_bulk([last for _, _, last, _ in stood], "seq")
    return [
        _Stretch(jobs[job_id], first, last, entries, ends[last].hash)
        for job_id, first, last, entries in stood
        if last in ends  # another process removes them too
    ]


async def _is_sound(stretch: _Stretch) -> bool:
    return (await verification.of_log(stretch.job)).ok


async def _remove(stretches: Sequence[_Stretch], by: Actor) -> None:
    """Raises `_Overtaken` if a job is not the archived one any more that was read.

    Also if so much of its log was removed already: that is told by who did it.
    """

    async def overtaken() -> None:
        raise _Overtaken

    async with unannounced():
        for each in stretches:
            job, seen = each.job, {"version": each.job.version}
            current().swap(Job, {"id": job.id} | seen, seen, overtaken)
            id = str(job.id)
            values = [id, each.first, each.last, each.head]
            current().require(Statement(REMEMBER, values, "pruned_logs", guarded=True), overtaken)
            current().writes.append(Statement(REMOVE, [id, each.last], "job_logs"))
            told = audit.between({}, {"untilSeq": each.last, "headHash": each.head})
            told["entries"] = audit.change(each.entries, 0)
            subject = public_id("job", job.id)
            await audit.append(by, job.workspace_id, audit.PRUNED, subject, told)
