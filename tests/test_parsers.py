"""Whatever a client sends, the parsers answer or refuse: found by hypothesis."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import pytest
from aiohttp import WSMsgType
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from signoff import frames, media
from signoff.asked import Asked, NotAsked, asked, decoded
from signoff.frames import BadFrame, Complete, Init, Ping, Pong, Subscribe
from tests.support.graphql import gql
from tests.support.running import Client
from tests.support.sockets import PROTOCOL

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
TYPES = ("connection_init", "ping", "pong", "subscribe", "complete", "next", "error", "start")
QUERIES = ("{ viewer { id } }", "{", "", "{ nonsense }", "query A { viewer { id } }", "\0")
PAYLOADS = JSON | st.fixed_dictionaries(
    {"query": st.sampled_from(QUERIES) | JSON},
    optional={"variables": JSON, "operationName": JSON, "extensions": JSON},
)
FRAMES = JSON | st.fixed_dictionaries(
    {"type": st.sampled_from(TYPES) | JSON},
    optional={"id": st.sampled_from("12") | JSON, "payload": PAYLOADS},
)
TEXTS = (
    FRAMES.map(json.dumps)
    | st.text()
    | st.builds("{}{}{}".format, st.text("[{:", max_size=2000), st.text(), st.text("]}"))
    | st.integers(0, 60_000).map(lambda depth: '{"type":' * depth)
    | st.integers(1, 6_000).map(
        lambda digits: f'{{"type":"ping","payload":{{"x":{"9" * digits}}}}}'
    )
)
LIVE = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def database_kind() -> str:
    """None of this depends on the database."""
    return "sqlite"


def understood(text: str) -> frames.Message | BadFrame:
    try:
        return frames.parsed(text)
    except BadFrame as error:
        return error


@settings(max_examples=1000, deadline=None)
@given(TEXTS)
@example('{"type": "ping", "payload": {"x": "\\ud800", "n": 1234567890123456789}}')
def test_a_frame_is_a_message_or_a_bad_frame(text: str) -> None:
    message = understood(text)
    if isinstance(message, BadFrame):
        assert 1 <= len(frames.reason(str(message))) <= frames.MAX_REASON
        return
    assert isinstance(message, Init | Ping | Pong | Subscribe | Complete)
    if isinstance(message, Subscribe | Complete):
        assert 1 <= len(message.id) <= frames.MAX_ID
        again = json.loads(frames.next_frame(message.id, b'{"data":null}'))
        assert again == {"type": "next", "id": message.id, "payload": {"data": None}}
        assert json.loads(frames.complete_frame(message.id))["id"] == message.id


@settings(max_examples=1000, deadline=None)
@given(st.binary() | TEXTS.map(str.encode) | PAYLOADS.map(lambda each: json.dumps(each).encode()))
def test_a_body_is_an_operation_or_is_none(body: bytes) -> None:
    try:
        found = asked(decoded(body))
    except NotAsked:
        return
    assert isinstance(found, Asked)
    assert found.query
    assert json.loads(body)["query"] == found.query


@settings(deadline=None)
@given(JSON.filter(lambda value: "NaN" not in json.dumps(value)))
def test_json_is_read_exactly(value: Any) -> None:
    text = json.dumps(value)
    try:
        assert decoded(text) == json.loads(text)
    except NotAsked:
        assert "Infinity" in text


def refusal(text: str) -> str:
    with pytest.raises(NotAsked) as refused:
        decoded(text)
    return str(refused.value)


def test_numbers_are_read_exactly_or_not_at_all() -> None:
    long = "1234567890123456789012"
    assert decoded(f"[{long}, 1.5, 1e300]") == [int(long), 1.5, 1e300]
    assert decoded("9" * 308) == int("9" * 308)
    for beside in ("1e400", "-1e400", "NaN", "Infinity", "9" * 309):
        assert refusal(f"[{long}, {beside}]") == "This is not JSON."
    assert decoded(f'[{long}, "\\ud83d\\ude00"]') == [int(long), "😀"]
    for half in ("\\ud83d", "\\uDE00", "\\ude00\\ud83d"):
        assert refusal(f'[{long}, "{half}"]') == "This is not JSON."


def test_json_has_so_many_arrays_and_objects() -> None:
    assert len(cast("list[Any]", decoded(f"[{'[],' * 49_998}[]]"))) == 49_999
    for text in (f"[{'[],' * 49_999}[]]", "[" * 50_001, f"[{'{},' * 50_000}1]"):
        assert refusal(text) == "This has more than 50000 arrays and objects."


def test_an_operations_name_has_so_many_characters() -> None:
    assert asked({"query": "{ a }", "operationName": "x" * 256}).operation_name == "x" * 256
    with pytest.raises(NotAsked, match="An `operationName` has at most 256 characters"):
        asked({"query": "{ a }", "operationName": "x" * 257})


@settings(deadline=None)
@given(
    st.text() | st.lists(st.sampled_from(["*/*", "application/json", "q=", ";", ","])).map("".join)
)
def test_any_accept_is_understood_or_taken_for_none(accept: str) -> None:
    found = media.wanted(accept)
    assert found.single in {media.Media.JSON, media.Media.GRAPHQL, None}
    assert found.streams >= found.streamed


@given(st.text())
def test_a_reason_fits_its_frame(text: str) -> None:
    reason = frames.reason(text)
    assert len(reason) <= frames.MAX_REASON
    assert text.encode(errors="replace").decode().startswith(reason.decode())


@LIVE
@given(sent=st.lists(TEXTS | st.binary(max_size=50), max_size=6))
async def test_no_frames_crash_a_socket(client: Client, sent: list[str | bytes]) -> None:
    """It ends with a code that says what was wrong, or is as alive as before; never 1006."""
    async with client.ws_connect("/graphql", protocols=(PROTOCOL,)) as ws:
        await ws.send_str('{"type": "connection_init"}')
        for frame in sent:
            if ws.closed:
                break
            text = frame if isinstance(frame, bytes) else frame.encode(errors="replace")
            kind = WSMsgType.BINARY if isinstance(frame, bytes) else WSMsgType.TEXT
            await ws.send_frame(text, kind)
        await ws.send_str('{"type": "ping", "payload": {"last": true}}')
        async with asyncio.timeout(20):
            while True:
                message = await ws.receive()
                if message.type is WSMsgType.CLOSE:
                    assert message.data in {4400, 4409, 4429}
                    assert len((message.extra or "").encode()) <= frames.MAX_REASON
                    break
                assert message.type is WSMsgType.TEXT, message
                if json.loads(message.data)["type"] == "pong":
                    break
                assert "INTERNAL" not in message.data


@LIVE
@given(
    body=st.binary(max_size=200) | TEXTS.map(lambda text: text.encode(errors="replace")),
    accept=st.sampled_from(["*/*", *media.Media]),
    kind=st.sampled_from(["application/json", "application/json; charset=x", "text/plain", ";"]),
)
async def test_no_body_is_answered_with_5xx(
    client: Client, body: bytes, accept: str, kind: str
) -> None:
    headers = {"Accept": accept, "Content-Type": kind}
    async with client.post("/graphql", data=body, headers=headers) as got:
        text = await got.text()
    assert got.status in {200, 400, 415}, (got.status, text)
    assert "INTERNAL" not in text


@LIVE
@given(
    params=st.dictionaries(
        st.sampled_from(["query", "variables", "operationName", "extensions", "x"]),
        st.sampled_from(QUERIES) | JSON.map(json.dumps) | st.text(max_size=50),
    )
)
async def test_no_query_string_is_answered_with_5xx(client: Client, params: dict[str, str]) -> None:
    clean = {name: value.encode(errors="replace").decode() for name, value in params.items()}
    async with client.get("/graphql", params=clean) as got:
        body = await got.json()
    assert got.status in {200, 400, 405}, (got.status, body)
    assert "INTERNAL" not in json.dumps(body)


async def test_the_server_is_as_before(client: Client) -> None:
    assert (await gql(client, "{ viewer { id } }"))["viewer"] == {"id": "local"}
