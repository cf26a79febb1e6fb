"""Deliveries as users see them, and what users do with them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from models import Webhook, WebhookDelivery, WebhookDeliveryState, statements
from services.actors import Viewer
from services.errors import InvalidInput, NotFound
from services.paging import Page, Window, fetch
from services.reading import NEWEST
from services.runtime import Runtime
from services.transactions import atomic, current
from services.values import public_id
from services.webhooks import hooks, payloads

PERSISTENCE = 5
FORGOTTEN = 200
"""Deliveries forgotten in one statement, for which the event loop waits on SQLite."""


async def page(
    webhook_id: UUID, states: list[WebhookDeliveryState] | None, window: Window
) -> Page[WebhookDelivery]:
    """Newest first; who sees the webhook sees them."""
    query = WebhookDelivery.filter(webhook_id=webhook_id)
    return await fetch(query.filter(state__in=states) if states else query, NEWEST, window)


async def get(viewer: Viewer, delivery_id: UUID) -> tuple[WebhookDelivery, Webhook]:
    """Raises `NotFound`, for another's as for none."""
    found = await WebhookDelivery.get_or_none(id=delivery_id).select_related("webhook")
    if found is None or not hooks.sees(viewer, found.webhook):
        raise NotFound(public_id("delivery", delivery_id))
    return found, found.webhook


async def test(rt: Runtime, viewer: Viewer, webhook_id: UUID) -> WebhookDelivery:
    """Send a webhook an event that tells of nothing. Raises `NotFound` or `InvalidInput`."""
    hook = await hooks.get(viewer, webhook_id)
    return await _test(rt, hook)


@atomic
async def _test(rt: Runtime, hook: Webhook) -> WebhookDelivery:
    _demand_enabled(hook, "id")
    now = datetime.now(UTC)
    body = payloads.of_test(hook.id, now)
    made = WebhookDelivery(webhook_id=hook.id, type=payloads.TEST, body=body, next_attempt_at=now)
    current().insert(made)
    _let_through(hook, now)
    return made


async def redeliver(rt: Runtime, viewer: Viewer, delivery_id: UUID) -> WebhookDelivery:
    """Send it again, at once and with all its tries; one that is under way is left to that.

    Raises `NotFound`, or `InvalidInput` while its webhook is disabled.
    """
    for _ in range(PERSISTENCE):
        with suppress(_Moved):
            delivery, hook = await get(viewer, delivery_id)
            return await _redeliver(rt, delivery, hook)
    raise InvalidInput.at("deliveryId", message="it is being delivered; try again")


@atomic
async def _redeliver(rt: Runtime, delivery: WebhookDelivery, hook: Webhook) -> WebhookDelivery:
    _demand_enabled(hook, "deliveryId")
    if delivery.state is WebhookDeliveryState.SENDING:
        return delivery
    now = datetime.now(UTC)
    changes: dict[str, Any] = {
        "state": WebhookDeliveryState.PENDING,
        "tries": 0,
        "next_attempt_at": now,
    }

    async def refuse() -> None:
        raise _Moved

    seen = {"id": delivery.id, "state": delivery.state, "attempts": delivery.attempts}
    current().swap(WebhookDelivery, seen, changes, refuse)
    _let_through(hook, now)
    vars(delivery).update(changes)
    return delivery


class _Moved(Exception):
    """A worker took it, or settled it, in this moment."""


def _demand_enabled(hook: Webhook, argument: str) -> None:
    if not hook.enabled:
        message = "its webhook is disabled; save it with enabled: true first"
        raise InvalidInput.at(argument, message=message)


def _let_through(hook: Webhook, now: datetime) -> None:
    """Who asks for a try believes that it will go well: an open circuit is half open from now."""
    if hook.open_until is not None and hook.open_until > now:
        current().update(Webhook, {"id": hook.id}, {"open_until": now})


FORGET = f"""DELETE FROM "webhook_deliveries" WHERE "id" IN (
    SELECT "id" FROM "webhook_deliveries" WHERE "created_at" < $1 AND "state" <> 'SENDING'
    ORDER BY "created_at", "id" LIMIT {FORGOTTEN}) RETURNING 1"""  # noqa: S608 - a number


async def forget(kept: timedelta) -> int:
    """Delete what is older, a few at a time; returns how many."""
    before, forgotten = datetime.now(UTC) - kept, 0
    while rows := await statements.database().fetch(FORGET, before):
        forgotten += len(rows)
        await asyncio.sleep(0)
    return forgotten
