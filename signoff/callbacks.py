"""The one-time URLs that agents answer by: no key, since each ends with a secret of its own."""

from __future__ import annotations

from aiohttp import web

from models import Attempt
from services import callback_urls, callbacks
from services.agent_http import usage
from services.callbacks import Callback
from services.errors import (
    ErrorCode,
    IllegalTransition,
    InvalidInput,
    NotFound,
    RateLimited,
    VersionConflict,
)
from services.rates import Rates
from services.runtime import Runtime
from signoff.asked import body_of
from signoff.guarding import network
from signoff.media import in_utf8, parameters
from signoff.refusals import JSON, Refused, throttled

PATH = callback_urls.PATH + "{token}"
PROBLEM = "application/problem+json"


class Callbacks:
    """What answers at `PATH`.

    `failures` slows down addresses that guess; it is the one of those that guess keys.
    """

    def __init__(self, rt: Runtime, failures: Rates) -> None:
        self._rt = rt
        self._failures = failures

    async def __call__(self, request: web.Request) -> web.Response:
        """204 for an answer that was taken, now or before. Raises `Refused`."""
        try:
            attempt = await self._attempt(request)
            await callbacks.receive(self._rt, attempt, await self._callback(request))
        except RateLimited as error:
            return throttled(error)
        except NotFound as error:
            raise Refused(404, "No answer is expected here.", error.code) from None
        except InvalidInput as error:
            raise Refused(400, error.problems[0].message) from None
        except (IllegalTransition, VersionConflict):
            told = "The attempt moves on too fast; try again."
            raise Refused(503, told, ErrorCode.UNAVAILABLE) from None
        return web.Response(status=204)

    async def _attempt(self, request: web.Request) -> Attempt:
        """Whose URL it is; nothing more is done for whoever has none."""
        try:
            return await callbacks.find(self._rt, request.match_info["token"])
        except NotFound:
            self._failures.charge(network(request.remote or ""))
            raise

    async def _callback(self, request: web.Request) -> Callback:
        is_problem = _is_problem(request.headers.get("Content-Type", ""))
        body = await body_of(request, self._rt.agents.max_response_bytes)
        return Callback(body, is_problem, usage.read(request.headers))


def _is_problem(content_type: str) -> bool:
    name, given = parameters(content_type)
    if name not in (JSON, PROBLEM) or not in_utf8(given):
        raise Refused(415, f"POST {JSON} or {PROBLEM}, in utf-8.")
    return name == PROBLEM


def masked(path: str) -> str:
    """A request's path without the secret that it may end with, wherever a proxy has put it."""
    before, found, _ = path.partition(callback_urls.PATH)
    return before + PATH if found else path
