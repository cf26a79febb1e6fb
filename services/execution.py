"""Executions: accepting one, running it, waiting for it.

Rows decide, the queue only wakes. Every step is written with its log entry
before the next begins; the attempt's recorded response is the checkpoint, so
after a crash `run` goes on where the rows say it was.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID

import orjson
import structlog
from pydantic import Field

from models import (
    Agent,
    Attempt,
    AttemptState,
    CriteriaSet,
    Job,
    JobPhase,
    JobStatus,
    StatusReason,
    Verdict,
    jsontext,
    statements,
)
from services import attempts, calling, idempotency, jobs, judging, lifecycle
from services.actors import Viewer
from services.attempts import OVERTAKEN, Run
from services.idempotency import Keyed
from services.lifecycle import Event
from services.runtime import Runtime
from services.transactions import atomic, current
from services.values import JobId, LongText, Version, public_id

logger = structlog.get_logger(__name__)

RESUMPTIONS = 10
"""How often an attempt is gone on with; restarts are few, a job that kills its process is not."""


class ExecuteJob(Keyed):
    """Ask the assigned agent to do the job."""

    id: JobId
    expected_version: Version | None = None
    wait_seconds: int = Field(
        default=0, ge=0, le=60, description="0 returns at once; N waits up to N s for the outcome."
    )
    feedback: LongText | None = Field(
        default=None, description="A hint for the agent, if it accepts feedback."
    )


async def execute(rt: Runtime, viewer: Viewer, command: ExecuteJob) -> Job:
    """Accept an execution, and wait for its outcome if asked to.

    Raises `NotFound`, `Forbidden`, `VersionConflict`, `IllegalTransition`,
    `AgentUnavailable` and `IdempotencyConflict`.
    """
    do = partial(_execute, rt, viewer, command)
    job = await idempotency.once(rt, viewer, command, command.id, do)
    if command.wait_seconds:
        return await outcome(rt, job, command.wait_seconds)
    return job


@atomic
async def _execute(rt: Runtime, viewer: Viewer, command: ExecuteJob) -> Job:
    job, agent = await jobs.with_agent(viewer, command.id)
    return await accept(
        rt, viewer, job, agent, feedback=command.feedback, expected_version=command.expected_version
    )


@atomic
async def accept(
    rt: Runtime,
    viewer: Viewer,
    job: Job,
    agent: Agent | None,
    *,
    feedback: str | None = None,
    expected_version: int | None = None,
) -> Job:
    """Open the next attempt and hand it to the engine."""
    lifecycle.demand(job, Event.EXECUTE, viewer, agent=agent, expected_version=expected_version)
    assert agent is not None  # noqa: S101 - the guard of EXECUTE
    hints = await _feedback(job, feedback) if agent.accepts_feedback else []
    attempt = Attempt(
        job_id=job.id,
        agent_id=agent.id,
        number=job.attempt_count + 1,
        state=AttemptState.QUEUED,
        criteria_version=job.criteria_version,
        feedback_json=jsontext.dumps(hints),
        agent_snapshot_json=jsontext.dumps(_snapshot(agent)),
    )
    await lifecycle.move(
        rt,
        job,
        Event.EXECUTE,
        viewer,
        agent=agent,
        reason=StatusReason.EXECUTION_REQUESTED,
        phase=JobPhase.QUEUED,
        attempt_count=attempt.number,
        attempt_id=attempt.id,
    )
    current().insert(attempt)
    current().executions.append(job)
    return job


def _snapshot(agent: Agent) -> dict[str, Any]:
    """What an attempt keeps of its agent; nothing secret."""
    return {
        "name": agent.name,
        "version": agent.version,
        "timeoutSeconds": agent.timeout_seconds,
        "maxConcurrency": agent.max_concurrency,
        "idempotent": agent.idempotent,
        "inputSchema": orjson.Fragment(agent.input_schema_json),
        "outputSchema": orjson.Fragment(agent.output_schema_json),
    }


async def _feedback(job: Job, hint: str | None) -> list[str]:
    """What the judge, a reviewer or the caller had against the attempt before."""
    hints = [hint] if hint else []
    if job.status_reason is StatusReason.REVIEW_REJECTED and job.status_message:
        hints.append(job.status_message)
    judged = Verdict.filter(job_id=job.id, criteria_set__version=job.criteria_version)
    latest = await judged.order_by("-created_at", "-id").first()
    return hints + (judging.reasons(latest) if latest else [])


async def outcome(rt: Runtime, job: Job, seconds: float) -> Job:
    """The job when its execution has come to a decision or a wait for a person.

    At the latest after `seconds`, as it is then.
    """

    async def settled() -> Job | None:
        now = await Job.get(id=job.id)
        return None if is_running(now) else now

    return await rt.events.until(settled, seconds) or await Job.get(id=job.id)


def is_running(job: Job) -> bool:
    return job.status is JobStatus.IN_EXECUTION and job.phase is not JobPhase.AWAITING_REVIEW


UNDER_WAY = """"jobs" t0
    JOIN "attempts" t1 ON t1.job_id = t0.id AND t1.number = t0.attempt_count
    JOIN "agents" t2 ON t2.id = t1.agent_id
    JOIN "criteria_sets" t3 ON t3.job_id = t0.id AND t3.version = t1.criteria_version
    WHERE t0.id = $1"""


async def _under_way(job_id: UUID, number: int) -> Run | None:
    tables = (Job, Attempt, Agent, CriteriaSet)
    found = await statements.fetch_joined(tables, UNDER_WAY, str(job_id))
    if not found or found[0].attempt_count != number or not is_running(found[0]):
        return None
    return Run(*found)


async def run(rt: Runtime, job_id: UUID, number: int) -> None:
    """Do, or go on with, attempt `number`. Doing a finished one again does nothing."""
    this = await _under_way(job_id, number)
    if this is None:
        return
    job, attempt = this.job, this.attempt
    if job.phase is not JobPhase.QUEUED and not await _may_resume(rt, this):
        return
    with structlog.contextvars.bound_contextvars(
        job_id=public_id("job", job.id), attempt=attempt.number
    ):
        try:
            if attempt.responded_at is not None or await calling.ask(rt, this):
                await judging.judge(rt, this)
        except OVERTAKEN:
            logger.info("attempt overtaken")


async def _may_resume(rt: Runtime, this: Run) -> bool:
    """Count that the attempt is gone on with; give it up where that was too often."""
    if this.attempt.resumptions >= RESUMPTIONS:
        await _give_up(rt, this)
        return False
    await _count_resumption(rt, this)
    return True


@atomic
async def _count_resumption(rt: Runtime, this: Run) -> None:
    this.attempt.resumptions += 1
    counted = {"resumptions": this.attempt.resumptions}
    current().update(Attempt, {"id": this.attempt.id}, counted)


async def give_up(rt: Runtime, job_id: UUID, number: int) -> None:
    """Settle an attempt that fails for reasons of our own, again and again."""
    this = await _under_way(job_id, number)
    if this is not None:
        await _give_up(rt, this)


async def _give_up(rt: Runtime, this: Run) -> None:
    with suppress(*OVERTAKEN):
        if this.attempt.responded_at is not None:
            await judging.leave_to_review(rt, this, "Judging failed; the server's log has why.")
            return
        message = "Signoff failed to run this attempt; its log has why. Execute the job again."
        error = attempts.problem("WORKER_LOST", message, retryable=True, may_have_executed=True)
        reason = StatusReason.WORKER_LOST
        await attempts.settle(rt, this, Event.LOSE, reason, message, error=error)
