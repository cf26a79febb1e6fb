"""Lists of jobs, agents and log entries, each cut to what the viewer may see."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from uuid import UUID

from tortoise.expressions import Q, Subquery
from tortoise.functions import Coalesce, Max

from models import (
    Agent,
    Attempt,
    CriteriaSet,
    Job,
    JobDependency,
    JobLog,
    JobLogType,
    JobPriority,
    PrunedLog,
    Verdict,
)
from services.actors import Viewer
from services.filters import AgentFilter, JobFilter, agent_condition, job_condition, listed
from services.paging import Page, Sort, Window, fetch, instant, int32, int64
from services.values import Command

BY_ID = Sort("id", UUID, descending=True)
NEWEST = (Sort("created_at", instant, descending=True), BY_ID)
BY_SEQ = (Sort("seq", int64),)


class OrderDirection(StrEnum):
    ASC = "ASC"
    DESC = "DESC"


class JobOrderField(StrEnum):
    CREATED_AT = "CREATED_AT"
    UPDATED_AT = "UPDATED_AT"
    PRIORITY = "PRIORITY"
    DUE_AT = "DUE_AT"


NEVER = datetime(9999, 1, 1, tzinfo=UTC)
DUE_OR_NEVER = "due_or_never"
"""Jobs without a date are due last, on both databases."""

COLUMNS = {
    JobOrderField.CREATED_AT: ("created_at", instant),
    JobOrderField.UPDATED_AT: ("updated_at", instant),
    JobOrderField.PRIORITY: ("priority", JobPriority),
    JobOrderField.DUE_AT: (DUE_OR_NEVER, instant),
}


class JobOrder(Command):
    field: JobOrderField
    direction: OrderDirection = OrderDirection.DESC


def _sorts(order: Sequence[JobOrder]) -> tuple[Sort, ...]:
    """The columns asked for, each once, and the id to make the order total."""
    wanted = {each.field: each.direction is OrderDirection.DESC for each in order}
    chosen = [Sort(*COLUMNS[field], descending=down) for field, down in wanted.items()]
    return (*chosen, BY_ID) if chosen else NEWEST


async def jobs(
    viewer: Viewer, where: JobFilter | None, order: Sequence[JobOrder], window: Window
) -> Page[Job]:
    query = Job.filter(listed(where, viewer))
    if any(each.field is JobOrderField.DUE_AT for each in order):
        query = query.annotate(**{DUE_OR_NEVER: Coalesce("due_at", NEVER)})
    return await fetch(query, _sorts(order), window)


async def agents(viewer: Viewer, where: AgentFilter | None, window: Window) -> Page[Agent]:
    query = Agent.filter(agent_condition(where), workspace_id=viewer.workspace_id)
    return await fetch(query, NEWEST, window)


async def jobs_of_agent(
    viewer: Viewer, agent_id: UUID, where: JobFilter | None, window: Window
) -> Page[Job]:
    condition = listed(where, viewer)
    return await fetch(Job.filter(condition, agent_id=agent_id), NEWEST, window)


async def dependents_of(viewer: Viewer, job_id: UUID, window: Window) -> Page[Job]:
    """The jobs that depend on one, newest first; archived ones too."""
    rows = JobDependency.filter(depends_on_id=job_id).values("job_id")
    query = Job.filter(job_condition(None, viewer), id__in=Subquery(rows))
    return await fetch(query, NEWEST, window)


async def logs_of_job(
    job_id: UUID, types: Sequence[JobLogType] | None, window: Window
) -> Page[JobLog]:
    """Oldest first."""
    query = JobLog.filter(job_id=job_id)
    return await fetch(query.filter(type__in=types) if types else query, BY_SEQ, window)


async def logs(
    viewer: Viewer,
    where: JobFilter | None,
    types: Sequence[JobLogType] | None,
    after: int | None,
    first: int,
    until: int,
) -> Page[JobLog]:
    """Oldest first, over all jobs that the viewer sees and asks for.

    `until` is the position up to which the log is complete: a reader who goes on after the
    last entry of a page must not have passed one that was still to come.
    """
    query = JobLog.filter(seq__lte=until, workspace_id=viewer.workspace_id)
    if where is not None or viewer.sight.owners is not None:
        matching = Job.filter(job_condition(where, viewer)).values("id")
        query = query.filter(job_id__in=Subquery(matching))
    if types:
        query = query.filter(type__in=types)
    past = query if after is None else query.filter(seq__gt=after)
    page = await fetch(past, BY_SEQ, Window(first=first))
    return Page(page.rows, page.sorts, page.has_next_page, after is not None, query)


async def attempts_of_job(job_id: UUID, window: Window) -> Page[Attempt]:
    """Oldest first."""
    return await fetch(Attempt.filter(job_id=job_id), (Sort("number", int32),), window)


async def attempt_numbers(keys: Sequence[tuple[UUID, int]]) -> list[Attempt | None]:
    """The attempts of (job, number) pairs."""
    if not keys:
        return []
    wanted = Q(*[Q(job_id=job_id, number=number) for job_id, number in keys], join_type=Q.OR)
    found = {(row.job_id, row.number): row async for row in Attempt.filter(wanted)}
    return [found.get(key) for key in keys]


async def attempts(ids: Sequence[UUID]) -> list[Attempt | None]:
    found = {row.id: row async for row in Attempt.filter(id__in=ids)}
    return [found.get(id) for id in ids]


async def verdicts_of_attempts(ids: Sequence[UUID]) -> list[list[Verdict]]:
    """Oldest first."""
    found: dict[UUID, list[Verdict]] = {id: [] for id in ids}
    async for row in Verdict.filter(attempt_id__in=ids).order_by("created_at", "id"):
        found[row.attempt_id].append(row)
    return [found[id] for id in ids]


async def latest_verdicts(job_ids: Sequence[UUID]) -> list[Verdict | None]:
    found: dict[UUID, Verdict] = {}
    async for row in Verdict.filter(job_id__in=job_ids).order_by("created_at", "id"):
        found[row.job_id] = row
    return [found.get(job_id) for job_id in job_ids]


async def verdict(viewer: Viewer, id: UUID) -> Verdict | None:
    row = await Verdict.get_or_none(id=id).select_related("job")
    return row if row and viewer.sees(row.job) else None


async def attempt(viewer: Viewer, id: UUID) -> Attempt | None:
    row = await Attempt.get_or_none(id=id).select_related("job")
    return row if row and viewer.sees(row.job) else None


async def log_entry(viewer: Viewer, seq: int) -> JobLog | None:
    row = await JobLog.get_or_none(seq=seq).select_related("job")
    return row if row and viewer.sees(row.job) else None


async def log_entries(viewer: Viewer, seqs: Sequence[int]) -> list[JobLog | None]:
    """The entries that the viewer sees, in the order asked for."""
    query = JobLog.filter(seq__in=seqs).select_related("job")
    found = {row.seq: row async for row in query if viewer.sees(row.job)}
    return [found.get(seq) for seq in seqs]


async def criteria_sets(ids: Sequence[UUID]) -> list[CriteriaSet | None]:
    found = {row.id: row async for row in CriteriaSet.filter(id__in=ids)}
    return [found.get(id) for id in ids]


async def positions(job_ids: Sequence[UUID]) -> list[int]:
    """The position of each job's newest entry, also if that one was removed since."""
    rows = (
        await JobLog.filter(job_id__in=job_ids)
        .annotate(newest=Max("seq"))
        .group_by("job_id")
        .values_list("job_id", "newest")
    )
    found = dict(rows)
    if missing := [job_id for job_id in job_ids if job_id not in found]:
        gaps = PrunedLog.filter(job_id__in=missing)
        found |= dict(await gaps.values_list("job_id", "until_seq"))
    return [found.get(job_id, 0) for job_id in job_ids]
