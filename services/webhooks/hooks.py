"""Webhooks: making, changing and reading them.

A webhook belongs to whoever made it, and shows itself to its owner and to admins. It tells what
its owner may see, by the role that they saved it with and still have at that moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

import structlog
from pydantic import AfterValidator, Field

from models import JobLogType, Role, Webhook, jsontext, statements
from models.statements import Statement
from services import agent_http, filters, keys, queue
from services.actors import TOKEN_PREFIX, Viewer
from services.agent_http.addresses import WEBHOOK
from services.errors import Forbidden, InvalidInput, LimitExceeded, NotFound, Problem
from services.filters import JobFilter, job_condition
from services.paging import Page, Window, fetch
from services.reading import NEWEST
from services.runtime import Runtime
from services.secrets import SecretUnreadable
from services.transactions import atomic, current
from services.values import STORABLE, Command, WebhookId, public_id
from services.webhooks import telling

logger = structlog.get_logger(__name__)

MAX_PER_OWNER = 20
MAKING = 7_464_339_115
"""Of the lock under which a webhook is counted that is made."""
OVERLAP_SECONDS = 86_400
MAX_OVERLAP_SECONDS = 7 * 86_400
PURGED = 200
"""Deliveries deleted in one statement, for which the event loop waits on SQLite."""
WELL: dict[str, Any] = {
    "failures": 0,
    "opened": 0,
    "open_until": None,
    "reason": None,
    "failing_since": None,
}
"""The columns of a circuit that is closed."""
DEMOTED = "It is being changed; save it again if this stays."


def _url(text: str) -> str:
    agent_http.check_endpoint_url(text, allow_private=True, peer=WEBHOOK)
    return text


def _different(types: list[JobLogType]) -> list[JobLogType]:
    if len(set(types)) < len(types):
        raise ValueError("must name different types")
    return types


class SaveWebhook(Command):
    """A webhook to be made, or with `id` to be changed."""

    id: WebhookId | None = Field(
        default=None, description="Change this one; absent: make a new one."
    )
    url: Annotated[str, Field(max_length=2000, repr=False), STORABLE, AfterValidator(_url)] = Field(
        description="Where events are POSTed: http or https. It may hold a secret."
    )
    types: Annotated[list[JobLogType], Field(min_length=1), AfterValidator(_different)] = Field(
        description="Which entries of the log are events for it."
    )
    where: JobFilter | None = Field(
        default=None,
        description="Of which jobs, as they are when the event is read; null: of all that its "
        "owner sees. Left out in a change: stays as it is.",
    )
    enabled: bool | None = Field(
        default=None,
        description="Whether it delivers. A disabled one keeps its place and goes on from there "
        "when it is enabled. Default true; left out in a change: stays as it is.",
    )


@dataclass(frozen=True, slots=True)
class Saved:
    webhook: Webhook
    new_secret: str | None


def sees(viewer: Viewer, hook: Webhook) -> bool:
    """Owners and admins of its workspace, unless their key is narrowed.

    A viewer makes none and sees none, since addresses may hold secrets.
    """
    if hook.workspace_id != viewer.workspace_id or viewer.is_scoped:
        return False
    return viewer.is_admin or (viewer.role is Role.MEMBER and hook.owner_id == viewer.id)


async def get(viewer: Viewer, webhook_id: UUID) -> Webhook:
    """Raises `NotFound`, for another's as for none."""
    found = await statements.fetch(Webhook, id=webhook_id)
    if found is None or not sees(viewer, found):
        raise NotFound(public_id("webhook", webhook_id))
    return found


async def page(viewer: Viewer, window: Window) -> Page[Webhook]:
    query = Webhook.filter(workspace_id=viewer.workspace_id)
    if viewer.is_scoped:
        query = query.filter(id__in=[])
    elif not viewer.is_admin:
        query = query.filter(owner_id=viewer.id)
    return await fetch(query, NEWEST, window)


async def save(rt: Runtime, viewer: Viewer, command: SaveWebhook) -> Saved:
    """Raises `InvalidInput`, `NotFound`, `Forbidden` or `LimitExceeded`.

    What was made for an owner of a higher role is deleted, before their lower one can say where
    it would go.
    """
    _demand_lasting(viewer)
    _check(rt, viewer, command)
    if command.id is None:
        return await _make(rt, viewer, command, await rt.events.complete_until())
    hook = await get(viewer, command.id)
    demoted = hook.owner_id == viewer.id and _is_less(viewer.role, hook.owner_role)
    if demoted:
        await disable(rt, hook.id, DEMOTED)
        await _purge(hook.id)
    return Saved(await _change(rt, viewer, command, enable=demoted and hook.enabled), None)


def _demand_lasting(viewer: Viewer) -> None:
    """Raises `Forbidden`: a webhook outlives a token, and nobody tells us of a role withdrawn."""
    if viewer.id.startswith(TOKEN_PREFIX):
        raise Forbidden(
            "Webhooks are saved with an API key, not with a token: a webhook goes on when the "
            "token has ended, and only a key can be revoked here."
        )


def _is_less(role: Role, other: Role) -> bool:
    return keys.RANK.index(role) < keys.RANK.index(other)


def _check(rt: Runtime, viewer: Viewer, command: SaveWebhook) -> None:
    """A first word on private addresses; the guard that holds is at the dial."""
    allow_private = rt.options.allow_private_webhooks
    try:
        agent_http.check_endpoint_url(command.url, allow_private=allow_private, peer=WEBHOOK)
    except ValueError as error:
        raise InvalidInput.at("input", "url", message=str(error)) from None
    try:
        job_condition(command.where, viewer)
    except InvalidInput as error:
        problems = [Problem(("input", *each.path), each.message) for each in error.problems]
        raise InvalidInput(problems) from None


@atomic
async def _make(rt: Runtime, viewer: Viewer, command: SaveWebhook, position: int) -> Saved:
    """It hears of what comes after `position`, before which nothing is still to come."""
    keys.demand_unscoped(viewer)
    secret = agent_http.new_secret()
    made = Webhook(
        **_given(rt, command),
        **_owner(viewer),
        workspace_id=viewer.workspace_id,
        secret_sealed=rt.vault.seal(secret),
        position=position,
    )
    if not statements.is_sqlite():  # there all writers take turns
        lock = f"SELECT pg_advisory_xact_lock({MAKING})"
        current().writes.append(Statement(lock, [], "webhooks"))
    current().insert(made)
    counted = [str(made.id), made.workspace_id, made.owner_id]
    current().require(Statement(WITHIN_LIMIT, counted, "webhooks", guarded=True), _refuse)
    await telling.made(rt, viewer, made)
    return Saved(made, secret)


WITHIN_LIMIT = f"""UPDATE "webhooks" SET "version" = "version" WHERE "id" = $1 AND (
    SELECT count(*) FROM "webhooks"
    WHERE "workspace_id" = $2 AND "owner_id" = $3) <= {MAX_PER_OWNER}"""  # noqa: S608 - a number


async def _refuse() -> None:
    raise LimitExceeded(
        f"You have {MAX_PER_OWNER} webhooks, which is as many as one may have; delete one.",
        MAX_PER_OWNER,
    )


def _owner(viewer: Viewer) -> dict[str, Any]:
    return {
        "owner_kind": viewer.kind,
        "owner_id": viewer.id,
        "owner_name": viewer.name,
        "owner_role": viewer.role,
    }


def _given(rt: Runtime, command: SaveWebhook) -> dict[str, Any]:
    """The columns that the command gives."""
    columns: dict[str, Any] = {
        "url_sealed": rt.vault.seal(command.url),
        "types_json": jsontext.dumps(command.types),
    }
    if "where" in command.model_fields_set:
        columns["where_json"] = filters.stored(command.where) if command.where else None
    if command.enabled is not None:
        columns["enabled"] = command.enabled
    return columns


@atomic
async def _change(rt: Runtime, viewer: Viewer, command: SaveWebhook, *, enable: bool) -> Webhook:
    """`enable` unless the command says otherwise.

    Raises `NotFound`, or `InvalidInput` if somebody else changed it meanwhile.
    """
    assert command.id is not None  # noqa: S101
    hook = await get(viewer, command.id)
    changes = _given(rt, command)
    if hook.owner_id == viewer.id:
        changes |= _owner(viewer)
    if changes.get("enabled", enable) and not hook.enabled:
        changes["enabled"] = True
        changes |= WELL | {"disabled_reason": None}
    elif url_of(rt, hook) != command.url:
        changes |= WELL
    await telling.changed(rt, viewer, hook, changes)
    _write(hook, changes)
    return hook


def _write(hook: Webhook, changes: dict[str, Any]) -> None:
    """Write changes to `hook` as it was read."""

    async def refuse() -> None:
        raise InvalidInput.at("id", message="the webhook was changed at the same time; try again")

    seen = {"id": hook.id, "version": hook.version}
    changes |= {"version": hook.version + 1, "updated_at": datetime.now(UTC)}
    current().swap(Webhook, seen, changes, refuse)
    vars(hook).update(changes)


def url_of(rt: Runtime, hook: Webhook) -> str | None:
    """None if it was sealed with another key."""
    return opened(rt, hook.url_sealed)


def opened(rt: Runtime, sealed: str) -> str | None:
    """What was sealed; None if that was with another key."""
    try:
        return rt.vault.open(sealed)
    except SecretUnreadable:
        return None


async def rotate_secret(
    rt: Runtime, viewer: Viewer, webhook_id: UUID, overlap_seconds: int
) -> Saved:
    """A new secret; the one before it signs too for that long, and any older one no more.

    One that cannot be read cannot sign, and is forgotten.
    """
    if not 0 <= overlap_seconds <= MAX_OVERLAP_SECONDS:
        message = f"must be between 0 and {MAX_OVERLAP_SECONDS}"
        raise InvalidInput.at("overlapSeconds", message=message)
    return await _rotate(rt, viewer, webhook_id, timedelta(seconds=overlap_seconds))


@atomic
async def _rotate(rt: Runtime, viewer: Viewer, webhook_id: UUID, overlap: timedelta) -> Saved:
    hook = await get(viewer, webhook_id)
    secret = agent_http.new_secret()
    signs = bool(overlap) and opened(rt, hook.secret_sealed) is not None
    until = datetime.now(UTC) + overlap if signs else None
    changes: dict[str, Any] = {
        "secret_sealed": rt.vault.seal(secret),
        "old_secret_sealed": hook.secret_sealed if signs else None,
        "old_secret_until": until,
    }
    await telling.secret_rotated(viewer, hook, overlap)
    _write(hook, changes)
    if until is not None:
        current().wake(until)
    return Saved(hook, secret)


FIRST_END = 'SELECT min("old_secret_until") FROM "webhooks"'
ERASE = """UPDATE "webhooks" SET "old_secret_sealed" = NULL, "old_secret_until" = NULL
    WHERE "old_secret_until" <= $1 RETURNING 1"""


async def erase_old_secrets(now: datetime) -> datetime | None:
    """Erase those that do not sign any more; returns when the next one does not."""
    at = await _first_end()
    if at is None or at > now:
        return at
    await statements.database().fetch(ERASE, now)
    return await _first_end()


async def _first_end() -> datetime | None:
    (row,) = await statements.database().fetch(FIRST_END)
    return queue.instant(row[0])


PURGE = f"""DELETE FROM "webhook_deliveries" WHERE "id" IN (
    SELECT "id" FROM "webhook_deliveries" WHERE "webhook_id" = $1 LIMIT {PURGED})
    RETURNING 1"""  # noqa: S608 - a number


async def delete(rt: Runtime, viewer: Viewer, webhook_id: UUID) -> Webhook:
    """Remove it with its deliveries, a few at a time; returns it as it was. Raises `NotFound`."""
    hook = await get(viewer, webhook_id)
    await disable(rt, webhook_id, "It is being deleted.")
    await _purge(webhook_id)
    await _remove(rt, viewer, hook)
    return hook


async def _purge(webhook_id: UUID) -> None:
    """Delete its deliveries; others have their turn in between."""
    deleted = True
    while deleted:
        deleted = bool(await statements.database().fetch(PURGE, str(webhook_id)))
        await asyncio.sleep(0)


@atomic
async def _remove(rt: Runtime, viewer: Viewer, hook: Webhook) -> None:
    current().delete(Webhook, {"id": hook.id})
    await telling.deleted(viewer, hook)


@atomic
async def disable(rt: Runtime, webhook_id: UUID, reason: str) -> None:
    """Disable it for its owner, if it is not disabled already."""
    current().update(Webhook, {"id": webhook_id, "enabled": True}, _disabled(reason))


def _disabled(reason: str) -> dict[str, Any]:
    return {"enabled": False, "disabled_reason": reason, "updated_at": datetime.now(UTC)}


class Changed(Exception):
    """The webhook is not what it was seen as, or is disabled."""


async def stop(rt: Runtime, webhook_id: UUID, reason: str) -> None:
    """Disable it because it cannot go on, if it is not disabled already, and say so in the log."""
    with suppress(Changed):
        await _stop(rt, webhook_id, reason)
        complain(webhook_id, reason)


@atomic
async def _stop(rt: Runtime, webhook_id: UUID, reason: str) -> None:
    """Of the row nothing is read but whose it is: the rest may be what cannot be read."""
    for (workspace_id,) in await statements.database().fetch(WORKSPACE, str(webhook_id)):
        await end({"id": webhook_id}, workspace_id, reason)


WORKSPACE = 'SELECT "workspace_id" FROM "webhooks" WHERE "id" = $1'


async def end(seen: Mapping[str, Any], workspace_id: int, reason: str) -> None:
    """Disable it, and tell who reads the audit log, in the transaction under way.

    That writes nothing and raises `Changed` if the webhook is not as it was `seen`, or disabled.
    """

    async def refuse() -> None:
        raise Changed

    current().swap(Webhook, {**seen, "enabled": True}, _disabled(reason), refuse)
    await telling.ended(seen["id"], workspace_id, reason)


def complain(webhook_id: UUID, reason: str) -> None:
    name = public_id("webhook", webhook_id)
    logger.warning("webhook disabled", webhook_id=name, reason=reason)
