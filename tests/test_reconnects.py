"""Connections that break at random while jobs run: no listener misses or repeats anything.

For minutes by hand: `RECONNECT_SECONDS=300 RECONNECT_SEED=7 pytest -s tests/test_reconnects.py`.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from tests.fakes.agents import fake_agent
from tests.support.load import loaded
from tests.support.making import says_ok, until
from tests.support.server import Server, serving

SECONDS = float(os.environ.get("RECONNECT_SECONDS", "15"))
SEED = int(os.environ.get("RECONNECT_SEED") or random.SystemRandom().randrange(10**6))
START = "MA"
EVENTS = """subscription($after: EventCursor) { jobEvents(after: $after) {
    cursor gap events { cursor job { id } payload } } }"""
CHANGES = """subscription($after: EventCursor) {
    jobStatusChanged(after: $after) { cursor job { id } } }"""
LOG = """query($after: EventCursor) { jobLogs(first: 100, after: $after) {
    nodes { cursor type } pageInfo { hasNextPage endCursor } } }"""
Json = dict[str, Any]


@dataclass
class Listener:
    """Goes on after the last cursor that it has, on any server, by either transport."""

    servers: list[Server]
    chance: random.Random
    query: str
    heard: list[str] = field(default_factory=list[str])
    cursor: str = START
    drops: int = 0
    steady: bool = False

    async def listen(self) -> None:
        while True:
            seconds = None if self.steady else self.chance.expovariate(2)
            connector = aiohttp.TCPConnector()
            async with aiohttp.ClientSession(connector=connector) as session:
                with suppress(TimeoutError, aiohttp.ClientError):
                    async with asyncio.timeout(seconds):
                        await self._connected(session)
                await connector.close()  # without a word of farewell
            self.drops += 1

    async def _connected(self, session: aiohttp.ClientSession) -> None:
        url = f"{self.chance.choice(self.servers).url}/graphql"
        stream = self.chance.choice((self._socket, self._stream))
        async with stream(session, url) as payloads:
            async for payload in payloads:
                self._take(payload)

    def _take(self, payload: Json) -> None:
        assert "errors" not in payload, payload
        (told,) = payload["data"].values()
        for each in told.get("events", [told]):
            self.heard.append(each["cursor"])
        assert not told.get("gap")
        self.cursor = told["cursor"]

    @property
    def _payload(self) -> Json:
        return {"query": self.query, "variables": {"after": self.cursor}}

    @asynccontextmanager
    async def _socket(
        self, session: aiohttp.ClientSession, url: str
    ) -> AsyncGenerator[AsyncGenerator[Json]]:
        async with session.ws_connect(url, protocols=("graphql-transport-ws",)) as ws:
            await ws.send_json({"type": "connection_init"})
            assert (await ws.receive_json())["type"] == "connection_ack"
            await ws.send_json({"id": "1", "type": "subscribe", "payload": self._payload})

            async def payloads() -> AsyncGenerator[Json]:
                async for message in ws:
                    told = message.json()
                    assert told["type"] == "next", told
                    yield told["payload"]

            yield payloads()

    @asynccontextmanager
    async def _stream(
        self, session: aiohttp.ClientSession, url: str
    ) -> AsyncGenerator[AsyncGenerator[Json]]:
        headers = {"Accept": "text/event-stream"}
        async with session.post(url, json=self._payload, headers=headers) as response:

            async def payloads() -> AsyncGenerator[Json]:
                async for line in response.content:
                    if line.startswith(b"data: {") and line.endswith(b"\n"):
                        yield orjson.loads(line.removeprefix(b"data: "))

            yield payloads()


async def log_of(server: Server) -> list[tuple[str, str]]:
    """The cursors and types of all entries."""
    found: list[tuple[str, str]] = []
    after = None
    while True:
        page = (await server.graphql(LOG, after=after))["jobLogs"]
        found += [(node["cursor"], node["type"]) for node in page["nodes"]]
        after = page["pageInfo"]["endCursor"]
        if not page["pageInfo"]["hasNextPage"]:
            return found


@asynccontextmanager
async def servers_on(database_url: str, folder: Path) -> AsyncGenerator[list[Server]]:
    """One on SQLite, two on Postgres."""
    count = 1 if database_url.startswith("sqlite") else 2
    async with AsyncExitStack() as stack:
        servers: list[Server] = []
        for number in range(count):
            place = folder / str(number)
            place.mkdir()
            key = {"SIGNOFF_KEY_FILE": str(folder / "signoff.key")}
            servers.append(await stack.enter_async_context(serving(database_url, place, **key)))
        yield servers


@pytest.mark.timeout(SECONDS + 180)
async def test_listeners_whose_connections_break_hear_everything_once_and_in_order(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(SEED)  # noqa: S311
    async with servers_on(database_url, tmp_path) as servers, fake_agent(says_ok) as endpoint:
        listeners = [
            Listener(servers, random.Random(chance.random()), query)  # noqa: S311
            for query in (EVENTS, CHANGES) * 4
        ]
        tasks = [asyncio.create_task(each.listen()) for each in listeners]
        async with loaded(servers[0], endpoint.url, 3) as load:
            await asyncio.wait(tasks, timeout=SECONDS)
        await load.all_completed()
        written = await log_of(servers[0])
        expected = {
            EVENTS: [cursor for cursor, _ in written],
            CHANGES: [cursor for cursor, type in written if type == "STATUS_CHANGE"],
        }
        for each in listeners:
            each.steady = True

        async def all_heard() -> bool:
            return all(len(each.heard) >= len(expected[each.query]) for each in listeners)

        await until(all_heard, 60)
        for task in tasks:
            assert not task.done(), task
            task.cancel()
        await asyncio.wait(tasks)
    for each in listeners:
        assert each.heard == expected[each.query]
    with capsys.disabled():
        print(  # noqa: T201 - for a person to see
            f"\nseed {SEED}: {len(servers)} server(s), {len(load.jobs)} jobs, "
            f"{len(written)} entries, {len(listeners)} listeners, "
            f"{sum(each.drops for each in listeners)} broken connections; "
            f"each heard every event exactly once and in order"
        )
    assert all(each.drops for each in listeners)
