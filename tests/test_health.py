"""The probes and who may read the metrics, of servers and of workers."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tortoise import connections

from models import Job, JobStatus, Role
from signoff import database
from signoff.app import create_app
from signoff.health import IN_TROUBLE, SILENT, known_migrations
from signoff.wiring import runtime
from tests.fakes.agents import FakeAgent, Received, fake_agent
from tests.support.commands import environment, process, run, until_line
from tests.support.graphql import beside, make_key, mutation
from tests.support.making import SAYS_OK, execute, holds, make_agent, make_job, says_ok, until
from tests.support.running import AiohttpClient, Client, settings_for
from tests.support.server import Server, serving

READY = {"status": "ready", "database": "ok", "migrations": "ok", "engine": "ok"}
Json = dict[str, Any]


async def get(client: Client, path: str, **headers: str) -> tuple[int, Json]:
    async with client.get(path, headers=headers) as got:
        return got.status, await got.json()


async def statement(database_url: str, sql: str) -> None:
    """Executed on a connection of its own."""

    async def execute() -> None:
        async with database.connected(database_url):
            await connections.get("default").execute_query(sql)

    await beside(execute())


# Alive and ready


async def test_a_server_that_can_work_is_ready(client: Client) -> None:
    assert await get(client, "/healthz") == (200, {"status": "ok"})
    assert await get(client, "/readyz") == (200, READY)
    async with client.head("/readyz") as got:
        assert (got.status, got.headers["Cache-Control"]) == (200, "no-store")


@pytest.mark.parametrize("database_kind", ["postgres"])
async def test_a_server_that_leaves_executions_to_workers_is_ready(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    client = await aiohttp_client(create_app(settings_for(database_url, tmp_path), work=False))
    assert await get(client, "/readyz") == (200, READY)


async def test_probes_ask_for_no_key(client: Client, database_url: str) -> None:
    await make_key(database_url, "ada", Role.ADMIN)
    for path in ("/healthz", "/readyz"):
        assert (await get(client, path))[0] == 200


@pytest.mark.parametrize("database_kind", ["postgres"])
async def test_a_server_without_its_database_is_alive_and_not_ready(
    client: Client, database_url: str, postgres_server: Any
) -> None:
    scraper, member = [
        {"Authorization": f"Bearer {await make_key(database_url, role.value, role)}"}
        for role in (Role.ADMIN, Role.MEMBER)
    ]
    async with client.get("/metrics", headers=scraper) as got:
        assert "signoff_database_up 1.0" in await got.text()
    assert (await get(client, "/metrics", **member))[0] == 403
    name = database_url.rpartition("/")[2]
    postgres_server._thread.submit(
        postgres_server._execute, f'ALTER DATABASE "{name}" RENAME TO "{name}_away"'
    )
    postgres_server.drop(name)

    async def silent() -> Json | None:
        status, told = await get(client, "/readyz")
        return told if status == 503 and told["database"] == SILENT else None

    told = await until(silent)
    assert (told["status"], told["migrations"]) == ("not ready", SILENT)
    assert await get(client, "/healthz") == (200, {"status": "ok"})
    async with client.get("/metrics", headers=scraper) as got:
        assert got.status == 200
        assert "signoff_database_up 0.0" in await got.text()
    assert (await get(client, "/metrics", **member))[0] == 403
    assert (await get(client, "/metrics", Authorization="Bearer signoff_x"))[0] == 503


async def test_a_missing_migration_is_named(client: Client, database_url: str) -> None:
    newest = known_migrations()[-1]
    forget = f"DELETE FROM tortoise_migrations WHERE name = '{newest}'"  # noqa: S608
    await statement(database_url, forget)
    status, told = await get(client, "/readyz")
    assert status == 503
    assert told == READY | {
        "status": "not ready",
        "migrations": f"Missing: {newest}. Run: signoff migrate",
    }


async def test_a_newer_migration_than_ours_is_no_hindrance(
    client: Client, database_url: str
) -> None:
    await statement(
        database_url,
        "INSERT INTO tortoise_migrations (app, name, applied_at) "
        "VALUES ('models', '9999_later', '2030-01-01 00:00:00')",
    )
    assert await get(client, "/readyz") == (200, READY)


async def test_a_worker_in_trouble_is_told_and_gets_well_again(
    client: Client, database_url: str
) -> None:
    await statement(database_url, 'ALTER TABLE "queue_entries" RENAME TO "gone"')

    async def troubled() -> Json | None:
        status, told = await get(client, "/readyz")
        return told if status == 503 else None

    assert await until(troubled) == READY | {"status": "not ready", "engine": IN_TROUBLE}
    await statement(database_url, 'ALTER TABLE "gone" RENAME TO "queue_entries"')

    async def well() -> bool:
        return await get(client, "/readyz") == (200, READY)

    await until(well)


# Stopping


@asynccontextmanager
async def held_agent() -> AsyncGenerator[tuple[FakeAgent, asyncio.Event]]:
    """An agent that answers when the event is set."""
    release = asyncio.Event()

    async def waits(received: Received) -> None:
        await release.wait()
        await says_ok(received)

    async with fake_agent(waits) as agent:
        yield agent, release


async def begin_execution(server: Server, agent_url: str) -> None:
    """Have an agent asked for something."""
    agent = await ask(server, "saveAgent", name="A", endpointUrl=agent_url)
    assigned = {"agentId": agent}
    job = await ask(server, "createJob", name="J", acceptanceCriteria=SAYS_OK, assign=assigned)
    await ask(server, "executeJob", id=job)


async def ask(server: Server, mutation_name: str, /, **given: Any) -> str:
    """The id of what a mutation made or changed."""
    return (await server.graphql(mutation(mutation_name), input=given))[mutation_name]["id"]


async def test_a_server_says_that_it_is_stopping_while_executions_end(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        held_agent() as (agent, release),
        serving(database_url, tmp_path, SIGNOFF_SHUTDOWN_SECONDS="30") as server,
    ):
        await begin_execution(server, agent.url)
        await holds(lambda: len(agent.received) == 1)
        assert server.process
        server.process.send_signal(signal.SIGTERM)
        await until(lambda: stopping(server.url))
        async with server.session.get(f"{server.url}/healthz") as got:
            assert got.status == 200
        release.set()
        assert await server.process.wait() == 0


async def stopping(url: str) -> bool:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/readyz") as got:
        told = await got.json()
        assert (got.status, told["status"]) in {(200, "ready"), (503, "stopping")}, told
        return got.status == 503


# Metrics


async def test_on_loopback_without_keys_the_metrics_are_open(client: Client) -> None:
    async with client.get("/metrics") as got:
        assert got.status == 200
        assert got.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "signoff_database_up 1.0" in await got.text()
    wanted = {"Accept": "application/openmetrics-text; version=1.0.0"}
    async with client.get("/metrics", headers=wanted) as got:
        assert got.content_type == "application/openmetrics-text"
        assert (await got.text()).endswith("# EOF\n")
    status, told = await get(client, "/metrics", **{"X-Forwarded-For": "192.0.2.1"})
    assert (status, told["errors"][0]["extensions"]) == (401, {"code": "UNAUTHENTICATED"})


async def test_with_keys_the_metrics_are_for_admins(client: Client, database_url: str) -> None:
    keys = {role: await make_key(database_url, role.value.title(), role) for role in Role}

    async with asyncio.timeout(20):  # another process's first key is seen a little later
        while (await client.get("/metrics")).status != 401:
            await asyncio.sleep(0.05)
    async with client.get("/metrics") as got:
        assert got.headers["WWW-Authenticate"] == "Bearer"
    for role, key in keys.items():
        async with client.get("/metrics", headers={"Authorization": f"Bearer {key}"}) as got:
            if role is Role.ADMIN:
                assert got.status == 200
                assert "signoff_queue_entries" in await got.text()
            else:
                assert got.status == 403
                assert (await got.json())["errors"] == [
                    {"message": "Metrics are for admins.", "extensions": {"code": "FORBIDDEN"}}
                ]
    for wrong in ("Bearer signoff_wrong", "Basic YTpi"):
        assert (await get(client, "/metrics", Authorization=wrong))[0] == 401


async def test_metrics_can_be_opened_to_everybody(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    settings = settings_for(database_url, tmp_path, host="0.0.0.0", metrics_open=True)  # noqa: S104
    client = await aiohttp_client(create_app(settings))
    await make_key(database_url, "ada", Role.ADMIN)
    async with client.get("/metrics", headers={"X-Forwarded-For": "192.0.2.1"}) as got:
        assert got.status == 200


# Workers


@asynccontextmanager
async def worker(folder: Path, database_url: str, **given: str) -> AsyncGenerator[tuple[Any, str]]:
    """A worker's process and where its probes are."""
    settings = environment(
        SIGNOFF_DATABASE_URL=database_url,
        SIGNOFF_KEY_FILE=str(folder / "signoff.key"),
        SIGNOFF_ALLOW_PRIVATE_AGENTS="1",
        **given,
    )
    async with process(folder, settings, "worker", "--port", "0") as running:
        lines = await until_line(running, "Signoff worker is ready.")
        found = re.fullmatch(r"  Health     (http://127\.0\.0\.1:\d+)/healthz", lines[0])
        assert found, lines
        yield running, found[1]


@pytest.mark.parametrize("database_kind", ["postgres"])
async def test_a_worker_has_probes_and_metrics_of_its_own(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        worker(tmp_path, database_url) as (_, url),
        aiohttp.ClientSession() as session,
    ):
        for path, status in (
            ("/healthz", 200),
            ("/readyz", 200),
            ("/metrics", 200),
            ("/graphql", 404),
            ("/graphiql", 404),
        ):
            async with session.get(url + path) as got:
                assert got.status == status, path
        await make_key(database_url, "ada", Role.ADMIN)

        async def locked() -> bool:
            async with session.get(f"{url}/metrics") as got:
                return got.status == 401

        await until(locked)


@pytest.mark.parametrize("database_kind", ["postgres"])
async def test_a_worker_answers_its_probes_until_its_executions_have_ended(
    database_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, tmp_path)
    async with (
        held_agent() as (agent, release),
        runtime(settings, allow_private_agents=True, work=False) as rt,
        worker(tmp_path, database_url, SIGNOFF_SHUTDOWN_SECONDS="30") as (running, url),
    ):
        job = await make_job(rt, await make_agent(rt, agent.url))
        await execute(rt, job, wait_seconds=0)
        await holds(lambda: len(agent.received) == 1)
        running.send_signal(signal.SIGTERM)
        await until(lambda: stopping(url))
        release.set()
        assert await running.wait() == 0
        assert (await Job.get(id=job.id)).status is JobStatus.COMPLETED


@pytest.mark.parametrize("database_kind", ["postgres"])
async def test_a_worker_on_a_taken_port_is_refused_in_one_line(
    client: Client, database_url: str, tmp_path: Path
) -> None:
    settings = environment(
        SIGNOFF_DATABASE_URL=database_url, SIGNOFF_KEY_FILE=str(tmp_path / "signoff.key")
    )
    code, out, err = await run(tmp_path, settings, "worker", "--port", str(client.port))
    assert (code, out) == (1, "")
    assert err.endswith(
        f"signoff: port {client.port} of 127.0.0.1 is taken; stop what listens there, "
        "or choose another with --port (0 for any that is free)\n"
    )
