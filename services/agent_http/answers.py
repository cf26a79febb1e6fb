"""Reading an agent's answer, which may be wrong in every way."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from typing import Any

import aiohttp
import orjson
from yarl import URL

from services.agent_http import failures, signing
from services.agent_http.failures import AgentCallFailed, AgentFault
from services.agent_http.headers import parse_auth_header
from services.agent_http.messages import AgentRequest
from services.redaction import MIN_CHARACTERS, Secrets
from services.values import storable

# orjson reads 1024 levels and writes 254; deeper could be received but never stored.
MAX_DEPTH = 254
EXCERPT_BYTES = 16_384
EXCERPT_SECONDS = 2.0
AT_ONCE_BYTES = 65_536


async def check_status(
    response: aiohttp.ClientResponse, request: AgentRequest, limit: asyncio.Timeout
) -> None:
    """Raise unless a body in plain JSON may follow."""
    wait = failures.retry_after(response.headers)
    refusal = failures.refusal(response.status, retry_after=wait)
    if refusal is not None:
        raise AgentCallFailed(
            refusal.fault,
            f"The agent answered {failures.status_line(response.status)}. {refusal.advice}",
            may_have_executed=refusal.may_have_executed,
            transient=refusal.transient,
            retry_after=wait,
            http_status=response.status,
            excerpt=excerpt(await _beginning(response, limit), request),
        )
    if _is_encoded(response):
        raise _not_json(
            response.status,
            "The agent compressed its answer, though asked not to (accept-encoding: identity).",
        )


def _is_encoded(response: aiohttp.ClientResponse) -> bool:
    encoding = response.headers.get("Content-Encoding", "identity")
    return encoding.strip().lower() != "identity"


async def read(response: aiohttp.ClientResponse, *, cap: int) -> bytes:
    """The body, or `AgentCallFailed` as soon as it has more than `cap` bytes."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > cap:
            raise _too_large(cap, response.status)
    return bytes(body)


def decode(body: bytes, status: int, request: AgentRequest) -> Any:
    if not body.strip():
        raise _not_json(status, "The agent's answer is empty; it must be JSON.")
    try:
        value = orjson.loads(body)
        if body.count(b"[") + body.count(b"{") > MAX_DEPTH:
            orjson.dumps(value)
    except orjson.JSONDecodeError as error:
        message = f"The agent's answer is not JSON: {error}."
    except TypeError:
        message = f"The agent's answer is nested more than {MAX_DEPTH} levels deep."
    else:
        return value
    # Outside of the `except`: orjson's error carries the whole answer.
    raise _not_json(status, message, excerpt=excerpt(body, request))


async def _beginning(response: aiohttp.ClientResponse, limit: asyncio.Timeout) -> bytes:
    """What comes soon of a body that only explains a failure; its end is not waited for."""
    if _is_encoded(response):
        return b""
    ends = asyncio.get_running_loop().time() + EXCERPT_SECONDS
    body = bytearray()
    try:
        # Earlier than the deadline of the call, so that a known failure is not called a timeout.
        async with asyncio.timeout_at(min(ends, (limit.when() or ends) - 0.05)):
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) >= EXCERPT_BYTES:
                    break
    except (aiohttp.ClientError, OSError):
        pass
    return bytes(body)


async def without_secrets(body: bytes, request: AgentRequest) -> bytes:
    """The answer, without our secrets in it: an agent may echo what it was sent."""
    hidden = secrets_of(request)
    if len(body) <= AT_ONCE_BYTES:
        return hidden.out_of(body)
    # One full of escapes takes a while, and others need not wait for it.
    return await asyncio.to_thread(hidden.out_of, body)


def excerpt(body: bytes, request: AgentRequest) -> str | None:
    """The first characters, without our secrets and what only admins see of the address."""
    hidden = secrets_of(request, *_of_address(request.url))
    text = hidden.out_of_excerpt(body[:EXCERPT_BYTES]).decode(errors="replace")
    return storable(text)[: failures.MAX_EXCERPT_CHARACTERS] or None


def secrets_of(request: AgentRequest, *more: str) -> Secrets:
    """All that must not be kept of what comes back."""
    secrets = [request.signing_secret, request.signing_secret.removeprefix(signing.PREFIX), *more]
    if request.callback_url is not None:
        secrets.append(request.callback_url.rpartition("/")[2])
    if request.auth_header is not None:
        _, value = parse_auth_header(request.auth_header)
        secrets += [value, value.rpartition(" ")[2], *_of_basic(value)]
    return Secrets(secrets)


def _of_basic(value: str) -> list[str]:
    """User and password as they were before they were put together in base64."""
    scheme, _, encoded = value.partition(" ")
    if scheme.lower() != "basic":
        return []
    try:
        pair = b64decode(encoded.strip(), validate=True).decode()
    except ValueError:
        return []
    return [pair, pair.partition(":")[2]]


def _of_address(url: str) -> list[str]:
    return [value for value in URL(url).query.values() if len(value) >= MIN_CHARACTERS]


def _not_json(status: int, message: str, *, excerpt: str | None = None) -> AgentCallFailed:
    return AgentCallFailed(
        AgentFault.NOT_JSON,
        message,
        may_have_executed=True,
        http_status=status,
        excerpt=excerpt,
    )


def _too_large(cap: int, status: int) -> AgentCallFailed:
    return AgentCallFailed(
        AgentFault.TOO_LARGE,
        f"The agent's answer has more than {cap} bytes.",
        may_have_executed=True,
        http_status=status,
    )
