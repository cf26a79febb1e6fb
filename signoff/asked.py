"""What a client asks for: the operation in a body, a query string or a frame."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, NoReturn, cast

import orjson
from aiohttp import web

from signoff.media import in_utf8, parameters
from signoff.refusals import Refused

BODY_SECONDS = 20
"""A request's body has come by then, or the connection is closed."""
MEMBERS: dict[str, tuple[type, str]] = {
    "query": (str, "a string"),
    "documentId": (str, "a string"),
    "operationName": (str, "a string"),
    "variables": (dict, "an object"),
    "extensions": (dict, "an object"),
}
"""Of a request, and what they must be."""
MAX_OPERATION_NAME = 256
LONG_NUMBER = re.compile(r"\d{19}")
HALVES = re.compile(r"\\u[dD][89a-fA-F]")
"""Escapes of surrogates: two make a character, if they are a pair."""
MAX_CONTAINERS = 50_000
"""Arrays and objects in JSON, each of which takes much more memory than its text."""
MAX_DIGITS = 308
"""Of a number, as large as floats are."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One operation as it was asked for, not yet parsed.

    With a `document_id` the document is one that the server has.
    """

    query: str
    variables: dict[str, Any] | None = None
    operation_name: str | None = None
    extensions: dict[str, Any] | None = None
    document_id: str | None = None
    size: int = 0
    """Of the body or frame that it came in."""


class NotAsked(ValueError):
    """It cannot be understood as an operation; the message says why."""


def asked(content: object) -> Asked:
    """The operation in a decoded body or payload; raises `NotAsked`."""
    if isinstance(content, list):
        raise NotAsked("Several operations in one request are not taken: send one.")
    if not isinstance(content, dict):
        raise NotAsked("This must be a JSON object with a `query`.")
    given = cast("dict[str, Any]", content)
    for name, (kind, what) in MEMBERS.items():
        if not isinstance(given.get(name), kind | None):
            raise NotAsked(f"The operation's `{name}` must be {what} or null, if provided.")
    if len(given.get("operationName") or "") > MAX_OPERATION_NAME:
        raise NotAsked(f"An `operationName` has at most {MAX_OPERATION_NAME} characters.")
    query = given.get("query") or ""
    document_id = None if query else _document_id(given)
    if not query and not document_id:
        raise NotAsked("There is no `query`.")
    return Asked(
        query=query,
        variables=given.get("variables"),
        operation_name=given.get("operationName") or None,
        extensions=given.get("extensions"),
        document_id=document_id,
    )


def _document_id(given: dict[str, Any]) -> str | None:
    """By GraphQL over HTTP's appendix A, or as Apollo's clients have it."""
    if given.get("documentId"):
        return given["documentId"]
    extensions = cast("dict[str, object]", given.get("extensions") or {})
    persisted = extensions.get("persistedQuery")
    if not isinstance(persisted, dict):
        return None
    digest = cast("dict[str, object]", persisted).get("sha256Hash")
    return digest if isinstance(digest, str) else None


def decoded(data: str | bytes) -> object:
    """A JSON value, integers exactly; raises `NotAsked` for what is not strictly JSON.

    Python's own reader is asked for large integers, of which orjson makes floats.
    """
    try:
        text = data if isinstance(data, str) else data.decode()
    except ValueError:
        raise NotAsked("This is not JSON.") from None
    if text.count("[") + text.count("{") > MAX_CONTAINERS:
        raise NotAsked(f"This has more than {MAX_CONTAINERS} arrays and objects.")
    try:
        return _exactly(text) if LONG_NUMBER.search(text) else orjson.loads(text)
    except (ValueError, RecursionError):
        raise NotAsked("This is not JSON.") from None


def _exactly(text: str) -> object:
    """As strict as orjson, to which half a pair of surrogates is no character."""
    if HALVES.search(text):
        orjson.loads(text)
    return json.loads(text, parse_constant=_refuse, parse_float=_float, parse_int=_int)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    return value if isfinite(value) else _refuse(text)


def _int(text: str) -> int:
    return int(text) if len(text) <= MAX_DIGITS else _refuse(text)


async def of_post(request: web.Request) -> Asked:
    """The operation in a body: JSON only, and said so, since a form would pass a preflight."""
    _check_type(request.headers.get("Content-Type", ""))
    try:
        body = await body_of(request)
        return replace(asked(decoded(body)), size=len(body))
    except NotAsked as error:
        raise Refused(400, str(error)) from None


def of_get(request: web.Request) -> Asked:
    """The operation in a query string."""
    given = request.query
    if len(set(given)) < len(given):
        raise Refused(400, "A parameter is given more than once.")
    try:
        return asked({name: _parameter(name, value) for name, value in given.items()})
    except NotAsked as error:
        raise Refused(400, str(error)) from None


def _parameter(name: str, value: str) -> object:
    """An empty one is none."""
    return decoded(value) if value and name in {"variables", "extensions"} else value or None


def _check_type(content_type: str) -> None:
    name, given = parameters(content_type)
    if name != "application/json":
        raise Refused(415, "POST a body of content type application/json.")
    if not in_utf8(given):
        raise Refused(415, "The body's charset must be utf-8.")


async def body_of(request: web.Request, most: int | None = None) -> bytes:
    """What the client sends; raises `Refused` if it is compressed, or does not come in time.

    `most` are the bytes to take, where these are not as many as of any other request.
    """
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise Refused(415, "Compressed bodies are not taken.", hang_up=True)
    try:
        async with asyncio.timeout(request.app.get(PATIENCE, BODY_SECONDS)):
            return await (request.read() if most is None else _read(request, most))
    except TimeoutError:
        raise Refused(408, "The body took too long.", "HTTP_408", hang_up=True) from None
    except (web.RequestPayloadError, ConnectionError):
        raise Refused(400, "The body is cut off or broken.", hang_up=True) from None


async def _read(request: web.Request, most: int) -> bytes:
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > most:
            raise web.HTTPRequestEntityTooLarge(most, len(body))
    return bytes(body)


PATIENCE: web.AppKey[float] = web.AppKey("patience", float)
"""Seconds for a body, where that is not `BODY_SECONDS`."""


def encoded(data: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(data)
    except TypeError:  # an agent's response near orjson's depth, deeper by the answer's levels
        return json.dumps(data, allow_nan=False).encode()
