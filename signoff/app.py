"""The web application."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog
from aiohttp import web

from models.statements import Unavailable
from services import tracing
from services.errors import DatabaseUnavailable, ErrorCode
from services.runtime import Runtime
from signoff import callbacks, graphiql, health, sample
from signoff.auth import is_loopback
from signoff.browsers import Pages, protect
from signoff.callbacks import Callbacks
from signoff.guarding import Guard, failures_of
from signoff.health import Health
from signoff.listening import begun
from signoff.refusals import Refused, failure, in_json
from signoff.sessions import Limits, Sessions
from signoff.settings import Settings
from signoff.transport import View
from signoff.wiring import runtime

logger = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_BODY_BYTES = 2_097_152
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

RUNTIME: web.AppKey[Runtime] = web.AppKey("runtime", Runtime)
VIEW: web.AppKey[View] = web.AppKey("view", View)
CALLBACKS: web.AppKey[Callbacks] = web.AppKey("callbacks", Callbacks)
PAGES: web.AppKey[Pages] = web.AppKey("pages", Pages)
PATH = "/graphql"


def allows_private_agents(settings: Settings) -> bool:
    """What is set, else whether this is a trial on one's own machine."""
    chosen = settings.allow_private_agents
    return _is_trial(settings) if chosen is None else chosen


def allows_private_webhooks(settings: Settings) -> bool:
    """The same for webhooks."""
    chosen = settings.allow_private_webhooks
    return _is_trial(settings) if chosen is None else chosen


def _is_trial(settings: Settings) -> bool:
    return settings.on_sqlite and is_loopback(settings.host)


def create_app(settings: Settings, *, work: bool = True) -> web.Application:
    """The server of one process; its runtime starts and stops with it.

    `work` False leaves all executions to `signoff worker`.
    """
    known = Health.of(settings)
    guard, failures = Guard.of(settings), failures_of(settings)

    async def services(app: web.Application) -> AsyncIterator[None]:
        started = runtime(
            settings,
            allow_private_agents=allows_private_agents(settings),
            allow_private_webhooks=allows_private_webhooks(settings),
            work=work,
        )
        async with started as rt, known.gate.uses.written():
            app[RUNTIME] = rt
            app[VIEW] = View(rt, known.gate, sessions, pages, guard, failures)
            app[CALLBACKS] = Callbacks(rt, failures)
            known.rt = rt
            sessions.start()
            yield

    async def stopping(app: web.Application) -> None:
        await sessions.stop()

    sessions = Sessions(known.gate, _limits(settings))
    pages = Pages(settings.cors_origins)
    app = web.Application(middlewares=[_traced], client_max_size=MAX_BODY_BYTES)
    app[PAGES] = pages
    app.cleanup_ctx.append(services)
    app.on_shutdown.append(stopping)
    app.on_response_prepare.append(_protected)
    app.router.add_route("*", PATH, _graphql)
    app.router.add_post(callbacks.PATH, _callback)
    app.router.add_get("/", _home)
    app.router.add_post(sample.PATH, sample.endpoint(lambda: app[RUNTIME]))
    graphiql.add_routes(app)
    health.add_routes(app, known)
    return app


def _limits(settings: Settings) -> Limits:
    return Limits(settings.max_client_connections, settings.max_client_operations)


def create_probes(known: Health) -> web.Application:
    """What a worker serves: its probes and metrics, nothing else."""
    app = web.Application(middlewares=[_traced])
    app.on_response_prepare.append(_protected)
    health.add_routes(app, known)
    return app


async def _graphql(request: web.Request) -> web.StreamResponse:
    return await request.app[VIEW](request)


async def _callback(request: web.Request) -> web.StreamResponse:
    return await request.app[CALLBACKS](request)


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
    with begun(request), tracing.under(request.headers.get("traceparent")):
        response = await _answered(request, handler)
    if not response.prepared:
        response.headers["X-Request-Id"] = request_id
    logger.debug(
        "request",
        method=request.method,
        path=callbacks.masked(request.path),
        status=response.status,
        ms=round((time.perf_counter() - began) * 1000, 1),
    )
    return response


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPRedirection:
        raise
    except Refused as error:
        return error.response()
    except web.HTTPException as error:
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return Refused(
            error.status,
            error.reason,
            f"HTTP_{error.status}",
            headers=headers,
            hang_up=isinstance(error, web.HTTPRequestEntityTooLarge),
        ).response()
    except (Unavailable, DatabaseUnavailable):
        logger.warning("the database is away", exc_info=True)
        return failure(503, str(DatabaseUnavailable()), ErrorCode.UNAVAILABLE)
    except Exception as error:
        error_id = secrets.token_hex(8)
        logger.exception("unexpected error", error_id=error_id, exc_info=error)
        message = f"Something went wrong on our side; the server's log has it as {error_id}."
        return failure(500, message, "INTERNAL")


async def _protected(request: web.Request, response: web.StreamResponse) -> None:
    """Answers of `/graphql`, errors too, also tell browsers which pages may read them.

    Errors of aiohttp's own that no handler saw are in JSON too.
    """
    if isinstance(response, web.HTTPError):
        in_json(response)
    protect(request, response)
    if request.path == PATH and PAGES in request.app:
        request.app[PAGES].mark(request.headers, response.headers)
