"""Server-sent events, as graphql-sse has them in its distinct connections mode."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from aiohttp import HttpVersion11, web

from schema.failures import shown_failure
from services.actors import Viewer
from services.errors import ErrorCode, Unauthenticated
from signoff import subscribers
from signoff.asked import Asked, encoded
from signoff.hub import Hub
from signoff.messages import Messages
from signoff.results import NotExecuted
from signoff.sessions import CLOSE_SECONDS, FORBIDDEN
from signoff.subscribers import TOO_SLOW_REASON, Connection

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",  # proxies pass each event on at once
}
HEARTBEAT_SECONDS = 15.0
COMPLETE = b"event: complete\r\ndata: \r\n\r\n"
PING = b": ping\r\n\r\n"


class EventStream(Connection):
    """One answer that is a stream, of one operation."""

    def __init__(self, hub: Hub, request: web.Request) -> None:
        super().__init__(hub.rt.telemetry, request)
        self._hub = hub
        self._response = web.StreamResponse(headers=HEADERS)
        self._chunked = request.version >= HttpVersion11
        if self._chunked:
            self._response.enable_chunked_encoding()
        self._ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._done = asyncio.Event()
        self._end_seconds: float = CLOSE_SECONDS

    async def run(self, asked: Asked, viewer: Viewer) -> web.StreamResponse:
        """Send all results, or up to what ends the stream from outside."""
        await self._response.prepare(self._request)
        sending = asyncio.create_task(self._send(asked, viewer))
        beating = asyncio.create_task(self._beat())
        try:
            await asyncio.wait({sending, beating, self._ended}, return_when=FIRST)
            await _cancelled(beating)
            await _cancelled(sending)
            await self._finish()
        finally:
            beating.cancel()
            sending.cancel()
            self._done.set()
        return self._response

    async def _finish(self) -> None:
        """Who does not read is cut off."""
        try:
            async with asyncio.timeout(self._end_seconds):
                if self._ended.done():
                    await self._response.write(self._ended.result())
                await self._response.write_eof()
        except TimeoutError:
            self.abort()
        except ConnectionError:
            pass  # it is gone

    async def end(self, code: int, reason: str) -> None:
        """Who may not listen any more is told so; else it breaks off, to be resumed elsewhere."""
        last = b""
        if code == FORBIDDEN:
            last = event({"errors": [shown_failure(Unauthenticated(reason)).formatted]}) + COMPLETE
        self._end(last)
        await self._done.wait()

    @property
    def is_open(self) -> bool:
        return not self._ended.done()

    def too_slow(self) -> None:
        self._end_seconds = subscribers.GRACE_SECONDS
        error = {"message": TOO_SLOW_REASON, "extensions": {"code": ErrorCode.SLOW_CONSUMER}}
        self._end(event({"errors": [error]}) + COMPLETE)

    async def send(self, payload: bytes) -> None:
        await self._response.write(_event(payload))

    def tell(self, messages: Messages) -> bool:
        told = self.write(messages.chunk if self._chunked else messages.events)
        if self.transport is None:
            self._end(b"")  # it is gone
        return told

    def _end(self, last: bytes) -> None:
        if not self._ended.done():
            self._ended.set_result(last)

    async def _send(self, asked: Asked, viewer: Viewer) -> None:
        with suppress(ConnectionError):
            try:
                await self._hub.run(asked, viewer, self)
            except NotExecuted as error:
                await self._response.write(event({"errors": error.errors}))
            await self._response.write(COMPLETE)

    async def _beat(self) -> None:
        """Keep proxies from giving up, and find out who is gone; returns when they are."""
        with suppress(ConnectionError):
            while True:
                await asyncio.sleep(HEARTBEAT_SECONDS)
                await self._response.write(PING)


FIRST = asyncio.FIRST_COMPLETED


def event(data: dict[str, Any]) -> bytes:
    return _event(encoded(data))


def _event(payload: bytes) -> bytes:
    return Messages([payload]).events


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
