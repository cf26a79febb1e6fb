"""The rows that say when something is to become of a job, written with the change that says so.

A job that starts by itself, or waits for other jobs, has a START row while it is not under way:
the moment at which it is looked at next, `PARKED` where only a change can help it. Whatever may
have helped moves that moment to now, in its own transaction. An EXPIRE row is when a job is given
up that is not done.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from models import Job, JobStatus, Timer, TimerKind, statements
from models.base import uuid7
from models.statements import Row, Statement
from services import queue
from services.transactions import current

WAITING = frozenset({JobStatus.PENDING, JobStatus.ASSIGNED, JobStatus.RESUBMISSION_REQUIRED})
FINAL = frozenset({JobStatus.COMPLETED, JobStatus.CANCELLED})
PARKED = datetime(9999, 1, 1, tzinfo=UTC)
LEASE = timedelta(seconds=5)
"""How long whoever claimed a timer has for it, before somebody else takes it on."""
SETTLED = timedelta(seconds=60)
"""Longer than any statement runs: what was under way when a job changed is visible by then."""
BATCH = 50


@dataclass(frozen=True, slots=True)
class Claimed:
    """A timer that went off; it goes off again at `until` unless it is dealt with."""

    id: UUID
    job_id: UUID
    kind: TimerKind
    until: datetime


SET = """INSERT INTO "timers" ("id", "created_at", "kind", "at", "job_id")
    VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT ("job_id", "kind") DO UPDATE SET "at" = excluded."at" """


def begin(job: Job) -> None:
    """Set the timers of a new job."""
    _set_start(job, was_watched=False)
    if job.expires_at is not None:
        _set(job, TimerKind.EXPIRE, job.expires_at)


def is_watched(job: Job) -> bool:
    """Whether something can start or end the job without anybody asking."""
    return job.armed or job.dependency_count > 0


def follow(job: Job, source: JobStatus, *, was_watched: bool, expiry_changed: bool) -> None:
    """Set the timers of a job that was moved, and let those look that wait for it."""
    if source not in FINAL or job.status not in FINAL:
        _set_start(job, was_watched=was_watched and source in WAITING)
        _set_expiry(job, source, changed=expiry_changed)
    ends_or_returns = job.status is not source and (job.status in FINAL or source in FINAL)
    if ends_or_returns:
        _wake(DEPENDENTS, job.id)


def _set_start(job: Job, *, was_watched: bool) -> None:
    if is_watched(job) and job.status in WAITING:
        now = datetime.now(UTC)
        only_the_clock = job.armed and job.run_at is not None and not job.dependency_count
        _set(job, TimerKind.START, max(now, job.run_at or now) if only_the_clock else now)
    elif was_watched:
        current().delete(Timer, {"job_id": job.id, "kind": TimerKind.START})


def _set_expiry(job: Job, source: JobStatus, *, changed: bool) -> None:
    if job.status in FINAL or job.expires_at is None:
        if changed or job.expires_at is not None:
            current().delete(Timer, {"job_id": job.id, "kind": TimerKind.EXPIRE})
    elif changed or source in FINAL:
        _set(job, TimerKind.EXPIRE, job.expires_at)


def _set(job: Job, kind: TimerKind, at: datetime) -> None:
    values = [str(uuid7()), datetime.now(UTC), kind.value, at, str(job.id)]
    current().writes.append(Statement(SET, values, "timers", appends=True))
    current().wake(at)


DEPENDENTS = """"job_id" IN (
    SELECT d."job_id" FROM "job_dependencies" d WHERE d."depends_on_id" = $2)"""
OF_AGENT = """EXISTS (
    SELECT 1 FROM "jobs" j WHERE j."id" = "timers"."job_id" AND j."agent_id" = $2)"""


def wake_for_agent(agent_id: UUID) -> None:
    """Let the jobs of an agent look, that wait to start: it changed."""
    _wake(OF_AGENT, agent_id)


def _wake(whose: str, id: UUID) -> None:
    """In an order, since two that wake the same ones would else wait for each other."""
    lock = "" if statements.is_sqlite() else " FOR UPDATE"
    sql = f"""UPDATE "timers" SET "at" = $1
        FROM (SELECT "id" AS "woken_id" FROM "timers" WHERE "kind" = 'START' AND {whose}
              ORDER BY "id"{lock}) "woken"
        WHERE "id" = "woken_id" RETURNING 1"""  # noqa: S608 - constants
    now = datetime.now(UTC)
    transaction = current()

    def woken(found: int | None) -> None:
        if found is not None:
            transaction.wake(now)

    statement = Statement(sql, [now, str(id)], "timers", returning=True)
    transaction.write(statement, woken)


def park(timer: Claimed, job: Job, at: datetime | None = None) -> None:
    """Look at the job again at `at`, or when something changes that may help it.

    A change that was under way when the job became what it is may not have seen the timer to
    move it, so a job that has just changed is looked at once more.
    """
    settled = job.updated_at + SETTLED
    then = at or (settled if settled > datetime.now(UTC) else PARKED)

    async def moved() -> None:
        raise Moved

    current().swap(Timer, {"id": timer.id, "at": timer.until}, {"at": then}, moved)
    if then is not PARKED:
        current().wake(then)


def drop(timer: Claimed) -> None:
    """The timer has nothing to say any more, unless it was moved meanwhile."""
    current().delete(Timer, {"id": timer.id, "at": timer.until})


class Moved(Exception):
    """The timer was moved while it was dealt with: it goes off again."""


NEXT = 'SELECT min("at") FROM "timers"'
CLAIM = """UPDATE "timers" SET "at" = $2
    FROM (SELECT "id" AS "due_id" FROM "timers" WHERE "at" <= $1
          ORDER BY "at", "id" LIMIT $3{lock}) "due"
    WHERE "id" = "due_id" RETURNING "id", "job_id", "kind" """


async def claim(now: datetime) -> list[Claimed]:
    """Timers that went off until `now`, at most `BATCH`; each to one caller until it is late."""
    until = now + LEASE
    sql = CLAIM.format(lock="" if statements.is_sqlite() else " FOR UPDATE SKIP LOCKED")
    rows = await statements.database().fetch(sql, now, until, BATCH)
    return [_claimed(row, until) for row in rows]


def _claimed(row: Row, until: datetime) -> Claimed:
    id, job_id, kind = row
    return Claimed(queue.uuid(id), queue.uuid(job_id), TimerKind(kind), until)


async def next_at() -> datetime | None:
    """When the next one goes off."""
    (row,) = await statements.database().fetch(NEXT)
    at = queue.instant(row[0])
    return None if at is None or at >= PARKED else at
