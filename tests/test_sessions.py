"""Connections that stay open: whose they are, how many, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import WSMsgType, WSServerHandshakeError
from tortoise import connections

from models import ApiKey, Role
from services import keys
from services.actors import LOCAL_ADMIN, Viewer
from signoff import database
from signoff.app import VIEW, create_app
from signoff.sessions import CLOSE_SECONDS, WATCH_SECONDS, Sessions
from tests.support.graphql import Json, beside, gql, make_key, new_job, revoke_key
from tests.support.making import holds
from tests.support.running import AiohttpClient, Client, settings_for
from tests.support.sockets import PROTOCOL, Socket, connected, streaming

CHANGES = "subscription { jobStatusChanged { cursor job { id } } }"
VIEWER = "{ viewer { id } }"
REVOKED = "The key was revoked, or is needed now."
CHANGED = "The key's role has changed; connect again."


@pytest.fixture
def database_kind() -> str:
    """All but the watch is without the database; that is tested on both."""
    return "sqlite"


both = pytest.mark.parametrize("database_kind", ["sqlite", "postgres"], indirect=True)


def sessions(client: Client) -> Sessions:
    return client.app[VIEW].sessions


async def limited(
    database_url: str, folder: Path, aiohttp_client: AiohttpClient, **limits: int
) -> Client:
    return await aiohttp_client(create_app(settings_for(database_url, folder, **limits)))


def bearer(key: str) -> Json:
    return {"Authorization": f"Bearer {key}"}


async def ended(socket: Socket) -> tuple[int, str]:
    async with asyncio.timeout(20):
        while (message := await socket.ws.receive()).type is WSMsgType.TEXT:
            pass
    return message.data, message.extra or ""


async def change_role(database_url: str, name: str, role: Role) -> None:
    async def change() -> None:
        async with database.connected(database_url):
            await ApiKey.filter(name=name).update(role=role)

    await beside(change())


# Keys that end


@both
async def test_a_revoked_keys_sockets_are_closed_and_no_others(
    client: Client, database_url: str
) -> None:
    mia = await make_key(database_url, "Mia", Role.MEMBER)
    ada = await make_key(database_url, "Ada", Role.ADMIN)
    async with AsyncExitStack() as stack:
        mias = [await stack.enter_async_context(connected(client, bearer(mia))) for _ in range(3)]
        adas = await stack.enter_async_context(connected(client, bearer(ada)))
        for socket in (*mias, adas):
            await socket.subscribe(CHANGES)
        await revoke_key(database_url, mia)
        assert [await ended(socket) for socket in mias] == [(4403, REVOKED)] * 3
        await new_job(client, ada)
        assert "jobStatusChanged" in (await adas.next("1"))["data"]
        assert (await gql(client, VIEWER, ada)) == {"viewer": {"id": "Ada"}}


@both
async def test_a_changed_role_closes_its_sockets(client: Client, database_url: str) -> None:
    key = await make_key(database_url, "Mia", Role.ADMIN)
    async with connected(client, bearer(key)) as socket:
        await change_role(database_url, "Mia", Role.VIEWER)
        assert await ended(socket) == (4403, CHANGED)
    async with connected(client, bearer(key)) as socket:
        id = await socket.subscribe("{ viewer { role } }")
        assert await socket.next(id) == {"data": {"viewer": {"role": "VIEWER"}}}


@both
async def test_a_role_that_was_higher_for_a_moment_leaves_no_subscription_behind(
    client: Client, database_url: str
) -> None:
    """The watch sees the role as it was before: what is asked for meanwhile must not be by it."""
    sessions(client).watch_seconds = 3600
    mia = await make_key(database_url, "Mia", Role.MEMBER)
    ada = await make_key(database_url, "Ada", Role.ADMIN)
    async with connected(client, bearer(mia)) as socket, streaming(client, CHANGES, mia) as stream:
        await socket.subscribe(CHANGES)
        await change_role(database_url, "Mia", Role.ADMIN)
        await socket.subscribe(CHANGES)
        assert await ended(socket) == (4403, f"Forbidden: {CHANGED}")
        await change_role(database_url, "Mia", Role.MEMBER)
        await sessions(client).check()
        await new_job(client, ada)
        made = await new_job(client, mia)
        (told,) = (await stream.next())["data"].values()
        assert told["job"]["id"] == made["id"]


async def test_the_first_key_ends_what_was_open_without_one(
    client: Client, database_url: str
) -> None:
    async with connected(client) as socket, streaming(client, CHANGES) as stream:
        await make_key(database_url, "Ada", Role.ADMIN)
        assert await ended(socket) == (4403, REVOKED)
        (error,) = (await stream.next())["errors"]
        assert (error["message"], error["extensions"]) == (REVOKED, {"code": "UNAUTHENTICATED"})
        assert (await stream.event())[0] == "complete"


async def test_a_revoked_keys_streams_end_with_an_error(client: Client, database_url: str) -> None:
    key = await make_key(database_url, "Mia", Role.MEMBER)
    async with streaming(client, CHANGES, key) as stream:
        await revoke_key(database_url, key)
        (error,) = (await stream.next())["errors"]
        assert (error["message"], error["extensions"]) == (REVOKED, {"code": "UNAUTHENTICATED"})
        assert (await stream.event())[0] == "complete"
        assert await stream.response.content.read() == b""
    await holds(lambda: len(sessions(client)) == 0)


async def test_all_keys_are_looked_at_in_one_query(
    client: Client, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions(client).watch_seconds = 3600
    made = [await make_key(database_url, f"user {n}", Role.MEMBER) for n in range(5)]
    asked: list[set[str | None]] = []
    current = sessions(client).gate.current

    async def seen(held: Mapping[str | None, Viewer]) -> Any:
        asked.append(set(held))
        return await current(held)

    async with AsyncExitStack() as stack:
        for key in made * 3:
            await stack.enter_async_context(connected(client, bearer(key)))
        monkeypatch.setattr(sessions(client).gate, "current", seen)
        monkeypatch.setattr(sessions(client), "watch_seconds", 0.01)
        await sessions(client).check()
        assert asked == [{f"Bearer {key}" for key in made}]


async def test_a_revoked_key_is_closed_within_five_seconds(client: Client) -> None:
    """What the watch waits, its query, and a client that does not agree to the end."""
    query_seconds = 0.5
    assert sessions(client).watch_seconds == WATCH_SECONDS
    assert WATCH_SECONDS + query_seconds + 2 * CLOSE_SECONDS <= 5


async def test_many_keys_are_one_query(database_url: str) -> None:
    """As SQLite counts the statements that it is given."""
    made = [await make_key(database_url, f"user {n}", Role.MEMBER) for n in range(5)]

    async def read() -> tuple[list[str], dict[str, str]]:
        statements: list[str] = []
        async with database.connected(database_url):
            connection = connections.get("default")._connection
            await connection.set_trace_callback(statements.append)
            found = await keys.viewers_of([*made, "signoff_wrong"])
            await connection.set_trace_callback(None)
        return statements, {key: viewer.id for key, viewer in found.items()}

    statements, found = await beside(read())
    assert len(statements) == 1
    assert found == {key: f"user {n}" for n, key in enumerate(made)}


# How many


async def test_a_client_has_so_many_connections(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    client = await limited(database_url, tmp_path, aiohttp_client, max_client_connections=2)
    async with connected(client), streaming(client, CHANGES):
        with pytest.raises(WSServerHandshakeError) as refused:
            await client.ws_connect("/graphql", protocols=(PROTOCOL,))
        assert refused.value.status == 429
        headers = {"Accept": "text/event-stream"}
        async with client.post("/graphql", json={"query": CHANGES}, headers=headers) as got:
            (error,) = (await got.json())["errors"]
            assert (got.status, got.headers["Retry-After"]) == (429, "5")
            assert error["message"] == "You have 2 connections open, as many as you may."
            assert error["extensions"] == {"code": "LIMIT_EXCEEDED"}
        assert await gql(client, VIEWER) == {"viewer": {"id": "local"}}
    await holds(lambda: len(sessions(client)) == 0)
    async with connected(client), connected(client):
        pass


async def test_who_has_a_key_is_counted_by_it_and_not_by_the_address(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    client = await limited(database_url, tmp_path, aiohttp_client, max_client_connections=1)
    mia = await make_key(database_url, "Mia", Role.MEMBER)
    ada = await make_key(database_url, "Ada", Role.ADMIN)
    async with (
        connected(client, bearer(mia)),
        connected(client, bearer(ada)),
        client.ws_connect("/graphql", protocols=(PROTOCOL,)) as ws,
    ):
        await ws.send_json({"type": "connection_init", "payload": bearer(mia)})
        message = await ws.receive(timeout=20)
        why = "You have 1 connections open, as many as you may."
        assert (message.data, message.extra) == (1013, why)


async def test_a_client_has_so_many_operations_over_all_its_connections(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    client = await limited(database_url, tmp_path, aiohttp_client, max_client_operations=3)
    async with connected(client) as one, connected(client) as two, streaming(client, CHANGES):
        for socket in (one, two):
            await socket.subscribe(CHANGES)
            await socket.ping()
        id = await two.subscribe(VIEWER)
        message = await two.receive()
        assert (message["type"], message["id"]) == ("error", id)
        (error,) = message["payload"]
        assert error["message"] == "You have 3 operations under way, as many as you may."
        assert error["extensions"] == {"code": "LIMIT_EXCEEDED"}
        await one.send({"id": "1", "type": "complete"})
        await one.ping()
        id = await two.subscribe(VIEWER)
        assert await two.next(id) == {"data": {"viewer": {"id": LOCAL_ADMIN.id}}}


# The end


async def test_a_stop_closes_all_at_once_and_takes_no_more(client: Client) -> None:
    async with connected(client) as socket, streaming(client, CHANGES) as stream:
        await socket.subscribe(CHANGES)
        await socket.ping()
        await sessions(client).stop()
        assert await ended(socket) == (1001, "The server is stopping.")
        assert await stream.event() == ("", None)  # not `complete`: it is to be resumed
        with pytest.raises(WSServerHandshakeError) as refused:
            await client.ws_connect("/graphql", protocols=(PROTOCOL,))
        assert refused.value.status == 503
        headers = {"Accept": "text/event-stream"}
        async with client.post("/graphql", json={"query": CHANGES}, headers=headers) as got:
            assert (got.status, got.headers["Retry-After"]) == (503, "1")
        assert await gql(client, VIEWER) == {"viewer": {"id": "local"}}
    assert len(sessions(client)) == 0


LARGE = "{ jobs(first: 10) { nodes { input } } }"


@asynccontextmanager
async def deaf(client: Client, transport: str) -> AsyncGenerator[None]:
    """A client that asks for megabytes and reads none of them, its buffers full."""
    async with AsyncExitStack() as stack:
        if transport == "websocket":
            socket = await stack.enter_async_context(connected(client))
            await socket.subscribe(LARGE)
            response: Any = cast("Any", socket.ws)._response
        else:
            stream = await stack.enter_async_context(streaming(client, LARGE))
            response = stream.response
        transport_of = response.connection.transport
        transport_of.pause_reading()
        yield
        transport_of.abort()


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_who_does_not_read_is_cut_off_all_the_same(client: Client, transport: str) -> None:
    for _ in range(10):
        await new_job(client, input={"x": "y" * 900_000})
    async with deaf(client, transport):
        assert len(sessions(client)) == 1
        await sessions(client).stop()
        await holds(lambda: len(sessions(client)) == 0)
    assert await gql(client, VIEWER) == {"viewer": {"id": "local"}}
