"""Telling other processes that something was committed: no more than that.

Who is told looks into the rows. Who misses it looks a little later by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from secrets import token_hex
from typing import Any, Protocol, cast

import asyncpg
import structlog

logger = structlog.get_logger(__name__)

CHANNEL = "signoff"
GAP_SECONDS = 0.005
"""Between two messages; what is committed meanwhile goes into the second."""
TIMEOUT_SECONDS = 10
RETRY_SECONDS = 0.5
LAST_WORD_SECONDS = 0.5
"""For telling of the last commits before the process ends."""


class Heard(Protocol):
    """Called for what was told; `work` says that it is not for listeners alone."""

    def __call__(self, *, work: bool) -> None: ...


class Bus(Protocol):
    async def start(self, heard: Heard) -> None:
        """Begin to call `heard` for what other processes tell."""
        ...

    async def stop(self) -> None: ...

    def tell(self, *, work: bool) -> None:
        """Something was committed here; `work` says that it is something for workers."""
        ...


class NoBus:
    """There is no other process."""

    async def start(self, heard: Heard) -> None: ...

    async def stop(self) -> None: ...

    def tell(self, *, work: bool) -> None: ...


class PostgresBus:
    """NOTIFY after the commit, on a connection of its own.

    Within the transaction it would make all commits wait for each other.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._name = token_hex(8)
        self._news = asyncio.Event()
        self._said = asyncio.Event()
        self._said.set()
        self._work = False
        self._task: asyncio.Task[None] | None = None

    async def start(self, heard: Heard) -> None:
        self._task = asyncio.create_task(self._keep(heard))

    async def stop(self) -> None:
        if self._task is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORD_SECONDS):
                    await self._said.wait()
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def tell(self, *, work: bool) -> None:
        self._work = self._work or work
        self._said.clear()
        self._news.set()

    async def _keep(self, heard: Heard) -> None:
        while True:
            try:
                await self._connected(heard)
            except Exception as error:  # noqa: BLE001 - a process must not stay deaf
                logger.warning("no word from other processes; connecting again", error=repr(error))
            await asyncio.sleep(RETRY_SECONDS)

    async def _connected(self, heard: Heard) -> None:
        connect = cast("Callable[..., Awaitable[Any]]", asyncpg.connect)
        connection = await connect(
            self._dsn, timeout=TIMEOUT_SECONDS, command_timeout=TIMEOUT_SECONDS
        )

        def on_message(_: Any, __: int, ___: str, message: str) -> None:
            sender, _, work = message.partition(" ")
            if sender != self._name:
                heard(work=bool(work))

        def on_end(_: Any) -> None:
            self._news.set()

        connection.add_termination_listener(on_end)
        try:
            await connection.add_listener(CHANNEL, on_message)
            heard(work=True)  # whatever was said before there was a connection
            while not connection.is_closed():
                await self._news.wait()
                self._news.clear()
                message, self._work = f"{self._name} {'work' if self._work else ''}", False
                await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, message)
                if not self._news.is_set():
                    self._said.set()
                await asyncio.sleep(GAP_SECONDS)
        finally:
            connection.terminate()
