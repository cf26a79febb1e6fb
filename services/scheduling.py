"""What the clock, and the end of other jobs, do to jobs.

A timer's going off decides nothing: the rows do, at that moment, in one transaction that their
versions guard. So it does not matter how often a timer goes off, or to how many.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

import structlog

from models import (
    Agent,
    DependencyPolicy,
    Job,
    JobLog,
    JobLogType,
    JobStatus,
    StatusReason,
    TimerKind,
    statements,
)
from services import dependencies, execution, lifecycle, timers
from services.actors import SYSTEM
from services.attempts import OVERTAKEN
from services.dependencies import Link
from services.errors import SignoffError
from services.rules import Event
from services.runtime import Runtime
from services.timers import WAITING, Claimed, Moved
from services.transactions import atomic
from services.values import public_id

logger = structlog.get_logger(__name__)

TRIES = 5
"""A job under way moves on every few milliseconds."""
HELD = "Held: "


async def due(rt: Runtime, now: datetime) -> datetime | None:
    """Deal with the timers that went off; returns when the next one does."""
    at = await timers.next_at()
    if at is None or at > now:
        return at
    claimed = await timers.claim(now)
    await asyncio.gather(*(deal_with(rt, each) for each in claimed))
    return await timers.next_at()


async def deal_with(rt: Runtime, timer: Claimed) -> None:
    """One timer; what goes wrong with it is tried again and does not hold up the others."""
    handle = _start if timer.kind is TimerKind.START else _expire
    try:
        for _ in range(TRIES):
            with suppress(*OVERTAKEN):
                await handle(rt, timer)
                return
    except Moved:
        pass
    except Exception:
        logger.exception("a timer failed; trying again", job_id=timer.job_id, kind=timer.kind)


@atomic
async def _expire(rt: Runtime, timer: Claimed) -> None:
    job = await Job.get(id=timer.job_id)
    now = datetime.now(UTC)
    if job.status in timers.FINAL or job.expires_at is None:
        timers.drop(timer)
    elif job.expires_at > now:
        timers.park(timer, job, job.expires_at)
    else:
        message = f"It was not done by {job.expires_at.isoformat()}."
        await lifecycle.move(
            rt, job, Event.CANCEL, SYSTEM, reason=StatusReason.EXPIRED, message=message
        )


WITH_AGENT = '"jobs" t0 LEFT JOIN "agents" t1 ON t1."id" = t0."agent_id" WHERE t0."id" = $1'


@atomic
async def _start(rt: Runtime, timer: Claimed) -> None:
    """Start the job, or give it up, or say what holds it."""
    job, agent = await statements.fetch_joined((Job, Agent), WITH_AGENT, str(timer.job_id))
    if job.status not in WAITING or not timers.is_watched(job):
        timers.drop(timer)
        return
    links = await dependencies.links(job)
    cancelled = [link for link in links if link.status is JobStatus.CANCELLED]
    if cancelled and job.dependency_policy is DependencyPolicy.CANCEL:
        await lifecycle.move(
            rt,
            job,
            Event.CANCEL,
            SYSTEM,
            reason=StatusReason.DEPENDENCY_CANCELLED,
            message=f"It depends on {_named(cancelled)}, and that was cancelled.",
        )
    elif cancelled and job.dependency_policy is DependencyPolicy.BLOCK:
        await _hold(rt, timer, job, f"it depends on {_named(cancelled)}, and that was cancelled.")
    elif agent is None or not job.armed or not _are_met(job, links):
        await _hold(rt, timer, job, None)
    elif job.run_at is not None and job.run_at > datetime.now(UTC):
        await _hold(rt, timer, job, None, until=job.run_at)
    else:
        await _execute(rt, timer, job, agent)


def _are_met(job: Job, links: Sequence[Link]) -> bool:
    return all(dependencies.is_met(job.dependency_policy, link.status) for link in links)


def _named(links: Sequence[Link]) -> str:
    return public_id("job", links[0].job_id)


async def _execute(rt: Runtime, timer: Claimed, job: Job, agent: Agent) -> None:
    try:
        await execution.accept(rt, SYSTEM, job, agent)
    except OVERTAKEN:
        raise
    except SignoffError as why:
        await _hold(rt, timer, job, str(why))


async def _hold(
    rt: Runtime, timer: Claimed, job: Job, why: str | None, *, until: datetime | None = None
) -> None:
    """Leave it as it is, and where something holds it that nobody awaited, say so once."""
    message = f"{HELD}{why}" if why else None
    held = (job.status_message or "").startswith(HELD)
    if message is None and held:
        await _tell(rt, job, "It is held no longer.", None)
    elif message is not None and not await _is_told(job, message):
        # What was wrong with the work stays to be read; the log says what holds it.
        sent_back = job.status is JobStatus.RESUBMISSION_REQUIRED
        await _tell(rt, job, message, job.status_message if sent_back else message)
    timers.park(timer, job, until)


async def _tell(rt: Runtime, job: Job, message: str, status_message: str | None) -> None:
    await lifecycle.move(
        rt, job, Event.HOLD, SYSTEM, message=message, status_message=status_message
    )


async def _is_told(job: Job, message: str) -> bool:
    changes = JobLog.filter(job_id=job.id, type=JobLogType.CONFIG_CHANGE)
    last = await changes.order_by("-seq").first()
    return last is not None and last.message == message
