"""Clients who are written to without waiting, as far as they read.

What was encoded for many needs neither to be encoded nor to be awaited again, so it is written
to the transport itself. aiohttp writes a frame, or a chunk, in one go too, so theirs and ours
never mix.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Protocol

from aiohttp import web

from services.telemetry import Telemetry
from signoff.frames import next_frame, next_head
from signoff.messages import Messages

MAX_UNREAD_BYTES = 1_048_576
"""What a connection may leave unread before it is closed."""
STALL_SECONDS = 30
"""How long a replay waits for a reader who takes nothing."""
GRACE_SECONDS = 5
"""For a slow reader to see why it is closed."""
TOO_SLOW = 4013
"""The close code of a WebSocket; as 1013, try again later."""
TOO_SLOW_REASON = "Too slow: subscribe again with `after` the last cursor you have."


class Gone(ConnectionError):
    """The client cannot be told any more."""


class Subscriber(Protocol):
    """One operation of a client."""

    async def send(self, payload: bytes) -> None:
        """A result of their own; raises `ConnectionError`."""
        ...

    def tell(self, messages: Messages) -> bool:
        """Write without waiting; returns whether it was written.

        Who has left too much unread is cut off instead.
        """
        ...

    async def ready(self) -> None:
        """Return when there is room for more; raises `Gone` for who never makes any."""
        ...


class Connection(ABC):
    """What a client is written to."""

    def __init__(self, telemetry: Telemetry, request: web.Request) -> None:
        self._telemetry = telemetry
        self._request = request

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether there may be more to come."""

    @abstractmethod
    def too_slow(self) -> None:
        """Begin to close it; what is not read by then is dropped."""

    @property
    def transport(self) -> asyncio.Transport | None:
        """None, or closing, once the client is gone."""
        transport = self._request.transport
        return None if transport is None or transport.is_closing() else transport

    def write(self, data: bytes) -> bool:
        """Write without waiting; returns whether it was written."""
        transport = self.transport
        if transport is None or not self.is_open:
            return False
        if transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self._cut()
            return False
        transport.write(data)
        return True

    async def ready(self) -> None:
        """Return when it has room again; raises `Gone` if it never has."""
        if self.transport is None or not self.is_open:
            raise Gone
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await self._request.writer.drain()
        except ConnectionError:
            raise Gone from None
        except TimeoutError:
            self._cut()
            raise Gone from None

    def abort(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()

    def _cut(self) -> None:
        if self.is_open:
            self._telemetry.slow.inc()
            self.too_slow()


class SocketSubscriber:
    """One operation of a WebSocket; `send` is for whole frames."""

    __slots__ = ("_connection", "_head", "_id", "_send")

    def __init__(
        self, connection: Connection, send: Callable[[bytes], Awaitable[None]], id: str
    ) -> None:
        self._connection = connection
        self._send = send
        self._id = id
        self._head = next_head(id)

    async def send(self, payload: bytes) -> None:
        await self._send(next_frame(self._id, payload))

    def tell(self, messages: Messages) -> bool:
        return self._connection.write(messages.frames(self._head))

    async def ready(self) -> None:
        await self._connection.ready()
