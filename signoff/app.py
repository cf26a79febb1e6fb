"""The web application."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog
from aiohttp import web

from models.statements import Unavailable
from services import callback_urls, tracing
from services.errors import DatabaseUnavailable, ErrorCode
from services.runtime import Runtime
from signoff import callbacks, graphiql, health, sample
from signoff.auth import is_loopback, same_origin
from signoff.health import Health
from signoff.settings import Settings
from signoff.transport import View, failure
from signoff.wiring import runtime

logger = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_BODY_BYTES = 2_097_152
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

RUNTIME: web.AppKey[Runtime] = web.AppKey("runtime", Runtime)
VIEW: web.AppKey[View] = web.AppKey("view", View)


def allows_private_agents(settings: Settings) -> bool:
    """What is set, else whether this is a trial on one's own machine."""
    if settings.allow_private_agents is not None:
        return settings.allow_private_agents
    return settings.on_sqlite and is_loopback(settings.host)


def create_app(settings: Settings, *, work: bool = True) -> web.Application:
    """The server of one process; its runtime starts and stops with it.

    `work` False leaves all executions to `signoff worker`.
    """
    known = Health.of(settings)

    async def services(app: web.Application) -> AsyncIterator[None]:
        allowed = allows_private_agents(settings)
        async with runtime(settings, allow_private_agents=allowed, work=work) as rt:
            app[RUNTIME] = rt
            app[VIEW] = View(rt, known.gate)
            known.rt = rt
            yield

    app = web.Application(middlewares=[_traced, _guarded], client_max_size=MAX_BODY_BYTES)
    app.cleanup_ctx.append(services)
    app.router.add_route("*", "/graphql", _graphql)
    app.router.add_post(callbacks.PATH, _callback)
    app.router.add_get("/", _home)
    app.router.add_post(sample.PATH, sample.endpoint(lambda: app[RUNTIME]))
    graphiql.add_routes(app)
    health.add_routes(app, known)
    return app


def create_probes(known: Health) -> web.Application:
    """What a worker serves: its probes and metrics, nothing else."""
    app = web.Application(middlewares=[_traced, _guarded])
    health.add_routes(app, known)
    return app


async def _graphql(request: web.Request) -> web.StreamResponse:
    return await request.app[VIEW](request)


async def _callback(request: web.Request) -> web.StreamResponse:
    return await callbacks.receive(request.app[RUNTIME], request)


async def _home(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/graphiql")


@web.middleware
async def _traced(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request an id, and log how it went: never its query string, which has variables.

    Nor the path of a callback, which ends with a secret.
    """
    given = request.headers.get("X-Request-Id", "")
    request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=request_id)
    began = time.perf_counter()
    with tracing.under(request.headers.get("traceparent")):
        response = await _answered(request, handler)
    if not response.prepared:
        response.headers["X-Request-Id"] = request_id
    logger.debug(
        "request",
        method=request.method,
        path=_path(request),
        status=response.status,
        ms=round((time.perf_counter() - began) * 1000, 1),
    )
    return response


def _path(request: web.Request) -> str:
    if request.path.startswith(callback_urls.PATH):
        return callbacks.PATH
    return request.path


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPRedirection:
        raise
    except web.HTTPException as error:
        return failure(error.status, error.reason, f"HTTP_{error.status}")
    except (Unavailable, DatabaseUnavailable):
        logger.warning("the database is away", exc_info=True)
        return failure(503, str(DatabaseUnavailable()), ErrorCode.UNAVAILABLE)
    except Exception as error:
        error_id = secrets.token_hex(8)
        logger.exception("unexpected error", error_id=error_id, exc_info=error)
        message = f"Something went wrong on our side; the server's log has it as {error_id}."
        return failure(500, message, "INTERNAL")


@web.middleware
async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A page of another site must not use this server through its visitor's browser."""
    if request.path == "/graphql" and not same_origin(request.headers):
        return failure(403, "Requests of other sites' pages are refused.", ErrorCode.FORBIDDEN)
    return await handler(request)
