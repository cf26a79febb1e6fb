"""The queue: rows beside the jobs, written in the transactions of the jobs.

An entry's place is its `rank`, told once when it is queued, so that taking is a look into an
index: the time of queueing, moved forward by the job's priority and back by each job of the
same owner that waits already. So an urgent job goes first, an owner with ten thousand jobs does
not hold up another's first one, and nothing starves, since the time of what comes later
overtakes any of these moves.

Workers take turns in taking. Who takes sees what every agent has under way anywhere, which is
what makes limits of agents hold across all workers.

An execution whose agent answers later is AWAITING: no worker's, but the agent still has it, so
it counts for the agent's `max_concurrency`. Looking how far it is asks for no place, no rate and
no closed circuit, since the agent has accepted it already.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

from models import Job, JobPriority, QueueState, statements
from models.statements import Connection, Row, Statement

TAKING = 7_464_339_112
"""The key of the turns."""
SECOND = 1_000_000
AHEAD = {
    JobPriority.LOW: -600 * SECOND,
    JobPriority.NORMAL: 0,
    JobPriority.HIGH: 600 * SECOND,
    JobPriority.URGENT: 3600 * SECOND,
}
"""How much earlier than its time of queueing a job counts as queued."""
SHARE = SECOND
"""How much later an owner's next job counts, for each one that waits already."""
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
class Round:
    """What came of taking, and when a limit will let more through."""

    taken: list[Taken] = field(default_factory=list[Taken])
    again_at: datetime | None = None


INSERT = """INSERT INTO "queue_entries"
    ("job_id", "number", "agent_id", "owner_id", "priority", "state", "queued_at", "ready_at",
     "lost", "failures", "rank")
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, 0, (
        SELECT max("place") FROM (
            SELECT max("rank") + CAST($9 AS BIGINT) AS "place" FROM "queue_entries"
            WHERE "agent_id" = $3 AND "owner_id" = CAST($4 AS VARCHAR) AND "priority" = $5
                AND "state" = 'WAITING'
            UNION ALL SELECT CAST($10 AS BIGINT)
        ) "places"))
    ON CONFLICT ("job_id") DO """
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
        SHARE,
        micros(now) - AHEAD[job.priority],
    ]
    return Statement(INSERT + if_there, values, "queue_entries", appends=True)


def micros(at: datetime) -> int:
    return int(at.timestamp() * SECOND)


@dataclass(frozen=True, slots=True)
class Rate:
    """The generic cell rate algorithm, in microseconds; a second's worth may come at once."""

    now: int
    theoretical: int
    interval: int

    @classmethod
    def of(cls, now: datetime, rate_at: int, per_minute: int) -> Rate:
        interval, at = 60 * SECOND // per_minute, micros(now)
        # No later than a full burst from now: the rate may have been lower, a clock ahead.
        latest = at + max(SECOND, interval)
        return cls(at, min(max(at, rate_at), latest), interval)

    @property
    def burst(self) -> int:
        return max(SECOND, self.interval)

    @property
    def room(self) -> int:
        return max(0, (self.now + self.burst - self.theoretical) // self.interval)

    @property
    def opens_at(self) -> datetime:
        at = self.theoretical + self.interval - self.burst
        return datetime.fromtimestamp(at / SECOND, UTC)

    def after(self, taken: int) -> int:
        return self.theoretical + taken * self.interval


@dataclass(slots=True)
class _Lane:
    """The executions that wait for one agent, and how many its limits let through now."""

    agent_id: str
    first: int
    room: int
    opens_at: datetime | None = None
    rate: Rate | None = None
    wanted: int = 0


def _lane(row: Row, now: datetime) -> _Lane:
    agent_id, limit, per_minute, open_until, rate_at, first, under_way, is_tried = row
    lane = _Lane(str(agent_id), first, max(0, limit - under_way))
    opens_at = instant(open_until)
    if opens_at is not None and opens_at > now:
        lane.room, lane.opens_at = 0, opens_at
    elif opens_at is not None:  # half open: one goes first, whatever it has accepted before
        lane.room = 0 if is_tried else min(1, lane.room)
    if per_minute is not None and lane.room:
        lane.rate = Rate.of(now, rate_at or 0, per_minute)
        lane.room = min(lane.room, lane.rate.room)
        lane.opens_at = None if lane.room else lane.rate.opens_at
    return lane


UNDER_WAY = """(SELECT count(*) FROM "queue_entries" r
         WHERE r."state" IN ('RUNNING', 'AWAITING') AND r."agent_id" = a."id")"""
"""What agent `a` has; all of it counts for its `max_concurrency`."""
IS_TRIED = """(g."open_until" IS NOT NULL AND EXISTS (SELECT 1 FROM "queue_entries" r
         WHERE r."state" = 'RUNNING' AND r."ready_at" IS NULL AND r."agent_id" = a."id"))"""
"""Whether there is a try of its broken circuit `g`; looking how far it is is none."""
# Ordered as the index is, so that it is the index that is looked into, however long the queue.
ANY_WAITING = """SELECT * FROM (SELECT 1 FROM "queue_entries" WHERE "state" = 'WAITING'
        ORDER BY "agent_id", "rank" LIMIT 1) "waiting"
    UNION ALL SELECT * FROM (SELECT 1 FROM "queue_entries" WHERE "state" = 'SUSPECT'
        ORDER BY "agent_id", "rank" LIMIT 1) "suspect" """
LANES = f"""WITH RECURSIVE "lane" ("agent_id") AS (
        SELECT * FROM (SELECT "agent_id" FROM "queue_entries" WHERE "state" = 'WAITING'
                       ORDER BY "agent_id" LIMIT 1) "lowest"
        UNION ALL
        SELECT (SELECT q."agent_id" FROM "queue_entries" q
                WHERE q."state" = 'WAITING' AND q."agent_id" > "lane"."agent_id"
                ORDER BY q."agent_id" LIMIT 1)
        FROM "lane" WHERE "lane"."agent_id" IS NOT NULL)
    SELECT a."id", a."max_concurrency", a."rate_per_minute", g."open_until", g."rate_at",
        (SELECT min(q."rank") FROM "queue_entries" q
         WHERE q."state" = 'WAITING' AND q."agent_id" = a."id"),
        {UNDER_WAY}, {IS_TRIED}
    FROM "lane" JOIN "agents" a ON a."id" = "lane"."agent_id"
    LEFT JOIN "agent_gates" g ON g."agent_id" = a."id"
    WHERE a."availability" = 'ACTIVE'"""  # noqa: S608 - constants
# The state is asked for again, since the entry may be another's by now; as an expression, lest
# Postgres go through all that wait by their state while it believes that these are few.
TAKE = """UPDATE "queue_entries" SET "state" = 'RUNNING', "worker_id" = $1
    FROM (SELECT "job_id" AS "id" FROM "queue_entries"
          WHERE "state" = 'WAITING' AND "agent_id" = $2 ORDER BY "rank" LIMIT $3) "head"
    WHERE "queue_entries"."job_id" = "head"."id" AND "queue_entries"."state" || '' = 'WAITING'
    RETURNING "job_id", "number", "failures" """
TAKE_SUSPECT = f"""UPDATE "queue_entries" SET "state" = 'RUNNING', "worker_id" = $1
    WHERE "job_id" = (
        SELECT q."job_id" FROM "queue_entries" q JOIN "agents" a ON a."id" = q."agent_id"
        LEFT JOIN "agent_gates" g ON g."agent_id" = a."id"
        WHERE q."state" = 'SUSPECT' AND a."availability" = 'ACTIVE'
            AND (g."open_until" IS NULL OR g."open_until" <= $2)
            AND a."max_concurrency" > {UNDER_WAY} AND NOT {IS_TRIED}
            AND (a."rate_per_minute" IS NULL OR COALESCE(g."rate_at", 0) <= $3)
        ORDER BY q."rank" LIMIT 1)
    RETURNING "job_id", "number", "failures", "agent_id" """  # noqa: S608 - constants
SET_RATE = """INSERT INTO "agent_gates" ("agent_id", "failures", "opened", "rate_at")
    VALUES ($1, 0, 0, $2) ON CONFLICT ("agent_id") DO UPDATE SET "rate_at" = excluded."rate_at" """
SET_RATE_OF_ONE = """INSERT INTO "agent_gates" ("agent_id", "failures", "opened", "rate_at")
    SELECT "id", 0, 0, CAST($2 AS BIGINT) + 60000000 / "rate_per_minute"
    FROM "agents" WHERE "id" = $1 AND "rate_per_minute" IS NOT NULL
    ON CONFLICT ("agent_id") DO UPDATE SET "rate_at" = excluded."rate_at" """


async def any_waiting() -> bool:
    return bool(await statements.database().fetch(ANY_WAITING))


async def take(worker_id: UUID, slots: int, *, suspects: bool) -> Round:
    """Make executions this worker's own, at most `slots`, as far as their agents' limits allow.

    `suspects` says that no suspicious one runs here. Raises `Unavailable`.
    """
    now = datetime.now(UTC)
    found = Round()
    async with statements.database().exclusive(TAKING) as connection:
        if suspects:  # first: there may always be others enough for every place
            found.taken += await _take_suspect(connection, worker_id, now)
        lanes = [_lane(row, now) for row in await connection.fetch(LANES)]
        for lane in _shared(lanes, slots - len(found.taken)):
            found.taken += await _take(connection, worker_id, lane)
    found.again_at = earliest(*(lane.opens_at for lane in lanes))
    return found


def _shared(lanes: list[_Lane], slots: int) -> list[_Lane]:
    """The agents that get of the free places: one each in turn, who waits longest first."""
    chosen = sorted((lane for lane in lanes if lane.room), key=lambda lane: lane.first)[:slots]
    left: list[_Lane] = chosen
    while slots and left:
        each = max(1, min(slots // len(left), *(lane.room - lane.wanted for lane in left)))
        for lane in left[:slots]:
            lane.wanted += each
        slots -= each * min(slots, len(left))
        left = [lane for lane in left if lane.wanted < lane.room]
    return chosen


async def _take(connection: Connection, worker_id: UUID, lane: _Lane) -> list[Taken]:
    rows = await connection.fetch(TAKE, str(worker_id), lane.agent_id, lane.wanted)
    if lane.rate is not None and rows:
        await connection.fetch(SET_RATE, lane.agent_id, lane.rate.after(len(rows)))
    return [taken(row) for row in rows]


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
WAKE = """UPDATE "queue_entries" SET "ready_at" = NULL,
    "state" = CASE WHEN "lost" >= $2 THEN 'SUSPECT' ELSE 'WAITING' END,
    "rank" = CASE WHEN "woken"."behind" > CAST($3 AS BIGINT) - "woken"."ahead"
        THEN "woken"."behind" ELSE CAST($3 AS BIGINT) - "woken"."ahead" END
        + CAST($4 AS BIGINT) * ("woken"."place" - 1)
    FROM (SELECT s."job_id" AS "id",
              CASE s."priority" WHEN 0 THEN {LOW} WHEN 2 THEN {HIGH} WHEN 3 THEN {URGENT}
                  ELSE {NORMAL} END AS "ahead",
              row_number() OVER (PARTITION BY s."agent_id", s."owner_id", s."priority"
                  ORDER BY s."rank") AS "place",
              COALESCE((SELECT max(w."rank") + CAST($4 AS BIGINT) FROM "queue_entries" w
                  WHERE w."agent_id" = s."agent_id" AND w."owner_id" = s."owner_id"
                      AND w."priority" = s."priority" AND w."state" = 'WAITING'), 0) AS "behind"
          FROM "queue_entries" s WHERE s."state" = 'SLEEPING' AND s."ready_at" <= $1) "woken"
    WHERE "queue_entries"."job_id" = "woken"."id" AND "queue_entries"."state" = 'SLEEPING'
    RETURNING 1""".format_map({each.name: moved for each, moved in AHEAD.items()})
NEXT = """SELECT min("ready_at") FROM "queue_entries" WHERE "state" = 'SLEEPING'"""


async def wake(now: datetime) -> datetime | None:
    """Let those wait that slept until now; returns when the next one is to be woken."""
    at = await _next(NEXT)
    if at is None or at > now:
        return at
    await statements.database().fetch(WAKE, now, SUSPICIOUS, micros(now), SHARE)
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


async def resume(worker_id: UUID, slots: int, now: datetime) -> Round:
    """Make this worker's own, at most `slots`, what is to be looked at until now.

    `again_at` is when the next one is; with as many as `slots` there may be more right now.
    """
    at = await _next(NEXT_AWAITED)
    if at is None or at > now:
        return Round(again_at=at)
    sql = RESUME.format(lock="" if statements.is_sqlite() else " FOR UPDATE SKIP LOCKED")
    rows = await statements.database().fetch(sql, str(worker_id), now, slots)
    return Round([taken(row) for row in rows], await _next(NEXT_AWAITED))


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


def instant(value: object) -> datetime | None:
    return datetime.fromisoformat(value) if isinstance(value, str) else cast("Any", value)
