from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Self
from uuid import UUID

import strawberry
from strawberry.scalars import JSON

import models
from models import jsontext
from resolvers.context import Info
from schema.enums import AttemptState
from schema.types.agent import Agent
from schema.types.node import Node
from schema.types.usage import Usage
from schema.types.verdict import Verdict
from services import awaiting, openings
from services.values import public_id

if TYPE_CHECKING:
    from schema.types.job import Job


@strawberry.type(description="Why an attempt came to nothing.")
class AttemptError:
    code: str
    message: str
    retryable: bool
    may_have_executed: bool = strawberry.field(
        description="False only with proof that the agent took nothing of the request."
    )


@strawberry.type(description="A call that its agent accepted with 202, to answer it later.")
class LongCall:
    ends_at: datetime = strawberry.field(description="When it is given up.")
    polls: int = strawberry.field(description="How often the agent was asked and still at work.")
    trouble: str | None = strawberry.field(description="Why it could not be asked the last time.")
    path: strawberry.Private[str | None]

    @strawberry.field(
        description="The path at which the agent is asked, without its query. Null for callers "
        "without ADMIN, and for an agent that answers by its callback URL alone."
    )
    def location(self, info: Info) -> str | None:
        return self.path if info.context.viewer.is_admin else None

    @classmethod
    def of(cls, row: models.LongCall | None) -> Self | None:
        if row is None or row.ends_at is None:
            return None
        path = awaiting.path_alone(row.location) if row.location else None
        return cls(ends_at=row.ends_at, polls=row.polls, trouble=row.trouble, path=path)


@strawberry.type(description="One execution of a job by one agent.")
class Attempt(Node):
    number: int
    state: AttemptState
    http_status: int | None
    latency_ms: int | None
    started_at: datetime | None
    responded_at: datetime | None
    finished_at: datetime | None
    key: strawberry.Private[UUID]
    job_id: strawberry.Private[UUID]
    agent_id: strawberry.Private[UUID]
    row: strawberry.Private[models.Attempt]

    @strawberry.field
    async def job(self, info: Info) -> Annotated[Job, strawberry.lazy("schema.types.job")]:
        from schema.types.job import Job

        row = await info.context.loaders.jobs.load(self.job_id)
        assert row is not None  # noqa: S101 - whoever sees the attempt sees its job
        return Job.of(row)

    @strawberry.field
    async def agent(self, info: Info) -> Agent:
        row = await info.context.loaders.agents.load(self.agent_id)
        assert row is not None  # noqa: S101 - agents with attempts are never deleted
        return Agent.of(row)

    @strawberry.field(description="The agent as it was when the attempt began.")
    def agent_snapshot(self) -> JSON:
        return jsontext.loads(self.row.agent_snapshot_json)

    @strawberry.field(description="The body that was sent.")
    def request(self) -> JSON | None:
        return jsontext.loads_or_none(self.row.request_json)

    @strawberry.field(description="The body that came back.")
    def response(self) -> JSON | None:
        return jsontext.loads_or_none(self.row.response_json)

    @strawberry.field(description="What earlier verdicts had against the work, as it was sent.")
    def feedback(self) -> list[str]:
        return jsontext.loads(self.row.feedback_json)

    @strawberry.field
    def error(self) -> AttemptError | None:
        error = openings.error_of(self.row)
        if error is None:
            return None
        return AttemptError(
            code=error["code"],
            message=error["message"],
            retryable=error["retryable"],
            may_have_executed=error["mayHaveExecuted"],
        )

    @strawberry.field(description="Null unless the agent accepted it to answer later.")
    async def long_call(self, info: Info) -> LongCall | None:
        return LongCall.of(await info.context.loaders.long_calls.load(self.key))

    @strawberry.field(description="Oldest first.")
    async def verdicts(self, info: Info) -> list[Verdict]:
        return [Verdict.of(row) for row in await info.context.loaders.verdicts.load(self.key)]

    @strawberry.field(description="What the agent and the judge took.")
    async def usage(self, info: Info) -> Usage:
        return Usage.of_attempt(self.row, await info.context.loaders.verdicts.load(self.key))

    @classmethod
    def of(cls, row: models.Attempt) -> Self:
        return cls(
            id=strawberry.ID(public_id("attempt", row.id)),
            key=row.id,
            job_id=row.job_id,
            agent_id=row.agent_id,
            number=row.number,
            state=row.state,
            http_status=row.http_status,
            latency_ms=row.latency_ms,
            started_at=row.started_at,
            responded_at=row.responded_at,
            finished_at=row.finished_at,
            row=row,
        )
