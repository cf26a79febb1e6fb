from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Self

import strawberry

import models
from models import jsontext
from resolvers import subscriptions
from resolvers.context import Info
from schema.enums import JobLogType, JobStatus, StatusReason
from schema.permissions import VIEWERS
from schema.scalars import EventCursor
from schema.types.actor import Actor
from schema.types.job import Job
from schema.types.job_log import JobLog
from services.filters import JobFilter
from services.listening import Batch
from services.paging import encode_position


@strawberry.type(description="A job's status changed.")
class JobStatusChange:
    cursor: EventCursor = strawberry.field(description="Resume after it.")
    job: Job = strawberry.field(description="The job as it is now.")
    from_: JobStatus | None = strawberry.field(name="from", description="Null: it was created.")
    to: JobStatus
    reason: StatusReason
    actor: Actor
    at: datetime

    @classmethod
    def of(cls, entry: models.JobLog, job: models.Job) -> Self:
        told = jsontext.loads(entry.payload_json or "{}")
        return cls(
            cursor=EventCursor(encode_position(entry.seq)),
            job=Job.of(job),
            from_=JobStatus(told["from"]) if told["from"] else None,
            to=JobStatus(told["to"]),
            reason=StatusReason(told["reason"]),
            actor=Actor.of(entry),
            at=entry.created_at,
        )


@strawberry.type(description="Entries of the log, in order, and how far they reach.")
class JobEventBatch:
    cursor: EventCursor = strawberry.field(
        description="Resume after it: all that was to be told up to there has been."
    )
    events: list[JobLog]
    caught_up: bool = strawberry.field(
        description="Nothing older is still to come: true on the batch with which a replay has "
        "reached the present, which may be empty, and on those after it."
    )
    snapshot: list[Job] | None = strawberry.field(
        description="Of the first batch, if asked for: the jobs as they are, with all that is "
        "not told afterwards."
    )
    gap: bool = strawberry.field(
        description="Retention removed entries that would have been in this batch, or between "
        "it and the one before."
    )

    @classmethod
    def of(cls, batch: Batch) -> Self:
        return cls(
            cursor=EventCursor(encode_position(batch.cursor)),
            events=[JobLog.of(entry) for entry, _ in batch.events],
            caught_up=batch.caught_up,
            snapshot=None if batch.snapshot is None else [Job.of(row) for row in batch.snapshot],
            gap=batch.gap,
        )


def _changes(batch: Batch) -> list[JobStatusChange]:
    return [JobStatusChange.of(entry, job) for entry, job in batch.events]


def _batches(batch: Batch) -> list[JobEventBatch]:
    return [JobEventBatch.of(batch)]


@strawberry.type
class Subscription:
    @strawberry.subscription(
        extensions=[VIEWERS],
        description="One message per status change of the jobs that the caller sees; "
        "`after` is an exclusive resume position, so that nothing is missed.",
    )
    async def job_status_changed(
        self,
        info: Info,
        job_id: strawberry.ID | None = None,
        where: JobFilter | None = None,
        after: EventCursor | None = None,
    ) -> AsyncGenerator[JobStatusChange, None]:
        asked = await subscriptions.question(
            info, job_id=job_id, where=where, types=[JobLogType.STATUS_CHANGE], after=after
        )
        async with aclosing(info.context.listen(asked, _changes)) as changes:
            async for change in changes:
                yield change

    @strawberry.subscription(
        extensions=[VIEWERS],
        description="Every log entry of the jobs that the caller sees, in batches; `after` is "
        "an exclusive resume position, `snapshot` asks for the jobs themselves first.",
    )
    async def job_events(
        self,
        info: Info,
        job_id: strawberry.ID | None = None,
        where: JobFilter | None = None,
        types: list[JobLogType] | None = None,
        after: EventCursor | None = None,
        snapshot: bool | None = False,  # noqa: FBT001, FBT002 - names in GraphQL
    ) -> AsyncGenerator[JobEventBatch, None]:
        asked = await subscriptions.question(
            info, job_id=job_id, where=where, types=types, after=after, snapshot=bool(snapshot)
        )
        async with aclosing(info.context.listen(asked, _batches)) as batches:
            async for batch in batches:
                yield batch
