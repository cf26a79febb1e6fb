"""Which worker sends which delivery.

Workers take turns in taking, so that each delivery is one worker's at a time and the bound on a
webhook's requests under way holds over all of them. What was taken and not settled by the end of
its lease is taken again: its worker has died, or cannot reach the database.

Deliveries of one job to one webhook are taken in the order of their events; only one that failed
is passed by those after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from heapq import heapify, heappop, heappush
from uuid import UUID

from models import Webhook, statements
from models.statements import Row
from services import queue
from services.circuits import CircuitState, state_of
from services.runtime import Runtime
from services.webhooks import hooks

TAKING = 7_464_339_113
"""The key of the turns."""
PER_WEBHOOK = 16
"""Requests under way at once, over all workers."""
PER_OWNER = 64
"""The same for all webhooks of one owner, so that none has all that a process sends at once."""
MOST = {CircuitState.CLOSED: PER_WEBHOOK, CircuitState.HALF_OPEN: 1, CircuitState.OPEN: 0}


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery that is one worker's until `until`; `hook` is its webhook as it was then."""

    id: UUID
    body: str
    tries: int
    until: datetime
    hook: Webhook


@dataclass(slots=True)
class Round:
    """What came of taking, and when there may be more."""

    taken: list[Claimed] = field(default_factory=list[Claimed])
    again_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Lane:
    """A webhook, the first moment of what waits for it, and how many requests it may get now.

    `most` of them may be under way at once, and `running` are.
    """

    webhook_id: UUID
    owner: tuple[int, str]
    first: datetime | None
    most: int
    running: int
    next_at: datetime | None

    @property
    def room(self) -> int:
        return max(0, self.most - self.running) if self.first else 0


LANES = """SELECT w."id", w."workspace_id", w."owner_id", w."open_until",
        (SELECT min(d."next_attempt_at") FROM "webhook_deliveries" d
         WHERE d."webhook_id" = w."id" AND d."state" = 'PENDING'),
        (SELECT min(d."next_attempt_at") FROM "webhook_deliveries" d
         WHERE d."webhook_id" = w."id" AND d."state" = 'SENDING'),
        (SELECT count(*) FROM "webhook_deliveries" d
         WHERE d."webhook_id" = w."id" AND d."state" = 'SENDING' AND d."next_attempt_at" > $1)
    FROM "webhooks" w WHERE w."enabled" """
OF_LANES = '"webhooks" t0 WHERE t0."enabled" AND t0."id" IN ({ids})'
# Waiting ones and those of lost workers apart, and so the earlier ones of the job, so that each is
# a look into an index that holds no settled ones. Whether it is still due is asked again, since
# it may have been settled meanwhile; and so are the bound, which others fill too, and whether the
# webhook is still what it was when it was read.
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
TAKE = f"""UPDATE "webhook_deliveries"
    SET "state" = 'SENDING', "next_attempt_at" = $4, "attempts" = "attempts" + 1
    FROM (SELECT "id" AS "head_id" FROM (
              {HEAD.format(state="SENDING")} UNION ALL {HEAD.format(state="PENDING")}) "due"
          WHERE EXISTS (SELECT 1 FROM "webhooks" w
                        WHERE w."id" = $1 AND w."enabled" AND w."version" = $6)
          ORDER BY "at", "seq" LIMIT (
              SELECT CASE WHEN $5 - count(*) < 0 THEN 0
                          WHEN $5 - count(*) < $3 THEN $5 - count(*) ELSE $3 END
              FROM "webhook_deliveries" r WHERE r."webhook_id" = $1 AND r."state" = 'SENDING'
                  AND r."next_attempt_at" > $2)) "head"
    WHERE "id" = "head_id" AND "webhook_deliveries"."next_attempt_at" <= $2
    RETURNING "id", "body", "tries", "seq" """  # noqa: S608 - constants


async def take(rt: Runtime, now: datetime, slots: int, lease: timedelta) -> Round:
    """Make due deliveries this worker's own, at most `slots`.

    Nothing is taken for who may not hear of it any more; such a webhook is disabled.
    """
    lanes = [_lane(row, now) for row in await statements.database().fetch(LANES, now)]
    found = Round(again_at=queue.earliest(*(lane.next_at for lane in lanes)))
    shares = _shares(lanes, slots)
    if not shares:
        return found
    told = await _told(rt, list(shares))
    await _take(found, [each for each in shares.items() if each[0] in told], told, now, now + lease)
    if found.taken and len(found.taken) < slots < sum(lane.room for lane in lanes):
        found.again_at = now  # one had less than its share, which is another's
    return found


def _lane(row: Row, now: datetime) -> _Lane:
    webhook_id, workspace_id, owner_id, open_until, pending, lapses, running = row
    until, moments = queue.instant(open_until), (queue.instant(pending), queue.instant(lapses))
    due = [at for at in moments if at is not None and at <= now]
    coming = [at for at in moments if at is not None and at > now]
    state = state_of(until, now)
    if state is CircuitState.OPEN:
        coming.append(until or now)
    return _Lane(
        queue.uuid(webhook_id),
        (workspace_id, owner_id),
        min(due, default=None),
        MOST[state],
        running,
        min(coming, default=None),
    )


def _shares(lanes: Sequence[_Lane], slots: int) -> dict[_Lane, int]:
    """How many requests each gets, one after the other.

    The owner who has the fewest under way goes first, then the webhook, then who waits longest.
    """
    owned: Counter[tuple[int, str]] = Counter()
    for lane in lanes:
        owned[lane.owner] += lane.running
    shares: Counter[_Lane] = Counter()

    def turn(lane: _Lane) -> tuple[int, int, datetime | None]:
        return owned[lane.owner], shares[lane] + lane.running, lane.first

    waiting = [(turn(lane), place) for place, lane in enumerate(lanes) if lane.room]
    heapify(waiting)
    while waiting and shares.total() < slots:
        seen, place = heappop(waiting)
        lane = lanes[place]
        if seen == turn(lane) and owned[lane.owner] < PER_OWNER:
            shares[lane] += 1
            owned[lane.owner] += 1
        if shares[lane] < lane.room and owned[lane.owner] < PER_OWNER:
            heappush(waiting, (turn(lane), place))
    return shares


async def _told(rt: Runtime, lanes: Sequence[_Lane]) -> dict[_Lane, Webhook]:
    """The webhooks of those whose owner may hear of anything."""
    at = {lane.webhook_id: lane for lane in lanes}
    marks = ", ".join(f"${n}" for n in range(1, len(at) + 1))
    source, ids = OF_LANES.format(ids=marks), map(str, at)
    read: list[Webhook] = [hook for (hook,) in await statements.fetch_all((Webhook,), source, *ids)]
    owners = await hooks.owners(read)
    for hook in read:
        if owners[hook.id] is None:
            await hooks.stop(rt, hook, hooks.KEYLESS)
    return {at[hook.id]: hook for hook in read if owners[hook.id] is not None}


async def _take(
    found: Round,
    shares: Sequence[tuple[_Lane, int]],
    told: Mapping[_Lane, Webhook],
    now: datetime,
    until: datetime,
) -> None:
    try:
        async with statements.database().exclusive(TAKING) as connection:
            for lane, share in shares:
                hook = told[lane]
                values = (str(hook.id), now, share, until, lane.most, hook.version)
                rows = await connection.fetch(TAKE, *values)
                found.taken += [
                    Claimed(queue.uuid(id), body, tries, until, hook)
                    for id, body, tries, _ in sorted(rows, key=lambda row: row[3] or 0)
                ]
    except Exception:  # it may have been written all the same
        for it in found.taken:
            with suppress(Exception):  # its lease will end
                await release(it, now, was_sent=False)
        raise


RELEASE = """UPDATE "webhook_deliveries"
    SET "state" = 'PENDING', "next_attempt_at" = $3, "attempts" = "attempts" - $4
    WHERE "id" = $1 AND "state" = 'SENDING' AND "next_attempt_at" = $2 RETURNING 1"""


async def release(it: Claimed, now: datetime, *, was_sent: bool = True) -> None:
    """Give a delivery back: whatever became of the try, another one follows at once."""
    unsent = 0 if was_sent else 1
    await statements.database().fetch(RELEASE, str(it.id), it.until, now, unsent)
