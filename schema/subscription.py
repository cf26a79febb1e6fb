from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Self

import strawberry

import models
from models import jsontext
from resolvers import jobs
from resolvers.context import Info
from schema.enums import JobStatus, StatusReason
from schema.permissions import VIEWERS
from schema.scalars import EventCursor
from schema.types.actor import Actor
from schema.types.job import Job
from services.filters import JobFilter
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
        async with aclosing(jobs.status_changes(info, job_id, where, after)) as changes:
            async for entry, job in changes:
                yield JobStatusChange.of(entry, job)
