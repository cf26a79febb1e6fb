"""What a listener asks of the log, and the way from an old position to the present."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast
from uuid import UUID

from tortoise import connections
from tortoise.expressions import Q, RawSQL, Subquery
from tortoise.models import Model
from tortoise.queryset import QuerySet

from models import Job, JobLog, JobLogType, PrunedLog
from services.actors import Viewer
from services.errors import InvalidInput
from services.events import Events, visible
from services.filters import JobFilter, job_condition, listed

T = TypeVar("T", bound=Model)

REPLAYED = 100
"""Entries that are told at once."""
REPLAYED_CHARACTERS = 1_000_000
"""Of them, where there is more than one."""
MAX_SNAPSHOT = 1000

Told = tuple[JobLog, Job]
"""An entry, and its job as it is now."""


@dataclass(frozen=True, slots=True)
class Question:
    """The jobs and the types of entries that a listener asks for; None is all there are."""

    viewer: Viewer
    job_id: UUID | None = None
    where: JobFilter | None = None
    types: frozenset[JobLogType] | None = None
    after: int | None = None
    snapshot: bool = False

    def check(self) -> None:
        """Raises `InvalidInput` for a filter that cannot be."""
        job_condition(self.where, self.viewer)

    def wants(self, entry: JobLog) -> bool:
        """Whether it may concern the listener, by what the entry alone tells."""
        return (
            entry.workspace_id == self.viewer.workspace_id
            and self.job_id in (None, entry.job_id)
            and (self.types is None or entry.type in self.types)
        )

    async def pick(self, rows: Sequence[JobLog]) -> list[Told]:
        """Of entries, those of jobs that the viewer sees and asks for, archived ones too."""
        wanted = [row for row in rows if self.wants(row)]
        if not wanted:
            return []
        ids = {row.job_id for row in wanted}
        jobs = {job.id: job async for job in self._jobs(job_condition).filter(id__in=ids)}
        return [(row, jobs[row.job_id]) for row in wanted if row.job_id in jobs]

    async def read(self, after: int, until: int) -> Stretch:
        """The first of the entries that concern the listener, from the table."""
        query = JobLog.filter(seq__gt=after, seq__lte=until, workspace_id=self.viewer.workspace_id)
        if self.where is not None or self.viewer.sight.owners is not None:
            query = self._of_jobs(query)
        elif self.job_id is not None:
            query = query.filter(job_id=self.job_id)
        if self.types is not None:
            query = query.filter(type__in=self.types)
        found = first_of(await query.order_by("seq").limit(REPLAYED + 1), until)
        return replace(found, gap=await self._was_removed(after, found.end))

    async def _was_removed(self, after: int, until: int) -> bool:
        """Whether retention removed entries of such jobs from this stretch of the log."""
        gaps = PrunedLog.filter(until_seq__gt=after, from_seq__lte=until)
        return await self._of_jobs(gaps).exists()

    async def jobs_now(self, after: int) -> tuple[list[Job], dict[int, UUID]]:
        """The jobs as a list of them would show them, and their entries past `after`.

        Both by one statement: whatever is written meanwhile, a job is shown with all that
        these entries tell of it, and with nothing else.
        """
        condition = listed if self.job_id is None else job_condition
        shown = self._jobs(condition).annotate(shown=_entries(after))
        jobs = await shown.order_by("-id").limit(MAX_SNAPSHOT + 1)
        if len(jobs) > MAX_SNAPSHOT:
            raise InvalidInput.at(
                "snapshot", message=f"would be of more than {MAX_SNAPSHOT} jobs; narrow `where`"
            )
        return jobs, {seq: job.id for job in jobs for seq in _shown(job)}

    def _jobs(self, condition: Callable[[JobFilter | None, Viewer], Q]) -> QuerySet[Job]:
        query = Job.filter(condition(self.where, self.viewer))
        return query if self.job_id is None else query.filter(id=self.job_id)

    def _of_jobs(self, query: QuerySet[T]) -> QuerySet[T]:
        """Rows of the jobs that the viewer sees and asks for."""
        if self.job_id is not None:
            query = query.filter(job_id=self.job_id)
        matching = Job.filter(job_condition(self.where, self.viewer)).values("id")
        return query.filter(job_id__in=Subquery(matching))


@dataclass(frozen=True, slots=True)
class Stretch:
    """Entries in order that a listener asks for, and the position up to which they are all.

    `gap` says that retention removed some of them.
    """

    rows: Sequence[JobLog]
    end: int
    gap: bool = False


def first_of(rows: Sequence[JobLog], until: int) -> Stretch:
    """As many of the entries as are told at once; they are all there are up to `until`."""
    characters = 0
    for count, row in enumerate(rows):
        characters += len(row.payload_json or "") + len(row.message or "")
        if count and (count == REPLAYED or characters > REPLAYED_CHARACTERS):
            return Stretch(rows[:count], rows[count - 1].seq)
    return Stretch(rows, until)


def _entries(after: int) -> RawSQL:
    """The positions of a job's entries past `after`, with commas between."""
    on_sqlite = connections.get("default").capabilities.dialect == "sqlite"
    joined = 'group_concat("seq")' if on_sqlite else """string_agg("seq"::text, ',')"""
    return RawSQL(
        f'(SELECT {joined} FROM "job_logs" '  # noqa: S608 - a number and constants
        f'WHERE "job_logs"."job_id" = "jobs"."id" AND "seq" > {after:d})'
    )


def _shown(job: Job) -> list[int]:
    found = cast("str | None", cast("Any", job).shown)
    return [int(seq) for seq in found.split(",")] if found else []


@dataclass(frozen=True, slots=True)
class Batch:
    """What a listener is told at once; with it they have all up to `cursor`.

    `caught_up` says that there was no more at that moment. `gap` says that retention removed
    entries that would have been told since the batch before.
    """

    cursor: int
    events: Sequence[Told]
    caught_up: bool
    snapshot: Sequence[Job] | None = None
    gap: bool = False


class Follower:
    """One listener on the way to the present. All up to `position` was told, or is not theirs.

    `base` was the present when it began.
    """

    def __init__(self, events: Events, question: Question) -> None:
        self.position = 0
        self._events = events
        self._question = question
        self.base = 0
        self._known: dict[int, UUID] = {}
        self._caught_up = False
        self._gap = False

    async def begin(self) -> Batch | None:
        """Settle where it begins; returns the snapshot, if one is asked for."""
        asked = self._question
        self.base = self._events.position
        self.position = self.base if asked.after is None else asked.after
        if asked.after is None:
            self._known = await visible(self.base)
        if not asked.snapshot:
            return None
        jobs, shown = await asked.jobs_now(self.base)
        if asked.after is None:
            self._known |= shown
        return Batch(self.position, (), caught_up=False, snapshot=jobs)

    async def step(self, until: int) -> Batch | None:
        """What follows, as far as `until`; None if there is nothing to tell of it."""
        page = await self._read(until)
        told = await self._question.pick([row for row in page.rows if row.seq not in self._known])
        self.position = page.end
        self._gap = self._gap or page.gap
        arrived = not self._caught_up and self.position >= max(until, self.base)
        self._caught_up = self._caught_up or arrived
        if not told and not arrived:
            return None
        batch = Batch(self.position, told, self._caught_up, gap=self._gap)
        self._gap = False
        return batch

    async def _read(self, until: int) -> Stretch:
        if until <= self.position:
            return Stretch((), self.position)
        return await self._question.read(self.position, until)

    def may_join(self, position: int) -> bool:
        """Whether all past `position` is still to be told to them."""
        return self.position <= position and all(seq <= position for seq in self._known)


async def follow(events: Events, question: Question) -> AsyncGenerator[Batch, None]:
    """All that one listener asks for, for as long as they listen."""
    with events.watching():
        follower = Follower(events, question)
        await events.complete_until()
        first = await follower.begin()
        if first is not None:
            yield first
        while True:
            batch = await follower.step(events.position)
            if batch is not None:
                yield batch
            if follower.position >= events.position:
                await events.past(follower.position)
