"""Connections to agents: pooled for speed, checked for what a pool can do wrong.

aiohttp repeats no POST, so a connection that its server has closed meanwhile fails the call; and
bytes that came while a connection was idle would be taken for the next call's answer.
"""

from __future__ import annotations

import asyncio
import select
from contextvars import ContextVar
from dataclasses import dataclass
from weakref import WeakSet

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest, ConnectionKey
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

from services.agent_http.addresses import AGENT, Peer, guarded_sockets

# Shorter than the idle timeout of any usual server (gunicorn 2 s, uvicorn and Node 5 s), so that
# we are the first to close; long enough to be reused under load.
KEEPALIVE_SECONDS = 1.0
MAX_REMEMBERED = 1000


@dataclass(slots=True)
class Dial:
    """What one call knows of its connection; without a transport nothing was ever sent."""

    key: ConnectionKey | None = None
    transport: asyncio.Transport | None = None
    reused: bool = False

    @property
    def connected(self) -> bool:
        return self.transport is not None

    def drop(self) -> None:
        """Closing waits until the peer has read what we sent; a dead peer never does."""
        if self.transport is not None and self.transport.is_closing():
            self.transport.abort()


current_dial: ContextVar[Dial] = ContextVar("current_dial")


def session(connector: Connector, connect_seconds: float) -> aiohttp.ClientSession:
    """A client that keeps no cookie, inflates nothing, and asks no proxy of the environment's."""
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=connect_seconds),
        auto_decompress=False,
        trust_env=False,
    )


class Connector(aiohttp.TCPConnector):
    """Notes the connection of each call in `current_dial`."""

    def __init__(
        self, *, allow_private: bool, resolver: AbstractResolver | None, peer: Peer = AGENT
    ) -> None:
        super().__init__(  # pyright: ignore[reportUnknownMemberType] a bare `tuple` in aiohttp
            limit=0,
            keepalive_timeout=KEEPALIVE_SECONDS,
            resolver=resolver,
            socket_factory=guarded_sockets(allow_private=allow_private, peer=peer),
        )
        self._known: WeakSet[ResponseHandler] = WeakSet()
        self._unpooled: set[ConnectionKey] = set()

    async def connect(
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
    ) -> Connection:
        key = req.connection_key
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol, transport = connection.protocol, connection.transport
            if protocol is None or transport is None:
                raise aiohttp.ClientConnectionError("closed as soon as it was open")
            reused = protocol in self._known
            if not reused or (key not in self._unpooled and _is_quiet(protocol, transport)):
                break
            connection.close()
        self._known.add(protocol)
        dial = current_dial.get()
        dial.key, dial.transport, dial.reused = key, transport, reused
        return connection

    def stop_reusing(self, key: ConnectionKey) -> None:
        """For a server that closes connections without saying so."""
        if len(self._unpooled) >= MAX_REMEMBERED:
            self._unpooled.clear()
        self._unpooled.add(key)


def _is_quiet(protocol: ResponseHandler, transport: asyncio.Transport) -> bool:
    """Nothing has come since the last answer: neither bytes nor the end of the stream."""
    if protocol.should_close:
        return False
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return not poll.poll(0)
