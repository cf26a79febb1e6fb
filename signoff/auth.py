"""Who calls: an API key, or on a loopback address without any key made yet, the local admin."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import urlsplit

from services import keys
from services.actors import LOCAL_ADMIN, Viewer
from services.errors import Unauthenticated

BEARER = "bearer "
PROXY_HEADERS = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "Via")
"""A proxy on this machine may stand for the whole world."""
KEYLESS_SECONDS = 0.5
"""How soon the first key, made by another process, closes the door."""


class Gate:
    """Lets callers in.

    `local` is whether the server listens on a loopback address only. As long as no key
    was made there, whoever is on this machine is the admin.
    """

    def __init__(self, *, local: bool) -> None:
        self._local = local
        self._uses = keys.Uses()
        self._keys_made = False
        self._looked_at = -KEYLESS_SECONDS

    async def viewer(self, authorization: str | None, headers: Mapping[str, str]) -> Viewer:
        """The caller of a request with these headers.

        Raises `Unauthenticated`, which says what is missing.
        """
        if authorization is not None:
            if not authorization.lower().startswith(BEARER):
                raise Unauthenticated("Send the API key as “Authorization: Bearer signoff_…”.")
            return await keys.viewer_of(authorization[len(BEARER) :].strip(), self._uses)
        if await self._locked():
            raise Unauthenticated("Send an API key as “Authorization: Bearer signoff_…”.")
        proxied = any(name in headers for name in PROXY_HEADERS)
        if self._local and not proxied and is_loopback(headers.get("Host", "")):
            return LOCAL_ADMIN
        raise Unauthenticated(
            "Without a key this server answers only to localhost, and to no proxy; "
            "make a key with “signoff keys create”."
        )

    async def _locked(self) -> bool:
        """Whether there is any key; once there was one, there is no way back."""
        now, before = time.monotonic(), self._looked_at
        if not self._keys_made and now - before >= KEYLESS_SECONDS:
            self._looked_at = now  # one looks, and not all who come meanwhile
            try:
                self._keys_made = await keys.any_made()
            except BaseException:
                self._looked_at = before
                raise
        return self._keys_made


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


def same_origin(headers: Mapping[str, str]) -> bool:
    """Whether a request comes from a page of ours, or from no page at all."""
    site = headers.get("Sec-Fetch-Site")
    if site is not None and site not in ("same-origin", "none"):
        return False
    origin = headers.get("Origin")
    try:
        return origin is None or urlsplit(origin).netloc == headers.get("Host")
    except ValueError:
        return False
