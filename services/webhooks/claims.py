"""Which worker sends which delivery.

Workers take turns in taking, so that each delivery is one worker's at a time and the bound on a
webhook's requests under way holds over all of them. What was taken and not settled by the end of
its lease is taken again: its worker has died, or cannot reach the database.

Deliveries of one job to one webhook are taken in the order of their events; only one that failed
is passed by those after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from models import Webhook, statements
from models.statements import Connection, Row
from services import queue
from services.circuits import CircuitState, state_of

TAKING = 7_464_339_113
"""The key of the turns."""
PER_WEBHOOK = 4
"""Requests under way at once, over all workers."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery that is one worker's until `until`; `hook` is its webhook as it was then."""

    id: UUID
    body: str
    tries: int
    attempts: int
    until: datetime
    hook: Webhook


@dataclass(slots=True)
class Round:
    """What came of taking, and when there may be more."""

    taken: list[Claimed] = field(default_factory=list[Claimed])
    again_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Lane:
    """A webhook, the first moment of what waits for it, and how many requests it may get now."""

    webhook_id: str
    first: datetime | None
    room: int
    next_at: datetime | None


LANES = """SELECT w."id", w."open_until",
        (SELECT min(d."next_attempt_at") FROM "webhook_deliveries" d
         WHERE d."webhook_id" = w."id" AND d."state" = 'PENDING'),
        (SELECT min(d."next_attempt_at") FROM "webhook_deliveries" d
         WHERE d."webhook_id" = w."id" AND d."state" = 'SENDING'),
        (SELECT count(*) FROM "webhook_deliveries" d
         WHERE d."webhook_id" = w."id" AND d."state" = 'SENDING' AND d."next_attempt_at" > $1)
    FROM "webhooks" w WHERE w."enabled" """
# Waiting ones and those of lost workers apart, and so the earlier ones of the job, so that each is
# a look into an index that holds no settled ones. Whether it is still due is asked again, since it may have been settled meanwhile.
HEAD = """SELECT * FROM (
        SELECT d."id", d."next_attempt_at" AS "at", d."seq" FROM "webhook_deliveries" d
        WHERE d."webhook_id" = $1 AND d."state" = '{state}' AND d."next_attempt_at" <= $2
            AND NOT EXISTS (
                SELECT 1 FROM "webhook_deliveries" e
                WHERE e."webhook_id" = d."webhook_id" AND e."job_id" = d."job_id"
                    AND e."seq" < d."seq" AND e."state" = 'SENDING')
            AND NOT EXISTS (
                SELECT 1 FROM "webhook_deliveries" e
                WHERE e."webhook_id" = d."webhook_id" AND e."job_id" = d."job_id"
                    AND e."seq" < d."seq" AND e."state" = 'PENDING' AND e."next_attempt_at" <= $2)
        ORDER BY d."next_attempt_at", d."seq" LIMIT $3) "{state}" """
TAKE = f"""UPDATE "webhook_deliveries" SET "state" = 'SENDING', "next_attempt_at" = $4
    FROM (SELECT "id" AS "head_id" FROM (
              {HEAD.format(state="SENDING")} UNION ALL {HEAD.format(state="PENDING")}) "due"
          ORDER BY "at", "seq" LIMIT $3) "head"
    WHERE "id" = "head_id" AND "webhook_deliveries"."next_attempt_at" <= $2
    RETURNING "id", "body", "tries", "attempts", "seq" """  # noqa: S608 - constants


async def take(now: datetime, slots: int, lease: timedelta) -> Round:
    """Make due deliveries this worker's own, at most `slots`; who waits longest goes first."""
    lanes = _lanes(await statements.database().fetch(LANES, now), now)
    found = Round(again_at=queue.earliest(*(lane.next_at for lane in lanes)))
    if slots <= 0 or not any(lane.room for lane in lanes):
        return found
    taken: list[tuple[str, Row]] = []
    async with statements.database().exclusive(TAKING) as connection:
        for lane in _lanes(await connection.fetch(LANES, now), now):
            room = min(lane.room, slots - len(taken))
            if room > 0:
                rows = await _take(connection, lane, now, room, now + lease)
                taken += [(lane.webhook_id, row) for row in rows]
    found.taken = await _claimed(taken, now + lease)
    return found


def _lanes(rows: Sequence[Row], now: datetime) -> list[_Lane]:
    lanes = [_lane(row, now) for row in rows]
    return sorted(lanes, key=lambda lane: lane.first or now)


def _lane(row: Row, now: datetime) -> _Lane:
    webhook_id, open_until, pending, lapses, running = row
    until, moments = queue.instant(open_until), (queue.instant(pending), queue.instant(lapses))
    due = [at for at in moments if at is not None and at <= now]
    coming = [at for at in moments if at is not None and at > now]
    match state_of(until, now):
        case CircuitState.CLOSED:
            room = max(0, PER_WEBHOOK - running)
        case CircuitState.HALF_OPEN:
            room = 0 if running else 1
        case CircuitState.OPEN:
            room = 0
            coming.append(until or now)
    return _Lane(
        str(webhook_id), min(due, default=None), room if due else 0, min(coming, default=None)
    )


async def _take(
    connection: Connection, lane: _Lane, now: datetime, room: int, until: datetime
) -> list[Row]:
    rows = await connection.fetch(TAKE, lane.webhook_id, now, room, until)
    return sorted(rows, key=lambda row: row[4] or 0)


async def _claimed(taken: Sequence[tuple[str, Row]], until: datetime) -> list[Claimed]:
    """With the webhooks as they are; a delivery whose webhook is gone is gone too."""
    ids = {webhook_id for webhook_id, _ in taken}
    hooks = {id: await statements.fetch(Webhook, id=UUID(id)) for id in ids}
    return [
        Claimed(queue.uuid(id), body, tries, attempts, until, hook)
        for webhook_id, (id, body, tries, attempts, _) in taken
        if (hook := hooks[webhook_id]) is not None
    ]


RELEASE = """UPDATE "webhook_deliveries" SET "state" = 'PENDING', "next_attempt_at" = $3
    WHERE "id" = $1 AND "state" = 'SENDING' AND "next_attempt_at" = $2 RETURNING 1"""


async def release(it: Claimed, now: datetime) -> None:
    """Give a delivery back: whatever became of the try, another one follows at once."""
    await statements.database().fetch(RELEASE, str(it.id), it.until, now)
