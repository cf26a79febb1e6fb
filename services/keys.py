"""API keys: who may come in, and what their key is good for."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

import structlog
from pydantic import AfterValidator, Field

from models import DEFAULT_WORKSPACE, ActorKind, Agent, ApiKey, Role, jsontext, statements
from services import audit
from services.actors import RESERVED_NAMES, SYSTEM, TOKEN_PREFIX, Actor, Viewer
from services.errors import Forbidden, InvalidInput, NotFound, Problem, Unauthenticated
from services.paging import Page, Window, fetch
from services.plans import Moment
from services.reading import NEWEST
from services.runtime import Runtime
from services.transactions import atomic, current, unannounced
from services.values import STORABLE, AgentId, Command, public_id

logger = structlog.get_logger(__name__)

PREFIX = "signoff_"
RANK = (Role.VIEWER, Role.MEMBER, Role.ADMIN)
MAX_SCOPE = 200
SLICE = 500
"""Ids that are asked for at once: SQLite takes no more than so many."""


def _of_somebody(name: str) -> str:
    if not name.strip():
        raise ValueError("must have 1 to 200 characters")
    if name.lower() in RESERVED_NAMES or name.lower().startswith(TOKEN_PREFIX):
        raise ValueError(f"“{name}” is reserved; choose another")
    return name


UserName = Annotated[
    str, Field(min_length=1, max_length=200), STORABLE, AfterValidator(_of_somebody)
]


class CreateApiKey(Command):
    """A key to be made, in the caller's workspace."""

    name: UserName = Field(description="The user; keys of one name are one user's.")
    role: Role
    expires_at: Moment | None = Field(default=None, description="It opens nothing from then on.")
    ttl_seconds: int | None = Field(
        default=None, ge=1, le=315_360_000, description="`expiresAt`, so many seconds from now."
    )
    agent_ids: Annotated[list[AgentId], Field(max_length=MAX_SCOPE)] | None = Field(
        default=None,
        description="The agents that it may give work to, and whose jobs it may act on; absent: "
        "all of the workspace.",
    )
    owners: Annotated[list[UserName], Field(max_length=MAX_SCOPE)] | None = Field(
        default=None,
        description="The users whose jobs it sees and acts on beside its own, whatever its role; "
        "absent: as its role says.",
    )

    def expiry(self) -> datetime | None:
        if self.ttl_seconds is None:
            return self.expires_at
        return datetime.now(UTC) + timedelta(seconds=self.ttl_seconds)


@dataclass(frozen=True, slots=True)
class Made:
    """A new key and its text, which is told here and never again."""

    key: ApiKey
    text: str


async def create(
    name: str,
    role: Role,
    *,
    workspace_id: int = DEFAULT_WORKSPACE,
    expires_at: datetime | None = None,
    agents: Sequence[UUID] | None = None,
    owners: Sequence[str] | None = None,
    by: Actor = SYSTEM,
) -> tuple[ApiKey, str]:
    """A key made on the server itself, and its text. Raises `InvalidInput`.

    Keys of one name belong to one user: make a second, then revoke the first.
    """
    for who in (name, *(owners or ())):
        _check_name(who)
    await _check_agents(workspace_id, agents or ())
    made = _made(workspace_id, name, role, expires_at, agents, owners)
    async with unannounced():
        await _write(made.key, by)
    return made.key, made.text


def _check_name(name: str) -> None:
    if len(name) > 200 or "\x00" in name:  # noqa: PLR2004
        raise InvalidInput.at("name", message="must have 1 to 200 characters")
    try:
        _of_somebody(name)
    except ValueError as error:
        raise InvalidInput.at("name", message=str(error)) from None


async def issue(rt: Runtime, viewer: Viewer, command: CreateApiKey) -> Made:
    """A key made by an admin. Raises `Forbidden` and `InvalidInput`."""
    demand_unscoped(viewer)
    _check_expiry(viewer, command)
    await _check_agents(viewer.workspace_id, command.agent_ids or ())
    return await _issue(rt, viewer, command)


@atomic
async def _issue(rt: Runtime, viewer: Viewer, command: CreateApiKey) -> Made:
    made = _made(
        viewer.workspace_id,
        command.name,
        command.role,
        command.expiry(),
        command.agent_ids,
        command.owners,
    )
    await _write(made.key, viewer.actor)
    logger.info("key made", prefix=made.key.prefix, user=made.key.name, by=viewer.id)
    return made


async def _write(key: ApiKey, by: Actor) -> None:
    current().insert(key)
    told: dict[str, Any] = {
        "name": key.name,
        "role": key.role,
        "prefix": key.prefix,
        "expiresAt": key.expires_at,
        "agentIds": key.agents_json and _public(key.agents_json),
        "owners": key.owners_json and jsontext.loads(key.owners_json),
    }
    changes = audit.between({}, told)
    await audit.append(by, key.workspace_id, "key.made", public_id("key", key.id), changes)


def _public(agents_json: str) -> list[str]:
    return [public_id("agent", UUID(each)) for each in jsontext.loads(agents_json)]


def demand_unscoped(viewer: Viewer) -> None:
    """Raises `Forbidden`: a narrowed key could else make what is not narrowed."""
    if viewer.is_scoped:
        raise Forbidden(
            "Your key is limited to some agents or owners: it cannot manage keys or webhooks."
        )


def _check_expiry(viewer: Viewer, command: CreateApiKey) -> None:
    if command.ttl_seconds is not None and command.expires_at is not None:
        raise InvalidInput.at("input", "ttlSeconds", message="cannot go with expiresAt")
    at = command.expiry()
    if at is not None and at <= datetime.now(UTC):
        raise InvalidInput.at("input", "expiresAt", message="must be in the future")
    own = viewer.expires_at if viewer.key_id is not None else None
    if own is not None and (at is None or at > own):
        raise InvalidInput.at(
            "input", "expiresAt", message="must not be after your own key's, which made it"
        )


async def _check_agents(workspace_id: int, ids: Sequence[UUID]) -> None:
    if not ids:
        return
    query = Agent.filter(workspace_id=workspace_id, id__in=list(ids))
    found = set(await query.values_list("id", flat=True))
    problems = [
        Problem(("input", "agentIds", str(index)), "there is no such agent")
        for index, agent_id in enumerate(ids)
        if agent_id not in found
    ]
    if problems:
        raise InvalidInput(problems)


def _made(
    workspace_id: int,
    name: str,
    role: Role,
    expires_at: datetime | None,
    agents: Sequence[UUID] | None,
    owners: Sequence[str] | None,
) -> Made:
    text = PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(
        name=name,
        role=role,
        prefix=text[: len(PREFIX) + 6],
        key_hash=_hash(text),
        workspace_id=workspace_id,
        expires_at=expires_at,
        agents_json=None if agents is None else jsontext.dumps([str(each) for each in agents]),
        owners_json=None if owners is None else jsontext.dumps(list(owners)),
    )
    return Made(key, text)


async def newest() -> list[ApiKey]:
    """The keys of all workspaces."""
    return await ApiKey.all().order_by("-created_at", "-id")


async def page(viewer: Viewer, window: Window) -> Page[ApiKey]:
    """The workspace's keys, newest first; raises `Forbidden`."""
    demand_unscoped(viewer)
    return await fetch(ApiKey.filter(workspace_id=viewer.workspace_id), NEWEST, window)


async def revoke(prefix: str, by: Actor = SYSTEM) -> list[ApiKey]:
    """Revoke the key that starts so; returns what was revoked."""
    found = await ApiKey.filter(prefix=prefix, revoked_at=None)
    async with unannounced():
        for key in found:
            await _revoke(key, by)
    return found


async def _revoke(key: ApiKey, by: Actor) -> None:
    key.revoked_at = datetime.now(UTC)
    current().update(ApiKey, {"id": key.id}, {"revoked_at": key.revoked_at})
    told = audit.between({}, {"name": key.name, "prefix": key.prefix, "revokedAt": key.revoked_at})
    await audit.append(by, key.workspace_id, "key.revoked", public_id("key", key.id), told)


@atomic
async def withdraw(rt: Runtime, viewer: Viewer, key_id: UUID) -> ApiKey:
    """Revoke a key of the workspace; one that is revoked stays as it is. Raises `NotFound`."""
    demand_unscoped(viewer)
    key = await statements.fetch(ApiKey, id=key_id)
    if key is None or key.workspace_id != viewer.workspace_id:
        raise NotFound(public_id("key", key_id))
    if key.revoked_at is None:
        await _revoke(key, viewer.actor)
        logger.info("key revoked", prefix=key.prefix, user=key.name, by=viewer.id)
    return key


async def any_made() -> bool:
    return await statements.exists(ApiKey, {})


async def key_of(text: str) -> ApiKey:
    """The key with this text; raises `Unauthenticated` unless it is good."""
    key = await statements.fetch(ApiKey, key_hash=_hash(text))
    if key is None or not _is_good(key):
        raise Unauthenticated("The API key is unknown, revoked or expired.")
    return key


async def viewers_of(
    texts: Collection[str], *, members_see_workspace: bool = False
) -> dict[str, Viewer]:
    """The users of those of these keys that are good, in one query for each 500.

    For connections that outlive the request which opened them.
    """
    by_hash = {_hash(text): text for text in texts}
    hashes = list(by_hash)
    found: dict[str, Viewer] = {}
    for start in range(0, len(hashes), SLICE):
        page = hashes[start : start + SLICE]
        for key in filter(_is_good, await ApiKey.filter(key_hash__in=page)):
            viewer = viewer_of(key, members_see_workspace=members_see_workspace)
            found[by_hash[key.key_hash]] = viewer
    return found


def viewer_of(key: ApiKey, *, members_see_workspace: bool = False) -> Viewer:
    """The user of a key."""
    agents, owners = key.agents_json, key.owners_json
    return Viewer(
        ActorKind.API_KEY,
        key.name,
        key.name,
        key.role,
        workspace_id=key.workspace_id,
        agents=frozenset(map(UUID, jsontext.loads(agents))) if agents else None,
        owners=frozenset(jsontext.loads(owners)) if owners else None,
        sees_workspace=members_see_workspace,
        key_id=key.id,
        expires_at=key.expires_at,
    )


def _is_good(key: ApiKey) -> bool:
    return key.revoked_at is None and not is_over(key.expires_at)


def is_over(at: datetime | None) -> bool:
    """Whether what ends at this time has ended."""
    return at is not None and at <= datetime.now(UTC)


async def roles_of(user_ids: Collection[str]) -> dict[tuple[int, str], Role]:
    """The highest role that each of these users has a good key for, by workspace and user.

    `user_ids` are the ids of viewers that came by a key. Keys that are narrowed do not count.
    """
    found: dict[tuple[int, str], Role] = {}
    for key in filter(_is_good, await ApiKey.filter(name__in=list(user_ids))):
        if not viewer_of(key).is_scoped:
            user = (key.workspace_id, key.name)
            found[user] = max(key.role, found.get(user, key.role), key=RANK.index)
    return found


def _hash(text: str) -> str:
    """Plain SHA-256: a key has 256 random bits, there is nothing to guess."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
