"""Is this process alive, can it work, and how is it doing: for whoever runs it.

The probes tell nothing that is worth a key; the metrics are for admins, or for everybody who
can reach the port, if `SIGNOFF_METRICS_OPEN` says so.
"""

from __future__ import annotations

import asyncio
import pkgutil
from dataclasses import dataclass, field
from typing import Any

import structlog
from aiohttp import web
from tortoise import connections

from models import DEFAULT_WORKSPACE, migrations
from services.errors import ErrorCode, Unauthenticated
from services.runtime import Runtime
from signoff import oidc
from signoff.auth import Gate, is_loopback
from signoff.refusals import failure, unauthenticated
from signoff.scrapers import Scrapers
from signoff.settings import Settings

logger = structlog.get_logger(__name__)

OK = "ok"
PROBE_SECONDS = 5
SILENT = "The database does not answer."
IN_TROUBLE = "The worker cannot go on; the log has why."
NO_STORE = {"Cache-Control": "no-store"}


@dataclass(slots=True)
class Health:
    """What is known of this process; `rt` is None before all is started."""

    gate: Gate
    metrics_open: bool
    rt: Runtime | None = None
    stopping: bool = False
    scrapers: Scrapers = field(default_factory=Scrapers)

    @classmethod
    def of(cls, settings: Settings) -> Health:
        gate = Gate(
            local=is_loopback(settings.host),
            members_see_workspace=settings.members_see == "workspace",
            tokens=oidc.of(settings),
        )
        return cls(gate, settings.metrics_open)


HEALTH: web.AppKey[Health] = web.AppKey("health", Health)


def add_routes(app: web.Application, health: Health) -> None:
    """Serves `/healthz`, `/readyz` and `/metrics`."""
    app[HEALTH] = health
    app.router.add_get("/healthz", _healthz)
    app.router.add_get("/readyz", _readyz)
    app.router.add_get("/metrics", _metrics)


async def _healthz(request: web.Request) -> web.Response:
    """200 while the process answers at all: restarting it cures nothing else."""
    return web.json_response({"status": OK}, headers=NO_STORE)


async def _readyz(request: web.Request) -> web.Response:
    """200 while it can work, else 503 and a sentence for whatever is in the way."""
    health = request.app[HEALTH]
    checks = await _checks(health.rt)
    ready = all(found == OK for found in checks.values())
    status = "stopping" if health.stopping else "ready" if ready else "not ready"
    return web.json_response(
        {"status": status} | checks,
        status=200 if status == "ready" else 503,
        headers=NO_STORE,
    )


async def _checks(rt: Runtime | None) -> dict[str, str]:
    if rt is None:
        return dict.fromkeys(("database", "migrations", "engine"), "Not started.")
    answers = await _database_answers()
    return {
        "database": OK if answers else SILENT,
        "migrations": await _migrations() if answers else SILENT,
        "engine": OK if rt.engine.healthy() is None else IN_TROUBLE,
    }


async def _database_answers() -> bool:
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await connections.get("default").execute_query("SELECT 1")
    except Exception:
        logger.exception("the database does not answer")
        return False
    return True


async def _migrations() -> str:
    """Newer ones than ours are fine: that is a rolling upgrade."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            query = "SELECT name FROM tortoise_migrations WHERE app = 'models'"
            found: Any = await connections.get("default").execute_query_dict(query)
    except Exception:
        logger.exception("the migrations cannot be read")
        found = []
    applied = {row["name"] for row in found}
    missing = [name for name in known_migrations() if name not in applied]
    if missing:
        return f"Missing: {', '.join(missing)}. Run: signoff migrate"
    return OK


def known_migrations() -> list[str]:
    """The names of the migrations that this program comes with, in their order."""
    return sorted(module.name for module in pkgutil.iter_modules(migrations.__path__))


async def _metrics(request: web.Request) -> web.Response:
    health = request.app[HEALTH]
    refused = None if health.metrics_open else await _refusal(health, request)
    if refused is not None:
        return refused
    if health.rt is None:
        return failure(503, "Not started yet.", ErrorCode.UNAVAILABLE)
    body, content_type = await health.rt.telemetry.exposition(
        health.rt.events, health.rt.engine.running, request.headers.get("Accept", "")
    )
    return web.Response(body=body, headers={**NO_STORE, "Content-Type": content_type})


async def _refusal(health: Health, request: web.Request) -> web.Response | None:
    """Why the caller may not read the metrics."""
    try:
        viewer = await health.scrapers.viewer(health.gate, request.headers)
    except Unauthenticated as error:
        return unauthenticated(error)
    except Exception:
        logger.exception("keys cannot be read")
        return failure(503, SILENT, ErrorCode.UNAVAILABLE)
    if not viewer.is_admin:
        return failure(403, "Metrics are for admins.", ErrorCode.FORBIDDEN)
    if viewer.workspace_id == DEFAULT_WORKSPACE and not viewer.is_scoped:
        return None
    message = "Metrics count what all workspaces do: they are for admins of the default one."
    return failure(403, message, ErrorCode.FORBIDDEN)
