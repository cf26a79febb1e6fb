"""Executions: accepting one, running it, waiting for it.

Rows decide, the queue only wakes. Every step is written with its log entry
before the next begins; the attempt's recorded response is the checkpoint, so
after a crash `run` goes on where the rows say it was.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from uuid import UUID

import structlog
from pydantic import Field

from models import (
    Agent,
    AgentGate,
    Attempt,
    CriteriaSet,
    Job,
    JobLogType,
    JobPhase,
    JobStatus,
    QueueEntry,
    QueueState,
    StatusReason,
    statements,
)
from services import (
    attempts,
    awaiting,
    budgets,
    calling,
    dependencies,
    idempotency,
    interruptions,
    jobs,
    judging,
    lifecycle,
    openings,
    queue,
    rules,
    telemetry,
    tracing,
)
from services.actors import Actor, Viewer
from services.agent_http import Accepted, AgentReply
from services.attempts import OVERTAKEN, Run
from services.errors import InvalidInput, NotFound
from services.idempotency import Keyed
from services.openings import Failure
from services.rules import Event
from services.runtime import Runtime
from services.tracing import Kind
from services.transactions import atomic, current
from services.values import JobId, LongText, Version, public_id
from services.workers import Orphan

logger = structlog.get_logger(__name__)


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
    when_ready: bool = Field(
        default=False,
        description="If it cannot start now, let it start by itself as soon as its runAt, the jobs "
        "it depends on and its agent allow.",
    )


async def execute(rt: Runtime, viewer: Viewer, command: ExecuteJob) -> Job:
    """Accept an execution, and wait for its outcome if asked to.

    Raises `NotFound`, `Forbidden`, `VersionConflict`, `IllegalTransition`,
    `AgentUnavailable`, `BudgetExceeded`, `LimitExceeded` and `IdempotencyConflict`,
    `DependenciesUnmet` for a job that waits for others or for a result that is not there, and
    `SchemaMismatch` or `InvalidInput` for an input made of results that does not fit.
    """
    do = partial(_execute, rt, viewer, command)
    job = await idempotency.once(rt, viewer, command, command.id, do)
    if command.wait_seconds:
        return await outcome(rt, job, command.wait_seconds)
    return job


@atomic
async def _execute(rt: Runtime, viewer: Viewer, command: ExecuteJob) -> Job:
    job, agent = await jobs.with_agent(viewer, command.id)
    if command.when_ready and job.status in rules.RULES[Event.ARM].sources:
        why = rules.refusal(job, Event.EXECUTE, agent, await dependencies.unmet(job))
        if why is not None:
            return await _arm(rt, viewer, job, command, str(why))
    return await accept(
        rt, viewer, job, agent, feedback=command.feedback, expected_version=command.expected_version
    )


async def _arm(rt: Runtime, viewer: Viewer, job: Job, command: ExecuteJob, why: str) -> Job:
    """Let it start by itself later on."""
    if command.feedback is not None:
        message = f"cannot be kept until the job starts: {why}"
        raise InvalidInput.at("input", "feedback", message=message)
    return await lifecycle.move(
        rt,
        job,
        Event.ARM,
        viewer,
        expected_version=command.expected_version,
        message=f"It starts by itself when it can. {why}",
        armed=True,
    )


@atomic
async def accept(
    rt: Runtime,
    viewer: Actor | Viewer,
    job: Job,
    agent: Agent | None,
    *,
    feedback: str | None = None,
    expected_version: int | None = None,
) -> Job:
    """Open the next attempt and hand it to the engine."""
    unmet = await dependencies.unmet(job)
    rules.demand(
        job, Event.EXECUTE, viewer, agent=agent, unmet=unmet, expected_version=expected_version
    )
    assert agent is not None  # noqa: S101 - the guard of EXECUTE
    await _admit(rt, viewer, job, agent)
    hints = await _feedback(job, feedback) if agent.accepts_feedback else []
    body = await dependencies.body(rt, job, agent)
    attempt = openings.attempt(job, agent, hints, body=body)
    await lifecycle.move(
        rt,
        job,
        Event.EXECUTE,
        viewer,
        agent=agent,
        reason=StatusReason.EXECUTION_REQUESTED,
        phase=JobPhase.QUEUED,
        attempt_count=attempt.number,
        first_attempt=attempt.number,
        agent_attempts=1,
        fallbacks_used=0,
        attempt_id=attempt.id,
    )
    current().insert(attempt)
    current().enqueue(job)
    return job


async def _admit(rt: Runtime, by: Actor | Viewer, job: Job, agent: Agent) -> None:
    """Raise `BudgetExceeded` or `LimitExceeded`; what the system starts is never refused."""
    if isinstance(by, Viewer):
        budgets.demand(job, budgets.of_call(agent), f"another call of “{agent.name}”")
        await rt.bound.admit()


async def _feedback(job: Job, hint: str | None) -> list[str]:
    """What the judge, a reviewer or the caller had against the attempt before."""
    hints = [hint] if hint else []
    if job.status_reason is StatusReason.REVIEW_REJECTED and job.status_message:
        hints.append(job.status_message)
    return hints + await openings.latest_reasons(job)


async def outcome(rt: Runtime, job: Job, seconds: float) -> Job:
    """The job when its execution has come to a decision or a wait for a person.

    At the latest after `seconds`, as it is then.
    """

    async def latest() -> Job:
        now = await statements.fetch(Job, id=job.id)
        assert now is not None  # noqa: S101 - no job is ever deleted
        return now

    async def settled() -> Job | None:
        now = await latest()
        return None if is_running(now) else now

    return await rt.events.until(settled, seconds) or await latest()


def is_running(job: Job) -> bool:
    return job.status is JobStatus.IN_EXECUTION and job.phase is not JobPhase.AWAITING_REVIEW


ATTEMPT = """"jobs" t0
    JOIN "attempts" t1 ON t1.job_id = t0.id AND t1.number = $2
    JOIN "agents" t2 ON t2.id = t1.agent_id
    JOIN "criteria_sets" t3 ON t3.job_id = t0.id AND t3.version = t1.criteria_version
    LEFT JOIN "agent_gates" t4 ON t4.agent_id = t1.agent_id
    WHERE t0.id = $1"""


OF_WORKER = """ AND EXISTS (SELECT 1 FROM "queue_entries" q
    WHERE q.job_id = $1 AND q.number = $2 AND q.worker_id = $3)"""


async def _under_way(job_id: UUID, number: int, worker_id: UUID | None = None) -> Run | None:
    this = await run_of(job_id, number, worker_id)
    under_way = this is not None and this.job.attempt_count == number and is_running(this.job)
    return this if under_way else None


async def run_of(job_id: UUID, number: int, worker_id: UUID | None = None) -> Run | None:
    """An attempt and what it is about, under way or not.

    With `worker_id` only while it is that worker's, which the version read with it fences.
    """
    tables = (Job, Attempt, Agent, CriteriaSet, AgentGate)
    source, whose = (ATTEMPT, ()) if worker_id is None else (ATTEMPT + OF_WORKER, (str(worker_id),))
    found = await statements.fetch_joined(tables, source, str(job_id), number, *whose)
    return Run(*found) if found else None


async def run(rt: Runtime, job_id: UUID, number: int, worker_id: UUID | None = None) -> None:
    """Do, or go on with, attempt `number`. Doing a finished one again does nothing.

    Nor does doing one that is not the worker's any more: it hung before it began.
    """
    this = await _under_way(job_id, number, worker_id)
    if this is None:
        if await _under_way(job_id, number) is None:
            await queue.forget(job_id, number)
        return
    told_id = public_id("job", this.job.id)
    about = {"signoff.job.id": told_id, "signoff.attempt": number}
    with (
        structlog.contextvars.bound_contextvars(job_id=told_id, attempt=number),
        tracing.under(this.attempt.traceparent),
        tracing.span(rt.tracer, "attempt", Kind.INTERNAL, about),
    ):
        try:
            if this.attempt.responded_at is not None:
                await judging.judge(rt, this)
            elif isinstance(answer := await _answer(rt, this, worker_id), Accepted):
                await awaiting.begin(rt, this, answer)
            elif answer is not None:
                await judging.receive(rt, this, answer)
        except OVERTAKEN:
            logger.info("attempt overtaken")
            rt.telemetry.ended(telemetry.OVERTAKEN)
        else:
            if this.job.phase is not JobPhase.AWAITING_AGENT:
                rt.telemetry.ended(this.outcome or this.job.status_reason)


async def _answer(rt: Runtime, this: Run, worker_id: UUID | None) -> AgentReply | Accepted | None:
    if this.job.phase is not JobPhase.AWAITING_AGENT:
        return await calling.ask(rt, this)
    assert worker_id is not None  # noqa: S101 - workers alone go on with what is awaited
    return await awaiting.look(rt, this, worker_id)


async def aborted(rt: Runtime, job_id: UUID, number: int) -> None:
    """Note what the run was cut off from: the attempt has ended, or is another worker's."""
    this = await run_of(job_id, number)
    if this and this.attempt.finished_at is not None:
        rt.telemetry.ended(telemetry.OVERTAKEN)
    if this:
        await interruptions.note(rt, this)


async def take_over(rt: Runtime, orphan: Orphan) -> None:
    """Free an execution of a worker that was lost, unless it has lost too many."""
    this = await _under_way(orphan.job_id, orphan.number)
    if this is None:
        await queue.forget(orphan.job_id, orphan.number)
    elif this.attempt.resumptions >= rt.options.max_losses:
        await _give_up(
            rt, this, f"It ended {rt.options.max_losses + 1} workers, so it was stopped."
        )
    else:
        with suppress(*OVERTAKEN):
            await _free(rt, this, orphan)


@atomic
async def _free(rt: Runtime, this: Run, orphan: Orphan) -> None:
    """Whoever takes it next goes on where the rows say; the lost worker's version is gone."""

    async def gone() -> None:
        raise NotFound(public_id("job", orphan.job_id))

    lost = this.attempt.resumptions + 1
    current().swap(
        QueueEntry,
        {"job_id": orphan.job_id, "number": orphan.number, "worker_id": orphan.worker_id},
        {
            "worker_id": None,
            "lost": lost,
            "state": _state_of_freed(this, lost),
        },
        gone,
    )
    assert this.job.phase is not None  # noqa: S101 - it is under way
    await attempts.advance(rt, this, this.job.phase, attempt={"resumptions": lost})
    message = f"Its worker was lost; another one goes on ({lost} of {rt.options.max_losses})."
    attempts.tell(this, JobLogType.NOTE, message, {"lost": lost})
    current().wake()


def _state_of_freed(this: Run, lost: int) -> QueueState:
    if this.job.phase is JobPhase.AWAITING_AGENT:
        return QueueState.AWAITING
    return QueueState.SUSPECT if lost >= queue.SUSPICIOUS else QueueState.WAITING


async def give_up(rt: Runtime, job_id: UUID, number: int) -> None:
    """Settle an attempt that fails for reasons of our own, again and again."""
    this = await _under_way(job_id, number)
    if this is not None:
        await _give_up(rt, this, "Signoff failed to run this attempt; its log has why.")


async def _give_up(rt: Runtime, this: Run, why: str) -> None:
    with suppress(*OVERTAKEN):
        if this.attempt.responded_at is not None:
            await judging.leave_to_review(rt, this, f"{why} The agent's response is kept.")
            rt.telemetry.ended(this.job.status_reason)
            return
        message = f"{why} Execute the job again if that is safe."
        asked = this.attempt.started_at is not None or this.attempt.idempotency_key is not None
        reason = StatusReason.WORKER_LOST
        error = Failure(reason, message, retryable=True, may_have_executed=asked)
        await attempts.settle(rt, this, Event.LOSE, reason, message, error=error)
        rt.telemetry.ended(this.job.status_reason)
