"""The server's side of HTTP connections: what clients may take their time with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import web

from signoff.browsers import protect
from signoff.refusals import failure


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


class Connection(web.RequestHandler):
    """aiohttp's, with a deadline for a request's head and its own errors in JSON."""

    __slots__ = ("_busy", "_deadline", "_patience")

    def __init__(self, manager: web.Server, *, patience: Patience, **options: Any) -> None:
        super().__init__(manager, **options)
        self._patience = patience
        self._busy = False
        self._deadline: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and not self._busy:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(self._patience.header, self.force_close)
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._relax()
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


@contextmanager
def begun(request: web.Request) -> Generator[None]:
    """The head of `request` is here."""
    connection = request.protocol
    if isinstance(connection, Connection):
        with connection.request():
            yield
    else:
        yield


@asynccontextmanager
async def listening(
    app: web.Application, host: str, port: int, patience: Patience | None = None
) -> AsyncGenerator[int]:
    """Serve `app` meanwhile; yields the port, which is chosen if it is 0.

    Raises `OSError` if it cannot listen there.
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
