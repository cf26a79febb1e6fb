"""Lanes: the executions that wait for one agent each, and how many of each begin now.

A lane lets through what its agent's limits allow. Where more lanes could go on than a worker has
places, those go first whose first job's owner has the fewest executions under way, on any worker:
an owner whose jobs wait for a thousand agents does not hold up another's at the next one. Among
these it is the job that has waited longest, priorities being a head start of minutes.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from models import JobPriority
from models.statements import Connection, Row

SECOND = 1_000_000
HEAD_STARTS = {
    JobPriority.LOW: timedelta(minutes=-10),
    JobPriority.NORMAL: timedelta(),
    JobPriority.HIGH: timedelta(minutes=10),
    JobPriority.URGENT: timedelta(hours=1),
}
"""How much longer than it did a job counts as having waited, beside jobs for other agents."""


def micros(at: datetime) -> int:
    return int(at.timestamp() * SECOND)


def instant(value: object) -> datetime | None:
    """A time as either database gives it."""
    return datetime.fromisoformat(value) if isinstance(value, str) else cast("Any", value)


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


@dataclass(frozen=True, slots=True)
class Gate:
    """What a turn at a lane writes down: the columns of `AgentGate` of these names."""

    rate_at: int = 0
    round: int | None = None
    high_round: int | None = None
    urgent_round: int | None = None


def _furthest(before: int | None, ranks: Iterable[int]) -> int | None:
    return max((rank for rank in (before, *ranks) if rank is not None), default=None)


@dataclass(slots=True)
class Lane:
    """The executions that wait for one agent, and how many its limits let through now."""

    agent_id: str
    room: int
    gate: Gate = field(default_factory=Gate)
    opens_at: datetime | None = None
    rate: Rate | None = None
    wanted: int = 0

    def after(self, taken: Sequence[tuple[int, int]]) -> Gate:
        """The gate behind what was taken, each with its rank and priority.

        A lane that gave less than was wanted is empty: nobody waits whose turn could be missed,
        so its round may stay where it was.
        """
        if not taken:
            return self.gate
        gate = self.gate
        rate_at = self.rate.after(len(taken)) if self.rate else gate.rate_at
        if len(taken) < self.wanted:
            return replace(gate, rate_at=rate_at)
        high, urgent = (
            [rank for rank, priority in taken if priority == ahead]
            for ahead in (JobPriority.HIGH, JobPriority.URGENT)
        )
        return Gate(
            rate_at,
            _furthest(gate.round, (rank for rank, _ in taken)),
            _furthest(gate.high_round, high),
            _furthest(gate.urgent_round, urgent),
        )


def of(row: Row, now: datetime) -> Lane:
    agent_id, limit, per_minute, open_until, rate_at, *rounds, under_way, is_tried = row
    gate = Gate(rate_at or 0, *rounds)
    lane = Lane(str(agent_id), max(0, limit - under_way), gate)
    opens_at = instant(open_until)
    if opens_at is not None and opens_at > now:
        lane.room, lane.opens_at = 0, opens_at
    elif opens_at is not None:  # half open: one goes first, whatever it has accepted before
        lane.room = 0 if is_tried else min(1, lane.room)
    if per_minute is not None and lane.room:
        lane.rate = Rate.of(now, gate.rate_at, per_minute)
        lane.room = min(lane.room, lane.rate.room)
        lane.opens_at = None if lane.room else lane.rate.opens_at
    return lane


UNDER_WAY = """(SELECT count(*) FROM "queue_entries" r
         WHERE r."state" IN ('RUNNING', 'AWAITING') AND r."agent_id" = a."id")"""
"""What agent `a` has; all of it counts for its `max_concurrency`."""
IS_TRIED = """(g."open_until" IS NOT NULL AND EXISTS (SELECT 1 FROM "queue_entries" r
         WHERE r."state" = 'RUNNING' AND r."ready_at" IS NULL AND r."agent_id" = a."id"))"""
"""Whether there is a try of its broken circuit `g`; looking how far it is is none."""
WAITED_FOR = """WITH RECURSIVE "lane" ("agent_id") AS (
        SELECT * FROM (SELECT "agent_id" FROM "queue_entries" WHERE "state" = 'WAITING'
                       ORDER BY "agent_id" LIMIT 1) "lowest"
        UNION ALL
        SELECT (SELECT q."agent_id" FROM "queue_entries" q
                WHERE q."state" = 'WAITING' AND q."agent_id" > "lane"."agent_id"
                ORDER BY q."agent_id" LIMIT 1)
        FROM "lane" WHERE "lane"."agent_id" IS NOT NULL)"""
"""The agents, found by one look into the index each, however many wait for them."""
LANES = f"""{WAITED_FOR}
    SELECT a."id", a."max_concurrency", a."rate_per_minute", g."open_until", g."rate_at",
        g."round", g."high_round", g."urgent_round", {UNDER_WAY}, {IS_TRIED}
    FROM "lane" JOIN "agents" a ON a."id" = "lane"."agent_id"
    LEFT JOIN "agent_gates" g ON g."agent_id" = a."id"
    WHERE a."availability" = 'ACTIVE'"""  # noqa: S608 - constants
HEADS = f"""{WAITED_FOR}
    SELECT a."id", a."workspace_id", h."owner_id", h."priority", h."queued_at"
    FROM "lane" JOIN "agents" a ON a."id" = "lane"."agent_id"
    JOIN "queue_entries" h ON h."job_id" = (
        SELECT q."job_id" FROM "queue_entries" q
        WHERE q."state" = 'WAITING' AND q."agent_id" = a."id"
        ORDER BY q."rank", q."queued_at" LIMIT 1)"""  # noqa: S608 - constants
RUNNING = """SELECT a."workspace_id", q."owner_id", count(*)
    FROM "queue_entries" q JOIN "agents" a ON a."id" = q."agent_id"
    WHERE q."state" = 'RUNNING' GROUP BY a."workspace_id", q."owner_id" """


async def read(connection: Connection, now: datetime) -> list[Lane]:
    return [of(row, now) for row in await connection.fetch(LANES)]


async def share(connection: Connection, lanes: Iterable[Lane], places: int) -> list[Lane]:
    """The lanes that get of the free places, with as many `wanted` as each gets."""
    left: list[Lane] = [lane for lane in lanes if lane.room]
    if places < len(left):
        left = await _neediest(connection, left, places)
    else:  # each gets one; that nobody gets what is left over each time is left to chance
        random.shuffle(left)
    chosen = left
    while places and left:
        each = max(1, min(places // len(left), *(lane.room - lane.wanted for lane in left)))
        for lane in left[:places]:
            lane.wanted += each
        places -= each * min(places, len(left))
        left = [lane for lane in left if lane.wanted < lane.room]
    return chosen


async def _neediest(connection: Connection, lanes: Sequence[Lane], places: int) -> list[Lane]:
    """As many lanes as there are places, one after another, as the module says."""
    if not places:
        return []
    running = {(space, owner): n for space, owner, n in await connection.fetch(RUNNING)}
    open_ones = {lane.agent_id: lane for lane in lanes}
    firsts: defaultdict[tuple[int, str], list[tuple[datetime, str]]] = defaultdict(list)
    for agent_id, space, owner, priority, queued_at in await connection.fetch(HEADS):
        if str(agent_id) in open_ones:
            since = cast("datetime", instant(queued_at)) - HEAD_STARTS[JobPriority(priority)]
            firsts[space, owner].append((since, str(agent_id)))
    turns = sorted(
        (running.get(owner, 0) + place, *first)  # each place that it gets counts for the next
        for owner, waiting in firsts.items()
        for place, first in enumerate(sorted(waiting))
    )
    return [open_ones[agent_id] for _, _, agent_id in turns[:places]]
