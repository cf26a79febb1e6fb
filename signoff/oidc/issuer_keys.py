"""The public keys of an issuer: fetched when they are needed, kept while it does not answer."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import aiohttp
import orjson
import structlog
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, JWKRegistry, RSAKey

from signoff.auth import is_safe

logger = structlog.get_logger(__name__)

Key = RSAKey | ECKey

KEY_TYPES = {"RS": "RSA", "PS": "RSA", "ES": "EC"}
"""By how an algorithm's name begins: never a shared secret, so no public key is taken for one."""
MAX_BYTES = 262_144
DISCOVERY = "/.well-known/openid-configuration"


class NoKeys(Exception):
    """The issuer gave no usable keys; the message says why."""


@dataclass(slots=True)
class IssuerKeys:
    """Keys by their `kid`.

    An unknown one makes them be fetched anew, once in `pause_seconds` at most whatever is
    asked; known ones are looked after in the background when they are `fresh_seconds` old.
    """

    issuer: str
    url: str | None = None
    pause_seconds: float = 30.0
    fresh_seconds: float = 600.0
    fetch_seconds: float = 5.0
    _keys: list[Key] = field(default_factory=list[Key])
    _asked_at: float = float("-inf")
    _fetched_at: float = float("-inf")
    fetching: asyncio.Task[None] | None = None

    async def find(self, kid: str | None, algorithm: str) -> Key | None:
        """The key for a token with this header; without `kid` the only one that fits."""
        found = self._pick(kid, algorithm)
        if found is None:
            await self._refreshed()
            return self._pick(kid, algorithm)
        if time.monotonic() - self._fetched_at >= self.fresh_seconds:
            self._refresh()
        return found

    def _pick(self, kid: str | None, algorithm: str) -> Key | None:
        fit = [
            key
            for key in self._keys
            if key.key_type == KEY_TYPES[algorithm[:2]]
            and key.get("alg") in (None, algorithm)
            and kid in (None, key.get("kid"))
        ]
        return fit[0] if fit and (kid is not None or len(fit) == 1) else None

    async def _refreshed(self) -> None:
        """Return when a fetch under way, or a new one if it is time for it, has ended."""
        self._refresh()
        if self.fetching is not None:
            await asyncio.shield(self.fetching)  # others wait for it too

    def _refresh(self) -> None:
        running = self.fetching is not None and not self.fetching.done()
        now = time.monotonic()
        if not running and now - self._asked_at >= self.pause_seconds:
            self._asked_at = now
            self.fetching = asyncio.create_task(self._try_to_fetch())

    async def _try_to_fetch(self) -> None:
        try:
            async with asyncio.timeout(self.fetch_seconds):
                self._keys = await self._fetch()
            self._fetched_at = time.monotonic()
        except (NoKeys, TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            logger.warning("the issuer's keys cannot be fetched", reason=reason)

    async def _fetch(self) -> list[Key]:
        jar = aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(cookie_jar=jar, auto_decompress=False) as session:
            url = self.url or await self._discovered(session)
            keys = (await _read(session, url)).get("keys")
        found = list(_usable(cast("list[object]", keys) if isinstance(keys, list) else []))
        if not found:
            raise NoKeys(f"{url} has no usable keys")
        return found

    async def _discovered(self, session: aiohttp.ClientSession) -> str:
        told = await _read(session, self.issuer.rstrip("/") + DISCOVERY)
        url = told.get("jwks_uri")
        if told.get("issuer") != self.issuer or not isinstance(url, str):
            raise NoKeys("the issuer's configuration is another issuer's, or names no keys")
        if not is_safe(url):
            raise NoKeys("the issuer's configuration names keys that are not behind https")
        return url


async def _read(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    async with session.get(url, headers=headers, allow_redirects=False) as response:
        if response.status != 200:  # noqa: PLR2004
            raise NoKeys(f"{url} answered {response.status}")
        body = bytearray()
        async for part in response.content.iter_any():
            body += part
            if len(body) > MAX_BYTES:
                raise NoKeys(f"{url} is more than {MAX_BYTES} bytes")
    told = orjson.loads(body)
    if not isinstance(told, dict):
        raise NoKeys(f"{url} is no JSON object")
    return cast("dict[str, Any]", told)


def _usable(keys: list[object]) -> Iterator[Key]:
    """Public keys that are strong enough and for signatures; others are left out."""
    for each in keys:
        if not isinstance(each, dict):
            continue
        given = cast("dict[str, Any]", each)
        if given.get("kty") not in ("RSA", "EC") or given.get("use", "sig") != "sig":
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", SecurityWarning)
                key = JWKRegistry.import_key(given)
        except (JoseError, SecurityWarning, ValueError, TypeError, KeyError, AttributeError):
            logger.warning("a key of the issuer cannot be used", kid=str(given.get("kid"))[:100])
            continue
        if isinstance(key, RSAKey | ECKey):
            yield key
