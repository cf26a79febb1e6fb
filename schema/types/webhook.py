from __future__ import annotations

from datetime import UTC, datetime
from typing import Self

import strawberry
from strawberry.scalars import JSON

import models
from models import jsontext
from resolvers import webhooks
from resolvers.context import Info
from schema.connections import Connection, connection
from schema.enums import JobLogType, WebhookDeliveryState
from schema.types.actor import Actor
from schema.types.circuit import Circuit
from schema.types.job_log import JobLog
from schema.types.node import Node
from services import circuits, filters
from services.paging import Window
from services.values import public_id
from services.webhooks.hooks import Saved


@strawberry.type(description="One event for one webhook.")
class WebhookDelivery(Node):
    type: str = strawberry.field(description="Of the event, such as `job.status_changed`.")
    state: WebhookDeliveryState
    attempts: int = strawberry.field(description="Requests that were made.")
    status_code: int | None = strawberry.field(
        description="Of the latest answer; null if there was none."
    )
    error: str | None = strawberry.field(description="Why the latest attempt failed.")
    attempted_at: datetime | None = strawberry.field(description="When the latest one began.")
    next_attempt_at: datetime | None = strawberry.field(
        description="When it is tried next, unless the webhook's circuit is open then."
    )
    created_at: datetime
    seq: strawberry.Private[int | None]

    @strawberry.field(description="What it tells of; null for a test.")
    async def event(self, info: Info) -> JobLog | None:
        row = await webhooks.event_of(info, self.seq)
        return JobLog.of(row) if row else None

    @classmethod
    def of(cls, row: models.WebhookDelivery) -> Self:
        waits = row.state is WebhookDeliveryState.PENDING
        return cls(
            id=strawberry.ID(public_id("delivery", row.id)),
            type=row.type,
            state=row.state,
            attempts=row.attempts,
            status_code=row.status_code,
            error=row.error,
            attempted_at=row.attempted_at,
            next_attempt_at=row.next_attempt_at if waits else None,
            created_at=row.created_at,
            seq=row.seq,
        )


@strawberry.type(description="An address that hears of what happens to its owner's jobs.")
class Webhook(Node):
    types: list[JobLogType]
    enabled: bool
    disabled_reason: str | None = strawberry.field(
        description="Why it was disabled, if not by a person."
    )
    circuit: Circuit = strawberry.field(description="Its circuit breaker.")
    old_secret_until: datetime | None = strawberry.field(
        description="Until when the secret before the latest rotation signs too."
    )
    owner: Actor = strawberry.field(description="It tells of the jobs that its owner sees.")
    created_at: datetime
    updated_at: datetime
    row: strawberry.Private[models.Webhook]

    @strawberry.field(description="Null if it was saved with another SIGNOFF_SECRET_KEY.")
    def url(self, info: Info) -> str | None:
        return webhooks.url_of(info, self.row)

    @strawberry.field(description="Its filter, as it was given.")
    def where(self) -> JSON | None:
        text = self.row.where_json
        return JSON(filters.as_input(text)) if text else None

    @strawberry.field(description="Newest first.")
    async def deliveries(
        self,
        info: Info,
        states: list[WebhookDeliveryState] | None = None,
        first: int | None = None,
        after: str | None = None,
        last: int | None = None,
        before: str | None = None,
    ) -> Connection[WebhookDelivery]:
        window = Window(first, after, last, before)
        page = await webhooks.deliveries_of(info, self.row.id, states, window)
        return connection(page, WebhookDelivery.of)

    @classmethod
    def of(cls, row: models.Webhook) -> Self:
        until = row.old_secret_until
        return cls(
            id=strawberry.ID(public_id("webhook", row.id)),
            types=[JobLogType(each) for each in jsontext.loads(row.types_json)],
            enabled=row.enabled,
            disabled_reason=row.disabled_reason,
            circuit=Circuit.of(circuits.of(row)),
            old_secret_until=until if until and until > datetime.now(UTC) else None,
            owner=Actor.of_webhook(row),
            created_at=row.created_at,
            updated_at=row.updated_at,
            row=row,
        )


@strawberry.type(description="A webhook as it was saved, and its secret if it has a new one.")
class NewWebhook:
    webhook: Webhook
    secret: str | None = strawberry.field(
        description="The Standard Webhooks secret of its signatures. Told once, in the answer to "
        "what made it; null in any other."
    )

    @classmethod
    def of(cls, saved: Saved) -> Self:
        return cls(webhook=Webhook.of(saved.webhook), secret=saved.new_secret)
