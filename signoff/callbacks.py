"""The one-time URLs that agents answer by: no key, since each ends with a secret of its own."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

import structlog
from aiohttp import web

from services import callback_urls, callbacks
from services.agent_http import usage
from services.callbacks import Callback
from services.errors import ErrorCode, InvalidInput, NotFound, VersionConflict
from services.runtime import Runtime
from signoff.transport import failure

logger = structlog.get_logger(__name__)

PATH = callback_urls.PATH + "{token}"
ANSWER = "application/json"
PROBLEM = "application/problem+json"
BODY_SECONDS = 60
NO_STORE = {"Cache-Control": "no-store"}


async def receive(rt: Runtime, request: web.Request) -> web.Response:
    """204 for an answer that was taken, now or before; 404 where none is expected."""
    try:
        attempt = await callbacks.find(rt, request.match_info["token"])
        callback = Callback(
            await _body(rt, request), request.content_type == PROBLEM, usage.read(request.headers)
        )
        await callbacks.receive(rt, attempt, callback)
    except NotFound:
        return _refused(HTTPStatus.NOT_FOUND, "No answer is expected here.", ErrorCode.NOT_FOUND)
    except InvalidInput as error:
        told = error.problems[0].message
        return _refused(HTTPStatus.BAD_REQUEST, told, ErrorCode.VALIDATION)
    except VersionConflict:
        told = "The attempt moves on too fast; try again."
        return _refused(HTTPStatus.SERVICE_UNAVAILABLE, told, ErrorCode.UNAVAILABLE)
    return web.Response(status=HTTPStatus.NO_CONTENT, headers=NO_STORE)


def _refused(status: HTTPStatus, message: str, code: str) -> web.Response:
    response = failure(status, message, code)
    response.headers.update(NO_STORE)
    return response


async def _body(rt: Runtime, request: web.Request) -> bytes:
    """Raises an `HTTPException` for one of another type, of too many bytes, or too slow."""
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if request.content_type not in (ANSWER, PROBLEM) or encoding != "identity":
        raise web.HTTPUnsupportedMediaType
    cap = rt.agents.max_response_bytes
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > cap:
                    raise web.HTTPRequestEntityTooLarge(cap, len(body))
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    return bytes(body)
