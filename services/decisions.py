"""What people decide about jobs: review, force, resubmit, cancel, reopen, archive.

Every decision raises `NotFound`, `Forbidden`, `VersionConflict` and `IllegalTransition`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

from pydantic import Field

from models import (
    Attempt,
    CompletionMode,
    Job,
    JobLogType,
    StatusReason,
    VerdictOutcome,
    jsontext,
    statements,
)
from services import execution, idempotency, jobs, lifecycle, log, rules, starting
from services.actors import Viewer
from services.errors import InvalidInput, NotFound
from services.idempotency import Keyed
from services.openings import Failure
from services.rules import Event
from services.runtime import Runtime
from services.transactions import atomic
from services.values import AttemptId, Command, JobId, Json, Reason, Version, public_id


class ForceComplete(Keyed):
    """Sign a job off by hand, whatever its judge said."""

    id: JobId
    result: Json = Field(description="What the job's result shall be.")
    reason: Reason = Field(description="Kept in the log.")
    expected_version: Version | None = None


class ResubmitJob(Command):
    """Send a completed or running job back; its old result stays in the attempts."""

    id: JobId
    reason: Reason
    execute: bool = Field(default=False, description="Execute it again at once.")
    expected_version: Version | None = None


class CancelJob(Command):
    id: JobId
    reason: Reason | None = None
    expected_version: Version | None = None


class Review(Command):
    """A person's verdict on an attempt that waits for one."""

    attempt_id: AttemptId
    outcome: VerdictOutcome = Field(description="PASS completes the job, FAIL sends it back.")
    reason: Reason


async def force_complete(rt: Runtime, viewer: Viewer, command: ForceComplete) -> Job:
    """Raises `IdempotencyConflict` too."""
    do = partial(_force_complete, rt, viewer, command)
    once = partial(idempotency.once, rt, viewer, command, command.id, do)
    return await lifecycle.at_any_version(once, command.expected_version)


@atomic
async def _force_complete(rt: Runtime, viewer: Viewer, command: ForceComplete) -> Job:
    return await lifecycle.move(
        rt,
        await jobs.get(viewer, command.id),
        Event.FORCE_COMPLETE,
        viewer,
        expected_version=command.expected_version,
        reason=StatusReason.FORCED,
        message=command.reason,
        result_json=jsontext.dumps(command.result),
        completion_mode=CompletionMode.FORCED,
    )


async def resubmit(rt: Runtime, viewer: Viewer, command: ResubmitJob) -> Job:
    """With `execute` raises also what an execution raises, and then nothing has changed."""
    do = partial(_resubmit, rt, viewer, command)
    return await lifecycle.at_any_version(do, command.expected_version)


@atomic
async def _resubmit(rt: Runtime, viewer: Viewer, command: ResubmitJob) -> Job:
    job, agent = await jobs.with_agent(viewer, command.id)
    await lifecycle.move(
        rt,
        job,
        Event.RESUBMIT,
        viewer,
        expected_version=command.expected_version,
        reason=StatusReason.RESUBMISSION_REQUESTED,
        message=command.reason,
        result_json=None,
        completion_mode=None,
    )
    if command.execute:
        await execution.accept(rt, viewer, job, agent, feedback=command.reason)
    return job


async def cancel(rt: Runtime, viewer: Viewer, command: CancelJob) -> Job:
    do = partial(_cancel, rt, viewer, command)
    return await lifecycle.at_any_version(do, command.expected_version)


@atomic
async def _cancel(rt: Runtime, viewer: Viewer, command: CancelJob) -> Job:
    return await lifecycle.move(
        rt,
        await jobs.get(viewer, command.id),
        Event.CANCEL,
        viewer,
        expected_version=command.expected_version,
        reason=StatusReason.CANCELLED_BY_USER,
        message=command.reason,
    )


@atomic
async def reopen(
    rt: Runtime, viewer: Viewer, job_id: UUID, reason: str, expected_version: int | None
) -> Job:
    """Raises `LimitExceeded` too, if it starts by itself at once."""
    job = await jobs.get(viewer, job_id)
    await lifecycle.move(
        rt,
        job,
        Event.REOPEN,
        viewer,
        expected_version=expected_version,
        reason=StatusReason.REOPENED,
        message=reason,
    )
    await starting.admit(rt, job)
    return job


@atomic
async def archive(rt: Runtime, viewer: Viewer, job_id: UUID) -> Job:
    job = await jobs.get(viewer, job_id)
    return await lifecycle.move(
        rt, job, Event.ARCHIVE, viewer, message="Archived.", archived_at=datetime.now(UTC)
    )


@atomic
async def unarchive(rt: Runtime, viewer: Viewer, job_id: UUID) -> Job:
    job = await jobs.get(viewer, job_id)
    return await lifecycle.move(
        rt, job, Event.UNARCHIVE, viewer, message="Unarchived.", archived_at=None
    )


@atomic
async def review(rt: Runtime, viewer: Viewer, command: Review) -> Job:
    """Raises `InvalidInput` too: for an outcome that decides nothing, or an attempt gone by."""
    source = '"attempts" t0 JOIN "jobs" t1 ON t1.id = t0.job_id WHERE t0.id = $1'
    found = await statements.fetch_joined((Attempt, Job), source, str(command.attempt_id))
    if not found or not viewer.sees(found[1]):
        raise NotFound(public_id("attempt", command.attempt_id))
    attempt, job = found
    if command.outcome not in (VerdictOutcome.PASS, VerdictOutcome.FAIL):
        raise InvalidInput.at("input", "outcome", message="must be PASS or FAIL")
    passed = command.outcome is VerdictOutcome.PASS
    event = Event.APPROVE if passed else Event.REJECT
    rules.demand(job, event, viewer)
    if attempt.number != job.attempt_count:
        raise InvalidInput.at("input", "attemptId", message="is not the job's current attempt")
    changes: dict[str, Any] = {}
    if passed:
        changes = {
            "result_json": attempt.response_json,
            "completion_mode": CompletionMode.REVIEWED,
        }
    log.append(
        job,
        JobLogType.REVIEW,
        viewer,
        message=command.reason,
        payload={"outcome": command.outcome},
        attempt_id=attempt.id,
    )
    reason = StatusReason.REVIEW_APPROVED if passed else StatusReason.REVIEW_REJECTED
    rejected = Failure(reason, command.reason, retryable=True, may_have_executed=True)
    return await lifecycle.move(
        rt,
        job,
        event,
        viewer,
        reason=reason,
        message=command.reason,
        attempt=None if passed else {"error_json": jsontext.dumps(rejected.told())},
        attempt_id=attempt.id,
        **changes,
    )
