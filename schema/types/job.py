from __future__ import annotations

from datetime import datetime
from typing import Annotated, Self

import strawberry
from strawberry.scalars import JSON

import models
from models import jsontext
from resolvers import agents, jobs, logs
from resolvers.context import Info
from schema.connections import Connection, connection
from schema.enums import (
    CompletionMode,
    JobAction,
    JobLogType,
    JobPhase,
    JobPriority,
    JobStatus,
    StatusReason,
)
from schema.scalars import EventCursor
from schema.types.actor import Actor
from schema.types.agent import Agent
from schema.types.attempt import Attempt
from schema.types.job_log import JobLog
from schema.types.node import Node
from schema.types.retry_policy import RetryPolicy
from schema.types.usage import Budget, Usage
from schema.types.verdict import CriteriaSet, Verdict
from services import dependencies
from services.paging import Window, encode_position
from services.values import public_id


@strawberry.type(description="Whether the caller can do something now, and if not, why.")
class ActionAvailability:
    action: JobAction
    allowed: bool
    reason: str | None


@strawberry.type(description="A job that must be completed before another one starts.")
class JobDependency:
    job: Annotated[Job, strawberry.lazy("schema.types.job")]
    satisfied: bool
    alias: str | None = strawberry.field(description="What its result is called in the input.")


@strawberry.type(description="A piece of work with acceptance criteria.")
class Job(Node):
    version: int = strawberry.field(description="Rises with every change: `expectedVersion`.")
    name: str
    description: str
    status: JobStatus
    phase: JobPhase | None
    status_reason: StatusReason
    status_message: str | None = strawberry.field(description="The reason in words.")
    status_changed_at: datetime
    completion_mode: CompletionMode | None
    priority: JobPriority
    acceptance_criteria: str = strawberry.field(
        description="The text as the user wrote it; `criteria` is the checklist made of it."
    )
    run_at: datetime | None = strawberry.field(description="It does not start before.")
    due_at: datetime | None = strawberry.field(description="When it should be done.")
    expires_at: datetime | None = strawberry.field(
        description="What is not done by then is cancelled."
    )
    auto_execute: bool = strawberry.field(
        description="It starts by itself, once, as soon as it is assigned, ready and due."
    )
    armed: bool = strawberry.field(
        description="It starts by itself when it can, by autoExecute or `whenReady`."
    )
    attempt_count: int
    created_by: Actor
    archived_at: datetime | None
    created_at: datetime
    updated_at: datetime
    row: strawberry.Private[models.Job]

    @strawberry.field(description="The body that the agent is sent.")
    def input(self) -> JSON | None:
        return jsontext.loads(self.row.input_json)

    @strawberry.field(description="What was signed off.")
    def result(self) -> JSON | None:
        return jsontext.loads_or_none(self.row.result_json)

    @strawberry.field
    async def tags(self, info: Info) -> list[str]:
        return await info.context.loaders.tags.load(self.row.id)

    @strawberry.field(description="What its next verdict is held against.")
    async def criteria(self, info: Info) -> CriteriaSet:
        key = (self.row.id, self.row.criteria_version)
        return CriteriaSet.of(await info.context.loaders.criteria.load(key))

    @strawberry.field(description="Who does it.")
    async def agent(self, info: Info) -> Agent | None:
        row = await agents.by_key(info, self.row.agent_id)
        return Agent.of(row) if row else None

    @strawberry.field(description="Whether it waits for jobs that it depends on.")
    async def is_blocked(self, info: Info) -> bool:
        return await jobs.is_blocked(info, self.row)

    @strawberry.field(
        description="What must be completed before it starts, as far as the caller may see it."
    )
    async def depends_on(self, info: Info) -> list[JobDependency]:
        return [
            JobDependency(
                job=Job.of(each.depends_on),
                satisfied=dependencies.is_met(self.row.dependency_policy, each.depends_on.status),
                alias=each.alias,
            )
            for each in await jobs.depends_on(info, self.row)
        ]

    @strawberry.field(description="The jobs that depend on it, newest first.")
    async def dependents(
        self,
        info: Info,
        first: int | None = None,
        after: str | None = None,
        last: int | None = None,
        before: str | None = None,
    ) -> Connection[Annotated[Job, strawberry.lazy("schema.types.job")]]:
        window = Window(first, after, last, before)
        return connection(await jobs.dependents(info, self.row.id, window), Job.of)

    @strawberry.field(description="What is tried again: its own over its agent's policy.")
    async def retry_policy(self, info: Info) -> RetryPolicy:
        return RetryPolicy.of(await jobs.retry_policy(info, self.row))

    @strawberry.field(description="Attempts that one executeJob may lead to.")
    async def max_attempts(self, info: Info) -> int:
        return (await jobs.retry_policy(info, self.row)).max_attempts

    @strawberry.field(description="What it may take; null for no limit.")
    def budget(self) -> Budget | None:
        return Budget.of(self.row)

    @strawberry.field(description="What all its attempts took.")
    async def usage(self, info: Info) -> Usage:
        estimate = await info.context.loaders.cost_estimates.load(self.row.id)
        return Usage.of_job(self.row, estimate=estimate)

    @strawberry.field(
        description="What an execution that is queued waits for; null if it waits for nothing."
    )
    async def waiting_for(self, info: Info) -> str | None:
        return await jobs.waiting_for(info, self.row)

    @strawberry.field(description="Its executions, oldest first.")
    async def attempts(
        self,
        info: Info,
        first: int | None = None,
        after: str | None = None,
        last: int | None = None,
        before: str | None = None,
    ) -> Connection[Attempt]:
        window = Window(first, after, last, before)
        return connection(await jobs.attempts(info, self.row.id, window), Attempt.of)

    @strawberry.field(description="The newest attempt.")
    async def current_attempt(self, info: Info) -> Attempt | None:
        row = await jobs.current_attempt(info, self.row.id, self.row.attempt_count)
        return Attempt.of(row) if row else None

    @strawberry.field
    async def latest_verdict(self, info: Info) -> Verdict | None:
        row = await info.context.loaders.latest_verdicts.load(self.row.id)
        return Verdict.of(row) if row else None

    @strawberry.field(description="Its log, oldest first.")
    async def logs(
        self,
        info: Info,
        first: int | None = None,
        after: str | None = None,
        last: int | None = None,
        before: str | None = None,
        types: list[JobLogType] | None = None,
    ) -> Connection[JobLog]:
        window = Window(first, after, last, before)
        return connection(await logs.of_job(info, self.row.id, types, window), JobLog.of)

    @strawberry.field(
        description="The position of its newest event: subscribing `after` it misses nothing."
    )
    async def cursor(self, info: Info) -> EventCursor:
        return EventCursor(encode_position(await info.context.loaders.positions.load(self.row.id)))

    @strawberry.field(description="Guards evaluated for the caller: drives buttons.")
    async def available_actions(self, info: Info) -> list[ActionAvailability]:
        return [
            ActionAvailability(action=each.action, allowed=each.allowed, reason=each.reason)
            for each in await jobs.actions(info, self.row)
        ]

    @classmethod
    def of(cls, row: models.Job) -> Self:
        return cls(
            id=strawberry.ID(public_id("job", row.id)),
            version=row.version,
            name=row.name,
            description=row.description,
            status=row.status,
            phase=row.phase,
            status_reason=row.status_reason,
            status_message=row.status_message,
            status_changed_at=row.status_changed_at,
            completion_mode=row.completion_mode,
            priority=row.priority,
            run_at=row.run_at,
            due_at=row.due_at,
            expires_at=row.expires_at,
            auto_execute=row.auto_execute,
            armed=row.armed,
            acceptance_criteria=row.acceptance_criteria,
            attempt_count=row.attempt_count,
            created_by=Actor.creator(row),
            archived_at=row.archived_at,
            created_at=row.created_at,
            updated_at=row.updated_at,
            row=row,
        )
