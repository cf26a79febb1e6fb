"""An OpenID Connect issuer on loopback: its configuration, its keys, and tokens that it signs."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from joserfc.jwk import ECKey, RSAKey
from joserfc.jws import JWSRegistry

AUDIENCE = "signoff"
Key = RSAKey | ECKey


@cache
def rsa(kid: str) -> RSAKey:
    """The same key for the same name: to make one takes a while."""
    return RSAKey.generate_key(2048, {"kid": kid})


@cache
def ec(kid: str) -> ECKey:
    return ECKey.generate_key("P-256", {"kid": kid})


def encoded(value: object) -> str:
    """A part of a token: bytes as they are, all else as JSON."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def signed(header: object, payload: bytes, key: Key, algorithm: str = "RS256") -> str:
    """A token with this header, whatever that says."""
    text = f"{encoded(header)}.{encoded(payload)}"
    return f"{text}.{encoded(JWSRegistry.algorithms[algorithm].sign(text.encode(), key))}"


@dataclass
class Issuer:
    """`published` are the keys that it shows; `told` replaces what it answers with."""

    published: list[Mapping[str, Any]] = field(default_factory=list[Mapping[str, Any]])
    url: str = ""
    fetched: list[str] = field(default_factory=list[str])
    told: web.Response | None = None
    silent: bool = False
    padding: str = ""
    configuration: dict[str, Any] = field(default_factory=dict[str, Any])

    def publish(self, *keys: Key, **changes: Any) -> None:
        """Show the public halves of these keys, and no others."""
        self.published = [key.as_dict(private=False) | changes for key in keys]

    def claims(self, **changes: Any) -> dict[str, Any]:
        """What a good token says; a claim that is None is left out."""
        now = int(time.time())
        given = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "u-1",
            "name": "Una",
            "exp": now + 60,
            "iat": now,
            "signoff_role": "MEMBER",
        } | changes
        return {name: value for name, value in given.items() if value is not None}

    def token(self, key: Key | None = None, /, **changes: Any) -> str:
        """A token signed by `key`, by the first RSA key if none is given."""
        signing = key or rsa("one")
        algorithm = "RS256" if isinstance(signing, RSAKey) else "ES256"
        header = {"typ": "JWT", "alg": algorithm, "kid": str(signing.kid)}
        return signed(header, json.dumps(self.claims(**changes)).encode(), signing, algorithm)

    async def configured(self, request: web.Request) -> web.StreamResponse:
        self.fetched.append("configuration")
        told = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"} | self.configuration
        return web.json_response(told)

    async def keys(self, request: web.Request) -> web.StreamResponse:
        self.fetched.append("keys")
        while self.silent:
            await asyncio.sleep(0.01)
        if self.told is not None:
            return web.Response(
                status=self.told.status, body=self.told.body, headers=self.told.headers
            )
        return web.json_response({"keys": list(self.published), "padding": self.padding})


@asynccontextmanager
async def issuing(*keys: Key) -> AsyncGenerator[Issuer]:
    """A running issuer that shows `keys`, or one RSA key."""
    issuer = Issuer()
    issuer.publish(*(keys or (rsa("one"),)))
    app = web.Application()
    app.router.add_get("/.well-known/openid-configuration", issuer.configured)
    app.router.add_get("/keys", issuer.keys)
    async with TestServer(app, host="127.0.0.1") as server:
        issuer.url = str(server.make_url("")).rstrip("/")
        yield issuer
