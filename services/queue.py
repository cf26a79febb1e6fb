"""The queue: rows beside the jobs, written in the transactions of the jobs.

An entry's place is its `rank`, told once when it is queued, so that taking is a look into an
index. It is the number of a round. In each round an agent takes one job of each owner of each
priority: an owner's next job goes a round later, and whoever comes new goes in the round behind
the one that is under way, however many of another's wait. What has the same rank goes in the
order of queueing. Rounds are counted as they are taken, not by the clock, so all of this holds
however slow the agent is, and nothing starves: no job is queued before the round under way but
by the head start of its priority, and that is used up by what goes by it.

Workers take turns in taking. Who takes sees what every agent has under way anywhere, which is
what makes limits of agents hold across all workers.

An execution whose agent answers later is AWAITING: no worker's, but the agent still has it, so
it counts for the agent's `max_concurrency`. Looking how far it is asks for no place, no rate and
no closed circuit, since the agent has accepted it already.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from models import Job, JobPriority, QueueState, statements
from models.statements import Connection, Row, Statement
from services import lanes
from services.lanes import IS_TRIED, UNDER_WAY, Lane, instant, micros

TAKING = 7_464_339_112
"""The key of the turns."""
AHEAD = {
    JobPriority.LOW: -10,
    JobPriority.NORMAL: 0,
    JobPriority.HIGH: 10,
    JobPriority.URGENT: 60,
}
"""How many rounds earlier a job goes."""
SUSPICIOUS = 2
"""Workers lost, from which on an execution runs beside no other such one."""


@dataclass(frozen=True, slots=True)
class Taken:
    """An execution that is one worker's, and how often it failed unexpectedly."""

    job_id: UUID
    number: int
    failures: int
    suspect: bool = False

    @property
    def key(self) -> tuple[UUID, int]:
        return self.job_id, self.number


@dataclass(slots=True)
class Turn:
    """What came of taking, and when a limit will let more through."""

    taken: list[Taken] = field(default_factory=list[Taken])
    again_at: datetime | None = None


def _rank(agent: str, owner: str, priority: str) -> str:
    """SQL of the place of a job that is queued now.

    Behind its owner's others of its priority, behind the round under way but for its head start,
    and behind what went by such a head start last: who sends one at a time would else have it
    each time anew, and all others would wait for ever.
    """
    moved = f"""CASE {priority} {" ".join(f"WHEN {p.value} THEN {-by}" for p, by in AHEAD.items())}
            ELSE 0 END"""
    used = f"""CASE {priority} WHEN {JobPriority.HIGH.value} THEN g."high_round"
            WHEN {JobPriority.URGENT.value} THEN g."urgent_round" END"""
    return f"""(SELECT max("place") FROM (
        SELECT max(w."rank") + 1 AS "place" FROM "queue_entries" w WHERE w."agent_id" = {agent}
            AND w."owner_id" = {owner} AND w."priority" = {priority} AND w."state" = 'WAITING'
        UNION ALL SELECT 1 + {moved}
        UNION ALL SELECT 1 + g."round" + {moved} FROM "agent_gates" g WHERE g."agent_id" = {agent}
        UNION ALL SELECT 1 + {used} FROM "agent_gates" g WHERE g."agent_id" = {agent}
        ) "places")"""  # noqa: S608 - constants


INSERT = f"""INSERT INTO "queue_entries"
    ("job_id", "number", "agent_id", "owner_id", "priority", "state", "queued_at", "ready_at",
     "lost", "failures", "rank")
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, 0,
        {_rank("$3", "CAST($4 AS VARCHAR)", "CAST($5 AS INT)")})
    ON CONFLICT ("job_id") DO """  # noqa: S608 - constants
REPLACE = """UPDATE SET "number" = excluded."number",
        "agent_id" = excluded."agent_id", "state" = excluded."state", "rank" = excluded."rank",
        "queued_at" = excluded."queued_at", "ready_at" = excluded."ready_at",
        "worker_id" = NULL, "lost" = 0, "failures" = 0"""
LEAVE_AS_IT_IS = "NOTHING"


def insertion(job: Job, ready_at: datetime | None = None, *, if_there: str = REPLACE) -> Statement:
    """Queues the job's current attempt, in place of one before it.

    With `ready_at` it sleeps until then.
    """
    now = datetime.now(UTC)
    state = QueueState.SLEEPING if ready_at else QueueState.WAITING
    values = [
        str(job.id),
        job.attempt_count,
        str(job.agent_id),
        job.created_by_id,
        int(job.priority),
        state.value,
        now,
        ready_at,
    ]
    return Statement(INSERT + if_there, values, "queue_entries", appends=True)


# Ordered as the index is, so that it is the index that is looked into, however long the queue.
ANY_WAITING = """SELECT * FROM (SELECT 1 FROM "queue_entries" WHERE "state" = 'WAITING'
        ORDER BY "agent_id", "rank", "queued_at" LIMIT 1) "waiting"
    UNION ALL SELECT * FROM (SELECT 1 FROM "queue_entries" WHERE "state" = 'SUSPECT'
        ORDER BY "agent_id", "rank", "queued_at" LIMIT 1) "suspect" """
# The state is asked for again, since the entry may be another's by now; as an expression, lest
# Postgres go through all that wait by their state while it believes that these are few.
TAKE = """UPDATE "queue_entries" SET "state" = 'RUNNING', "worker_id" = $1
    FROM (SELECT "job_id" AS "id" FROM "queue_entries"
          WHERE "state" = 'WAITING' AND "agent_id" = $2
          ORDER BY "rank", "queued_at" LIMIT $3) "head"
    WHERE "queue_entries"."job_id" = "head"."id" AND "queue_entries"."state" || '' = 'WAITING'
    RETURNING "job_id", "number", "failures", "rank", "priority" """
# They are of many agents, whose rounds cannot be compared.
TAKE_SUSPECT = f"""UPDATE "queue_entries" SET "state" = 'RUNNING', "worker_id" = $1
    WHERE "job_id" = (
        SELECT q."job_id" FROM "queue_entries" q JOIN "agents" a ON a."id" = q."agent_id"
        LEFT JOIN "agent_gates" g ON g."agent_id" = a."id"
        WHERE q."state" = 'SUSPECT' AND a."availability" = 'ACTIVE'
            AND (g."open_until" IS NULL OR g."open_until" <= $2)
            AND a."max_concurrency" > {UNDER_WAY} AND NOT {IS_TRIED}
            AND (a."rate_per_minute" IS NULL OR COALESCE(g."rate_at", 0) <= $3)
        ORDER BY q."queued_at" LIMIT 1)
    RETURNING "job_id", "number", "failures", "agent_id" """  # noqa: S608 - constants
SET_GATE = """INSERT INTO "agent_gates"
    ("agent_id", "failures", "opened", "rate_at", "round", "high_round", "urgent_round")
    VALUES ($1, 0, 0, $2, $3, $4, $5) ON CONFLICT ("agent_id") DO UPDATE SET
        "rate_at" = excluded."rate_at", "round" = excluded."round",
        "high_round" = excluded."high_round", "urgent_round" = excluded."urgent_round" """
SET_RATE_OF_ONE = """INSERT INTO "agent_gates" ("agent_id", "failures", "opened", "rate_at")
    SELECT "id", 0, 0, CAST($2 AS BIGINT) + 60000000 / "rate_per_minute"
    FROM "agents" WHERE "id" = $1 AND "rate_per_minute" IS NOT NULL
    ON CONFLICT ("agent_id") DO UPDATE SET "rate_at" = excluded."rate_at" """


async def any_waiting() -> bool:
    return bool(await statements.database().fetch(ANY_WAITING))


async def take(worker_id: UUID, slots: int, *, suspects: bool) -> Turn:
    """Make executions this worker's own, at most `slots`, as far as their agents' limits allow.

    `suspects` says that no suspicious one runs here. Raises `Unavailable`.
    """
    now = datetime.now(UTC)
    found = Turn()
    async with statements.database().exclusive(TAKING) as connection:
        if suspects:  # first: there may always be others enough for every place
            found.taken += await _take_suspect(connection, worker_id, now)
        waiting = await lanes.read(connection, now)
        for lane in await lanes.share(connection, waiting, slots - len(found.taken)):
            found.taken += await _take(connection, worker_id, lane)
    found.again_at = earliest(*(lane.opens_at for lane in waiting))
    return found


async def _take(connection: Connection, worker_id: UUID, lane: Lane) -> list[Taken]:
    rows = await connection.fetch(TAKE, str(worker_id), lane.agent_id, lane.wanted)
    gate = lane.after([(rank, priority) for *_, rank, priority in rows])
    if gate != lane.gate:
        await connection.fetch(SET_GATE, lane.agent_id, *astuple(gate))
    return [taken(row[:3]) for row in rows]


async def _take_suspect(connection: Connection, worker_id: UUID, now: datetime) -> list[Taken]:
    rows = await connection.fetch(TAKE_SUSPECT, str(worker_id), now, micros(now))
    for row in rows:
        await connection.fetch(SET_RATE_OF_ONE, str(row[3]), micros(now))
    return [taken(row[:3], suspect=True) for row in rows]


def taken(row: Row, *, suspect: bool = False) -> Taken:
    job_id, number, failures = row
    return Taken(uuid(job_id), number, failures, suspect)


# Each gets a new place, as if it were queued now: else all that wake together would stand before
# whatever was queued while they slept.
WAKE = f"""UPDATE "queue_entries" SET "ready_at" = NULL, "queued_at" = $1,
    "state" = CASE WHEN "lost" >= $2 THEN 'SUSPECT' ELSE 'WAITING' END, "rank" = "woken"."rank"
    FROM (SELECT s."job_id" AS "id", {_rank('s."agent_id"', 's."owner_id"', 's."priority"')} - 1
              + row_number() OVER (PARTITION BY s."agent_id", s."owner_id", s."priority"
                  ORDER BY s."rank", s."queued_at") AS "rank"
          FROM "queue_entries" s WHERE s."state" = 'SLEEPING' AND s."ready_at" <= $1) "woken"
    WHERE "queue_entries"."job_id" = "woken"."id" AND "queue_entries"."state" = 'SLEEPING'
    RETURNING 1"""  # noqa: S608 - constants
NEXT = """SELECT min("ready_at") FROM "queue_entries" WHERE "state" = 'SLEEPING'"""


async def wake(now: datetime) -> datetime | None:
    """Let those wait that slept until now; returns when the next one is to be woken."""
    at = await _next(NEXT)
    if at is None or at > now:
        return at
    await statements.database().fetch(WAKE, now, SUSPICIOUS)
    return await _next(NEXT)


async def _next(sql: str) -> datetime | None:
    (row,) = await statements.database().fetch(sql)
    return instant(row[0])


# The places of those that are due, whichever agents they belong to. They are found once, by a WITH:
# Postgres may go through a subquery once per row, and finds others behind those it locked before.
RESUME = """WITH "due" AS MATERIALIZED (SELECT "job_id" AS "id" FROM "queue_entries"
        WHERE "state" = 'AWAITING' AND "ready_at" <= $2 ORDER BY "ready_at" LIMIT $3{lock})
    UPDATE "queue_entries" SET "state" = 'RUNNING', "worker_id" = $1 FROM "due"
    WHERE "queue_entries"."job_id" = "due"."id" AND "queue_entries"."state" || '' = 'AWAITING'
    RETURNING "job_id", "number", "failures" """
NEXT_AWAITED = """SELECT min("ready_at") FROM "queue_entries" WHERE "state" = 'AWAITING'"""


async def resume(worker_id: UUID, slots: int, now: datetime) -> Turn:
    """Make this worker's own, at most `slots`, what is to be looked at until now.

    `again_at` is when the next one is; with as many as `slots` there may be more right now.
    """
    at = await _next(NEXT_AWAITED)
    if at is None or at > now:
        return Turn(again_at=at)
    sql = RESUME.format(lock="" if statements.is_sqlite() else " FOR UPDATE SKIP LOCKED")
    rows = await statements.database().fetch(sql, str(worker_id), now, slots)
    return Turn([taken(row) for row in rows], await _next(NEXT_AWAITED))


RELEASE = """UPDATE "queue_entries" SET "worker_id" = NULL, "failures" = $5,
    "ready_at" = COALESCE($4, "ready_at"),
    "state" = CASE WHEN "ready_at" IS NOT NULL THEN 'AWAITING'
                   WHEN CAST($6 AS BOOLEAN) THEN 'SLEEPING'
                   WHEN "lost" >= $7 THEN 'SUSPECT' ELSE 'WAITING' END
    WHERE "job_id" = $1 AND "number" = $2 AND "worker_id" = $3 RETURNING 1"""
FORGET = 'DELETE FROM "queue_entries" WHERE "job_id" = $1 AND "number" = $2 RETURNING 1'
MINE = """SELECT "job_id", "number", "failures", "lost" FROM "queue_entries"
    WHERE "worker_id" = $1"""


async def release(worker_id: UUID, it: Taken, *, failures: int, ready_at: datetime | None) -> None:
    """Give an execution back; not to be taken before `ready_at`."""
    await statements.database().fetch(
        *(RELEASE, str(it.job_id), it.number, str(worker_id)),
        *(ready_at, failures, ready_at is not None, SUSPICIOUS),
    )


async def forget(job_id: UUID, number: int) -> None:
    """Drop an entry whose attempt has ended."""
    await statements.database().fetch(FORGET, str(job_id), number)


async def mine(worker_id: UUID) -> list[Taken]:
    """What the rows say that this worker runs."""
    rows = await statements.database().fetch(MINE, str(worker_id))
    return [taken(row[:3], suspect=row[3] >= SUSPICIOUS) for row in rows]


LOST = """"jobs" t0 LEFT JOIN "queue_entries" q ON q."job_id" = t0."id"
    WHERE t0."workspace_id" IN (SELECT "id" FROM "workspaces") AND t0."status" = 'IN_EXECUTION'
        AND t0."phase" <> 'AWAITING_REVIEW' AND q."job_id" IS NULL"""


async def reconcile() -> int:
    """Queue what the jobs say is under way and no entry tells of; returns how many."""
    rows = await statements.fetch_all((Job,), LOST)
    for (job,) in rows:
        # Another worker that starts just now may have queued it, and begun it.
        await statements.database().execute_batch([insertion(job, if_there=LEAVE_AS_IT_IS)])
    return len(rows)


def earliest(*times: datetime | None) -> datetime | None:
    return min((at for at in times if at is not None), default=None)


def uuid(value: object) -> UUID:
    return value if isinstance(value, UUID) else UUID(str(value))
