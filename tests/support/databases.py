from __future__ import annotations

import asyncio
import importlib
import shutil
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

from tests.support.postgres import PostgresServer

Migrate = Callable[[str], Awaitable[None]]


def migrate(url: str) -> None:
    """Runs the product's migrations on an event loop of its own, so that any fixture may."""
    work = cast("Migrate", importlib.import_module("signoff.database").migrate)

    async def migrating() -> None:
        await work(url)

    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(asyncio.run, migrating()).result()


def sqlite_url(file: Path) -> str:
    return f"sqlite://{file}"


def sqlite_copy(template: Path | None, folder: Path) -> str:
    """The URL of a database in `folder`: a copy of the template's, or one with nothing in it."""
    file = folder / "signoff.db"
    if template:
        shutil.copyfile(template, file)
    return sqlite_url(file)


def postgres_copy(server: PostgresServer, template: str) -> Iterator[str]:
    name = server.clone(template)
    yield server.url(name)
    server.drop(name)
