"""API keys: who may come in."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection
from datetime import UTC, datetime

from models import ActorKind, ApiKey, Role, statements
from services.actors import RESERVED_NAMES, Viewer
from services.errors import InvalidInput, Unauthenticated

PREFIX = "signoff_"
PAGE = 500
RANK = (Role.VIEWER, Role.MEMBER, Role.ADMIN)


async def create(name: str, role: Role) -> tuple[ApiKey, str]:
    """A new key and its text, which is told here and never again.

    Keys of one name belong to one user: make a second, then revoke the first.
    """
    if not name.strip() or len(name) > 200 or "\x00" in name:  # noqa: PLR2004
        raise InvalidInput.at("name", message="must have 1 to 200 characters")
    if name.lower() in RESERVED_NAMES:
        raise InvalidInput.at("name", message=f"“{name}” is reserved; choose another")
    text = PREFIX + secrets.token_urlsafe(32)
    key = await ApiKey.create(
        name=name, role=role, prefix=text[: len(PREFIX) + 6], key_hash=_hash(text)
    )
    return key, text


async def newest() -> list[ApiKey]:
    return await ApiKey.all().order_by("-created_at", "-id")


async def revoke(prefix: str) -> list[ApiKey]:
    """Revoke the key that starts so; returns what was revoked."""
    found = await ApiKey.filter(prefix=prefix, revoked_at=None)
    await ApiKey.filter(prefix=prefix, revoked_at=None).update(revoked_at=datetime.now(UTC))
    return found


async def any_made() -> bool:
    return await statements.exists(ApiKey, {})


async def viewer_of(text: str) -> Viewer:
    """The user of a key; raises `Unauthenticated` for an unknown or revoked one."""
    key = await statements.fetch(ApiKey, key_hash=_hash(text))
    if key is None or key.revoked_at is not None:
        raise Unauthenticated("The API key is unknown or revoked.")
    return _viewer(key)


async def viewers_of(texts: Collection[str]) -> dict[str, Viewer]:
    """The users of those of these keys that are good, in one query for each 500."""
    by_hash = {_hash(text): text for text in texts}
    hashes = list(by_hash)
    found: dict[str, Viewer] = {}
    for start in range(0, len(hashes), PAGE):
        page = hashes[start : start + PAGE]
        for key in await ApiKey.filter(key_hash__in=page, revoked_at=None):
            found[by_hash[key.key_hash]] = _viewer(key)
    return found


def _viewer(key: ApiKey) -> Viewer:
    return Viewer(ActorKind.API_KEY, key.name, key.name, key.role)


async def roles_of(user_ids: Collection[str]) -> dict[str, Role]:
    """The highest role that each of these users has a valid key for; without those who have none.

    `user_ids` are the ids of viewers that came by a key.
    """
    found: dict[str, Role] = {}
    for key in await ApiKey.filter(name__in=list(user_ids), revoked_at=None):
        found[key.name] = max(key.role, found.get(key.name, key.role), key=RANK.index)
    return found


def _hash(text: str) -> str:
    """Plain SHA-256: a key has 256 random bits, there is nothing to guess."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
