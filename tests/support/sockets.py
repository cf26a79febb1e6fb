"""Subscriptions as clients hold them: graphql-transport-ws, and SSE."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import orjson
from aiohttp import ClientResponse, ClientWebSocketResponse

from tests.support.graphql import Json
from tests.support.running import Client

PROTOCOL = "graphql-transport-ws"
SECONDS = 20
"""Longest wait for what must come."""


@dataclass
class Socket:
    """One WebSocket with any number of operations."""

    ws: ClientWebSocketResponse
    ids: count[int]

    async def send(self, message: object) -> None:
        await self.ws.send_str(orjson.dumps(message).decode())

    async def receive(self) -> Json:
        """The next message; answers to pings are not ours to look at."""
        return await self.ws.receive_json(timeout=SECONDS)

    async def subscribe(self, query: str, **variables: Any) -> str:
        """The id of a subscription that is under way when the server has answered a ping."""
        id = str(next(self.ids))
        payload = {"query": query, "variables": variables}
        await self.send({"id": id, "type": "subscribe", "payload": payload})
        return id

    async def next(self, id: str) -> Json:
        """The next result of an operation, which must not be its end."""
        message = await self.receive()
        assert (message["type"], message["id"]) == ("next", id), message
        return message["payload"]

    async def ping(self) -> None:
        """Return when the server has read all that was sent before."""
        await self.send({"type": "ping"})
        assert (await self.receive()) == {"type": "pong"}

    async def closed(self) -> int | None:
        """How the server closed it."""
        async with asyncio.timeout(SECONDS):
            while not self.ws.closed:
                await self.ws.receive()
        return self.ws.close_code


@asynccontextmanager
async def connected(
    client: Client,
    payload: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> AsyncGenerator[Socket]:
    """A socket that introduced itself and was let in."""
    async with client.ws_connect("/graphql", protocols=(PROTOCOL,), headers=headers) as ws:
        socket = Socket(ws, count(1))
        await socket.send({"type": "connection_init"} | ({"payload": payload} if payload else {}))
        assert (await socket.receive())["type"] == "connection_ack"
        yield socket


@dataclass
class Stream:
    """One Server-Sent Events answer."""

    response: ClientResponse

    async def event(self) -> tuple[str, Json | None]:
        """The next event's name and data; comments are skipped."""
        name, data = "", None
        async with asyncio.timeout(SECONDS):
            while line := (await self.response.content.readline()).decode():
                field, _, value = line.strip().partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    data = orjson.loads(value) if value else None
                elif not field and name:
                    return name, data
        return "", None

    async def next(self) -> Json:
        name, data = await self.event()
        assert name == "next", (name, data)
        assert data is not None
        return data


@asynccontextmanager
async def streaming(
    client: Client, query: str, key: str | None = None, /, **variables: Any
) -> AsyncGenerator[Stream]:
    headers = {"Accept": "text/event-stream"} | ({"Authorization": f"Bearer {key}"} if key else {})
    body = {"query": query, "variables": variables}
    async with await client.post("/graphql", json=body, headers=headers) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        yield Stream(response)
