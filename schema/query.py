from __future__ import annotations

import strawberry

from resolvers import agents, audit, jobs, keys, logs, nodes, webhooks
from resolvers.context import Info
from schema.connections import Connection, connection
from schema.enums import JobLogType
from schema.permissions import ADMINS, MEMBERS, VIEWERS
from schema.scalars import EventCursor
from schema.types.actor import Viewer
from schema.types.agent import Agent
from schema.types.api_key import ApiKey
from schema.types.audit import AuditEntry, AuditVerification
from schema.types.job import Job
from schema.types.job_log import JobLog
from schema.types.node import Node
from schema.types.registry import node_of
from schema.types.webhook import Webhook
from services.filters import AgentFilter, JobFilter
from services.paging import Window, encode_position
from services.reading import JobOrder


@strawberry.type
class Query:
    @strawberry.field(extensions=[VIEWERS], description="Anything by its id.")
    async def node(self, info: Info, id: strawberry.ID) -> Node | None:
        row = await nodes.by_id(info, id)
        return node_of(row) if row else None

    @strawberry.field(extensions=[VIEWERS])
    async def job(self, info: Info, id: strawberry.ID) -> Job | None:
        row = await jobs.by_id(info, id)
        return Job.of(row) if row else None

    @strawberry.field(
        extensions=[VIEWERS],
        description="The jobs that the caller sees, newest first unless ordered otherwise.",
    )
    async def jobs(
        self,
        info: Info,
        where: JobFilter | None = None,
        order_by: list[JobOrder] | None = None,
        first: int | None = None,
        after: str | None = None,
        last: int | None = None,
        before: str | None = None,
    ) -> Connection[Job]:
        window = Window(first, after, last, before)
        return connection(await jobs.page(info, where, order_by, window), Job.of)

    @strawberry.field(
        extensions=[VIEWERS], description="The log of all jobs that the caller sees, oldest first."
    )
    async def job_logs(
        self,
        info: Info,
        where: JobFilter | None = None,
        types: list[JobLogType] | None = None,
        first: int = 50,
        after: EventCursor | None = None,
    ) -> Connection[JobLog]:
        page = await logs.page(info, where, types, first, after)
        return connection(page, JobLog.of, lambda row: encode_position(row.seq))

    @strawberry.field(extensions=[VIEWERS])
    async def agent(self, info: Info, id: strawberry.ID) -> Agent | None:
        row = await agents.by_id(info, id)
        return Agent.of(row) if row else None

    @strawberry.field(extensions=[VIEWERS], description="Newest first.")
    async def agents(
        self,
        info: Info,
        where: AgentFilter | None = None,
        first: int | None = None,
        after: str | None = None,
        last: int | None = None,
        before: str | None = None,
    ) -> Connection[Agent]:
        window = Window(first, after, last, before)
        return connection(await agents.page(info, where, window), Agent.of)

    @strawberry.field(
        extensions=[ADMINS],
        description="What was done in the caller's workspace that belongs to no job, newest first.",
    )
    async def audit_entries(
        self,
        info: Info,
        first: int | None = None,
        after: str | None = None,
        last: int | None = None,
        before: str | None = None,
    ) -> Connection[AuditEntry]:
        window = Window(first, after, last, before)
        return connection(await audit.page(info, window), AuditEntry.of)

    @strawberry.field(
        extensions=[VIEWERS],
        description="Whether a job's log is as it was written; without an id those of all jobs "
        "of the workspace and its audit log, for admins.",
    )
    async def verify_audit(
        self, info: Info, job_id: strawberry.ID | None = None
    ) -> AuditVerification:
        return AuditVerification.of(await audit.verify(info, job_id))

    @strawberry.field(extensions=[MEMBERS], description="Of the caller, or anybody's for admins.")
    async def webhook(self, info: Info, id: strawberry.ID) -> Webhook | None:
        row = await webhooks.by_id(info, id)
        return Webhook.of(row) if row else None

    @strawberry.field(
        extensions=[MEMBERS], description="The caller's, and everybody's for admins; newest first."
    )
    async def webhooks(
        self,
        info: Info,
        first: int | None = None,
        after: str | None = None,
        last: int | None = None,
        before: str | None = None,
    ) -> Connection[Webhook]:
        window = Window(first, after, last, before)
        return connection(await webhooks.page(info, window), Webhook.of)

    @strawberry.field(
        extensions=[ADMINS], description="The keys of the caller's workspace, newest first."
    )
    async def api_keys(
        self,
        info: Info,
        first: int | None = None,
        after: str | None = None,
        last: int | None = None,
        before: str | None = None,
    ) -> Connection[ApiKey]:
        return connection(await keys.page(info, Window(first, after, last, before)), ApiKey.of)

    @strawberry.field(extensions=[VIEWERS], description="Who the caller is.")
    async def viewer(self, info: Info) -> Viewer:
        return Viewer.of(info.context.viewer)
