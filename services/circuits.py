"""Circuit breakers: an agent that keeps failing is left alone for a while, then tried by one.

What counts is written with the step of the attempt that saw it, in one transaction. Several
workers may do so at once, so the row counts by itself: nobody writes what they computed from an
older reading of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from http import HTTPStatus
from typing import Any
from uuid import UUID

import structlog

from models import Agent, AgentGate, Webhook, statements
from models.statements import Statement
from services import agents, audit, queue
from services.actors import Viewer
from services.agent_http import AgentCallFailed, AgentFault
from services.attempts import Run
from services.runtime import Runtime
from services.transactions import atomic, current
from services.values import public_id, storable

logger = structlog.get_logger(__name__)

MAX_SECONDS = 600.0
"""The longest that a circuit is open; each opening in a row doubles the time up to it."""
MAX_REASON = 500


class CircuitState(StrEnum):
    """OPEN lets nothing through; HALF_OPEN one execution at a time, to see how it goes."""

    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"


@dataclass(frozen=True, slots=True)
class Circuit:
    """Where an agent's circuit breaker is now. `reason` is the latest failure in a row."""

    state: CircuitState
    failures: int = 0
    reason: str | None = None
    open_until: datetime | None = None


NEVER_FAILED = Circuit(CircuitState.CLOSED)


def of(gate: AgentGate | Webhook | None) -> Circuit:
    if gate is None:
        return NEVER_FAILED
    state = state_of(gate.open_until, datetime.now(UTC))
    return Circuit(state, gate.failures, gate.reason, gate.open_until)


def state_of(open_until: datetime | None, now: datetime) -> CircuitState:
    if open_until is None:
        return CircuitState.CLOSED
    return CircuitState.OPEN if open_until > now else CircuitState.HALF_OPEN


async def of_agents(ids: Sequence[UUID]) -> list[Circuit]:
    """The circuits in the order asked for."""
    found = {gate.agent_id: gate async for gate in AgentGate.filter(agent_id__in=ids)}
    return [of(found.get(agent_id)) for agent_id in ids]


def failed(rt: Runtime, this: Run, failure: AgentCallFailed) -> None:
    """Count a call that gave no output; an agent that refuses in good order is well, though."""
    if _is_refusal(failure):
        answered(rt, this)
    elif rt.options.circuit_failures:
        rt.failing.setdefault(this.agent.id, False)
        _count(rt, this.agent, str(failure))


def _is_refusal(failure: AgentCallFailed) -> bool:
    return (
        failure.fault is AgentFault.REJECTED
        or failure.http_status == HTTPStatus.TOO_MANY_REQUESTS.value
    )


def answered(rt: Runtime, this: Run) -> None:
    """Close the circuit; writes nothing where nothing was wrong."""
    gate, agent = this.gate, this.agent
    if agent.id in rt.failing or (gate is not None and (gate.failures or gate.open_until)):
        was_open = gate is not None and gate.open_until is not None
        _close(rt, agent, "it answered", was_open=was_open)


def counted(table: str, levels: int, *, limit: int, now: int, until: int) -> str:
    """SQL by which a row of `table` counts one more failure, and opens its circuit if need be.

    What opens it: enough failures in a row, or one while it is half open. Those of calls that
    were under way when it opened prolong nothing. Placeholder number `limit` is how many are
    enough, `now` the time, `until` and on the moments to open until after each number of
    openings.
    """
    opens = f"""(("{table}"."open_until" IS NULL AND "{table}"."failures" + 1 >= ${limit})
        OR "{table}"."open_until" <= ${now})"""
    times = " ".join(
        f'WHEN "{table}"."opened" = {level} THEN ${until + level}' for level in range(levels)
    )
    return f""""failures" = "{table}"."failures" + 1,
        "opened" = "{table}"."opened" + CASE WHEN {opens} THEN 1 ELSE 0 END,
        "open_until" = CASE WHEN NOT COALESCE({opens}, FALSE) THEN "{table}"."open_until"
            {times} ELSE ${until + levels - 1} END"""


@lru_cache(maxsize=10)
def _counting(levels: int) -> str:
    """SQL that counts a failure of an agent."""
    return f"""INSERT INTO "agent_gates"
    ("agent_id", "failures", "opened", "open_until", "reason", "rate_at")
    VALUES ($1, 1, $2, $3, $4, 0) ON CONFLICT ("agent_id") DO UPDATE SET
        {counted("agent_gates", levels, limit=5, now=6, until=7)},
        "reason" = excluded."reason"
    RETURNING "open_until" """  # noqa: S608 - numbers


def _count(rt: Runtime, agent: Agent, reason: str) -> None:
    now = datetime.now(UTC)
    times = [now + timedelta(seconds=each) for each in durations(rt.options.circuit_seconds)]
    at_once = rt.options.circuit_failures == 1
    why = storable(reason)[:MAX_REASON]
    given: list[Any] = [str(agent.id), int(at_once), times[0] if at_once else None, why]
    given += [rt.options.circuit_failures, now, *times]

    def tell(open_until: Any) -> None:
        until = queue.instant(open_until)
        if until is not None and until in times:
            rt.failing[agent.id] = True
            rt.engine.wake(until)
            seconds = (until - now).total_seconds()
            logger.warning("circuit opened", **_named(agent), seconds=seconds, reason=why)

    current().write(Statement(_counting(len(times)), given, "agent_gates", returning=True), tell)


def durations(first: float) -> list[float]:
    """Seconds that a circuit is open the first time, the second time in a row, and so on."""
    found = [min(first, MAX_SECONDS)]
    while found[-1] < MAX_SECONDS:
        found.append(min(found[-1] * 2, MAX_SECONDS))
    return found


CLOSE = """UPDATE "agent_gates"
    SET "failures" = 0, "opened" = 0, "open_until" = NULL, "reason" = NULL
    WHERE "agent_id" = $1 RETURNING 1"""


def _close(rt: Runtime, agent: Agent, why: str, *, was_open: bool) -> None:
    """Forget the failures of an agent, which has a row for them."""

    def tell(_: Any) -> None:
        if was_open or rt.failing.get(agent.id):
            logger.info("circuit closed", **_named(agent), reason=why)

        rt.failing.pop(agent.id, None)

    current().write(Statement(CLOSE, [str(agent.id)], "agent_gates", returning=True), tell)
    current().wake()


def _named(agent: Agent) -> dict[str, str]:
    return {"agent_id": public_id("agent", agent.id), "agent": agent.name}


@atomic
async def reset(rt: Runtime, viewer: Viewer, agent_id: UUID) -> Agent:
    """Close a circuit by hand. Raises `NotFound` and `Forbidden`."""
    agent = await agents.changeable(viewer, agent_id)
    gate = await statements.fetch(AgentGate, agent_id=agent_id)
    if gate is not None:
        _close(rt, agent, "an admin closed it", was_open=True)
    before = {"failures": gate.failures if gate else 0, "openUntil": gate and gate.open_until}
    changes = audit.between(before, {"failures": 0, "openUntil": None})
    await audit.record(viewer, "agent.circuit_reset", public_id("agent", agent_id), changes)
    return agent
