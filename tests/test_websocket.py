"""graphql-transport-ws under clients that mean no good, or know no better."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientWebSocketResponse, WSMessage, WSMsgType

from models import Role
from signoff.app import VIEW, create_app
from signoff.frames import MAX_ID, MAX_REASON
from signoff.websocket import LIMITS, SocketLimits
from tests.support.graphql import Json, gql, make_key, mutation, new_job, revoke_key
from tests.support.making import holds
from tests.support.running import AiohttpClient, Client, settings_for
from tests.support.sockets import PROTOCOL, Socket, connected

CHANGES = "subscription { jobStatusChanged { cursor } }"
VIEWER = "{ viewer { id } }"
INIT = '{"type": "connection_init"}'


@pytest.fixture
def database_kind() -> str:
    """None of this depends on the database."""
    return "sqlite"


@asynccontextmanager
async def opened(
    client: Client, *protocols: str, **headers: str
) -> AsyncGenerator[ClientWebSocketResponse]:
    async with client.ws_connect(
        "/graphql", protocols=protocols or (PROTOCOL,), headers=headers
    ) as ws:
        yield ws


async def end_of(ws: ClientWebSocketResponse) -> tuple[int | None, str]:
    """How the server closes it: code and reason."""
    while (message := await ws.receive(timeout=20)).type is WSMsgType.TEXT:
        pass
    assert message.type is WSMsgType.CLOSE, message
    return message.data, message.extra or ""


async def end_after(client: Client, *frames: str | bytes, init: bool = True) -> tuple[Any, str]:
    async with opened(client) as ws:
        if init:
            await ws.send_str(INIT)
            assert await ws.receive_json(timeout=20) == {"type": "connection_ack"}
        for frame in frames:
            await (ws.send_bytes(frame) if isinstance(frame, bytes) else ws.send_str(frame))
        return await end_of(ws)


def subscribe(**payload: object) -> str:
    return json.dumps({"id": "1", "type": "subscribe", "payload": payload})


# Frames that are no messages

NOT_JSON = "This is not JSON."
NO_OBJECT = "A message must be a JSON object."
NO_TYPE = "The message's `type` is not one of graphql-transport-ws."
NO_ID = f"The message's `id` must be a string of 1 to {MAX_ID} characters."
NO_PAYLOAD = "The message's `payload` must be an object or null, if provided."
NO_REQUEST = "This must be a JSON object with a `query`."
MALFORMED = {
    "": NOT_JSON,
    "x": NOT_JSON,
    "{": NOT_JSON,
    '{"type": "ping"}{"type": "ping"}': NOT_JSON,
    '{"type": "ping", "payload": {"x": NaN}}': NOT_JSON,
    '{"type": "ping", "payload": {"x": 1e999}}': NOT_JSON,
    '{"type": "ping", "payload": {"x": ' + "9" * 5000 + "}}": NOT_JSON,
    '{"type": "ping", "x": "\\ud800"}': NOT_JSON,
    "[" * 15_000: NOT_JSON,
    '{"a":' * 3_000: NOT_JSON,
    "null": NO_OBJECT,
    "7": NO_OBJECT,
    "true": NO_OBJECT,
    '"ping"': NO_OBJECT,
    "[]": NO_OBJECT,
    '[{"type": "ping"}]': NO_OBJECT,
    "{}": NO_TYPE,
    '{"type": null}': NO_TYPE,
    '{"type": 7}': NO_TYPE,
    '{"type": ["ping"]}': NO_TYPE,
    '{"type": {}}': NO_TYPE,
    '{"type": "start"}': NO_TYPE,
    '{"type": "' + "é" * 500 + '"}': NO_TYPE,
    '{"type": "connection_ack"}': NO_TYPE,
    '{"type": "next", "id": "1", "payload": {}}': NO_TYPE,
    '{"type": "ping", "payload": 7}': NO_PAYLOAD,
    '{"type": "pong", "payload": []}': NO_PAYLOAD,
    '{"type": "complete"}': NO_ID,
    '{"type": "complete", "id": []}': NO_ID,
    '{"type": "complete", "id": {"a": 1}}': NO_ID,
    '{"type": "complete", "id": 7}': NO_ID,
    '{"type": "complete", "id": ""}': NO_ID,
    '{"type": "subscribe", "payload": {"query": "{ viewer { id } }"}}': NO_ID,
    json.dumps({"type": "complete", "id": "x" * (MAX_ID + 1)}): NO_ID,
    '{"type": "subscribe", "id": [1], "payload": {"query": "{ viewer { id } }"}}': NO_ID,
    '{"type": "subscribe", "id": "1"}': NO_REQUEST,
    '{"type": "subscribe", "id": "1", "payload": null}': NO_REQUEST,
    '{"type": "subscribe", "id": "1", "payload": "x"}': NO_REQUEST,
    '{"type": "subscribe", "id": "1", "payload": {}}': "There is no `query`.",
    subscribe(query=7): "The operation's `query` must be a string or null, if provided.",
    subscribe(query=VIEWER, variables=[]): (
        "The operation's `variables` must be an object or null, if provided."
    ),
    subscribe(query=VIEWER, operationName="x" * 257): (
        "An `operationName` has at most 256 characters."
    ),
    subscribe(query=VIEWER, operationName=["x"]): (
        "The operation's `operationName` must be a string or null, if provided."
    ),
    '{"type": "subscribe", "id": "1", "payload": [{"query": "{ viewer { id } }"}]}': (
        "Several operations in one request are not taken: send one."
    ),
}


async def test_what_is_no_message_is_closed_with_4400_and_why(client: Client) -> None:
    for frame, why in MALFORMED.items():
        assert await end_after(client, frame) == (4400, why), frame[:80]
        assert len(why.encode()) <= MAX_REASON
    assert (await gql(client, VIEWER))["viewer"] == {"id": "local"}


async def test_it_is_so_before_the_introduction_too(client: Client) -> None:
    for frame, why in MALFORMED.items():
        assert await end_after(client, frame, init=False) == (4400, why), frame[:80]


async def test_a_binary_frame_is_closed_with_4400(client: Client) -> None:
    why = "A message must be a text frame."
    assert await end_after(client, INIT.encode()) == (4400, why)
    assert await end_after(client, INIT.encode(), init=False) == (4400, why)


async def test_a_text_frame_that_is_not_utf8_is_closed_with_1007(client: Client) -> None:
    async with opened(client) as ws:
        await ws.send_frame(b'{"type": "\xff"}', WSMsgType.TEXT)
        assert (await end_of(ws))[0] == 1007


async def test_a_message_over_the_size_is_closed_with_1009(client: Client) -> None:
    assert (await end_after(client, " " * 2_097_152))[0] == 1009
    assert (await end_after(client, " " * 2_097_151))[0] == 4400


async def test_who_is_not_introduced_sends_no_large_message(client: Client) -> None:
    fits = json.dumps({"type": "connection_init", "payload": {"x": ""}})
    fits = fits.replace('""', f'"{"x" * (16_384 - len(fits))}"')
    why = "Send connection_init first: that was too large for it."
    assert await end_after(client, f"{fits} ", init=False) == (1009, why)
    async with opened(client) as ws:
        await ws.send_str(fits)
        assert await ws.receive_json(timeout=20) == {"type": "connection_ack"}


async def test_a_message_has_so_many_arrays_and_objects(client: Client) -> None:
    why = "This has more than 50000 arrays and objects."
    assert await end_after(client, f"[{'[],' * 50_000}[]]") == (4400, why)
    assert await end_after(client, "[" * 100_000) == (4400, why)


async def test_a_reason_never_exceeds_what_a_frame_holds(client: Client) -> None:
    id = "é" * MAX_ID
    taken = json.dumps({"id": id, "type": "subscribe", "payload": {"query": CHANGES}})
    code, why = await end_after(client, taken, taken)
    assert (code, why) == (4409, f"Subscriber for {'é' * 54}")
    assert len(why.encode()) <= MAX_REASON


# The introduction


async def test_a_payload_of_null_is_none(client: Client) -> None:
    for payload in ("null", "{}", '{"x": [1]}'):
        async with opened(client) as ws:
            await ws.send_str(f'{{"type": "connection_init", "payload": {payload}}}')
            assert await ws.receive_json(timeout=20) == {"type": "connection_ack"}
    for payload in ("7", "[]", '"x"', "false"):
        frame = f'{{"type": "connection_init", "payload": {payload}}}'
        assert await end_after(client, frame, init=False) == (4400, NO_PAYLOAD)


async def test_a_second_introduction_is_closed_with_4429(client: Client) -> None:
    assert await end_after(client, INIT) == (4429, "Too many initialisation requests")


async def test_an_operation_before_it_is_closed_with_4401(client: Client) -> None:
    code, why = await end_after(client, subscribe(query=VIEWER), init=False)
    assert (code, why) == (4401, "Unauthorized: send connection_init first.")


async def test_a_bad_key_is_closed_with_4403_and_why(client: Client, database_url: str) -> None:
    await make_key(database_url, "Mia", Role.MEMBER)
    frame = '{"type": "connection_init", "payload": {"Authorization": "Bearer signoff_x"}}'
    why = "Forbidden: The API key is unknown, revoked or expired."
    assert await end_after(client, frame, init=False) == (4403, why)
    assert (await end_after(client, INIT, init=False))[0] == 4403


async def test_pings_are_answered_before_and_after(client: Client) -> None:
    async with opened(client) as ws:
        for frame in ('{"type": "ping"}', '{"type": "ping", "payload": {"x": 1}}', INIT):
            await ws.send_str('{"type": "pong"}')
            await ws.send_str(frame)
        await ws.send_str('{"type": "ping", "payload": null}')
        told = [(await ws.receive_json(timeout=20))["type"] for _ in range(4)]
        assert told == ["pong", "pong", "connection_ack", "pong"]


async def test_pings_do_not_put_the_introduction_off(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    client = await limited(database_url, tmp_path, aiohttp_client, init_seconds=0.2)
    async with opened(client) as ws:
        await ws.send_str('{"type": "ping"}')
        assert await end_of(ws) == (4408, "Connection initialisation timeout")


# Operations


async def limited(
    database_url: str, folder: Path, aiohttp_client: AiohttpClient, **limits: Any
) -> Client:
    app = create_app(settings_for(database_url, folder))
    app[LIMITS] = SocketLimits(**limits)
    return await aiohttp_client(app)


async def error_of(socket: Socket, id: str) -> Json:
    message = await socket.receive()
    assert (message["type"], message["id"]) == ("error", id), message
    (error,) = message["payload"]
    return error


async def test_an_id_in_use_is_closed_with_4409(client: Client) -> None:
    frame = subscribe(query=CHANGES)
    assert await end_after(client, frame, frame) == (4409, "Subscriber for 1 already exists")


async def test_an_id_is_free_again_when_its_operation_has_ended(client: Client) -> None:
    async with connected(client) as socket:
        for _ in range(3):
            await socket.ws.send_str(subscribe(query=VIEWER))
            assert await socket.next("1") == {"data": {"viewer": {"id": "local"}}}
            assert await socket.receive() == {"type": "complete", "id": "1"}
        await socket.ws.send_str(subscribe(query=CHANGES))
        await socket.send({"type": "complete", "id": "1"})
        await socket.ws.send_str(subscribe(query=VIEWER))
        assert await socket.next("1") == {"data": {"viewer": {"id": "local"}}}


async def test_what_ends_an_unknown_operation_is_let_pass(client: Client) -> None:
    async with connected(client) as socket:
        await socket.send({"type": "complete", "id": "nothing"})
        await socket.ping()


BAD = {
    "{": "Syntax Error: Expected Name, found <EOF>.",
    "{ nonsense }": "Cannot query field 'nonsense' on type 'Query'.",
    "subscription { nonsense }": "Cannot query field 'nonsense' on type 'Subscription'.",
    "fragment F on Job { id }": (
        "Say by operationName which: the document has several operations, or none."
    ),
    "query A { viewer { id } } query B { viewer { id } }": (
        "Say by operationName which: the document has several operations, or none."
    ),
    "query($id: ID!) { node(id: $id) { id } }": (
        "Variable '$id' has invalid value: Expected a value of non-null type 'ID!' to be provided."
    ),
}


async def test_one_bad_operation_never_takes_the_socket(client: Client) -> None:
    async with connected(client) as socket:
        live = await socket.subscribe(CHANGES)
        await socket.ping()
        for query, message in BAD.items():
            error = await error_of(socket, await socket.subscribe(query))
            assert (error["message"], error["extensions"]) == (message, {"code": "GRAPHQL_ERROR"})
        await socket.send(
            {
                "id": "named",
                "type": "subscribe",
                "payload": {"query": "query A { viewer { id } }", "operationName": "B"},
            }
        )
        error = await error_of(socket, "named")
        assert error["message"] == "The document has no operation “B”."
        await new_job(client)
        assert "jobStatusChanged" in (await socket.next(live))["data"]


async def test_deep_variables_and_huge_numbers_are_that_operations_error(client: Client) -> None:
    query = "query($where: JobFilter) { jobs(where: $where) { totalCount } }"
    async with connected(client) as socket:
        for depth in (20, 200, 900):
            nested = '{"not":' * depth + "{}" + "}" * depth
            frame = subscribe(query=query, variables={"where": 0}).replace("0}", nested + "}")
            await socket.ws.send_str(frame)
            message = await socket.receive()
            if message["type"] == "next":
                assert (await socket.receive())["type"] == "complete"
                message = message["payload"] | {"payload": message["payload"]["errors"]}
            (error,) = message["payload"]
            assert error["extensions"]["code"] != "INTERNAL", (depth, error)
        number = "query($n: Int) { jobs(first: $n) { totalCount } }"
        frame = subscribe(query=number, variables={"n": 0}).replace("0}", "9" * 40 + "}")
        await socket.ws.send_str(frame)
        error = await error_of(socket, "1")
        assert "Int cannot represent non 32-bit signed integer value" in error["message"]
        await socket.ping()


async def test_a_socket_has_so_many_operations_at_once(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    client = await limited(database_url, tmp_path, aiohttp_client, max_operations=2)
    async with connected(client) as socket:
        for _ in range(2):
            await socket.subscribe(CHANGES)
        refused = await socket.subscribe(VIEWER)
        error = await error_of(socket, refused)
        assert error["message"] == "This socket has 2 operations under way."
        assert error["extensions"] == {"code": "LIMIT_EXCEEDED"}
        await socket.send({"type": "complete", "id": "1"})
        await socket.ping()
        again = await socket.subscribe(VIEWER)
        assert await socket.next(again) == {"data": {"viewer": {"id": "local"}}}


async def test_a_mutation_that_is_cut_off_is_done_and_hangs_nothing(client: Client) -> None:
    given = {"input": {"name": "x", "acceptanceCriteria": {"text": "y"}}}
    for _ in range(10):
        async with connected(client) as socket:
            for _ in range(5):
                id = await socket.subscribe(mutation("createJob"), **given)
                await socket.send({"type": "complete", "id": id})
    assert (await gql(client, "{ jobs { totalCount } }"))["jobs"]["totalCount"] <= 50
    await new_job(client)


async def test_a_client_that_answers_no_ping_is_gone(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    client = await limited(database_url, tmp_path, aiohttp_client, heartbeat_seconds=0.2)
    async with client.ws_connect("/graphql", protocols=(PROTOCOL,), autoping=False) as ws:
        await ws.send_str(INIT)
        seen: list[WSMsgType] = []
        while WSMsgType.CLOSED not in seen:
            message: WSMessage = await ws.receive(timeout=20)
            seen.append(message.type)
        assert seen[:2] in (
            [WSMsgType.TEXT, WSMsgType.PING],
            [WSMsgType.PING, WSMsgType.TEXT],
        )
        assert ws.close_code == 1006


# The handshake


async def test_only_graphql_transport_ws_is_spoken(client: Client) -> None:
    for protocols in (("graphql-ws",), ("x", "graphql-ws"), ("GRAPHQL-TRANSPORT-WS",)):
        async with opened(client, *protocols) as ws:
            assert ws.protocol is None
            assert (await end_of(ws))[0] == 4406
    async with opened(client, "graphql-ws", PROTOCOL) as ws:
        assert ws.protocol == PROTOCOL


async def test_a_handshake_that_is_none_is_refused_in_json(client: Client) -> None:
    for headers in (
        {"Upgrade": "websocket"},
        {"Upgrade": "websocket", "Connection": "upgrade"},
        {"Upgrade": "WebSocket", "Connection": "upgrade", "Sec-WebSocket-Version": "1"},
    ):
        async with client.get("/graphql", headers=headers) as got:
            (error,) = (await got.json())["errors"]
            assert (got.status, error["extensions"]) == (400, {"code": "HTTP_400"})


async def test_nothing_is_negotiated_that_inflates(client: Client) -> None:
    async with client.ws_connect("/graphql", protocols=(PROTOCOL,), compress=15) as ws:
        assert ws.compress == 0


# Authorisation


async def test_each_operation_is_authorised_afresh(client: Client, database_url: str) -> None:
    client.app[VIEW].sessions.watch_seconds = 3600
    key = await make_key(database_url, "Mia", Role.MEMBER)
    async with connected(client, {"Authorization": f"Bearer {key}"}) as socket:
        id = await socket.subscribe(VIEWER)
        assert await socket.next(id) == {"data": {"viewer": {"id": "Mia"}}}
        assert (await socket.receive())["type"] == "complete"
        await revoke_key(database_url, key)
        await socket.subscribe(VIEWER)
        assert await end_of(socket.ws) == (
            4403,
            "Forbidden: The API key is unknown, revoked or expired.",
        )
    await holds(lambda: len(client.app[VIEW].sessions) == 0)
