"""The steps of an attempt under way: each fenced, each with its log entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from models import (
    Agent,
    AgentGate,
    Attempt,
    CriteriaSet,
    Job,
    JobLogType,
    JobPhase,
    StatusReason,
    jsontext,
)
from services import lifecycle, log, openings
from services.actors import SYSTEM
from services.errors import IllegalTransition, NotFound, VersionConflict
from services.openings import Ended, Failure
from services.rules import Event
from services.runtime import Runtime
from services.transactions import atomic


@dataclass(slots=True)
class Run:
    """One attempt under way."""

    job: Job
    attempt: Attempt
    agent: Agent
    criteria: CriteriaSet
    gate: AgentGate | None = None
    outcome: StatusReason | None = None

    @property
    def body(self) -> str:
        """What the agent is sent: the job's input, with results of other jobs in their place."""
        return self.attempt.request_json or self.job.input_json

    @property
    def key(self) -> str:
        """What the agent knows the work by."""
        return openings.key_of(self.attempt)


OVERTAKEN = (IllegalTransition, VersionConflict, NotFound)
"""The attempt was ended by somebody else; what it still brings is not applied."""


async def advance(
    rt: Runtime, this: Run, phase: JobPhase, *, attempt: Mapping[str, Any], **changes: Any
) -> None:
    """The next step of the attempt, or one of `OVERTAKEN`."""
    await lifecycle.move(
        rt, this.job, Event.ADVANCE, SYSTEM, phase=phase, attempt=attempt, **changes
    )


def milliseconds(this: Run) -> int:
    """Since the attempt's first request, by the clock of the machine that it was sent from."""
    began = this.attempt.started_at or datetime.now(UTC)
    return max(0, round((datetime.now(UTC) - began).total_seconds() * 1000))


def tell(this: Run, type: JobLogType, message: str, payload: Any) -> None:
    log.append(
        this.job,
        type,
        SYSTEM,
        message=message,
        payload=payload,
        attempt_id=this.attempt.id,
        agent_id=this.agent.id,
    )


@atomic
async def settle(
    rt: Runtime,
    this: Run,
    event: Event,
    reason: StatusReason,
    message: str,
    *,
    error: Failure | None = None,
    attempt: Mapping[str, Any] | None = None,
    **changes: Any,
) -> None:
    """End the attempt, or raise one of `OVERTAKEN`; `attempt` are further columns of it.

    After one that failed by `error` another one may follow: then the job stays in execution.
    """
    this.outcome = reason
    if error is not None:
        columns = dict(attempt or {})
        ended = Ended(this.job, this.attempt, this.agent, event, reason, error, columns, changes)
        why_not = await openings.follow(rt, ended)
        if why_not is None:
            return
        message += why_not
        if event is Event.GIVE_BACK and await openings.executed_before(this.job, ended.attempt):
            event = Event.FAIL
    await lifecycle.move(
        rt,
        this.job,
        event,
        SYSTEM,
        reason=reason,
        message=message,
        attempt=dict(attempt or {})
        | ({"error_json": jsontext.dumps(error.told())} if error else {}),
        attempt_id=this.attempt.id,
        **changes,
    )
