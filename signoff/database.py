"""The database: where it is, how it is opened, how it is brought up to date."""

from __future__ import annotations

import asyncio
import fcntl
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import asyncpg
from tortoise import Tortoise, connections
from tortoise.backends.base import config_generator
from tortoise.exceptions import BaseORMException
from tortoise.migrations.api import migrate as apply_migrations
from tortoise.models import Model

import models

COMMAND_SECONDS = 15
"""For one statement's answer. Ours take milliseconds, a search through a million jobs a second
or two. A black-holed connection would otherwise hold an operation for a minute and more, and
proxies and clients commonly give up after 30 s, waiting for a free connection included."""
CONNECT_SECONDS = 5
POOL_SIZE = 8
"""Connections of one process, to which four are added: for reads by key, for writes, for signs
of life and to listen. One event loop keeps no more than a few busy, and eight processes fit under
Postgres' default of 100 connections."""
IDLE_SECONDS = 3
"""After which Postgres undoes a transaction in which a process says nothing. A worker that is
stopped, cut off or swapped out while it holds the lock of the queue, or of a job, would
otherwise stop all the others. Ours are silent for milliseconds."""
MIGRATION_LOCK = 7_464_339_111


class DatabaseUnavailable(Exception):
    """The database cannot be used; the message says what to do."""


def is_sqlite(url: str) -> bool:
    return url.startswith("sqlite:")


def _file(url: str) -> Path:
    return Path(url.removeprefix("sqlite://"))


def config(url: str, *, migrating: bool = False) -> dict[str, Any]:
    """Tortoise's configuration; raises `DatabaseUnavailable` for a URL of no known kind.

    `migrating` is without foreign keys on SQLite, and takes as long as it takes.
    """
    return {
        "connections": {"default": _connection(url, migrating=migrating)},
        "apps": {
            "models": {
                "models": ["models"],
                "migrations": "models.migrations",
                "default_connection": "default",
            }
        },
        "use_tz": True,
        "timezone": "UTC",
    }


def _connection(url: str, *, migrating: bool) -> dict[str, Any]:
    if url.startswith("sqlite://"):
        if not _file(url).name or str(_file(url)) == ":memory:":
            raise DatabaseUnavailable(
                "SIGNOFF_DATABASE_URL must name a file, for example sqlite://signoff.db"
            )
        return {
            "engine": "signoff.sqlite",
            "credentials": {
                "file_path": url.removeprefix("sqlite://"),
                "busy_timeout": 5000,
                "journal_mode": "WAL",
                "synchronous": "NORMAL",
                "foreign_keys": "OFF" if migrating else "ON",
                "cache_size": -65_536,  # KiB; the default of 2 MiB is read anew again and again
                "case_sensitive_like": "ON",  # as Postgres has it
            },
        }
    if not url.startswith(("postgres://", "postgresql://")):
        raise DatabaseUnavailable(
            "SIGNOFF_DATABASE_URL must begin with sqlite:// or postgres://; "
            "for example sqlite://signoff.db"
        )
    try:
        expanded = cast("dict[str, Any]", config_generator.expand_db_url(url))
        urlsplit(url).port  # noqa: B018 - raises ValueError
    except (BaseORMException, ValueError):
        raise DatabaseUnavailable(
            "SIGNOFF_DATABASE_URL is not a URL of Postgres; it looks like "
            "postgres://USER:PASSWORD@HOST:PORT/NAME, with special characters as in %40 for @"
        ) from None
    expanded["engine"] = "signoff.postgres"
    expanded["credentials"] |= {
        "minsize": 2,
        "maxsize": POOL_SIZE,
        "timeout": CONNECT_SECONDS,
        "reset": _keep,
    }
    if not migrating:
        expanded["credentials"] |= {
            "command_timeout": COMMAND_SECONDS,
            "server_settings": {
                "idle_in_transaction_session_timeout": f"{IDLE_SECONDS}s",
                "statement_timeout": f"{COMMAND_SECONDS}s",  # also of those nobody waits for
                "jit": "off",  # compiling takes half a second, our statements milliseconds
            },
        }
    return expanded


async def _keep(connection: Any) -> None:
    """Spare the pool its reset, a round trip a query: no session state is ever set here."""


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[None]:
    """Open the database for this task and those it starts; close it from any task."""
    with _said(url):
        context = await Tortoise.init(config=config(url))
    try:
        with _said(url):
            await connections.get("default").execute_query("SELECT 1")
        yield
    finally:
        await context.close_connections()


@contextmanager
def only_worker(url: str) -> Generator[None]:
    """On SQLite one process runs the executions: another would take them for left behind."""
    if not is_sqlite(url):
        yield
        return
    config(url)  # says what is wrong with the URL
    path = _file(url)
    with _said(url):
        real = path.resolve()
        lock = real.with_name(real.name + ".worker").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatabaseUnavailable(
                f"another `signoff serve` works on {path}; stop it first, "
                "or use Postgres for several processes"
            ) from None
        yield


async def migrate(url: str) -> None:
    """Bring the database up to date; two processes at once take turns."""
    config(url)  # says what is wrong with the URL
    with _said(url):
        if is_sqlite(url):
            await _migrate_sqlite(url)
        else:
            await _migrate_postgres(url)


async def _migrate_sqlite(url: str) -> None:
    """Foreign keys are off meanwhile: a rebuilt table is dropped, and must not take others along.

    A rebuild loses the table's indexes too, so they are made again.
    """
    path = _file(url)
    with path.with_name(path.name + ".lock").open("w") as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        await asyncio.to_thread(_probe, path)
        try:
            await apply_migrations(config=config(url, migrating=True))
            for model in _tables():
                for statement in index_statements(model):
                    await connections.get("default").execute_script(statement)
        finally:
            await Tortoise.close_connections()


def _probe(path: Path) -> None:
    """Raise what is wrong with the file: Tortoise would wait for ever."""
    with closing(sqlite3.connect(path, timeout=5)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")


async def _migrate_postgres(url: str) -> None:
    connect = cast("Callable[..., Awaitable[Any]]", asyncpg.connect)
    lock = await connect(url, timeout=10)
    try:
        await lock.execute("SELECT pg_advisory_lock($1)", MIGRATION_LOCK)
        try:
            await apply_migrations(config=config(url, migrating=True))
        finally:
            await Tortoise.close_connections()
    finally:
        await lock.close()


def _tables() -> list[type[Model]]:
    found = (getattr(models, name) for name in models.__all__)
    return [each for each in found if isinstance(each, type) and issubclass(each, Model)]


def index_statements(model: type[Model]) -> list[str]:
    """One statement for each named index that a model declares; `extra` is its WHERE."""
    table = cast("dict[str, Any]", model.describe())
    return [
        f'CREATE INDEX IF NOT EXISTS "{index["name"]}" ON "{table["table"]}" ({columns})'
        + index["extra"]
        for index in table["indexes"]
        for columns in (", ".join(f'"{field}"' for field in index["fields"]),)
    ]


UNUSABLE = (
    sqlite3.Error,
    BaseORMException,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    OSError,
    TimeoutError,
)


def _place(url: str) -> str:
    """Where the server is, and nothing of its password."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.hostname or 'localhost'}{port}{parts.path}"


@contextmanager
def _said(url: str) -> Generator[None]:
    """Say what is wrong with the database in one line, without the password."""
    try:
        yield
    except UNUSABLE as error:
        kind = "SQLite file" if is_sqlite(url) else "Postgres server"
        where = _file(url) if is_sqlite(url) else _place(url)
        raise DatabaseUnavailable(
            f"the {kind} {where} cannot be used: {error or type(error).__name__}; "
            "check SIGNOFF_DATABASE_URL"
        ) from error
