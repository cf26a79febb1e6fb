"""Telling other processes that something was committed: no more than that.

Who is told looks into the rows. Who misses it looks a little later by itself.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
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


class Channel(Protocol):
    """A connection by which processes hear each other."""

    @property
    def is_open(self) -> bool: ...

    async def say(self, message: str) -> None: ...


class Announcer(ABC):
    """Tells in as few messages as will do, by whatever channel; connects again if it breaks.

    A message has nothing in it but who sent it and whether there is work.
    """

    def __init__(self) -> None:
        self._name = token_hex(8)
        self._news = asyncio.Event()
        self._said = asyncio.Event()
        self._said.set()
        self._work = False
        self._deaf = False
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    def channel(
        self, hear: Callable[[str], None], lost: Callable[[], None]
    ) -> AbstractAsyncContextManager[Channel]:
        """An open channel; `lost` is called when it is one no more."""

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
                self._complain(repr(error))
            self.tell(work=True)  # what was said last may have been lost
            await asyncio.sleep(RETRY_SECONDS)

    def _complain(self, error: str) -> None:
        """Once, however often connecting fails after that."""
        if not self._deaf:
            logger.warning("no word from other processes; connecting again", error=error)
        self._deaf = True

    async def _connected(self, heard: Heard) -> None:
        def hear(message: str) -> None:
            sender, _, work = message.partition(" ")
            if sender != self._name:
                heard(work=bool(work))

        async with self.channel(hear, self._news.set) as channel:
            self._deaf = False
            heard(work=True)  # whatever was said before there was a connection
            while channel.is_open:
                await self._news.wait()
                self._news.clear()
                message, self._work = f"{self._name} {'work' if self._work else ''}", False
                await channel.say(message)
                if not self._news.is_set():
                    self._said.set()
                await asyncio.sleep(GAP_SECONDS)


class PostgresBus(Announcer):
    """NOTIFY after the commit, on a connection of its own.

    Within the transaction it would make all commits wait for each other.
    """

    def __init__(self, dsn: str) -> None:
        super().__init__()
        self._dsn = dsn

    @asynccontextmanager
    async def channel(
        self, hear: Callable[[str], None], lost: Callable[[], None]
    ) -> AsyncGenerator[Channel]:
        connect = cast("Callable[..., Awaitable[Any]]", asyncpg.connect)
        connection = await connect(
            self._dsn, timeout=TIMEOUT_SECONDS, command_timeout=TIMEOUT_SECONDS
        )

        def on_message(_: Any, __: int, ___: str, message: str) -> None:
            hear(message)

        def on_end(_: Any) -> None:
            lost()

        connection.add_termination_listener(on_end)
        try:
            await connection.add_listener(CHANNEL, on_message)
            yield _Notifying(connection)
        finally:
            connection.terminate()


class _Notifying:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @property
    def is_open(self) -> bool:
        return not self._connection.is_closed()

    async def say(self, message: str) -> None:
        await self._connection.execute("SELECT pg_notify($1, $2)", CHANNEL, message)
