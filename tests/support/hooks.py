"""Webhooks to test with, and what their endpoints heard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
from standardwebhooks import Webhook as Verifier

from models import ActorKind, AuditEntry, Webhook, WebhookDelivery, WebhookDeliveryState
from services.actors import Viewer
from services.runtime import Runtime
from services.values import public_id
from services.webhooks import hooks
from services.webhooks.hooks import SaveWebhook
from tests.fakes.agents import FakeAgent, Received
from tests.support.making import ADMIN, answers, holds, until

Json = dict[str, Any]
CHANGES = ["STATUS_CHANGE"]

takes = answers({})
"""An endpoint that is content with whatever it gets."""


@dataclass
class Hook:
    id: UUID
    secret: str

    async def row(self) -> Webhook:
        return await Webhook.get(id=self.id)

    async def deliveries(self) -> list[WebhookDelivery]:
        return await WebhookDelivery.filter(webhook_id=self.id).order_by("seq", "id")

    async def settled(self, count: int) -> list[WebhookDelivery]:
        """All of them, when there are so many and none is under way or was never tried."""

        async def found() -> list[WebhookDelivery] | None:
            rows = await self.deliveries()
            waits = [row for row in rows if row.state is WebhookDeliveryState.SENDING]
            new = [row for row in rows if row.tries == 0]
            return rows if len(rows) >= count and not waits and not new else None

        rows = await until(found)
        assert len(rows) == count
        return rows

    async def ends(self) -> list[tuple[ActorKind, Any]]:
        """Who disabled it by the audit log, and what that tells of it."""
        entries = AuditEntry.filter(
            action="webhook.disabled", subject=public_id("webhook", self.id)
        )
        return [(each.actor_kind, orjson.loads(each.changes_json)) async for each in entries]

    async def let_due(self) -> None:
        """What waits for its next try, and the circuit, need not wait any longer."""
        now = (await self.row()).created_at
        pending = WebhookDelivery.filter(webhook_id=self.id, state=WebhookDeliveryState.PENDING)
        await pending.update(next_attempt_at=now)
        await Webhook.filter(id=self.id, open_until__isnull=False).update(open_until=now)


async def make_hook(rt: Runtime, url: str, viewer: Viewer = ADMIN, **given: Any) -> Hook:
    command = SaveWebhook.model_validate({"url": url, "types": CHANGES} | given)
    saved = await hooks.save(rt, viewer, command)
    assert saved.new_secret
    return Hook(saved.webhook.id, saved.new_secret)


def by_itself(reason: str) -> list[tuple[ActorKind, Any]]:
    """The only end of a webhook, which Signoff brought for this reason."""
    changes = {"enabled": {"from": True, "to": False}, "reason": {"from": None, "to": reason}}
    return [(ActorKind.SYSTEM, changes)]


async def heard(endpoint: FakeAgent, count: int) -> list[Json]:
    """What the endpoint was told, when it was told so many times."""
    await holds(lambda: len(endpoint.received) >= count)
    return told(endpoint.received)


def told(received: Sequence[Received]) -> list[Json]:
    return [orjson.loads(each.body) for each in received]


def ids(received: Sequence[Received]) -> list[str]:
    return [each.headers["webhook-id"] for each in received]


def verified(received: Received, secret: str) -> Any:
    """The event, if the signature is good by another's implementation; it raises otherwise."""
    return Verifier(secret).verify(received.body, received.headers)
