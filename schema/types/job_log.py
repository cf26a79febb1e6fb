from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Self
from uuid import UUID

import strawberry
from strawberry.scalars import JSON

import models
from models import jsontext
from resolvers import agents
from resolvers.context import Info
from schema.enums import JobLogType, JobStatus
from schema.scalars import EventCursor
from schema.types.actor import Actor
from schema.types.agent import Agent
from schema.types.attempt import Attempt
from schema.types.node import Node
from services.paging import encode_position
from services.values import public_id

if TYPE_CHECKING:
    from schema.types.job import Job


@strawberry.type(description="One entry of the append-only log.")
class JobLog(Node):
    cursor: EventCursor = strawberry.field(description="Its position: subscribe `after` it.")
    type: JobLogType
    status: JobStatus = strawberry.field(description="The job's status when it was written.")
    message: str | None
    payload_truncated: bool = strawberry.field(
        description="The payload was over 64 KiB; it is `{truncated, bytes}` with its beginning."
    )
    actor: Actor
    hash: str = strawberry.field(
        description="Over all that it says and the hash of the job's entry before it."
    )
    created_at: datetime
    job_id: strawberry.Private[UUID]
    attempt_id: strawberry.Private[UUID | None]
    agent_id: strawberry.Private[UUID | None]
    payload_json: strawberry.Private[str | None]

    @strawberry.field
    def payload(self) -> JSON | None:
        return jsontext.loads_or_none(self.payload_json)

    @strawberry.field
    async def job(self, info: Info) -> Annotated[Job, strawberry.lazy("schema.types.job")]:
        from schema.types.job import Job

        row = await info.context.loaders.jobs.load(self.job_id)
        assert row is not None  # noqa: S101 - whoever sees the entry sees its job
        return Job.of(row)

    @strawberry.field
    async def attempt(self, info: Info) -> Attempt | None:
        if self.attempt_id is None:
            return None
        row = await info.context.loaders.attempts.load(self.attempt_id)
        return Attempt.of(row) if row else None

    @strawberry.field
    async def agent(self, info: Info) -> Agent | None:
        row = await agents.by_key(info, self.agent_id)
        return Agent.of(row) if row else None

    @classmethod
    def of(cls, row: models.JobLog) -> Self:
        return cls(
            id=strawberry.ID(public_id("log", row.seq)),
            cursor=EventCursor(encode_position(row.seq)),
            type=row.type,
            status=row.status,
            message=row.message,
            payload_json=row.payload_json,
            payload_truncated=row.payload_truncated,
            actor=Actor.of(row),
            hash=row.hash,
            created_at=row.created_at,
            job_id=row.job_id,
            attempt_id=row.attempt_id,
            agent_id=row.agent_id,
        )
