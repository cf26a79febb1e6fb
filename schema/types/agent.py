from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Self
from uuid import UUID

import strawberry
from strawberry.scalars import JSON

import models
from models import jsontext
from resolvers import jobs
from resolvers.context import Info
from schema.connections import Connection, connection
from schema.enums import AgentAvailability
from schema.types.circuit import Circuit
from schema.types.node import Node
from schema.types.retry_policy import RetryPolicy
from services import retries
from services.agent_http.usage import MICROS
from services.agents import Trial
from services.filters import JobFilter
from services.paging import Window
from services.values import public_id

if TYPE_CHECKING:
    from schema.types.job import Job


@strawberry.type(description="An HTTP endpoint that does jobs.")
class Agent(Node):
    name: str
    description: str
    timeout_seconds: int
    max_wait_seconds: int
    max_concurrency: int
    rate_per_minute: int | None
    max_call_tokens: int | None
    max_call_cost_usd: float | None
    idempotent: bool = strawberry.field(
        description="It does the work once per idempotency key, however often it is asked."
    )
    accepts_feedback: bool
    retry_policy: RetryPolicy = strawberry.field(
        description="What is tried again in its jobs that say nothing else."
    )
    availability: AgentAvailability
    version: int
    created_at: datetime
    updated_at: datetime
    signing_secret: str | None = strawberry.field(
        description="The secret its requests are signed with (Standard Webhooks). Told once, "
        "in the answer to the saveAgent that made it; null ever after."
    )
    key: strawberry.Private[UUID]
    url: strawberry.Private[str]
    input_schema_json: strawberry.Private[str]
    output_schema_json: strawberry.Private[str]

    @strawberry.field(description="Null for callers without ADMIN.")
    def endpoint_url(self, info: Info) -> str | None:
        return self.url if info.context.viewer.is_admin else None

    @strawberry.field(description="JSON Schema of a job's input.")
    def input_schema(self) -> JSON:
        return jsontext.loads(self.input_schema_json)

    @strawberry.field(description="JSON Schema of its responses.")
    def output_schema(self) -> JSON:
        return jsontext.loads(self.output_schema_json)

    @strawberry.field(description="Its circuit breaker.")
    async def circuit(self, info: Info) -> Circuit:
        return Circuit.of(await info.context.loaders.circuits.load(self.key))

    @strawberry.field(
        description="Its executions under way, in all workers, those it accepted with 202 included."
    )
    async def running_count(self, info: Info) -> int:
        return await info.context.loaders.running_counts.load(self.key)

    @strawberry.field(description="Its jobs, newest first.")
    async def jobs(
        self,
        info: Info,
        where: JobFilter | None = None,
        first: int | None = None,
        after: str | None = None,
        last: int | None = None,
        before: str | None = None,
    ) -> Connection[Annotated[Job, strawberry.lazy("schema.types.job")]]:
        from schema.types.job import Job

        window = Window(first, after, last, before)
        return connection(await jobs.of_agent(info, self.key, where, window), Job.of)

    @classmethod
    def of(cls, row: models.Agent, *, secret: str | None = None) -> Self:
        return cls(
            id=strawberry.ID(public_id("agent", row.id)),
            key=row.id,
            name=row.name,
            description=row.description,
            url=row.endpoint_url,
            input_schema_json=row.input_schema_json,
            output_schema_json=row.output_schema_json,
            timeout_seconds=row.timeout_seconds,
            max_wait_seconds=row.max_wait_seconds,
            max_concurrency=row.max_concurrency,
            rate_per_minute=row.rate_per_minute,
            max_call_tokens=row.max_call_tokens,
            max_call_cost_usd=None if row.max_call_micros is None else row.max_call_micros / MICROS,
            idempotent=row.idempotent,
            accepts_feedback=row.accepts_feedback,
            retry_policy=RetryPolicy.of(retries.policy_of(None, row)),
            availability=row.availability,
            version=row.version,
            created_at=row.created_at,
            updated_at=row.updated_at,
            signing_secret=secret,
        )


@strawberry.type(description="What came of a test call.")
class AgentTest:
    ok: bool
    latency_ms: int | None
    output_valid: bool
    problem: str | None
    value: strawberry.Private[Any]

    @strawberry.field
    def response(self) -> JSON | None:
        return self.value

    @classmethod
    def of(cls, trial: Trial) -> Self:
        return cls(
            ok=trial.ok,
            latency_ms=trial.latency_ms,
            output_valid=trial.output_valid,
            problem=trial.problem,
            value=trial.response,
        )
