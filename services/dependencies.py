"""Jobs that wait for others.

Whether a job is blocked is read off the status of those it depends on, never kept: nothing can
be lost between them. What ends wakes the timers of those that wait for it (`services.timers`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, Field
from tortoise.expressions import Q, Subquery

from models import Agent, DependencyPolicy, Job, JobDependency, JobStatus, jsontext, statements
from models.statements import Statement
from services import agents, queue, references
from services.actors import Viewer
from services.errors import DependenciesUnmet, DependencyCycle, NotFound
from services.references import NotResolved
from services.runtime import Runtime
from services.timers import WAITING
from services.transactions import current
from services.values import Command, JobId, public_id

MAX_DEPENDENCIES = 100
CHANGING = 7_464_339_113
"""The key of those who change dependencies: two at once could close a circle between them."""
SLICE = 500

Alias = Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class DependencyDraft(Command):
    """A job that must be completed first."""

    job_id: JobId
    alias: Alias | None = Field(
        default=None,
        description='Names its result: `{"$result": alias, "pointer": "/a/0"}` anywhere in the '
        "input stands for it, or for a part of it.",
    )


def _different(drafts: list[DependencyDraft]) -> list[DependencyDraft]:
    aliases = [each.alias for each in drafts if each.alias is not None]
    if len(set(aliases)) < len(aliases):
        raise ValueError("must not give an alias to two jobs")
    if len({each.job_id for each in drafts}) < len(drafts):
        raise ValueError("must not name a job twice")
    return drafts


Dependencies = Annotated[
    list[DependencyDraft], Field(max_length=MAX_DEPENDENCIES), AfterValidator(_different)
]


def is_met(policy: DependencyPolicy, status: JobStatus) -> bool:
    """Whether one that depends on a job of this status may go on."""
    ignored = status is JobStatus.CANCELLED and policy is DependencyPolicy.IGNORE
    return ignored or status is JobStatus.COMPLETED


@dataclass(frozen=True, slots=True)
class Link:
    job_id: UUID
    alias: str | None
    status: JobStatus


LINKS = """SELECT d."depends_on_id", d."alias", j."status" FROM "job_dependencies" d
    JOIN "jobs" j ON j."id" = d."depends_on_id" WHERE d."job_id" = $1 ORDER BY d."id" """


async def links(job: Job) -> list[Link]:
    """What it depends on, in the order given."""
    if not job.dependency_count:
        return []
    rows = await statements.database().fetch(LINKS, str(job.id))
    return [Link(queue.uuid(id), alias, JobStatus(status)) for id, alias, status in rows]


async def unmet(job: Job, drafts: Sequence[DependencyDraft] | None = None) -> list[Job]:
    """The jobs that it waits for, or would wait for with `drafts`."""
    met = partial(is_met, job.dependency_policy)
    if drafts is None:
        wanted = [link.job_id for link in await links(job) if not met(link.status)]
    else:
        wanted = [each.job_id for each in drafts]
    if not wanted:
        return []
    found = {each.id: each async for each in Job.filter(id__in=wanted)}
    return [found[id] for id in wanted if not met(found[id].status)]


async def aliases(job: Job) -> set[str]:
    return {link.alias for link in await links(job) if link.alias is not None}


def named(drafts: Iterable[DependencyDraft]) -> set[str]:
    return {each.alias for each in drafts if each.alias is not None}


async def check(viewer: Viewer, drafts: Sequence[DependencyDraft]) -> None:
    """Raises `NotFound` for a job that is not there, or not the viewer's to see."""
    if not drafts:
        return
    query = Job.filter(viewer.sight.condition(), id__in=[each.job_id for each in drafts])
    seen = set(await query.values_list("id", flat=True))
    for each in drafts:
        if each.job_id not in seen:
            raise NotFound(public_id("job", each.job_id))


def write(job: Job, drafts: Sequence[DependencyDraft]) -> None:
    """The dependencies of a new job, on which none can depend yet."""
    current().insert(
        *[JobDependency(job_id=job.id, depends_on_id=d.job_id, alias=d.alias) for d in drafts]
    )


async def replace(job: Job, drafts: Sequence[DependencyDraft]) -> None:
    """Other dependencies; raises `DependencyCycle`, at the latest at the transaction's end.

    To be followed by the job's move, whose version fences this off.
    """
    wanted = [each.job_id for each in drafts]
    await _refuse_circle(job, wanted)
    if not statements.is_sqlite():  # there all writers take turns
        lock = f"SELECT pg_advisory_xact_lock({CHANGING})"
        current().writes.append(Statement(lock, [], "job_dependencies"))
    current().delete(JobDependency, {"job_id": job.id})
    write(job, drafts)
    if wanted:
        current().require(
            Statement(ACYCLIC, [str(job.id)], "jobs", guarded=True),
            partial(_refuse_circle, job, wanted, certainly=True),
        )


ACYCLIC = """UPDATE "jobs" SET "version" = "version" WHERE "id" = $1 AND NOT EXISTS (
    WITH RECURSIVE "reached" ("id") AS (
        SELECT "depends_on_id" FROM "job_dependencies" WHERE "job_id" = $1
        UNION SELECT d."depends_on_id" FROM "job_dependencies" d
            JOIN "reached" r ON d."job_id" = r."id")
    SELECT 1 FROM "reached" WHERE "id" = $1)"""


async def _refuse_circle(job: Job, wanted: Sequence[UUID], *, certainly: bool = False) -> None:
    circle = await _circle(job.id, wanted)
    if circle or certainly:
        found = {each.id: each async for each in Job.filter(id__in=circle or [job.id])}
        raise DependencyCycle([found[id] for id in circle or [job.id]])


async def _circle(start: UUID, wanted: Sequence[UUID]) -> list[UUID]:
    """The jobs on a way from `start` over `wanted` back to it; empty if there is none."""
    came_from = dict.fromkeys(wanted, start)
    level = list(came_from)
    while level and start not in came_from:
        part, level = level[:SLICE], level[SLICE:]
        query = JobDependency.filter(job_id__in=part)
        for job_id, depends_on in await query.values_list("job_id", "depends_on_id"):
            if depends_on not in came_from:
                came_from[depends_on] = job_id
                level.append(depends_on)
    return _way(start, came_from) if start in came_from else []


def _way(start: UUID, came_from: dict[UUID, UUID]) -> list[UUID]:
    way = [start]
    while (before := came_from[way[-1]]) != start:
        way.append(before)
    return [start, *way[:0:-1]]


async def body(rt: Runtime, job: Job, agent: Agent) -> str | None:
    """The job's input with the results that it refers to; None if it refers to none.

    Raises `DependenciesUnmet` where one leads to nothing, `SchemaMismatch` and `InvalidInput`
    where the agent does not take what comes of it.
    """
    # What is older than dependencies, and only looks like a reference, is sent as it stands.
    if not job.dependency_count or not references.may_be_in(job.input_json):
        return None
    given = jsontext.loads(job.input_json)
    wanted = references.aliases(given)
    if not wanted:
        return None
    by_alias = {link.alias: link.job_id for link in await links(job) if link.alias in wanted}
    rows = {each.id: each async for each in Job.filter(id__in=list(by_alias.values()))}
    results = {
        alias: jsontext.loads_or_none(rows[id].result_json) for alias, id in by_alias.items()
    }
    try:
        text = references.resolve(given, results.__getitem__)
    except NotResolved as why:
        named = [rows[by_alias[why.alias]]] if why.alias in by_alias else list(rows.values())
        raise DependenciesUnmet(str(why), named) from None
    await agents.check_input(rt, agent, jsontext.loads(text))
    return text


async def check_input(
    rt: Runtime, agent: Agent | None, input: object, aliases: Collection[str]
) -> None:
    """Raises `InvalidInput` for references to other than `aliases`, or `SchemaMismatch`.

    An input with references is held against the agent's schema when they are known.
    """
    references.check(input, aliases)
    if agent is not None and not references.aliases(input):
        await agents.check_input(rt, agent, input)


# For pages

UNMET = Q(depends_on__status__not_in=[JobStatus.COMPLETED, JobStatus.CANCELLED]) | Q(
    Q(depends_on__status=JobStatus.CANCELLED),
    Q(job__dependency_policy__not=DependencyPolicy.IGNORE),
)


async def unmet_of(job_ids: Sequence[UUID]) -> list[list[Job]]:
    """The same of several."""
    found: dict[UUID, list[Job]] = {job_id: [] for job_id in job_ids}
    rows = JobDependency.filter(UNMET, job_id__in=job_ids).select_related("depends_on")
    async for row in rows.order_by("id"):
        found[row.job_id].append(row.depends_on)
    return [found[job_id] for job_id in job_ids]


async def seen_by(viewer: Viewer, job_ids: Sequence[UUID]) -> list[list[JobDependency]]:
    """What jobs depend on, with those jobs, as far as the viewer may see them."""
    found: dict[UUID, list[JobDependency]] = {job_id: [] for job_id in job_ids}
    rows = JobDependency.filter(job_id__in=job_ids).select_related("depends_on")
    async for row in rows.order_by("id"):
        if viewer.sees(row.depends_on):
            found[row.job_id].append(row)
    return [found[job_id] for job_id in job_ids]


def blocked() -> Q:
    """The jobs that wait for others."""
    waiting = JobDependency.filter(UNMET).values("job_id")
    return Q(Q(id__in=Subquery(waiting)), Q(status__in=list(WAITING)))
