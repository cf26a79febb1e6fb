"""Connections of clients that are slow, broken, or after the server's memory: raw sockets."""

from __future__ import annotations

import asyncio
import gzip
import json
import resource
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from models import Role
from signoff.app import VIEW, create_app
from signoff.asked import PATIENCE
from signoff.listening import Patience, listening
from tests.support import commands
from tests.support.graphql import make_key, revoke_key
from tests.support.making import until
from tests.support.running import settings_for

SHORT = Patience(header=0.3, idle=60, linger=0.1, shutdown=1)
BODY_SECONDS = 0.3
QUERY = b'{"query": "{ viewer { id } }"}'
HEAD = b"POST /graphql HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture
def database_kind() -> str:
    """None of this depends on the database."""
    return "sqlite"


@pytest.fixture
async def port(database_url: str, tmp_path: Path) -> AsyncIterator[int]:
    """Of a server as `signoff serve` runs it, but with little patience."""
    app = create_app(settings_for(database_url, tmp_path))
    app[PATIENCE] = BODY_SECONDS
    async with listening(app, "127.0.0.1", 0, SHORT) as bound:
        yield bound


@dataclass
class Wire:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, str]:
        """Status, and the code of its error or what it found."""
        async with asyncio.timeout(20):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.split("content-length: ")[1].split("\r\n")[0])
            body = json.loads(await self.reader.readexactly(length))
        assert "x-content-type-options: nosniff" in head
        assert "content-type: application/json; charset=utf-8" in head
        status = int(head.split(" ")[1])
        return status, body["errors"][0]["extensions"]["code"] if "errors" in body else body["data"]

    async def rest(self) -> bytes:
        """All that comes until the server hangs up."""
        async with asyncio.timeout(20):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""


@asynccontextmanager
async def wired(port: int, address: str = "127.0.0.1") -> AsyncGenerator[Wire]:
    local = (address, 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=local)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


OK = (200, {"viewer": {"id": "local"}})


def request(body: bytes, *headers: str) -> bytes:
    given = "".join(f"{header}\r\n" for header in headers).encode()
    return HEAD + given + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


async def asks_in_vain(port: int, *parts: bytes) -> bytes:
    async with wired(port) as wire:
        for part in parts:
            await wire.send(part)
        return await wire.rest()


async def test_several_requests_go_over_one_connection(port: int) -> None:
    async with wired(port) as wire:
        for _ in range(3):
            await wire.send(request(QUERY))
            assert await wire.answer() == OK
        await wire.send(request(QUERY) * 2)
        assert [await wire.answer() for _ in range(2)] == [OK, OK]


async def test_a_key_that_is_revoked_while_a_body_comes_opens_nothing(
    database_url: str, tmp_path: Path
) -> None:
    key = await make_key(database_url, "Mia", Role.ADMIN)
    await make_key(database_url, "Ada", Role.ADMIN)
    app = create_app(settings_for(database_url, tmp_path))
    async with listening(app, "127.0.0.1", 0) as bound, wired(bound) as wire:
        body = b'{"query": "mutation { archiveJob(id: 1) { __typename } }"}'
        expects = ("Expect: 100-continue", f"Authorization: Bearer {key}")
        sent = request(body, *expects)
        await wire.send(sent[: -len(body)])
        said = await wire.reader.readuntil(b"\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 100 ")
        await wire.send(body[:10])
        await revoke_key(database_url, key)
        await wire.send(body[10:])
        assert await wire.answer() == (401, "UNAUTHENTICATED")


async def test_a_head_that_does_not_come_to_an_end_is_cut_off(port: int) -> None:
    for part in (b"P", b"POST /graphql HTTP/1.1\r\n", HEAD, HEAD + b"X-A: b"):
        assert await asks_in_vain(port, part) == b""


async def test_dripping_a_head_does_not_put_its_deadline_off(port: int) -> None:
    async def drip(wire: Wire) -> None:
        try:
            while True:
                await wire.send(b"X-A: b\r\n")
                await asyncio.sleep(0.01)
        except ConnectionError:
            return

    async with wired(port) as wire:
        await wire.send(HEAD)
        dripping = asyncio.create_task(drip(wire))
        assert b"200" not in await wire.rest()
        await dripping


async def test_the_second_head_of_a_connection_has_a_deadline_too(port: int) -> None:
    async with wired(port) as wire:
        await wire.send(request(QUERY))
        assert await wire.answer() == OK
        await wire.send(HEAD)
        assert await wire.rest() == b""


async def test_a_body_that_does_not_come_is_408_and_the_end(port: int) -> None:
    for part in (
        HEAD + b"Content-Length: 100\r\n\r\n",
        HEAD + b"Content-Length: 100\r\n\r\n{",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
    ):
        async with wired(port) as wire:
            await wire.send(part)
            assert await wire.answer() == (408, "HTTP_408")
            assert await wire.rest() == b""


async def test_a_body_that_drips_is_408_too(port: int) -> None:
    async def drip(wire: Wire) -> None:
        try:
            while True:
                await wire.send(b" ")
                await asyncio.sleep(0.01)
        except ConnectionError:
            return

    async with wired(port) as wire:
        await wire.send(HEAD + b"Content-Length: 1000000\r\n\r\n")
        dripping = asyncio.create_task(drip(wire))
        assert await wire.answer() == (408, "HTTP_408")
        assert await wire.rest() == b""
        await dripping


async def test_a_body_over_the_size_is_413_and_is_not_read_on(port: int) -> None:
    async with wired(port) as wire:
        await wire.send(HEAD + b"Content-Length: 100000000\r\n\r\n" + b" " * 2_200_000)
        assert await wire.answer() == (413, "HTTP_413")
        assert await wire.rest() == b""


async def test_a_broken_body_is_400(port: int) -> None:
    async with wired(port) as wire:
        await wire.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
        assert (await wire.answer())[0] == 400


async def test_what_is_no_http_is_400_in_json(port: int) -> None:
    for garbage in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /graphql HTTP/1.1\r\nHost localhost\r\n\r\n",
        b"GET /graphql HTTP/1.1\r\nX: " + b"x" * 10_000 + b"\r\n\r\n",
        b"GET /graphql HTTP/1.1\r\n" + b"X: x\r\n" * 200 + b"\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
    ):
        async with wired(port) as wire:
            await wire.send(garbage)
            assert await wire.answer() == (400, "HTTP_400"), garbage[:60]
            assert await wire.rest() == b""


def resident(pid: int) -> int:
    """Bytes of memory that a process has in use."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="/proc tells the memory")
async def test_a_gzip_bomb_is_415_and_never_inflated(database_url: str, tmp_path: Path) -> None:
    bomb = gzip.compress(b"[" + b" " * 100_000_000)  # 100 kB, a thousandth
    settings = commands.environment(SIGNOFF_DATABASE_URL=database_url)
    async with commands.process(tmp_path, settings, "serve", "--port", "0") as server:
        lines = await commands.until_line(server, "  GraphQL")
        port = int(lines[-1].split()[1].split(":")[2].split("/")[0])
        before = resident(server.pid)
        for _ in range(5):
            async with wired(port) as wire:
                await wire.send(request(bomb, "Content-Encoding: gzip"))
                assert await wire.answer() == (415, "VALIDATION")
        assert resident(server.pid) - before < 50_000_000
        for coding in ("deflate", "br", "zstd", "gzip, gzip", "x"):
            async with wired(port) as wire:
                await wire.send(request(QUERY, f"Content-Encoding: {coding}"))
                assert await wire.answer() == (415, "VALIDATION")
        async with wired(port) as wire:
            await wire.send(request(QUERY, "Content-Encoding: identity"))
            assert await wire.answer() == OK


async def test_half_open_connections_do_not_keep_the_server_from_others(port: int) -> None:
    held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(200)]
    for _, writer in held:
        writer.write(HEAD)
    async with wired(port) as wire:
        await wire.send(request(QUERY))
        assert await wire.answer() == OK
    for reader, writer in held:
        assert await Wire(reader, writer).rest() == b""
        writer.close()


async def test_a_connection_without_a_request_is_closed_after_a_while(
    database_url: str, tmp_path: Path
) -> None:
    app = create_app(settings_for(database_url, tmp_path))
    async with listening(app, "127.0.0.1", 0, Patience(idle=0.3)) as port:
        assert await asks_in_vain(port) == b""
        async with wired(port) as wire:
            await wire.send(request(QUERY))
            assert await wire.answer() == OK
            assert await wire.rest() == b""


async def test_an_address_has_so_many_connections_whatever_they_do(
    database_url: str, tmp_path: Path
) -> None:
    app = create_app(settings_for(database_url, tmp_path))
    served = listening(app, "127.0.0.1", 0, replace(SHORT, header=60), most_of_address=3)
    async with served as port, wired(port) as silent, wired(port) as kept, wired(port) as slow:
        await slow.send(HEAD)
        await kept.send(request(QUERY))
        assert await kept.answer() == OK
        with capture_logs() as logs:
            for _ in range(3):
                assert await asks_in_vain(port) == b""
                assert await asks_in_vain(port, request(QUERY)) == b""
        assert [(each["address"], each["most"]) for each in logs] == [("127.0.0.1", 3)]
        async with wired(port, "127.0.0.2") as other:
            await other.send(request(QUERY))
            assert await other.answer() == OK
        await kept.send(request(QUERY))
        assert await kept.answer() == OK
        silent.writer.close()
        for _ in range(3):  # the place is free again, and again
            await until(partial(is_answered, port))
        await slow.send(request(QUERY)[len(HEAD) :])
        assert await slow.answer() == OK


def test_a_server_may_have_more_files_open_than_one_address_has_connections() -> None:
    code = """
import resource
from signoff.listening import FILES, allow_files
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
allow_files()
print(resource.getrlimit(resource.RLIMIT_NOFILE) == (min(FILES, hard), hard))
"""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "True\n"


async def is_answered(port: int) -> bool:
    async with wired(port) as wire:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await wire.send(request(QUERY))
            return await wire.answer() == OK
    return False


async def test_with_a_limit_of_none_an_address_has_as_many_as_it_likes(
    database_url: str, tmp_path: Path
) -> None:
    app = create_app(settings_for(database_url, tmp_path))
    async with listening(app, "127.0.0.1", 0, SHORT) as port, AsyncExitStack() as stack:
        for _ in range(50):
            wire = await stack.enter_async_context(wired(port))
            await wire.send(request(QUERY))
            assert await wire.answer() == OK


async def test_an_idle_connection_is_closed_when_the_server_stops(
    database_url: str, tmp_path: Path
) -> None:
    app = create_app(settings_for(database_url, tmp_path))
    async with listening(app, "127.0.0.1", 0, SHORT) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await Wire(reader, writer).send(request(QUERY))
        assert await Wire(reader, writer).answer() == OK
    assert await Wire(reader, writer).rest() == b""
    writer.close()
    assert app[VIEW].sessions.stopping
