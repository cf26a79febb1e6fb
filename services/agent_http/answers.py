"""Reading an agent's answer, which may be wrong in every way."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import aiohttp
import orjson

from services.agent_http import failures
from services.agent_http.failures import AgentCallFailed, AgentFault
from services.agent_http.headers import parse_auth_header
from services.agent_http.messages import AgentRequest

# orjson reads 1024 levels and writes 254; deeper could be received but never stored.
MAX_DEPTH = 254
EXCERPT_BYTES = 16_384
EXCERPT_SECONDS = 2.0
MIN_SECRET_CHARACTERS = 8
"""A shorter one is not taken out of an answer: it would be found in innocent text."""


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
            excerpt=_excerpt(await _beginning(response, limit), request),
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
    raise _not_json(status, message, excerpt=_excerpt(body, request))


async def _beginning(response: aiohttp.ClientResponse, limit: asyncio.Timeout) -> bytes:
    """What comes soon of a body that only explains a failure; its end is not waited for."""
    if _is_encoded(response):
        return b""
    ends = asyncio.get_running_loop().time() + EXCERPT_SECONDS
    body = bytearray()
    try:
        # Earlier than the deadline of the call, so that a known failure is not called a timeout.
        async with asyncio.timeout_at(min(ends, (limit.when() or ends) - 0.01)):
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) >= EXCERPT_BYTES:
                    break
    except (aiohttp.ClientError, OSError):
        pass
    return bytes(body)


def without_secrets(body: bytes, request: AgentRequest) -> bytes:
    """The answer, without our secrets in it: an agent may echo what it was sent."""
    for secret in _secrets(request):
        if len(secret) >= MIN_SECRET_CHARACTERS:
            # A number may hold digits of it, and must stay one.
            mask = b"1" * len(secret) if secret.isdecimal() else b"[secret]"
            body = body.replace(orjson.dumps(secret)[1:-1], mask)
            if b"\\u" in body or b"\\/" in body:
                body = re.sub(_as_json(secret), mask, body)
    return body


def _as_json(text: str) -> bytes:
    """A pattern of all that JSON may be for `text`: a slash is escaped by PHP."""
    return b"".join(b"(?:%s)" % b"|".join(_spellings(character)) for character in text)


def _spellings(character: str) -> list[bytes]:
    plain = re.escape(orjson.dumps(character)[1:-1])
    units = character.encode("utf-16-be").hex()
    escaped = "".join(rf"\\u{units[n : n + 4]}" for n in range(0, len(units), 4))
    in_any_case = b"(?i:%s)" % escaped.encode()
    return [plain, in_any_case, rb"\\/"] if character == "/" else [plain, in_any_case]


def _excerpt(body: bytes, request: AgentRequest) -> str | None:
    """The first characters, without our secrets: an agent may echo what it was sent."""
    text = body[:EXCERPT_BYTES].decode(errors="replace").replace("\x00", "\ufffd")
    for secret in _secrets(request):
        text = text.replace(secret, "[secret]")
    return text[: failures.MAX_EXCERPT_CHARACTERS] or None


def _secrets(request: AgentRequest) -> list[str]:
    secrets = [request.signing_secret]
    if request.callback_url is not None:
        secrets.append(request.callback_url.rpartition("/")[2])
    if request.auth_header is not None:
        _, value = parse_auth_header(request.auth_header)
        secrets += [value, value.rpartition(" ")[2]]
    return secrets


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
