"""Server-sent events, as graphql-sse has them in its distinct connections mode."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from aiohttp import web

from schema.failures import shown_failure
from services.errors import Unauthenticated
from signoff.asked import encoded
from signoff.results import NotExecuted
from signoff.sessions import CLOSE_SECONDS, FORBIDDEN

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",  # proxies pass each event on at once
}
HEARTBEAT_SECONDS = 15.0
COMPLETE = b"event: complete\r\ndata: \r\n\r\n"
PING = b": ping\r\n\r\n"


class EventStream:
    """One answer that is a stream."""

    def __init__(self) -> None:
        self._response = web.StreamResponse(headers=HEADERS)
        self._ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._done = asyncio.Event()

    async def run(
        self, request: web.Request, payloads: AsyncGenerator[bytes]
    ) -> web.StreamResponse:
        """Send them all, or up to what ends the stream from outside."""
        await self._response.prepare(request)
        sending = asyncio.create_task(self._send(payloads))
        beating = asyncio.create_task(self._beat())
        try:
            await asyncio.wait({sending, beating, self._ended}, return_when=FIRST)
            await _cancelled(beating)
            await _cancelled(sending)
            await self._finish(request)
        finally:
            beating.cancel()
            sending.cancel()
            self._done.set()
        return self._response

    async def _finish(self, request: web.Request) -> None:
        """Who does not read is cut off."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                if self._ended.done():
                    await self._response.write(self._ended.result())
                await self._response.write_eof()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass  # it is gone

    async def end(self, code: int, reason: str) -> None:
        """Who may not listen any more is told so; else it breaks off, to be resumed elsewhere."""
        last = b""
        if code == FORBIDDEN:
            last = event({"errors": [shown_failure(Unauthenticated(reason)).formatted]}) + COMPLETE
        if not self._ended.done():
            self._ended.set_result(last)
        await self._done.wait()

    async def _send(self, payloads: AsyncGenerator[bytes]) -> None:
        with suppress(ConnectionError):
            try:
                async with aclosing(payloads):
                    async for payload in payloads:
                        await self._response.write(_event(payload))
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
    """JSON has no line breaks of its own, so it is one line."""
    return b"event: next\r\ndata: %b\r\n\r\n" % payload


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
