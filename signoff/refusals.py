"""Requests that come to no operation, answered in the shape of GraphQL's own errors."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from aiohttp import web

from services.errors import ErrorCode, RateLimited, Unauthenticated

JSON = "application/json"


class Refused(Exception):
    """The request is answered with this error and nothing else happens.

    `hang_up` closes the connection: what is left of the request is not read.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str = ErrorCode.VALIDATION,
        *,
        headers: Mapping[str, str] | None = None,
        hang_up: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}
        self.hang_up = hang_up

    def response(self, content_type: str = JSON) -> web.Response:
        response = failure(self.status, str(self), self.code, content_type)
        response.headers.update(self.headers)
        if self.hang_up:
            response.force_close()
        return response


def not_here(*methods: str) -> Refused:
    """The method is not one of `methods`."""
    allowed = ", ".join(methods)
    return Refused(405, f"Use {allowed}.", "HTTP_405", headers={"Allow": allowed})


def failure(status: int, message: str, code: str, content_type: str = JSON) -> web.Response:
    """An error before any operation, in the shape of GraphQL's own."""
    return web.Response(
        status=status,
        body=_body(message, code),
        headers={"Content-Type": f"{content_type}; charset=utf-8"},
    )


def in_json(error: web.HTTPError) -> None:
    """Give an error of aiohttp's, of which nothing is sent yet, the same shape."""
    body = error.body = _body(error.reason, f"HTTP_{error.status}")
    error.headers["Content-Type"] = f"{JSON}; charset=utf-8"
    error.headers["Content-Length"] = str(len(body))  # its headers are made already


def _body(message: str, code: str) -> bytes:
    return orjson.dumps({"errors": [{"message": message, "extensions": {"code": code}}]})


def unauthenticated(error: Unauthenticated, content_type: str = JSON) -> web.Response:
    response = failure(401, str(error), error.code, content_type)
    response.headers["WWW-Authenticate"] = "Bearer"
    return response


def throttled(error: RateLimited, content_type: str = JSON) -> web.Response:
    response = failure(429, str(error), error.code, content_type)
    response.headers["Retry-After"] = str(error.retry_after)
    return response
