from __future__ import annotations

from uuid import UUID

from models import JobLog, Webhook, WebhookDelivery, WebhookDeliveryState
from resolvers.context import Info
from services.errors import NotFound
from services.paging import Page, Window
from services.values import parse_id
from services.webhooks import deliveries, hooks
from services.webhooks.hooks import Saved, SaveWebhook


def _key(prefix: str, id: str) -> UUID:
    """The primary key; raises `NotFound` for what cannot be one."""
    try:
        return parse_id(prefix, id)
    except ValueError:
        raise NotFound(id) from None


async def by_id(info: Info, id: str) -> Webhook | None:
    try:
        return await hooks.get(info.context.viewer, _key("webhook", id))
    except NotFound:
        return None


async def delivery_by_id(info: Info, id: str) -> WebhookDelivery | None:
    try:
        delivery, _ = await deliveries.get(info.context.viewer, _key("delivery", id))
    except NotFound:
        return None
    return delivery


async def page(info: Info, window: Window) -> Page[Webhook]:
    return await hooks.page(info.context.viewer, window)


async def deliveries_of(
    info: Info, webhook_id: UUID, states: list[WebhookDeliveryState] | None, window: Window
) -> Page[WebhookDelivery]:
    return await deliveries.page(webhook_id, states, window)


async def event_of(info: Info, seq: int | None) -> JobLog | None:
    """None for a test, and for what the viewer may not see or is not there any more."""
    return None if seq is None else await info.context.loaders.log_entries.load(seq)


def url_of(info: Info, hook: Webhook) -> str | None:
    return hooks.url_of(info.context.rt, hook)


async def save(info: Info, command: SaveWebhook) -> Saved:
    return await hooks.save(info.context.rt, info.context.viewer, command)


async def rotate_secret(info: Info, id: str, overlap_seconds: int) -> Saved:
    key = _key("webhook", id)
    return await hooks.rotate_secret(info.context.rt, info.context.viewer, key, overlap_seconds)


async def delete(info: Info, id: str) -> Webhook:
    return await hooks.delete(info.context.rt, info.context.viewer, _key("webhook", id))


async def test(info: Info, id: str) -> WebhookDelivery:
    return await deliveries.test(info.context.rt, info.context.viewer, _key("webhook", id))


async def redeliver(info: Info, delivery_id: str) -> WebhookDelivery:
    key = _key("delivery", delivery_id)
    return await deliveries.redeliver(info.context.rt, info.context.viewer, key)
