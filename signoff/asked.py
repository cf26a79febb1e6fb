"""What a client asks for: the operation in a body, a query string or a frame."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
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
LONG_NUMBER = re.compile(r"\d{19}")


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
        value = orjson.loads(text)
        return json.loads(text, parse_constant=_refuse) if LONG_NUMBER.search(text) else value
    except (ValueError, RecursionError):  # also of characters that are no UTF-8
        raise NotAsked("This is not JSON.") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


async def of_post(request: web.Request) -> Asked:
    """The operation in a body: JSON only, and said so, since a form would pass a preflight."""
    _check_type(request.headers.get("Content-Type", ""))
    try:
        return asked(decoded(await body_of(request)))
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


async def body_of(request: web.Request) -> bytes:
    """What the client sends; raises `Refused` if it is compressed, or does not come in time."""
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise Refused(415, "Compressed bodies are not taken.", hang_up=True)
    try:
        async with asyncio.timeout(request.app.get(PATIENCE, BODY_SECONDS)):
            return await request.read()
    except TimeoutError:
        raise Refused(408, "The body took too long.", "HTTP_408", hang_up=True) from None
    except (web.RequestPayloadError, ConnectionError):
        raise Refused(400, "The body is cut off or broken.", hang_up=True) from None


PATIENCE: web.AppKey[float] = web.AppKey("patience", float)
"""Seconds for a body, where that is not `BODY_SECONDS`."""


def encoded(data: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(data)
    except TypeError:  # an agent's response near orjson's depth, deeper by the answer's levels
        return json.dumps(data, allow_nan=False).encode()
