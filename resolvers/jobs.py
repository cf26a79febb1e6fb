from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from pydantic import TypeAdapter

from models import Attempt, Job, JobDependency, JobLog, JobPhase
from resolvers.context import Info
from services import assignment, decisions, execution, jobs, reading, retries, rules
from services.assignment import AssignJob, ReassignJob
from services.decisions import CancelJob, ForceComplete, ResubmitJob, Review
from services.errors import InvalidInput, NotFound
from services.execution import ExecuteJob
from services.filters import JobFilter
from services.jobs import CreateJob, UpdateJob
from services.paging import Page, Window
from services.reading import JobOrder
from services.retries import RetryPolicy
from services.rules import Availability
from services.timers import WAITING
from services.values import MAX_INT32, Reason, parse_id

REASON: TypeAdapter[str] = TypeAdapter(Reason)
MAX_ORDERS = 5


def key(id: str) -> UUID:
    """The primary key of a job; raises `NotFound` for what cannot be one."""
    try:
        return parse_id("job", id)
    except ValueError:
        raise NotFound(id) from None


def text(value: str, name: str) -> str:
    """A reason or message within its limits; raises `InvalidInput`."""
    try:
        return REASON.validate_python(value)
    except ValueError:
        raise InvalidInput.at(name, message="must have 1 to 2000 characters, none U+0000") from None


def version(value: int | None) -> int | None:
    if value is not None and not 1 <= value <= MAX_INT32:
        raise InvalidInput.at("expectedVersion", message="must be a positive version number")
    return value


async def by_id(info: Info, id: str) -> Job | None:
    try:
        return await jobs.get(info.context.viewer, key(id))
    except NotFound:
        return None


async def page(
    info: Info, where: JobFilter | None, order_by: Sequence[JobOrder] | None, window: Window
) -> Page[Job]:
    if order_by and len(order_by) > MAX_ORDERS:
        raise InvalidInput.at("orderBy", message=f"takes at most {MAX_ORDERS} columns")
    return await reading.jobs(info.context.viewer, where, order_by or (), window)


async def of_agent(
    info: Info, agent_id: UUID, where: JobFilter | None, window: Window
) -> Page[Job]:
    return await reading.jobs_of_agent(info.context.viewer, agent_id, where, window)


async def attempts(info: Info, job_id: UUID, window: Window) -> Page[Attempt]:
    return await reading.attempts_of_job(job_id, window)


async def current_attempt(info: Info, job_id: UUID, number: int) -> Attempt | None:
    return await info.context.loaders.attempt_numbers.load((job_id, number)) if number else None


async def retry_policy(info: Info, job: Job) -> RetryPolicy:
    agent = await info.context.loaders.agents.load(job.agent_id) if job.agent_id else None
    return retries.policy_of(job, agent)


async def actions(info: Info, job: Job) -> list[Availability]:
    agent = await info.context.loaders.agents.load(job.agent_id) if job.agent_id else None
    return rules.availability(job, info.context.viewer, agent, await _unmet(info, job))


async def _unmet(info: Info, job: Job) -> list[Job]:
    return await info.context.loaders.unmet.load(job.id) if job.dependency_count else []


async def is_blocked(info: Info, job: Job) -> bool:
    return job.status in WAITING and bool(await _unmet(info, job))


async def depends_on(info: Info, job: Job) -> list[JobDependency]:
    return await info.context.loaders.dependencies.load(job.id) if job.dependency_count else []


async def dependents(info: Info, job_id: UUID, window: Window) -> Page[Job]:
    return await reading.dependents_of(info.context.viewer, job_id, window)


async def waiting_for(info: Info, job: Job) -> str | None:
    waits = job.phase in (JobPhase.QUEUED, JobPhase.RETRY_WAIT)
    return await info.context.loaders.waiting.load(job.id) if waits else None


async def create(info: Info, command: CreateJob) -> Job:
    return await jobs.create(info.context.rt, info.context.viewer, command)


async def update(info: Info, command: UpdateJob) -> Job:
    return await jobs.update(info.context.rt, info.context.viewer, command)


async def assign(info: Info, command: AssignJob) -> Job:
    return await assignment.assign(info.context.rt, info.context.viewer, command)


async def unassign(info: Info, id: str, reason: str | None, expected_version: int | None) -> Job:
    why = None if reason is None else text(reason, "reason")
    return await assignment.unassign(
        info.context.rt, info.context.viewer, key(id), why, version(expected_version)
    )


async def reassign(info: Info, command: ReassignJob) -> Job:
    return await assignment.reassign(info.context.rt, info.context.viewer, command)


async def execute(info: Info, command: ExecuteJob) -> Job:
    return await execution.execute(info.context.rt, info.context.viewer, command)


async def resubmit(info: Info, command: ResubmitJob) -> Job:
    return await decisions.resubmit(info.context.rt, info.context.viewer, command)


async def force_complete(info: Info, command: ForceComplete) -> Job:
    return await decisions.force_complete(info.context.rt, info.context.viewer, command)


async def cancel(info: Info, command: CancelJob) -> Job:
    return await decisions.cancel(info.context.rt, info.context.viewer, command)


async def reopen(info: Info, id: str, reason: str, expected_version: int | None) -> Job:
    return await decisions.reopen(
        info.context.rt,
        info.context.viewer,
        key(id),
        text(reason, "reason"),
        version(expected_version),
    )


async def review(info: Info, command: Review) -> Job:
    return await decisions.review(info.context.rt, info.context.viewer, command)


async def archive(info: Info, id: str) -> Job:
    return await decisions.archive(info.context.rt, info.context.viewer, key(id))


async def unarchive(info: Info, id: str) -> Job:
    return await decisions.unarchive(info.context.rt, info.context.viewer, key(id))


async def add_note(info: Info, id: str, message: str) -> JobLog:
    return await jobs.add_note(
        info.context.rt, info.context.viewer, key(id), text(message, "message")
    )
