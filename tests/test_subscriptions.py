"""Status changes as they are told: over WebSocket and SSE, each once and in order."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from models import Role
from signoff import event_streams
from signoff.app import VIEW, create_app
from signoff.websocket import LIMITS, SocketLimits
from tests.support.graphql import (
    Json,
    agent,
    finished_job,
    gql,
    make_key,
    mutate,
    new_job,
)
from tests.support.making import holds
from tests.support.running import AiohttpClient, Client, settings_for
from tests.support.sockets import PROTOCOL, Socket, Stream, connected, streaming

CHANGES = """
subscription($jobId: ID, $where: JobFilter, $after: EventCursor) {
  jobStatusChanged(jobId: $jobId, where: $where, after: $after) {
    cursor from to reason at actor { kind name } job { id name status }
  }
}"""
CURSOR = "query($id: ID!) { job(id: $id) { cursor } }"
START = "MA"
"""The position before the first entry."""


def told(payload: Json) -> tuple[str, str | None, str]:
    change = payload["data"]["jobStatusChanged"]
    return change["job"]["name"], change["from"], change["to"]


async def subscribed(socket: Socket, client: Client, **variables: Any) -> str:
    """A subscription that tells of a job made just before, first of all."""
    first = await new_job(client, name="opening")
    return await socket.subscribe(CHANGES, after=await before(client, first), **variables)


def listeners(client: Client) -> int:
    """How many subscriptions wait for entries."""
    return client.app[VIEW].hub.subscribers


async def before(client: Client, job: Json) -> str:
    """The position just before a job's first entry."""
    found = await gql(client, "{ jobLogs(first: 100) { nodes { cursor job { id } } } }")
    nodes = found["jobLogs"]["nodes"]
    at = next(n for n, node in enumerate(nodes) if node["job"]["id"] == job["id"])
    return nodes[at - 1]["cursor"] if at else START


async def test_changes_come_over_a_websocket_in_order(client: Client) -> None:
    async with connected(client) as socket, agent(client) as (agent_id, _):
        id = await subscribed(socket, client)
        assert told(await socket.next(id)) == ("opening", None, "PENDING")
        job = await finished_job(client, agent_id, name="done")
        payloads = [await socket.next(id) for _ in range(3)]
        assert [told(each) for each in payloads] == [
            ("done", None, "ASSIGNED"),
            ("done", "ASSIGNED", "IN_EXECUTION"),
            ("done", "IN_EXECUTION", "COMPLETED"),
        ]
        change = payloads[2]["data"]["jobStatusChanged"]
        assert change["actor"] == {"kind": "SYSTEM", "name": "Signoff"}
        assert (change["reason"], change["job"]) == (
            "VERDICT_PASSED",
            {"id": job["id"], "name": "done", "status": "COMPLETED"},
        )


async def test_changes_come_over_sse(client: Client) -> None:
    first = await new_job(client, name="first")
    async with streaming(client, CHANGES, after=START) as stream:
        assert told(await stream.next()) == ("first", None, "PENDING")
        await mutate(client, "cancelJob", input={"id": first["id"]})
        assert told(await stream.next()) == ("first", "PENDING", "CANCELLED")


async def test_a_stream_that_has_nothing_to_tell_says_so_every_15_seconds(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert event_streams.HEARTBEAT_SECONDS == 15
    monkeypatch.setattr(event_streams, "HEARTBEAT_SECONDS", 0.01)
    async with streaming(client, CHANGES) as stream, asyncio.timeout(20):
        lines = [await stream.response.content.readline() for _ in range(6)]
    assert lines == [b": ping\r\n", b"\r\n"] * 3


async def test_without_a_position_only_what_is_new_is_told(client: Client) -> None:
    await new_job(client, name="old")
    async with connected(client) as socket:
        id = await socket.subscribe(CHANGES)
        await holds(lambda: listeners(client) == 1)
        await new_job(client, name="new")
        assert told(await socket.next(id)) == ("new", None, "PENDING")


async def test_a_subscription_to_one_job_hears_of_no_other(client: Client) -> None:
    mine = await new_job(client, name="mine")
    async with streaming(client, CHANGES, jobId=mine["id"], after=START) as stream:
        assert told(await stream.next()) == ("mine", None, "PENDING")
        await new_job(client, name="other")
        await mutate(client, "cancelJob", input={"id": mine["id"]})
        assert told(await stream.next()) == ("mine", "PENDING", "CANCELLED")


async def test_a_filter_is_held_against_the_job_as_it_is_now(client: Client) -> None:
    urgent: Json = {"priority": {"eq": "URGENT"}}
    async with connected(client) as socket:
        id = await socket.subscribe(CHANGES, where=urgent, after=START)
        await new_job(client, name="calm")
        await new_job(client, name="urgent", priority="URGENT")
        assert told(await socket.next(id)) == ("urgent", None, "PENDING")


async def test_a_filter_that_cannot_be_is_an_error_with_a_code(client: Client) -> None:
    await new_job(client)
    where: Json = {"name": {"eq": "x"}}
    for _ in range(6):
        where = {"not": where}
    async with connected(client) as socket:
        id = await socket.subscribe(CHANGES, where=where, after=START)
        message = await socket.receive()
        errors = message["payload"]["errors"] if message["type"] == "next" else message["payload"]
        assert message["id"] == id
        assert errors[0]["extensions"]["code"] == "VALIDATION"


async def test_resuming_after_a_cursor_loses_nothing_and_tells_nothing_twice(
    client: Client,
) -> None:
    seen: list[str] = []
    position = START
    made: list[str] = []
    for lap in range(4):
        async with streaming(client, CHANGES, after=position) as stream:
            for number in range(3):
                made.append(f"{lap}.{number}")
                await new_job(client, name=made[-1])
            for _ in range(2 if lap else 1):
                payload = await stream.next()
                seen.append(told(payload)[0])
                position = payload["data"]["jobStatusChanged"]["cursor"]
        made.append(f"{lap}.away")
        await new_job(client, name=made[-1])
    async with streaming(client, CHANGES, after=position) as stream:
        while len(seen) < len(made):
            seen.append(told(await stream.next())[0])
    assert seen == made


async def test_a_jobs_cursor_is_where_its_next_change_follows(client: Client) -> None:
    job = await new_job(client, name="a")
    cursor = (await gql(client, CURSOR, id=job["id"]))["job"]["cursor"]
    await mutate(client, "cancelJob", input={"id": job["id"]})
    async with streaming(client, CHANGES, after=cursor) as stream:
        assert told(await stream.next()) == ("a", "PENDING", "CANCELLED")


async def test_many_writers_at_once_are_told_each_once_and_in_one_order(client: Client) -> None:
    names = {f"n{number}" for number in range(40)}
    async with connected(client) as one, connected(client) as two:
        ids = [await each.subscribe(CHANGES, after=START) for each in (one, two)]
        await asyncio.gather(*[new_job(client, name=name) for name in names])
        heard = [
            [told(await socket.next(id))[0] for _ in names]
            for socket, id in zip((one, two), ids, strict=True)
        ]
    assert heard[0] == heard[1]
    assert sorted(heard[0]) == sorted(names)


async def test_two_subscriptions_of_one_socket_end_apart(client: Client) -> None:
    async with connected(client) as socket:
        first = await socket.subscribe(CHANGES, after=START)
        second = await socket.subscribe(CHANGES, after=START)
        await new_job(client, name="a")
        assert {(await socket.receive())["id"] for _ in range(2)} == {first, second}
        await socket.send({"id": first, "type": "complete"})
        await socket.ping()
        await new_job(client, name="b")
        assert told(await socket.next(second)) == ("b", None, "PENDING")


async def test_a_member_hears_of_own_jobs_only(client: Client, database_url: str) -> None:
    mia = await make_key(database_url, "Mia", Role.MEMBER)
    ada = await make_key(database_url, "Ada", Role.ADMIN)
    payload = {"Authorization": f"Bearer {mia}"}
    async with connected(client, payload) as socket:
        id = await socket.subscribe(CHANGES, after=START)
        await new_job(client, ada, name="ada's")
        mine = await new_job(client, mia, name="mia's")
        assert told(await socket.next(id)) == ("mia's", None, "PENDING")
        await mutate(client, "cancelJob", ada, input={"id": mine["id"]})
        assert told(await socket.next(id)) == ("mia's", "PENDING", "CANCELLED")
    async with streaming(client, CHANGES, mia, after=START) as stream:
        assert [told(await stream.next()) for _ in range(2)] == [
            ("mia's", None, "PENDING"),
            ("mia's", "PENDING", "CANCELLED"),
        ]


async def test_a_key_may_come_in_the_handshake_or_in_the_first_message(
    client: Client, database_url: str
) -> None:
    key = await make_key(database_url, "Mia", Role.MEMBER)
    query = "query { viewer { name } }"
    bearer = f"Bearer {key}"
    for payload, headers in (
        ({"Authorization": bearer}, {}),
        ({"authorization": bearer}, {}),
        (None, {"Authorization": bearer}),
        ({"Authorization": bearer}, {"Authorization": "Bearer signoff_wrong"}),
    ):
        async with connected(client, payload, headers) as socket:
            id = await socket.subscribe(query)
            assert await socket.next(id) == {"data": {"viewer": {"name": "Mia"}}}
            assert await socket.receive() == {"id": id, "type": "complete"}


async def test_a_bad_key_is_closed_with_4403(client: Client, database_url: str) -> None:
    await make_key(database_url, "Mia", Role.MEMBER)
    for payload in ({"Authorization": "Bearer signoff_wrong"}, {"Authorization": 7}, {}):
        async with client.ws_connect("/graphql", protocols=(PROTOCOL,)) as ws:
            await ws.send_json({"type": "connection_init", "payload": payload})
            message = await ws.receive(timeout=20)
            assert message.type is aiohttp.WSMsgType.CLOSE
            assert ws.close_code == 4403


async def test_a_mutation_over_a_websocket_is_held_to_the_role(
    client: Client, database_url: str
) -> None:
    key = await make_key(database_url, "Vera", Role.VIEWER)
    query = 'mutation { archiveJob(id: "job_x") { __typename } }'
    async with connected(client, {"Authorization": f"Bearer {key}"}) as socket:
        id = await socket.subscribe(query)
        assert (await socket.next(id))["data"] == {"archiveJob": {"__typename": "Forbidden"}}


async def test_who_does_not_introduce_themselves_is_closed_with_4408(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    app = create_app(settings_for(database_url, tmp_path))

    app[LIMITS] = SocketLimits(init_seconds=0.05)
    client = await aiohttp_client(app)
    async with client.ws_connect("/graphql", protocols=(PROTOCOL,)) as ws:
        assert (await ws.receive(timeout=20)).type is aiohttp.WSMsgType.CLOSE
        assert ws.close_code == 4408


async def test_an_operation_before_the_introduction_is_closed_with_4401(client: Client) -> None:
    async with client.ws_connect("/graphql", protocols=(PROTOCOL,)) as ws:
        await ws.send_json(
            {"id": "1", "type": "subscribe", "payload": {"query": "{ viewer { id } }"}}
        )
        assert (await ws.receive(timeout=20)).type is aiohttp.WSMsgType.CLOSE
        assert ws.close_code == 4401


async def test_the_legacy_protocol_is_refused(client: Client) -> None:
    for protocols in (("graphql-ws",), ()):
        async with client.ws_connect("/graphql", protocols=protocols) as ws:
            assert ws.protocol is None
            assert (await ws.receive(timeout=20)).type is aiohttp.WSMsgType.CLOSE
            assert ws.close_code == 4406


async def test_frames_that_are_no_messages_do_not_end_in_a_crash(client: Client) -> None:
    for frame in ("", "x", '{"type": "no such type"}', '{"id": "1"}'):
        async with client.ws_connect("/graphql", protocols=(PROTOCOL,)) as ws:
            await ws.send_json({"type": "connection_init"})
            assert (await ws.receive_json(timeout=20))["type"] == "connection_ack"
            await ws.send_str(frame)
            assert (await ws.receive(timeout=20)).type is aiohttp.WSMsgType.CLOSE
            assert ws.close_code == 4400, frame


async def failure(client: Client, **variables: Any) -> list[Json]:
    """The errors of a subscription that cannot be, over both transports."""
    async with connected(client) as socket:
        id = await socket.subscribe(CHANGES, **variables)
        message = await socket.receive()
        assert message["id"] == id
        over_socket = message["payload"]
    if message["type"] == "next":
        over_socket = over_socket["errors"]
    async with streaming(client, CHANGES, **variables) as stream:
        over_sse = (await stream.next())["errors"]
    assert over_socket == over_sse
    return over_sse


async def test_a_position_that_is_none_is_an_error_with_a_code(client: Client) -> None:
    for position in ("", "x", "LTE", "MS41", "bnVsbA"):
        (error,) = await failure(client, after=position)
        assert error["message"] == "after: is not a position of the event log"
        assert error["extensions"] == {
            "code": "VALIDATION",
            "fields": [{"path": ["after"], "message": "is not a position of the event log"}],
        }


async def test_a_job_that_is_not_there_is_an_error_with_a_code(client: Client) -> None:
    for id in ("job_" + "0" * 32, "x"):
        (error,) = await failure(client, jobId=id)
        assert error["extensions"] == {"code": "NOT_FOUND"}


async def test_one_failing_operation_leaves_the_others_alone(client: Client) -> None:
    async with connected(client) as socket:
        good = await socket.subscribe(CHANGES, after=START)
        bad = await socket.subscribe("subscription { nonsense }")
        message = await socket.receive()
        assert (message["id"], message["type"]) == (bad, "error")
        assert message["payload"][0]["extensions"]["code"] == "GRAPHQL_ERROR"
        await new_job(client, name="a")
        assert told(await socket.next(good)) == ("a", None, "PENDING")


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_clients_that_hang_up_leave_nothing_behind(client: Client, transport: str) -> None:
    for _ in range(30):
        if transport == "websocket":
            async with connected(client) as socket:
                await socket.subscribe(CHANGES, after=START)
        else:
            async with streaming(client, CHANGES, after=START) as stream:
                assert isinstance(stream, Stream)
    await new_job(client, name="still here")
    await holds(lambda: listeners(client) == 0)
