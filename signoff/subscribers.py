"""Subscribers over WebSocket and over server-sent events.

Both write to the transport themselves, since a message that was encoded for many needs neither
to be encoded nor to be awaited again. aiohttp writes a frame, or a chunk, in one go too, so
theirs and ours never mix.
"""

from __future__ import annotations

import asyncio
from asyncio import FIRST_COMPLETED
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from aiohttp import HttpVersion11, web
from strawberry.http import process_result
from strawberry.http.exceptions import WebSocketDisconnected
from strawberry.subscriptions.protocols.graphql_transport_ws.handlers import (
    BaseGraphQLTransportWSHandler,
    Operation,
)
from strawberry.types import ExecutionResult
from strawberry.types.execution import PreExecutionError

from resolvers.context import Context
from schema.sharing import Asked
from services.actors import Viewer
from services.errors import ErrorCode
from signoff.encoding import encoded
from signoff.frames import Messages, chunk, head
from signoff.hub import Gone, Hub, shown_error

MAX_UNREAD_BYTES = 1_048_576
"""What a connection may leave unread before it is closed."""
STALL_SECONDS = 30
"""How long a replay waits for a reader who takes nothing."""
GRACE_SECONDS = 5
"""For a slow reader to see why it is closed."""
BEAT_SECONDS = 15
TOO_SLOW = 4013
"""The close code of a WebSocket; as 1013, try again later."""
TOO_SLOW_REASON = "Too slow: subscribe again with `after` the last cursor you have."


class _Connection:
    """What a client is written to."""

    def __init__(self, hub: Hub, request: web.Request) -> None:
        assert request.transport is not None  # noqa: S101 - it has been answered
        self.hub = hub
        self.request = request
        self.transport: asyncio.Transport = request.transport
        self.closing = False

    @property
    def is_open(self) -> bool:
        return not self.closing and not self.transport.is_closing()

    @property
    def is_full(self) -> bool:
        return self.transport.get_write_buffer_size() > MAX_UNREAD_BYTES

    async def ready(self) -> None:
        """Return when it has room again; raises `Gone` if it never has."""
        if not self.is_open:
            raise Gone
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await self.request.writer.drain()
        except ConnectionError:
            raise Gone from None
        except TimeoutError:
            self.cut()
            raise Gone from None

    def cut(self) -> None:
        """Close it for being too slow; what it has not read by then is dropped."""
        if self.is_open:
            self.closing = True
            self.hub.rt.telemetry.slow.inc()
            self.hub.go_on(self._end())

    async def _end(self) -> None:
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(GRACE_SECONDS):
                await self.say_goodbye()
        self.transport.abort()

    async def say_goodbye(self) -> None:
        raise NotImplementedError


class Socket(_Connection):
    """A WebSocket, with any number of subscriptions."""

    def __init__(self, hub: Hub, request: web.Request, ws: web.WebSocketResponse) -> None:
        super().__init__(hub, request)
        self._ws = ws

    @property
    def is_open(self) -> bool:
        return super().is_open and not self._ws.closed

    async def say_goodbye(self) -> None:
        await self._ws.close(code=TOO_SLOW, message=TOO_SLOW_REASON.encode())


class SocketSubscriber:
    """One operation of a WebSocket."""

    __slots__ = ("_handler", "_head", "_operation", "_socket")

    def __init__(
        self, socket: Socket, handler: SharingHandler, operation: Operation[Context, None]
    ) -> None:
        self._socket = socket
        self._handler = handler
        self._operation = operation
        self._head = head(operation.id)

    def tell(self, messages: Messages) -> bool:
        socket = self._socket
        if not socket.is_open:
            return False
        if socket.is_full:
            socket.cut()
            return False
        socket.transport.write(messages.frames(self._head))
        return True

    async def ready(self) -> None:
        await self._socket.ready()

    def fail(self, error: Mapping[str, Any]) -> None:
        self._handler.fail(self._operation, error)


class SharingHandler(BaseGraphQLTransportWSHandler[Context, None]):
    """Hands subscriptions to the hub of its view; all other operations go their usual way."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        view, adapter = cast("Any", self.view), cast("Any", self.websocket)
        self._hub: Hub = view.hub
        self._socket = Socket(self._hub, adapter.request, adapter.ws)
        self._subscribers: dict[str, SocketSubscriber] = {}

    async def run_operation(self, operation: Operation[Context, None]) -> None:
        asked = Asked(operation.query, operation.variables, operation.operation_name)
        if not self._hub.takes(asked):
            await super().run_operation(operation)
            return
        subscriber = SocketSubscriber(self._socket, self, operation)
        self._subscribers[operation.id] = subscriber
        try:
            results = await self._hub.subscribe(asked, self.context.viewer, subscriber)
            if results:
                await _end(operation, results)
        except (Gone, WebSocketDisconnected):
            pass
        except Exception as error:  # noqa: BLE001 - of one operation, not of the socket
            self.fail(operation, dict(shown_error(error).formatted))

    def fail(self, operation: Operation[Context, None], error: Mapping[str, Any]) -> None:
        self._hub.go_on(
            operation.send_operation_message(
                {"id": operation.id, "type": "error", "payload": [cast("Any", error)]}
            )
        )

    def forget_id(self, id: str) -> None:
        self._leave(id)
        super().forget_id(id)

    async def cleanup_operation(self, operation_id: str) -> None:
        self._leave(operation_id)
        await super().cleanup_operation(operation_id)

    def _leave(self, id: str) -> None:
        subscriber = self._subscribers.pop(id, None)
        if subscriber is not None:
            self._hub.leave(subscriber)


async def _end(operation: Operation[Context, None], results: Sequence[ExecutionResult]) -> None:
    """Tell why there is nothing to subscribe to."""
    for result in results:
        if isinstance(result, PreExecutionError):
            await operation.send_initial_errors(result.errors or [])
            return
        await operation.send_next(result)
    await operation.send_operation_message({"id": operation.id, "type": "complete"})


class Stream(_Connection):
    """Server-sent events: one subscription, for as long as the response lasts."""

    def __init__(self, hub: Hub, request: web.Request, *, chunked: bool) -> None:
        super().__init__(hub, request)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._chunked = chunked

    def tell(self, messages: Messages) -> bool:
        if not self.is_open:
            self.end()
            return False
        if self.is_full:
            self.cut()
            return False
        self.transport.write(messages.chunk if self._chunked else messages.events)
        return True

    def beat(self) -> None:
        """Show proxies, and find out, that somebody is there."""
        if self.is_open and not self.is_full:
            self._write(b": ping\r\n\r\n")

    def fail(self, error: Mapping[str, Any]) -> None:
        if self.is_open:
            self._write(event({"data": None, "errors": [error]}))
        self.end()

    def end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    async def say_goodbye(self) -> None:
        extensions = {"code": ErrorCode.SLOW_CONSUMER}
        error = {"message": TOO_SLOW_REASON, "extensions": extensions}
        self._write(event({"data": None, "errors": [error]}) + COMPLETE)
        while self.transport.get_write_buffer_size():  # noqa: ASYNC110 - nobody tells when all is sent
            await asyncio.sleep(0.05)

    async def _end(self) -> None:
        await super()._end()
        self.end()

    def _write(self, data: bytes) -> None:
        self.transport.write(chunk(data) if self._chunked else data)


COMPLETE = b"event: complete\r\ndata: \r\n\r\n"


def event(answer: Mapping[str, Any]) -> bytes:
    return Messages([encoded(answer)]).events


async def stream(
    request: web.Request, hub: Hub, viewer: Viewer, asked: Asked, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Answer with the events of a subscription, until one side has enough."""
    response = web.StreamResponse(headers=headers)
    chunked = request.version >= HttpVersion11
    if chunked:
        response.enable_chunked_encoding()
    await response.prepare(request)
    subscriber = Stream(hub, request, chunked=chunked)
    with suppress(ConnectionError), hub.streaming(subscriber):
        try:
            results = await _live(hub, subscriber, asked, viewer)
        except Exception as error:  # noqa: BLE001 - the response has begun
            results = [PreExecutionError(data=None, errors=[shown_error(error)])]
        for result in results:
            await response.write(event(process_result(result)))
        await response.write(COMPLETE)
        await response.write_eof()
    return response


async def _live(
    hub: Hub, subscriber: Stream, asked: Asked, viewer: Viewer
) -> Sequence[ExecutionResult]:
    """Return when it is over; results are those in which the operation ends instead."""
    bringing = asyncio.create_task(hub.subscribe(asked, viewer, subscriber))
    waiting: set[asyncio.Future[Any]] = {bringing, subscriber.ended}
    try:
        while subscriber.is_open:
            done, _ = await asyncio.wait(waiting, timeout=BEAT_SECONDS, return_when=FIRST_COMPLETED)
            if bringing in done:
                waiting.discard(bringing)
                if results := bringing.result():
                    return results
            if subscriber.ended in done:
                break
            if not done:
                subscriber.beat()
    except Gone:
        if subscriber.closing:
            await subscriber.ended
    finally:
        bringing.cancel()
        hub.leave(subscriber)
    return ()
