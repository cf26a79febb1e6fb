"""The command line."""

from __future__ import annotations

import argparse
import asyncio
import errno
import gc
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import uvloop
from aiohttp import web
from pydantic import ValidationError

from services import keys, retention
from services.errors import SignoffError
from signoff import database, demo, ending, heads, key_commands, logs, sample
from signoff.app import RUNTIME, VIEW, allows_private_agents, create_app, create_probes
from signoff.auth import is_loopback
from signoff.database import DatabaseUnavailable
from signoff.demo import DemoFailed
from signoff.health import HEALTH, Health
from signoff.key_commands import Command, Refused
from signoff.listening import allow_files, listening
from signoff.otel import BadTraceSettings
from signoff.settings import Settings, variable
from signoff.wiring import BadSettings, runtime

SDL_FILE = Path("schema.graphql")
MAX_DAYS = 36_500


def main(arguments: list[str] | None = None) -> None:
    given = _parser().parse_args(arguments)
    try:
        given.run(given)
    except (
        Refused,
        BadSettings,
        BadTraceSettings,
        DatabaseUnavailable,
        DemoFailed,
        SignoffError,
    ) as error:
        _exit(str(error))
    except ValidationError as error:
        problems = [
            f"{variable(str(e['loc'][0]))}: {e['msg']}" if e["loc"] else e["msg"]
            for e in error.errors()
        ]
        _exit("; ".join(problems))
    except KeyboardInterrupt:
        sys.exit(130)


def _exit(message: str) -> NoReturn:
    sys.exit(f"signoff: {' '.join(message.split())}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="signoff",
        description="A GraphQL server for AI jobs that are done only when they are signed off. "
        "Settings come from SIGNOFF_… environment variables; the README lists them.",
    )
    parser.add_argument("--version", action="version", version=f"signoff {version('signoff')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], help: str) -> Command:
        added = commands.add_parser(name, help=help, description=help)
        added.set_defaults(run=run)
        return added

    serve = command("serve", _serve, "run the server")
    serve.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (default 8080)")
    serve.add_argument(
        "--no-worker",
        action="store_true",
        help="run no executions here: `signoff worker` does, any number of them, on Postgres",
    )
    serve.add_argument(
        "--trusted-documents",
        type=Path,
        metavar="DIR",
        help="run only the GraphQL documents in DIR: *.graphql files and JSON manifests",
    )
    worker = command(
        "worker", _worker, "run executions only; any number beside a server, on Postgres"
    )
    worker.add_argument("--port", type=int, help="port for /healthz, /readyz and /metrics")
    command("migrate", _migrate, "bring the database up to date, as serve does when it starts")
    pruned = command(
        "prune", _prune, "remove the log of jobs that were archived long ago; the jobs stay"
    )
    pruned.add_argument(
        "--older-than", required=True, type=_days, metavar="DAYS", help="archived so long ago"
    )
    key_commands.add(command)
    heads.add(command)
    shown = command("demo", _demo, "drive two jobs through a running server and show each step")
    shown.add_argument("--url", default=demo.DEFAULT_URL, help="the running server")
    shown.add_argument("--key", help="an API key of MEMBER or ADMIN, if the server has keys")
    schema = command("schema", _schema, "print the GraphQL schema")
    schema.add_argument("--check", action="store_true", help="compare it with schema.graphql")
    return parser


def _serve(given: argparse.Namespace) -> None:
    names = ("host", "port", "trusted_documents")
    changes = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    settings = Settings(**changes)
    if given.no_worker and settings.on_sqlite:
        raise Refused(
            "--no-worker needs Postgres (SIGNOFF_DATABASE_URL=postgres://…); on SQLite nobody "
            "else could run the executions"
        )
    logs.configure(settings.log_level)
    allow_files()
    uvloop.run(_serving(settings, work=not given.no_worker))


async def _serving(settings: Settings, *, work: bool) -> None:
    await _refuse_open_door(settings)
    app = create_app(settings, work=work)
    async with _listening(app, settings, settings.port) as port:
        await _announce(settings, app, port)
        keep_what_is_loaded()
        await ending.asked()
        app[HEALTH].stopping = True
        ending.begin(settings.shutdown_seconds)
        rt = app[RUNTIME]
        await asyncio.gather(app[VIEW].sessions.stop(), rt.engine.stop(settings.shutdown_seconds))
        rt.events.release()


@asynccontextmanager
async def _listening(app: web.Application, settings: Settings, port: int) -> AsyncGenerator[int]:
    """Serve `app` meanwhile; yields the port, which was to be chosen if it is 0."""
    most = settings.max_address_connections
    async with AsyncExitStack() as stack:
        try:
            served = listening(app, settings.host, port, most_of_address=most)
            bound = await stack.enter_async_context(served)
        except OSError as error:
            raise Refused(_no_address(settings.host, port, error)) from None
        yield bound


def _no_address(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} of {host} is taken; stop what listens there, "
            "or choose another with --port (0 for any that is free)"
        )
    return f"cannot listen on {host}:{port}: {error.strerror or error}"


async def _refuse_open_door(settings: Settings) -> None:
    """Without any key whoever connects would be the admin: fine on loopback only."""
    if is_loopback(settings.host) or settings.oidc_issuer is not None:
        return
    await database.migrate(settings.database_url)
    async with database.connected(settings.database_url):
        if not await keys.any_made():
            raise Refused(
                f"will not listen on {settings.host} before there is an API key, since anybody "
                "could use the server; make one with: signoff keys create --role admin --name you"
            )


async def _announce(settings: Settings, app: web.Application, port: int) -> None:
    base = f"http://{_reachable(settings.host)}:{port}"
    rt = app[RUNTIME]
    agent = None
    trial = settings.on_sqlite and is_loopback(settings.host)
    if settings.sample_agent and trial and allows_private_agents(settings):
        agent = await sample.register(rt, base)
    lines = [
        f"Signoff {version('signoff')} is ready.",
        f"  GraphQL    {base}/graphql   (HTTP, WebSocket, SSE)",
        f"  GraphiQL   {base}/graphiql   (docs and ready-made examples)",
        f"  Health     {base}/healthz",
    ]
    if settings.trusted_documents is not None:
        lines.append(f"  Documents  only those in {settings.trusted_documents} are run")
    if agent is not None:
        lines.append(f"  Agent      “{agent.name}” at {agent.endpoint_url}")
    if allows_private_agents(settings):
        lines.append(
            "  Agents on private and loopback addresses may be called "
            "(SIGNOFF_ALLOW_PRIVATE_AGENTS)."
        )
    lines.append(
        f"  Judge      {rt.judge.model}"
        if rt.judge
        else "  Judge      checks only; set OPENAI_API_KEY for criteria in plain language"
    )
    if agent is not None:
        where = "" if base == demo.DEFAULT_URL else f" --url {base}"
        lines.append(f"  Try        signoff demo{where}   (in another terminal)")
    print("\n".join(lines), flush=True)


def _reachable(host: str) -> str:
    """How a browser on this machine names the address."""
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{local}]" if ":" in local else local


def _worker(given: argparse.Namespace) -> None:
    settings = Settings() if given.port is None else Settings(worker_port=given.port)
    if settings.on_sqlite:
        raise Refused(
            "a worker beside the server needs Postgres (SIGNOFF_DATABASE_URL=postgres://…); "
            "on SQLite `signoff serve` runs the executions itself"
        )
    logs.configure(settings.log_level)
    uvloop.run(_working(settings))


async def _working(settings: Settings) -> None:
    known = Health.of(settings)
    async with (
        AsyncExitStack() as probes,  # they answer until the last execution has ended
        runtime(
            settings,
            allow_private_agents=bool(settings.allow_private_agents),
            allow_private_webhooks=bool(settings.allow_private_webhooks),
        ) as known.rt,
        known.gate.uses.written(),
    ):
        if settings.worker_port is not None:
            served = _listening(create_probes(known), settings, settings.worker_port)
            port = await probes.enter_async_context(served)
            print(f"  Health     http://{_reachable(settings.host)}:{port}/healthz")
        print("Signoff worker is ready.", flush=True)
        keep_what_is_loaded()
        await ending.asked()
        known.stopping = True
        ending.begin(settings.shutdown_seconds)


def keep_what_is_loaded() -> None:
    """Spare the collector what is there for good: to go through it stops the process for 70 ms.

    What a request leaves behind is mostly freed by counting, so the collector may look seldom.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def _migrate(given: argparse.Namespace) -> None:
    settings = Settings()
    asyncio.run(database.migrate(settings.database_url))
    print("The database is up to date.")


def _days(text: str) -> timedelta:
    """A number of days, as `90` or `0.5`."""
    with suppress(ValueError):
        if 0 <= float(text) <= MAX_DAYS:
            return timedelta(days=float(text))
    raise argparse.ArgumentTypeError(f"must be a number of days, 0 to {MAX_DAYS}")


def _prune(given: argparse.Namespace) -> None:
    before = datetime.now(UTC) - given.older_than
    pruned = key_commands.with_database(lambda: retention.prune(before, key_commands.operator()))
    print(f"Removed {pruned.entries} log entries of {pruned.jobs} archived jobs.")
    if pruned.broken:
        raise Refused(
            f"{pruned.broken} archived jobs keep their logs, which are not as they were written; "
            "see: signoff verify-audit"
        )


def _demo(given: argparse.Namespace) -> None:
    asyncio.run(demo.run(given.url, given.key))


def _schema(given: argparse.Namespace) -> None:
    from schema import sdl  # noqa: PLC0415 - only this command needs it alone

    if not given.check:
        print(sdl(), end="")
    elif not SDL_FILE.exists() or SDL_FILE.read_text() != sdl():
        raise Refused("schema.graphql is not the schema; run: signoff schema > schema.graphql")
    else:
        print("schema.graphql is up to date.")
