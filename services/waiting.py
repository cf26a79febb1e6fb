"""Why an execution in the queue does not run yet, in words."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from models import AgentAvailability, QueueState, statements
from models.statements import Row
from services import circuits, lanes
from services.circuits import CircuitState
from services.lanes import Rate, instant

ENTRIES = f"""SELECT q."job_id", q."state", q."ready_at", a."availability", a."max_concurrency",
        a."rate_per_minute", g."open_until", g."reason", g."rate_at",
        {lanes.UNDER_WAY}, {lanes.IS_TRIED}
    FROM "queue_entries" q JOIN "agents" a ON a."id" = q."agent_id"
    LEFT JOIN "agent_gates" g ON g."agent_id" = a."id"
    WHERE q."state" NOT IN ('RUNNING', 'AWAITING') AND q."job_id" IN ({{ids}})"""  # noqa: S608 - constants
RUNNING = """SELECT "agent_id", count(*) FROM "queue_entries"
    WHERE "state" IN ('RUNNING', 'AWAITING') AND "agent_id" IN ({ids}) GROUP BY "agent_id" """


async def reasons(job_ids: Sequence[UUID]) -> list[str | None]:
    """What each job waits for; None for one that waits for nothing, or is not in the queue."""
    now = datetime.now(UTC)
    rows = await statements.fetch_of(ENTRIES, job_ids)
    found = {str(row[0]): _reason(row[1:], now) for row in rows}
    return [found.get(str(job_id)) for job_id in job_ids]


async def running_counts(agent_ids: Sequence[UUID]) -> list[int]:
    """How many executions each agent has under way, anywhere, those awaited included."""
    found = {
        str(agent_id): running
        for agent_id, running in await statements.fetch_of(RUNNING, agent_ids)
    }
    return [found.get(str(agent_id), 0) for agent_id in agent_ids]


def _reason(row: Row, now: datetime) -> str:
    state, ready_at, availability, most, per_minute, open_until, why, rate_at, held, is_tried = row
    if state == QueueState.SLEEPING:
        return f"a pause until {_told(instant(ready_at))}"
    if availability != AgentAvailability.ACTIVE:
        return f"agent is {availability}"
    return (
        _broken(instant(open_until), why, now, is_tried=is_tried)
        or (f"agent is at its maxConcurrency of {most}" if held >= most else None)
        or (_too_fast(Rate.of(now, rate_at or 0, per_minute), per_minute) if per_minute else None)
        or "a free worker"
    )


def _broken(open_until: datetime | None, why: str, now: datetime, *, is_tried: bool) -> str | None:
    circuit = circuits.state_of(open_until, now)
    if circuit is CircuitState.OPEN:
        return f"agent's circuit is open until {_told(open_until)}: {why}"
    if circuit is CircuitState.HALF_OPEN and is_tried:
        return f"agent's circuit is half open, and another execution tries it: {why}"
    return None


def _too_fast(rate: Rate, per_minute: int) -> str | None:
    if rate.room:
        return None
    return f"agent is at its ratePerMinute of {per_minute} until {_told(rate.opens_at)}"


def _told(at: datetime | None) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds") if at else "later"
