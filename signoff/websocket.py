"""graphql-transport-ws: one WebSocket, any number of operations."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aiohttp import WSMessage, WSMsgType, web

from schema.failures import shown_failure
from services.errors import LimitExceeded, RateLimited, Unauthenticated
from services.rates import Rates
from signoff import frames, subscribers
from signoff.frames import BadFrame, Complete, Init, Ping, Pong, Subscribe
from signoff.guarding import BYTES_A_UNIT, Attempts
from signoff.hub import Hub
from signoff.listening import take_turns
from signoff.results import NotExecuted
from signoff.sessions import CLOSE_SECONDS, FORBIDDEN, Session, Sessions, client_of
from signoff.subscribers import TOO_SLOW, TOO_SLOW_REASON, Connection, SocketSubscriber
from signoff.turns import Turns

PROTOCOL = "graphql-transport-ws"
BAD_FRAME, UNAUTHORIZED, NO_PROTOCOL, LATE = 4400, 4401, 4406, 4408
TAKEN, AGAIN, TRY_LATER, BROKEN, TOO_LARGE = 4409, 4429, 1013, 1011, 1009
MAX_INTRODUCTION = 16_384
"""Characters of a message from who has not introduced themselves."""
CONTROL = {WSMsgType.PING, WSMsgType.PONG}
TOO_MANY = "Too many messages that are no operations."
TOO_EARLY = "Too many messages before connection_init."
TOO_LONG = "A message with all its fragments was too large."


@dataclass(frozen=True, slots=True)
class SocketLimits:
    """Of one WebSocket."""

    init_seconds: float = 10
    """Who has not introduced themselves by then is closed with 4408."""
    heartbeat_seconds: float = 20
    """How often it is pinged; who does not answer within half of it is gone."""
    max_message_bytes: int = 2_097_152
    max_operations: int = 100
    """Under way at once."""
    early_messages: int = 20
    """Before `connection_init` is done; one more is closed with 4429."""
    idle_messages: int = 200
    """That are no operations, at once; as many come back in a minute."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One that is under way, and who is told of it."""

    subscriber: SocketSubscriber
    task: asyncio.Task[None]


class Closing(Exception):
    """The socket is to be closed with this code."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def is_upgrade(request: web.Request) -> bool:
    return request.method == "GET" and request.headers.get("Upgrade", "").lower() == "websocket"


class Socket(Connection):
    """A connection from its handshake to its end."""

    _session: Session
    _turns: Turns | None = None

    def __init__(
        self, hub: Hub, attempts: Attempts, sessions: Sessions, request: web.Request
    ) -> None:
        super().__init__(hub.rt.telemetry, request)
        self._hub = hub
        self._attempts = attempts
        self._sessions = sessions
        self._limits = request.app.get(LIMITS, SocketLimits())
        self._operations: dict[str, Operation] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # some are still busy with their end
        self._closing = False
        self._early = 0
        self._idle = Rates(self._limits.idle_messages, burst=self._limits.idle_messages)
        self._patience = asyncio.timeout(self._limits.init_seconds)
        self._ws = web.WebSocketResponse(
            protocols=[PROTOCOL],
            timeout=CLOSE_SECONDS,
            heartbeat=self._limits.heartbeat_seconds,
            max_msg_size=self._limits.max_message_bytes,
            compress=False,
            autoping=False,  # which would answer all that are there without a turn for others
        )

    async def run(self, session: Session) -> web.WebSocketResponse:
        """Raises only what refuses the handshake."""
        self._session = session
        await self._ws.prepare(self._request)
        self._turns = take_turns(self._request, 2 * self._limits.max_message_bytes, self.too_long)
        try:
            await self._converse()
        except Closing as closing:
            await self.close(closing.code, str(closing))
        except ConnectionError:
            pass  # it is gone
        except Exception as error:  # noqa: BLE001 - `shown` logs it
            await self.close(BROKEN, shown_failure(error).message)
        finally:
            await self._cancel()
        return self._ws

    async def close(self, code: int, reason: str, seconds: float = CLOSE_SECONDS) -> None:
        if not self._ws.prepared:
            return
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(seconds):  # who does not read is cut off
                await self._ws.close(code=code, message=frames.reason(reason))

    @property
    def is_open(self) -> bool:
        return not (self._closing or self._ws.closed)

    def too_slow(self) -> None:
        self._drop(TOO_SLOW, TOO_SLOW_REASON, subscribers.GRACE_SECONDS)

    def too_long(self) -> None:
        """What is sent comes to no end."""
        self._drop(TOO_LARGE, TOO_LONG, CLOSE_SECONDS)

    def _drop(self, code: int, reason: str, seconds: float) -> None:
        self._closing = True
        self._keep(asyncio.create_task(self._dropped(code, reason, seconds)))

    async def _dropped(self, code: int, reason: str, seconds: float) -> None:
        await self.close(code, reason, seconds)
        self.abort()

    async def _converse(self) -> None:
        if self._ws.ws_protocol is None:
            raise Closing(NO_PROTOCOL, f"Subprotocol not acceptable: {PROTOCOL} is spoken here.")
        try:
            async with self._patience:
                async for message in self._ws:
                    await self._receive(message)
                    del message  # it may be large, and the next one may never come
                    await asyncio.sleep(0)  # others have their turn, however many are there
        except TimeoutError:
            if not self._patience.expired():
                raise
            raise Closing(LATE, "Connection initialisation timeout") from None

    async def _receive(self, message: WSMessage) -> None:
        if self._turns is not None:
            self._turns.told()
        if not self._session.introduced:
            self._count_early()
        if message.type in CONTROL:
            await self._heard(message)
        elif message.type is WSMsgType.TEXT:
            await self._obey(self._read(message.data))
        else:
            raise Closing(BAD_FRAME, "A message must be a text frame.")

    async def _heard(self, message: WSMessage) -> None:
        self._count_idle(len(message.data))
        if message.type is WSMsgType.PING:
            await self._ws.pong(message.data)

    def _read(self, text: str) -> frames.Message:
        if not self._session.introduced and len(text) > MAX_INTRODUCTION:
            raise Closing(TOO_LARGE, "Send connection_init first: that was too large for it.")
        try:
            return frames.parsed(text)
        except BadFrame as error:
            raise Closing(BAD_FRAME, str(error)) from None

    async def _obey(self, frame: frames.Message) -> None:
        match frame:
            case Init(payload):
                await self._introduced(payload)
            case Subscribe():
                await self._subscribed(frame)
            case Complete(id):
                self._completed(id)
            case Ping(size):
                self._count_idle(size)
                await self._send(frames.PONG)
            case Pong(size):
                self._count_idle(size)

    def _count_early(self) -> None:
        self._early += 1
        if self._early > self._limits.early_messages:
            raise Closing(AGAIN, TOO_EARLY)

    def _count_idle(self, size: int) -> None:
        """Of a message that no operation pays for.

        The caller owes for it: who has nothing left may still say that they are there.
        """
        if not self._session.introduced:
            return
        self._hub.rt.rates.owe(self._session.viewer.budget, 1 + size // BYTES_A_UNIT)
        try:
            self._idle.charge("")
        except RateLimited:
            raise Closing(AGAIN, TOO_MANY) from None

    async def _introduced(self, payload: Mapping[str, Any]) -> None:
        """A key comes in the payload of `connection_init`, or in the handshake's header."""
        if self._session.introduced:
            raise Closing(AGAIN, "Too many initialisation requests")
        given = {name.lower(): value for name, value in payload.items()}
        credential = given.get("authorization", self._request.headers.get("Authorization"))
        try:
            await self._enter(None if credential is None else str(credential))
        except Unauthenticated as error:
            raise Closing(FORBIDDEN, f"Forbidden: {error}") from None
        except (LimitExceeded, RateLimited) as error:
            raise Closing(TRY_LATER, str(error)) from None
        self._patience.reschedule(None)
        await self._send(frames.ACK)

    async def _enter(self, credential: str | None) -> None:
        request = self._request
        viewer = await self._attempts.viewer(credential, request.headers, request.remote)
        client = client_of(self._request, credential, viewer)
        self._sessions.enter(self._session, credential, viewer, client)

    async def _subscribed(self, frame: Subscribe) -> None:
        if not self._session.introduced:
            raise Closing(UNAUTHORIZED, "Unauthorized: send connection_init first.")
        if frame.id in self._operations:
            raise Closing(TAKEN, f"Subscriber for {frame.id} already exists")
        if len(self._operations) >= self._limits.max_operations:
            self._count_idle(frame.asked.size)
            limit = self._limits.max_operations
            error = LimitExceeded(f"This socket has {limit} operations under way.", limit)
            await self._send(frames.error_frame(frame.id, [shown_failure(error).formatted]))
            return
        subscriber = SocketSubscriber(self, self._send, frame.id)
        task = asyncio.create_task(self._operate(frame, subscriber))
        self._operations[frame.id] = Operation(subscriber, task)
        self._keep(task)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _completed(self, id: str) -> None:
        """Its client may use the id again at once, and hears nothing more of this operation."""
        operation = self._operations.pop(id, None)
        if operation is None:
            self._count_idle(len(id))
            return
        operation.task.cancel()
        self._hub.leave(operation.subscriber)  # as it will by itself, but not before others

    async def _operate(self, frame: Subscribe, subscriber: SocketSubscriber) -> None:
        """One operation to its end, whatever that is: the others go on."""
        with suppress(ConnectionError):  # the reader hears of it
            try:
                last = await self._last_frame(frame, subscriber)
            except Unauthenticated as error:
                self._freed(frame.id, subscriber)  # not to be cancelled by the end it brings
                await self.close(FORBIDDEN, f"Forbidden: {error}")
            else:
                if self._freed(frame.id, subscriber):  # before its client hears
                    await self._send(last)

    def _freed(self, id: str, subscriber: SocketSubscriber) -> bool:
        """Whether the id was still this operation's; from now on it is free."""
        operation = self._operations.get(id)
        if operation is None or operation.subscriber is not subscriber:
            return False
        del self._operations[id]
        return True

    async def _last_frame(self, frame: Subscribe, subscriber: SocketSubscriber) -> bytes:
        """Send the results; returns what ends the operation."""
        try:
            with self._sessions.operation(self._session):
                await self._run(frame, subscriber)
        except NotExecuted as error:
            return frames.error_frame(frame.id, error.errors)
        except (Unauthenticated, ConnectionError):
            raise
        except Exception as error:  # noqa: BLE001 - `shown` logs it
            return frames.error_frame(frame.id, [shown_failure(error).formatted])
        return frames.complete_frame(frame.id)

    async def _run(self, frame: Subscribe, subscriber: SocketSubscriber) -> None:
        viewer = await self._sessions.viewer(self._session, self._request.headers)
        await self._hub.run(frame.asked, viewer, subscriber)

    async def _send(self, frame: bytes) -> None:
        if self._ws.closed:
            raise ConnectionResetError
        await self._ws.send_frame(frame, WSMsgType.TEXT)

    async def _cancel(self) -> None:
        """End the operations and wait until they have cleaned up."""
        tasks = [each.task for each in self._operations.values()]
        self._operations.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


LIMITS: web.AppKey[SocketLimits] = web.AppKey("limits", SocketLimits)
"""Where they are not the ordinary ones."""
