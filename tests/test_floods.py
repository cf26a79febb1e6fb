"""WebSockets whose clients send frames without end: raw sockets, and a server as it is run."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from services.actors import LOCAL_ADMIN
from signoff.app import RUNTIME, create_app
from signoff.listening import listening
from signoff.turns import PIECE
from signoff.websocket import LIMITS, SocketLimits
from tests.support.running import settings_for
from tests.support.sockets import PROTOCOL

HANDSHAKE = (
    "GET /graphql HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    f"Sec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n"
).encode()
TEXT, PING, PONG, CLOSE = 0x81, 0x89, 0x8A, 0x88
BEGINNING, FRAGMENT, LAST = 0x01, 0x00, 0x80
TOO_EARLY = (4429, "Too many messages before connection_init.")
TOO_MANY = (4429, "Too many messages that are no operations.")
TOO_LONG = (1009, "A message with all its fragments was too large.")
LIMITED = SocketLimits(early_messages=5, idle_messages=7, max_message_bytes=20_000)
ENDLESS = SocketLimits(early_messages=10**9)


@pytest.fixture
def database_kind() -> str:
    """None of this depends on the database."""
    return "sqlite"


def frame(kind: int, payload: bytes = b"") -> bytes:
    """As a client sends it, masked with zeros; it is short."""
    return bytes([kind, 0x80 | len(payload)]) + bytes(4) + payload


def text(message: str) -> bytes:
    return frame(TEXT, message.encode())


INIT = text('{"type":"connection_init"}')
ASK = text('{"type":"ping"}')
TELL = text('{"type":"pong"}')
END = text('{"type":"complete","id":"1"}')
BEGIN = text('{"type":"subscribe","id":"1","payload":{"query":"subscription{jobEvents{cursor}}"}}')


@dataclass
class Raw:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def frame(self) -> tuple[int, bytes]:
        """The next one of the server, which masks none."""
        async with asyncio.timeout(20):
            kind, size = await self.reader.readexactly(2)
            if size == 126:
                (size,) = struct.unpack(">H", await self.reader.readexactly(2))
            return kind, await self.reader.readexactly(size)

    async def end(self) -> tuple[list[bytes], tuple[int, str]]:
        """What came until the server closed it, its code and reason."""
        told: list[bytes] = []
        while (got := await self.frame())[0] != CLOSE:
            told.append(got[1])
        return told, (int.from_bytes(got[1][:2]), got[1][2:].decode())


@asynccontextmanager
async def opened(port: int) -> AsyncGenerator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(HANDSHAKE)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()


async def end_after(port: int, *sent: bytes) -> tuple[list[bytes], tuple[int, str]]:
    async with opened(port) as raw:
        await raw.send(b"".join(sent))
        return await raw.end()


@pytest.fixture
def limits() -> SocketLimits:
    return LIMITED


@pytest.fixture
def app(database_url: str, tmp_path: Path, limits: SocketLimits) -> web.Application:
    app = create_app(settings_for(database_url, tmp_path, rate_per_minute=1, max_cost=10_000))
    app[LIMITS] = limits
    return app


@pytest.fixture
async def port(app: web.Application) -> AsyncIterator[int]:
    async with listening(app, "127.0.0.1", 0) as bound:
        yield bound


@pytest.mark.parametrize("message", [ASK, TELL, frame(PING), frame(PONG)])
async def test_few_messages_are_taken_before_the_introduction(port: int, message: bytes) -> None:
    told, end = await end_after(port, *[message] * 6)
    answers = {ASK: [b'{"type":"pong"}'] * 5, frame(PING): [b""] * 5}
    assert (told, end) == (answers.get(message, []), TOO_EARLY)
    async with opened(port) as raw:
        await raw.send(message * 4 + INIT)
        while (await raw.frame())[1] != b'{"type":"connection_ack"}':
            pass


@pytest.mark.parametrize("message", [ASK, TELL, END, frame(PING), frame(PONG)])
async def test_messages_that_are_no_operations_are_bounded(port: int, message: bytes) -> None:
    told, end = await end_after(port, INIT, *[message] * 8)
    answers = {ASK: [b'{"type":"pong"}'] * 7, frame(PING): [b""] * 7}
    assert (told[1:], end) == (answers.get(message, []), TOO_MANY)


async def test_the_bound_is_of_each_socket_and_of_all_kinds_together(port: int) -> None:
    for _ in range(2):
        told, end = await end_after(port, INIT, ASK, TELL, END, frame(PING), frame(PONG), ASK * 3)
        assert (len(told), end) == (5, TOO_MANY)


async def test_what_ends_an_operation_belongs_to_it(port: int) -> None:
    async with opened(port) as raw:
        await raw.send(INIT + (BEGIN + END) * 20 + ASK)
        told = [(await raw.frame())[1] for _ in range(2)]
        assert told == [b'{"type":"connection_ack"}', b'{"type":"pong"}']


@pytest.mark.parametrize("limits", [SocketLimits(max_operations=1, idle_messages=3)])
async def test_operations_beyond_a_sockets_count_like_other_messages(port: int) -> None:
    others = [BEGIN.replace(b'"id":"1"', b'"id":"%d"' % n) for n in range(2, 6)]
    told, end = await end_after(port, INIT, BEGIN, *others)
    assert (len([each for each in told if b"LIMIT_EXCEEDED" in each]), end) == (3, TOO_MANY)


async def test_messages_are_owed_also_by_who_has_nothing_left(
    app: web.Application, port: int
) -> None:
    rates = app[RUNTIME].rates
    async with opened(port) as raw:
        await raw.send(INIT + ASK + frame(PING) + TELL + END)
        for _ in range(3):
            await raw.frame()
        await raw.send(ASK)
        await raw.frame()
        assert rates.left(LOCAL_ADMIN.budget) == 10_000 - 5
        rates.owe(LOCAL_ADMIN.budget, 20_000)
        await raw.send(ASK)
        assert await raw.frame() == (TEXT, b'{"type":"pong"}')


async def test_fragments_without_end_are_closed_with_1009(port: int) -> None:
    beginning = INIT + frame(BEGINNING)
    told, end = await end_after(port, beginning, frame(FRAGMENT) * 8_000)
    assert (told, end) == ([b'{"type":"connection_ack"}'], TOO_LONG)


async def test_a_message_may_come_in_many_fragments(port: int) -> None:
    async with opened(port) as raw:
        await raw.send(INIT)
        for _ in range(3):
            await raw.send(frame(BEGINNING, b'{"type"') + frame(FRAGMENT) * 6_000)
            await raw.send(frame(PING) + frame(LAST, b':"pong"}'))
        await raw.send(ASK)
        kinds = [(await raw.frame())[0] for _ in range(5)]
        assert kinds == [TEXT, PING + 1, PING + 1, PING + 1, TEXT]


@asynccontextmanager
async def turns() -> AsyncGenerator[list[None]]:
    """As many items as the event loop had turns for others."""
    taken: list[None] = []

    async def take() -> None:
        while True:
            taken.append(None)
            await asyncio.sleep(0)

    task = asyncio.create_task(take())
    try:
        yield taken
    finally:
        task.cancel()


@pytest.mark.parametrize("limits", [ENDLESS])
@pytest.mark.parametrize("message", [ASK, frame(PING)])
async def test_others_have_their_turn_after_each_message(port: int, message: bytes) -> None:
    async with opened(port) as raw, turns() as taken:
        await raw.send(message * 3_000)
        for _ in range(3_000):
            await raw.frame()
        assert len(taken) >= 3_000


@pytest.mark.parametrize("limits", [ENDLESS])
async def test_others_have_their_turn_between_the_fragments_of_a_message(port: int) -> None:
    fragments = frame(FRAGMENT) * 170_000
    async with opened(port) as raw, turns() as taken:
        await raw.send(frame(BEGINNING) + fragments + frame(LAST, b'{"type":"ping"}'))
        assert await raw.frame() == (TEXT, b'{"type":"pong"}')
        assert len(taken) >= len(fragments) // PIECE


@pytest.mark.parametrize("limits", [ENDLESS])
async def test_others_are_answered_while_a_socket_is_flooded(port: int) -> None:
    body = {"query": "{ __typename }"}
    async with opened(port) as raw, aiohttp.ClientSession() as session:

        async def flood() -> None:
            while True:
                await raw.send(TELL * 10_000)

        flooding = asyncio.create_task(flood())
        for _ in range(20):
            async with session.post(f"http://127.0.0.1:{port}/graphql", json=body) as response:
                assert await response.json() == {"data": {"__typename": "Query"}}
        assert not flooding.done()
        flooding.cancel()


@pytest.mark.parametrize("limits", [SocketLimits()])
async def test_what_comes_in_one_piece_is_read_to_its_end(port: int) -> None:
    query = '{"type":"subscribe","id":"1","payload":{"query":"{__typename}"},"x":"%s"}' % (
        "x" * 60_000
    )
    large = bytes([TEXT, 0xFE]) + struct.pack(">H", len(query)) + bytes(4) + query.encode()
    async with opened(port) as raw:
        await raw.send(INIT + large + ASK)
        told = {(await raw.frame())[1] for _ in range(4)}
    assert told == {
        b'{"type":"connection_ack"}',
        b'{"type":"pong"}',
        b'{"type":"next","id":"1","payload":{"data":{"__typename":"Query"}}}',
        b'{"type":"complete","id":"1"}',
    }
