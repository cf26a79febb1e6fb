"""Agents on loopback that misbehave on the wire, where aiohttp's own server would not."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp.abc import AbstractResolver, ResolveResult

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


@dataclass
class Received:
    """One request as it came in, and the stream to answer it on."""

    start_line: str
    headers: dict[str, str]
    body: bytes
    writer: asyncio.StreamWriter
    at: float = field(default_factory=time.monotonic)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, body: bytes, status: str = "200 OK", *headers: str) -> None:
        lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers, "", ""]
        await self.send("\r\n".join(lines).encode() + body)

    def close(self) -> None:
        self.writer.close()

    async def stall(self) -> None:
        await asyncio.Event().wait()


Behaviour = Callable[[Received], Awaitable[None]]


@dataclass
class FakeAgent:
    behave: Behaviour
    url: str = ""
    port: int = 0
    received: list[Received] = field(default_factory=list[Received])
    connections: int = 0
    _open: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])

    async def all_closed(self) -> None:
        """Return when no client holds a connection any more."""
        while self._open:
            await asyncio.wait(self._open)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.ensure_future(self._converse(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        await asyncio.wait([task])

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while not writer.is_closing():
                received = await _read_request(reader, writer)
                self.received.append(received)
                await _until_gone(self.behave(received), reader, writer)
        writer.close()

    async def stop(self) -> None:
        for task in self._open:
            task.cancel()
        await self.all_closed()


async def _until_gone(
    behaviour: Awaitable[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Behave until done or until the client has gone, so that stalling ends then."""
    acting = asyncio.ensure_future(behaviour)
    while not acting.done() and not reader.at_eof() and not writer.is_closing():
        await asyncio.wait([acting], timeout=0.01)
    if not acting.done():
        acting.cancel()
    await acting


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Received:
    head = await reader.readuntil(b"\r\n\r\n")
    start_line, *lines = head.decode().strip().split("\r\n")
    length = _LENGTH.search(head)
    body = await reader.readexactly(int(length[1])) if length else b""
    headers = dict(line.split(": ", 1) for line in lines)
    return Received(start_line, {k.lower(): v for k, v in headers.items()}, body, writer)


@contextlib.asynccontextmanager
async def fake_agent(
    behave: Behaviour, *, tls: ssl.SSLContext | None = None
) -> AsyncGenerator[FakeAgent, None]:
    agent = FakeAgent(behave)
    server = await asyncio.start_server(agent.serve, "127.0.0.1", 0, ssl=tls)
    agent.port = server.sockets[0].getsockname()[1]
    agent.url = f"{'https' if tls else 'http'}://127.0.0.1:{agent.port}/run"
    try:
        yield agent
    finally:
        server.close()
        await agent.stop()


@dataclass
class FakeResolver(AbstractResolver):
    """Answers every name with `addresses`, or raises `error`, or never answers."""

    addresses: tuple[str, ...] = ()
    error: OSError | None = None
    silent: bool = False

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if self.silent:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self.addresses
        ]

    async def close(self) -> None: ...
