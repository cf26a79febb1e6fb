"""The server's side of HTTP connections: how many there may be, and how long they may take."""

from __future__ import annotations

import asyncio
import resource
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import structlog
from aiohttp import web

from signoff.browsers import protect
from signoff.guarding import network
from signoff.refusals import failure
from signoff.turns import Turns

logger = structlog.get_logger(__name__)

FILES = 65_536
"""That one process needs to have open at most: a connection is one."""
COMPLAINT_SECONDS = 60.0
"""Between two lines of the log that connections are refused; who opens them sets the pace."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds that a client gets."""

    header: float = 15
    """For the head of a request, from its first byte."""
    idle: float = 75
    """Without any request; longer than proxies keep theirs open."""
    linger: float = 1
    """To finish sending what nobody reads any more."""
    shutdown: float = 1.5
    """For requests under way when the server stops, and once more for their connections."""


@dataclass(slots=True)
class Places:
    """The connections that are open, by address; at most `most` of each, or any number for 0."""

    most: int = 0
    _taken: Counter[str] = field(default_factory=Counter[str])
    _refused: int = 0
    _complained_at: float = -COMPLAINT_SECONDS

    def take(self, address: str) -> bool:
        """One more of this address; False if it has as many as it may."""
        if self.most and self._taken[address] >= self.most:
            self._refused += 1
            self._complain(address)
            return False
        self._taken[address] += 1
        return True

    def give_back(self, address: str) -> None:
        self._taken[address] -= 1
        if not self._taken[address]:
            del self._taken[address]

    def _complain(self, address: str) -> None:
        now = time.monotonic()
        if now >= self._complained_at + COMPLAINT_SECONDS:
            self._complained_at = now
            message = "an address has as many connections as it may; more are closed at once"
            logger.warning(message, address=address, most=self.most, refused=self._refused)
            self._refused = 0


class Connection(web.RequestHandler):
    """aiohttp's, with a deadline for a request's head and its own errors in JSON.

    One that finds no place is closed at once, whatever it would have sent.
    With `turns` it is a WebSocket's, and read in turns with others.
    """

    __slots__ = ("_address", "_busy", "_deadline", "_patience", "_places", "turns")

    def __init__(
        self, manager: web.Server, *, patience: Patience, places: Places, **options: Any
    ) -> None:
        super().__init__(manager, **options)
        self._patience = patience
        self._places = places
        self._address: str | None = None
        self._busy = False
        self._deadline: asyncio.TimerHandle | None = None
        self.turns: Turns | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        address = network(str(peer[0])) if peer else ""
        if not self._places.take(address):
            cast("asyncio.Transport", transport).abort()
            return
        self._address = address
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and not self._busy:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(self._patience.header, self.force_close)
        if self.turns is None:
            super().data_received(data)
        else:
            self.turns.receive(data)

    def pause_reading(self) -> None:
        super().pause_reading()
        if self.turns is not None:
            self.turns.hold()

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's
        super().resume_reading(resume_parser)
        if self.turns is not None:
            self.turns.go_on()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._address is None:
            return
        self._places.give_back(self._address)
        self._relax()
        if self.turns is not None:
            self.turns.stop()
        super().connection_lost(exc)

    @contextmanager
    def request(self) -> Generator[None]:
        """While one is answered; its body has a deadline of its own."""
        self._relax()
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def _relax(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no HTTP never comes to the application."""
        if status >= 500:  # noqa: PLR2004
            return super().handle_error(request, status, exc, message)
        response = failure(status, "This is no HTTP request.", f"HTTP_{status}")
        protect(request, response)
        response.force_close()
        return response


def allow_files() -> None:
    """Let the process have as many files open as the system lets it, up to `FILES`.

    Many systems give 1,024 to who does not ask, which one address could use up.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):  # some have a bound that `hard` does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@contextmanager
def begun(request: web.Request) -> Generator[None]:
    """The head of `request` is here."""
    connection = request.protocol
    if isinstance(connection, Connection):
        with connection.request():
            yield
    else:
        yield


def take_turns(request: web.Request, most: int, too_much: Callable[[], None]) -> Turns | None:
    """Read what the client of a WebSocket sends in turns with others; None where others listen.

    `too_much` is called when more than `most` bytes came and the result was `told` of no message.
    """
    connection = request.protocol
    if not isinstance(connection, Connection) or request.transport is None:
        return None
    feed = super(Connection, connection).data_received
    connection.turns = Turns(feed, request.transport, most, too_much)
    return connection.turns


@asynccontextmanager
async def listening(
    app: web.Application,
    host: str,
    port: int,
    patience: Patience | None = None,
    *,
    most_of_address: int = 0,
) -> AsyncGenerator[int]:
    """Serve `app` meanwhile; yields the port, which is chosen if it is 0.

    An address may have `most_of_address` connections, or any number if that is 0. Raises `OSError`
    if it cannot listen there.
    """
    given = patience or Patience()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=given.shutdown)
    await runner.setup()
    assert runner.server is not None  # noqa: S101 - `setup` made it
    try:
        loop = asyncio.get_running_loop()
        connect = partial(
            Connection,
            runner.server,
            patience=given,
            places=Places(most_of_address),
            loop=loop,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=given.idle,
            lingering_time=given.linger,
        )
        server = await loop.create_server(connect, host, port)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
    finally:
        await runner.cleanup()
