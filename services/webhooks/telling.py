"""What the audit log tells of webhooks: no secret, and of an address only whose server it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from models import Webhook, jsontext
from services import audit
from services.actors import SYSTEM, Viewer
from services.runtime import Runtime
from services.secrets import SecretUnreadable
from services.values import public_id

READ: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "types_json": ("types", jsontext.loads),
    "where_json": ("where", jsontext.loads_or_none),
    "enabled": ("enabled", bool),
    "owner_id": ("owner", str),
    "owner_role": ("ownerRole", str),
}
"""The columns that it tells of as they are, by the names that it gives them."""


async def made(rt: Runtime, viewer: Viewer, hook: Webhook) -> None:
    """Each of these tells of it in the transaction under way."""
    changes = audit.between({}, _plain(vars(hook)))
    changes["url"] = audit.change(None, _server(rt, hook.url_sealed))
    changes["secret"] = audit.change(None, audit.REDACTED)
    await audit.record(viewer, "webhook.made", _subject(hook), changes)


async def changed(rt: Runtime, viewer: Viewer, hook: Webhook, given: Mapping[str, Any]) -> None:
    """`given` are columns that it has not been given yet."""
    changes = audit.between(_plain(vars(hook)), _plain(given))
    if _address(rt, hook.url_sealed) != _address(rt, given["url_sealed"]):
        before, after = _server(rt, hook.url_sealed), _server(rt, given["url_sealed"])
        changes["url"] = audit.change(before, after)
    await audit.record(viewer, "webhook.changed", _subject(hook), changes)


async def secret_rotated(viewer: Viewer, hook: Webhook, overlap: timedelta) -> None:
    changes = {
        "secret": audit.change(audit.REDACTED, audit.REDACTED),
        "overlapSeconds": audit.change(None, int(overlap.total_seconds())),
    }
    await audit.record(viewer, "webhook.secret_rotated", _subject(hook), changes)


async def deleted(viewer: Viewer, hook: Webhook) -> None:
    await audit.record(viewer, "webhook.deleted", _subject(hook), {})


async def ended(webhook_id: UUID, workspace_id: int, reason: str) -> None:
    """It was disabled by nobody, since it could not go on."""
    changes = {"enabled": audit.change(True, False), "reason": audit.change(None, reason)}  # noqa: FBT003
    subject = public_id("webhook", webhook_id)
    await audit.append(SYSTEM, workspace_id, "webhook.disabled", subject, changes)


def _plain(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: read(columns[column]) for column, (name, read) in READ.items() if column in columns
    }


def _address(rt: Runtime, sealed: str) -> str | None:
    """None if it was sealed with another key."""
    try:
        return rt.vault.open(sealed)
    except SecretUnreadable:
        return None


def _server(rt: Runtime, sealed: str) -> str | None:
    """An address without its path, which may be its secret."""
    url = _address(rt, sealed)
    if url is None:
        return None
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/…"


def _subject(hook: Webhook) -> str:
    return public_id("webhook", hook.id)
