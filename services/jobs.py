"""Making, reading and editing jobs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, Field

from models import (
    Agent,
    CriteriaSet,
    CriterionKind,
    DependencyPolicy,
    Job,
    JobLog,
    JobLogType,
    JobPriority,
    JobStatus,
    JobTag,
    StatusReason,
    jsontext,
    statements,
)
from models.base import uuid7
from services import (
    agents,
    criteria,
    dependencies,
    idempotency,
    lifecycle,
    log,
    plans,
    retries,
    rules,
    starting,
    timers,
)
from services.actors import Viewer
from services.budgets import BudgetDraft
from services.chain import Entry
from services.criteria import Checklist, CriteriaDraft
from services.dependencies import Dependencies
from services.errors import Forbidden, NotFound
from services.idempotency import Keyed
from services.plans import ChangedPlan, NewPlan
from services.retries import RetryPolicyDraft
from services.rules import Event
from services.runtime import Runtime
from services.transactions import atomic, current
from services.values import (
    STORABLE,
    AgentId,
    Command,
    JobId,
    Json,
    LongText,
    Name,
    Reason,
    Version,
    public_id,
)

Tag = Annotated[str, Field(min_length=1, max_length=100), STORABLE]


def _distinct(tags: list[str]) -> list[str]:
    return list(dict.fromkeys(tags))


Tags = Annotated[list[Tag], Field(max_length=50), AfterValidator(_distinct)]


class Assign(Command):
    """Who shall do it."""

    agent_id: AgentId | None


class CreateJob(Keyed, NewPlan):
    """A job to be made."""

    name: Name = Field(description="Shown in lists.")
    description: LongText = Field(default="", description="What is to be done.")
    acceptance_criteria: CriteriaDraft = Field(description="What the judge checks against.")
    input: Json | None = Field(
        default=None,
        description="The body that the agent is sent; it may refer to results of `dependsOn`.",
    )
    assign: Assign | None = Field(default=None, description="Absent: it waits as PENDING.")
    priority: JobPriority = JobPriority.NORMAL
    tags: Tags = Field(default=[], description="For filters; at most 50.")
    retry_policy: RetryPolicyDraft | None = Field(
        default=None, description="What is tried again; absent: as its agent says."
    )
    budget: BudgetDraft | None = Field(
        default=None, description="What it may take; absent: no limit."
    )
    depends_on: Dependencies = Field(
        default=[], description="Jobs that must be completed first; at most 100."
    )
    on_dependency_cancelled: DependencyPolicy = Field(
        default=DependencyPolicy.BLOCK, description="If one of `dependsOn` is cancelled."
    )


class UpdateJob(ChangedPlan):
    """What is to change; absent fields stay as they are."""

    id: JobId
    expected_version: Version | None = None
    name: Name | None = None
    description: LongText | None = None
    acceptance_criteria: CriteriaDraft | None = Field(
        default=None, description="A new version of the whole criteria."
    )
    input: Json | None = None
    priority: JobPriority | None = None
    tags: Tags | None = None
    budget: BudgetDraft | None = Field(
        default=None, description="Replaces the whole budget; null removes it."
    )
    retry_policy: RetryPolicyDraft | None = Field(
        default=None, description="Replaces the whole policy; null: as its agent says."
    )
    depends_on: Dependencies | None = Field(
        default=None, description="Replaces all of them; at most 100."
    )


async def create(rt: Runtime, viewer: Viewer, command: CreateJob) -> Job:
    """Raises `NotFound`, `AgentUnavailable`, `SchemaMismatch`, `IdempotencyConflict`.

    And `LimitExceeded` if it is to start at once, `InvalidInput` for times that cannot be and
    for references to results of no job.
    """
    job_id = uuid7()
    agent_id = command.assign.agent_id if command.assign else None

    async def check() -> None:
        plans.check(command)
        await dependencies.check(viewer, command.depends_on)
        agent = await agents.active(viewer, agent_id) if agent_id else None
        named = dependencies.named(command.depends_on)
        await dependencies.check_input(rt, agent, command.input, named)
        await agents.check_fallbacks(viewer, command.retry_policy, agent_id)

    do = partial(_create, rt, viewer, command, job_id, agent_id)
    return await idempotency.once(rt, viewer, command, job_id, do, check=check)


@atomic
async def _create(
    rt: Runtime, viewer: Viewer, command: CreateJob, job_id: UUID, agent_id: UUID | None
) -> Job:
    checklist = criteria.checklist(command.acceptance_criteria)
    job = Job(
        id=job_id,
        name=command.name,
        description=command.description,
        input_json=jsontext.dumps(command.input),
        acceptance_criteria=checklist.text,
        agent_id=agent_id,
        status=JobStatus.ASSIGNED if agent_id else JobStatus.PENDING,
        status_reason=StatusReason.CREATED,
        status_message=_missing_judge(rt, checklist),
        status_changed_at=datetime.now(UTC),
        priority=command.priority,
        retry_json=command.retry_policy.stored() if command.retry_policy else None,
        budget_json=command.budget.stored() if command.budget else None,
        run_at=command.run_at,
        due_at=command.due_at,
        expires_at=command.expiry(),
        auto_execute=command.auto_execute,
        armed=command.auto_execute,
        dependency_count=len(command.depends_on),
        dependency_policy=command.on_dependency_cancelled,
        workspace_id=viewer.workspace_id,
        created_by_kind=viewer.kind,
        created_by_id=viewer.id,
        created_by_name=viewer.name,
    )
    current().insert_job(job)
    _write_criteria(job, checklist)
    _write_tags(job, command.tags)
    dependencies.write(job, command.depends_on)
    timers.begin(job)
    await starting.admit(rt, job, command.depends_on)
    lifecycle.log_status(job, None, None, viewer, job.status_message)
    return job


def _missing_judge(rt: Runtime, checklist: Checklist) -> str | None:
    """What is missing for a job that only a language model can judge."""
    judged = [item.key for item in checklist.items if item.kind is CriterionKind.LLM]
    if rt.judge is not None or not judged:
        return None
    return (
        f"No LLM judge is configured, which {' and '.join(judged)} must have: set OPENAI_API_KEY "
        "(and OPENAI_BASE_URL for another provider) and restart, or use deterministic criteria. "
        "Until then an execution waits in AWAITING_REVIEW for reviewAttempt."
    )


def _write_criteria(job: Job, checklist: Checklist) -> None:
    current().insert(
        CriteriaSet(
            job_id=job.id,
            version=job.criteria_version,
            text=checklist.text,
            items_json=jsontext.dumps([item.model_dump(mode="json") for item in checklist.items]),
            pass_threshold=checklist.pass_threshold,
        )
    )


def _write_tags(job: Job, tags: Sequence[str]) -> None:
    current().insert(*[JobTag(job_id=job.id, tag=tag) for tag in tags])


async def update(rt: Runtime, viewer: Viewer, command: UpdateJob) -> Job:
    """Raises `NotFound`, `Forbidden`, `IllegalTransition`, `VersionConflict`, `SchemaMismatch`.

    `DependencyCycle` and `InvalidInput` too, and `LimitExceeded` if it starts at once then.
    """
    job = await get(viewer, command.id)
    plans.check(command, job)
    await dependencies.check(viewer, command.depends_on or ())
    await _check_input(rt, viewer, job, command)
    climbed = job.agent_id in retries.policy_of(job, None).fallback_agent_ids
    own = None if climbed else job.agent_id
    await agents.check_fallbacks(viewer, command.retry_policy, own)
    return await _update(rt, viewer, job, command)


async def _check_input(rt: Runtime, viewer: Viewer, job: Job, command: UpdateJob) -> None:
    """The new input, or the one it has, goes with the agent and with what it depends on."""
    new = "input" in command.model_fields_set
    if not new and command.depends_on is None:
        return
    agent = await agents.get(viewer, job.agent_id) if job.agent_id and new else None
    given = command.input if new else jsontext.loads(job.input_json)
    if command.depends_on is None:
        named = await dependencies.aliases(job)
    else:
        named = dependencies.named(command.depends_on)
    await dependencies.check_input(rt, agent, given, named)


@atomic
async def _update(rt: Runtime, viewer: Viewer, job: Job, command: UpdateJob) -> Job:
    given = command.model_fields_set - {"id", "expected_version"}
    changes: dict[str, Any] = command.model_dump(
        include={"name", "description", "priority"}, exclude_none=True
    )
    changes |= command.columns()
    if "input" in given:
        changes["input_json"] = jsontext.dumps(command.input)
    if "budget" in given:
        changes["budget_json"] = command.budget.stored() if command.budget else None
    if "retry_policy" in given:
        changes["retry_json"] = command.retry_policy.stored() if command.retry_policy else None
    if command.depends_on is not None:
        await dependencies.replace(job, command.depends_on)
        changes["dependency_count"] = len(command.depends_on)
    checklist = None
    if command.acceptance_criteria is not None:
        checklist = criteria.checklist(command.acceptance_criteria)
        changes |= {
            "acceptance_criteria": checklist.text,
            "criteria_version": job.criteria_version + 1,
            "status_message": _missing_judge(rt, checklist) or job.status_message,
        }
    await lifecycle.move(
        rt,
        job,
        Event.UPDATE,
        viewer,
        expected_version=command.expected_version,
        message=f"Changed {', '.join(sorted(given)) or 'nothing'}.",
        **changes,
    )
    await starting.admit(rt, job, command.depends_on)
    if checklist is not None:
        _write_criteria(job, checklist)
    if command.tags is not None:
        current().delete(JobTag, {"job_id": job.id})
        _write_tags(job, command.tags)
    return job


async def add_note(rt: Runtime, viewer: Viewer, job_id: UUID, message: Reason) -> JobLog:
    """A remark in the log; raises `NotFound` or `Forbidden`."""
    job = await get(viewer, job_id)
    if not (viewer.owns(job) or viewer.is_admin):
        raise Forbidden("Only the owner or an admin may add notes to this job.")
    if why := rules.out_of_scope(job, viewer):
        raise Forbidden(why)
    written = await _write_note(rt, viewer, job, message)
    return await JobLog.filter(job_id=job.id, hash=written["hash"]).order_by("-seq").limit(1).get()


@atomic
async def _write_note(rt: Runtime, viewer: Viewer, job: Job, message: str) -> Entry:
    return log.append(job, JobLogType.NOTE, viewer, message=message)


async def get(viewer: Viewer, job_id: UUID) -> Job:
    """Raises `NotFound` for a missing job, and for one that the viewer must not see."""
    job = await statements.fetch(Job, id=job_id)
    if job is None or not viewer.sees(job):
        raise NotFound(public_id("job", job_id))
    return job


async def with_agent(viewer: Viewer, job_id: UUID) -> tuple[Job, Agent | None]:
    """The same, and the agent that it is assigned to."""
    source = '"jobs" t0 LEFT JOIN "agents" t1 ON t1.id = t0.agent_id WHERE t0.id = $1'
    found = await statements.fetch_joined((Job, Agent), source, str(job_id))
    if not found or not viewer.sees(found[0]):
        raise NotFound(public_id("job", job_id))
    return found[0], found[1]


async def get_many(viewer: Viewer, job_ids: Sequence[UUID]) -> list[Job | None]:
    """The jobs in the order asked for, `None` where there is none to see."""
    found = {job.id: job async for job in Job.filter(id__in=job_ids) if viewer.sees(job)}
    return [found.get(job_id) for job_id in job_ids]


async def tags_of(job_ids: Sequence[UUID]) -> list[list[str]]:
    found: dict[UUID, list[str]] = {job_id: [] for job_id in job_ids}
    async for row in JobTag.filter(job_id__in=job_ids).order_by("id"):
        found[row.job_id].append(row.tag)
    return [found[job_id] for job_id in job_ids]


async def criteria_of(keys: Sequence[tuple[UUID, int]]) -> list[CriteriaSet]:
    """The criteria sets of (job, version) pairs."""
    rows = CriteriaSet.filter(job_id__in={job_id for job_id, _ in keys})
    found = {(row.job_id, row.version): row async for row in rows}
    return [found[key] for key in keys]
