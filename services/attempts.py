"""The steps of an attempt under way: each fenced, each with its log entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models import Agent, Attempt, CriteriaSet, Job, JobLogType, JobPhase, StatusReason, jsontext
from services import lifecycle, log
from services.actors import SYSTEM
from services.errors import IllegalTransition, NotFound, VersionConflict
from services.lifecycle import Event
from services.runtime import Runtime
from services.transactions import atomic
from services.values import public_id


@dataclass(slots=True)
class Run:
    """One attempt under way."""

    job: Job
    attempt: Attempt
    agent: Agent
    criteria: CriteriaSet

    @property
    def key(self) -> str:
        """What the agent knows the work by."""
        return self.attempt.idempotency_key or public_id("attempt", self.attempt.id)


OVERTAKEN = (IllegalTransition, VersionConflict, NotFound)
"""The attempt was ended by somebody else; what it still brings is not applied."""


async def advance(
    rt: Runtime, this: Run, phase: JobPhase, *, attempt: Mapping[str, Any], **changes: Any
) -> None:
    """The next step of the attempt, or one of `OVERTAKEN`."""
    await lifecycle.move(
        rt, this.job, Event.ADVANCE, SYSTEM, phase=phase, attempt=attempt, **changes
    )


def tell(this: Run, type: JobLogType, message: str, payload: Any) -> None:
    log.append(
        log.entry(
            this.job,
            type,
            SYSTEM,
            message=message,
            payload=payload,
            attempt_id=this.attempt.id,
            agent_id=this.agent.id,
        )
    )


@atomic
async def settle(
    rt: Runtime,
    this: Run,
    event: Event,
    reason: StatusReason,
    message: str,
    *,
    error: Mapping[str, Any] | None = None,
    **changes: Any,
) -> None:
    """End the attempt, or raise one of `OVERTAKEN`."""
    await lifecycle.move(
        rt,
        this.job,
        event,
        SYSTEM,
        reason=reason,
        message=message,
        attempt={"error_json": jsontext.dumps(error)} if error else None,
        attempt_id=this.attempt.id,
        **changes,
    )


def problem(
    code: str, message: str, *, retryable: bool, may_have_executed: bool
) -> dict[str, object]:
    """What an attempt keeps of its failure."""
    return {
        "code": code,
        "message": message,
        "retryable": retryable,
        "mayHaveExecuted": may_have_executed,
    }
