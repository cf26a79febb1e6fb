"""Who calls: an API key, a token of an OIDC issuer, or on one's own machine the local admin."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol
from urllib.parse import urlsplit

from services import keys
from services.actors import LOCAL_ADMIN, Viewer
from services.errors import Unauthenticated
from services.key_uses import KeyUses

BEARER = "bearer "
PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "Via")
"""A proxy on this machine may stand for the whole world."""
KEYLESS_SECONDS = 0.5
"""How soon the first key, made by another process, closes the door."""


class Tokens(Protocol):
    """What takes bearer tokens that are no API keys."""

    async def viewer_of(self, text: str, *, members_see_workspace: bool) -> Viewer:
        """Raises `Unauthenticated`."""
        ...


class Gate:
    """Lets callers in.

    `local` is whether the server listens on a loopback address only. As long as no key
    was made there, and tokens are not taken, whoever is on this machine is the admin.
    `tokens` takes those of an OIDC issuer.
    """

    def __init__(
        self, *, local: bool, members_see_workspace: bool = False, tokens: Tokens | None = None
    ) -> None:
        self._local = local
        self._members_see_workspace = members_see_workspace
        self._tokens = tokens
        self._keys_made = tokens is not None
        self._looked_at = -KEYLESS_SECONDS
        self._looking = asyncio.Lock()
        self.uses = KeyUses()

    async def viewer(self, authorization: str | None, headers: Mapping[str, str]) -> Viewer:
        """The caller of a request with these headers.

        Raises `Unauthenticated`, which says what is missing.
        """
        if authorization is not None:
            if not authorization.lower().startswith(BEARER):
                raise Unauthenticated("Send the API key as “Authorization: Bearer signoff_…”.")
            return await self._bearer(_text_in(authorization))
        if await self._locked():
            or_token = ", or a token of the issuer" if self._tokens else ""
            raise Unauthenticated(
                f"Send an API key as “Authorization: Bearer signoff_…”{or_token}."
            )
        proxied = any(name in headers for name in PROXY_HEADERS)
        if self._local and not proxied and is_loopback(headers.get("Host", "")):
            return LOCAL_ADMIN
        raise Unauthenticated(
            "Without a key this server answers only to localhost, and to no proxy; "
            "make a key with “signoff keys create”."
        )

    async def current(self, held: Mapping[str | None, Viewer]) -> dict[str | None, Viewer]:
        """Those of these credentials that are good now, and whom they stand for.

        `held` says whom they stood for; the credential None is the lack of one. One query for
        all keys; a token is good until it ends.
        """
        texts = {each: _text_in(each) for each in held if each is not None}
        by_key = {each: text for each, text in texts.items() if not self._is_token(text)}
        keyed = await keys.viewers_of(
            set(by_key.values()), members_see_workspace=self._members_see_workspace
        )
        found: dict[str | None, Viewer] = {
            each: keyed[text] for each, text in by_key.items() if text in keyed
        }
        found |= {
            each: held[each]
            for each in texts.keys() - by_key
            if not keys.is_over(held[each].expires_at)
        }
        if None in held and not await self._locked():
            found[None] = LOCAL_ADMIN
        return found

    async def _bearer(self, text: str) -> Viewer:
        see = self._members_see_workspace
        if self._tokens is not None and self._is_token(text):
            viewer = await self._tokens.viewer_of(text, members_see_workspace=see)
            self.uses.note_token(viewer)
            return viewer
        key = await keys.key_of(text)
        self.uses.note(key)
        return keys.viewer_of(key, members_see_workspace=see)

    def _is_token(self, text: str) -> bool:
        return self._tokens is not None and not text.startswith(keys.PREFIX)

    async def _locked(self) -> bool:
        """Whether there is any key; once there was one, there is no way back."""
        if not self._is_fresh():
            async with self._looking:  # whoever comes meanwhile waits for what it finds
                if not self._is_fresh():
                    self._keys_made = await keys.any_made()
                    self._looked_at = time.monotonic()
        return self._keys_made

    def _is_fresh(self) -> bool:
        return self._keys_made or time.monotonic() - self._looked_at < KEYLESS_SECONDS


def _text_in(authorization: str) -> str:
    return authorization[len(BEARER) :].strip()


@lru_cache(maxsize=1000)
def is_loopback(host: str) -> bool:
    """Whether a Host header or address names this machine itself.

    A page whose own name was made to resolve to 127.0.0.1 still sends its name.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_safe(url: str) -> bool:
    """Whether nobody on the way can answer in the place of what is there."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.netloc))
