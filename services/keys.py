"""API keys: who may come in."""

from __future__ import annotations

import hashlib
import secrets
import time
from datetime import UTC, datetime
from uuid import UUID

from models import ActorKind, ApiKey, AuditEntry, Role, statements
from services import audit
from services.actors import RESERVED_NAMES, SYSTEM, Actor, Viewer
from services.errors import InvalidInput, Unauthenticated
from services.transactions import current, unannounced
from services.values import public_id

PREFIX = "signoff_"
HOUR = 3600


async def create(name: str, role: Role, by: Actor = SYSTEM) -> tuple[ApiKey, str]:
    """A new key and its text, which is told here and never again.

    Keys of one name belong to one user: make a second, then revoke the first.
    """
    if not name.strip() or len(name) > 200 or "\x00" in name:  # noqa: PLR2004
        raise InvalidInput.at("name", message="must have 1 to 200 characters")
    if name.lower() in RESERVED_NAMES:
        raise InvalidInput.at("name", message=f"“{name}” is reserved; choose another")
    text = PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(name=name, role=role, prefix=text[: len(PREFIX) + 6], key_hash=_hash(text))
    async with unannounced():
        current().insert(key)
        made = {"name": key.name, "role": key.role, "prefix": key.prefix}
        await audit.append(by, "key.made", public_id("key", key.id), audit.between({}, made))
    return key, text


async def newest() -> list[ApiKey]:
    return await ApiKey.all().order_by("-created_at", "-id")


async def revoke(prefix: str, by: Actor = SYSTEM) -> list[ApiKey]:
    """Revoke the key that starts so; returns what was revoked."""
    found = await ApiKey.filter(prefix=prefix, revoked_at=None)
    async with unannounced():
        for key in found:
            change = {"revoked_at": datetime.now(UTC)}
            current().update(ApiKey, {"id": key.id}, change)
            told = {"name": key.name, "prefix": key.prefix}
            changes = audit.between({}, told | {"revokedAt": change["revoked_at"]})
            await audit.append(by, "key.revoked", public_id("key", key.id), changes)
    return found


async def any_made() -> bool:
    return await statements.exists(ApiKey, {})


class Uses:
    """Keeps in the audit log that the key of an admin is used: once in each hour by the clock."""

    def __init__(self) -> None:
        self._hours: dict[UUID, int] = {}

    async def note(self, key: ApiKey) -> None:
        hour = int(time.time()) // HOUR
        if key.role is not Role.ADMIN or self._hours.get(key.id) == hour:
            return
        known = self._hours.pop(key.id, None)
        self._hours[key.id] = hour  # one of those who come at once tells of it
        try:
            await _note_use(key, datetime.fromtimestamp(hour * HOUR, UTC))
        except BaseException:
            self._hours[key.id] = known or 0
            raise


async def _note_use(key: ApiKey, since: datetime) -> None:
    """Unless another process has."""
    subject = public_id("key", key.id)
    told = AuditEntry.filter(action="key.used", subject=subject, created_at__gte=since)
    if not await told.exists():
        used = {"prefix": key.prefix, "role": key.role}
        async with unannounced():
            await audit.append(_user(key), "key.used", subject, audit.between({}, used))


async def viewer_of(text: str, uses: Uses) -> Viewer:
    """The user of a key; raises `Unauthenticated` for an unknown or revoked one."""
    key = await statements.fetch(ApiKey, key_hash=_hash(text))
    if key is None or key.revoked_at is not None:
        raise Unauthenticated("The API key is unknown or revoked.")
    await uses.note(key)
    return _user(key)


def _user(key: ApiKey) -> Viewer:
    return Viewer(ActorKind.API_KEY, key.name, key.name, key.role)


def _hash(text: str) -> str:
    """Plain SHA-256: a key has 256 random bits, there is nothing to guess."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
