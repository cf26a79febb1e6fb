"""A document is parsed and validated once; what is wrong with it is told each time."""

from __future__ import annotations

import json
from io import BytesIO

import pytest
from strawberry.subscriptions import GRAPHQL_TRANSPORT_WS_PROTOCOL

from tests.support.graphql import Json, answer
from tests.support.running import Client

WRONG = "{ viewer { nothing } } # of this kind"
TOLD = {
    "message": "Cannot query field 'nothing' on type 'Viewer'.",
    "locations": [{"line": 1, "column": 12}],
    "extensions": {"code": "GRAPHQL_ERROR"},
}


@pytest.fixture
def database_kind() -> str:
    """None of this depends on the database."""
    return "sqlite"


async def test_a_mistake_is_told_the_same_way_each_time(client: Client) -> None:
    for _ in range(3):
        assert await answer(client, WRONG) == {"errors": [TOLD]}


async def test_a_mistake_is_told_the_same_way_over_a_websocket(client: Client) -> None:
    protocols = [GRAPHQL_TRANSPORT_WS_PROTOCOL]
    async with client.ws_connect("/graphql", protocols=protocols) as socket:
        await socket.send_json({"type": "connection_init"})
        assert (await socket.receive_json())["type"] == "connection_ack"
        for id in ("1", "2"):
            payload = {"query": WRONG}
            await socket.send_json({"id": id, "type": "subscribe", "payload": payload})
            assert await socket.receive_json() == {"id": id, "type": "error", "payload": [TOLD]}
        for id in ("3", "4"):
            payload = {"query": "{ viewer {"}
            await socket.send_json({"id": id, "type": "subscribe", "payload": payload})
            told = await socket.receive_json()
            assert told["payload"][0]["message"] == "Syntax Error: Expected Name, found <EOF>."
            assert told["payload"][0]["extensions"] == {"code": "GRAPHQL_ERROR"}


async def test_a_document_that_cannot_be_parsed_is_told_each_time(client: Client) -> None:
    for _ in range(2):
        body = await answer(client, "{ viewer {")
        (error,) = body["errors"]
        assert error["message"] == "Syntax Error: Expected Name, found <EOF>."
        assert error["extensions"] == {"code": "GRAPHQL_ERROR"}


async def test_one_document_answers_each_of_its_operations(client: Client) -> None:
    query = "query A { viewer { id } } query B { viewer { name } }"
    for name, expected in (("A", {"id": "local"}), ("B", {"name": "Local admin"})):
        for _ in range(2):
            assert await named(client, query, name) == {"data": {"viewer": expected}}


async def test_one_document_answers_by_its_variables(client: Client) -> None:
    query = "query($id: Boolean!) { viewer { id @include(if: $id) name @skip(if: $id) } }"
    assert await answer(client, query, id=True) == {"data": {"viewer": {"id": "local"}}}
    assert await answer(client, query, id=False) == {"data": {"viewer": {"name": "Local admin"}}}


async def named(client: Client, query: str, name: str) -> Json:
    body = json.dumps({"query": query, "operationName": name}).encode()
    headers = {"Content-Type": "application/json"}
    async with client.post("/graphql", data=BytesIO(body), headers=headers) as response:
        assert response.headers["Content-Type"] == "application/json; charset=utf-8"
        return await response.json()
