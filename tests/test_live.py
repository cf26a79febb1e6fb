"""Subscriptions shared by many: each gets every event once and in order, whenever they came."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import web
from prometheus_client import Counter

from models import ActorKind, JobLog, JobLogType, JobStatus, Role
from models.base import now
from services import jobs, retention
from services.paging import encode_position
from services.runtime import Runtime
from signoff import messages, subscribers
from signoff.app import RUNTIME, VIEW, create_app
from signoff.frames import next_head
from signoff.hub import MAX_ASKED_BYTES, Hub
from signoff.messages import Messages
from tests.support.graphql import (
    Json,
    gql,
    make_key,
    make_workspace,
    mutate,
    new_job,
    revoke_key,
)
from tests.support.making import ADMIN, MEMBER, READER, holds, make_agent, make_job
from tests.support.running import AiohttpClient, Client, settings_for
from tests.support.sockets import Socket, Stream, connected, streaming

EVENTS = """
subscription($jobId: ID, $where: JobFilter, $types: [JobLogType!], $after: EventCursor,
             $snapshot: Boolean) {
  jobEvents(jobId: $jobId, where: $where, types: $types, after: $after, snapshot: $snapshot) {
    cursor caughtUp gap
    events { id type message payload job { id name } }
    snapshot { id name version }
  }
}"""
CHANGES = """
subscription($after: EventCursor) {
  jobStatusChanged(after: $after) { cursor to job { name } }
}"""
START = "MA"


def hub(client: Client) -> Hub:
    return client.app[VIEW].hub


def rt_of(client: Client) -> Runtime:
    return client.app[RUNTIME]


def counted(counter: Counter) -> float:
    (metric,) = counter.collect()
    return metric.samples[0].value


def batch(payload: Json) -> Json:
    assert "errors" not in payload, payload
    return payload["data"]["jobEvents"]


async def logged(client: Client, after: str | None = None) -> list[str]:
    """The ids of the log's entries."""
    found: list[str] = []
    query = """query($after: EventCursor) { jobLogs(first: 100, after: $after) {
        nodes { id } pageInfo { hasNextPage endCursor } } }"""
    while True:
        page = (await gql(client, query, after=after))["jobLogs"]
        found += [node["id"] for node in page["nodes"]]
        after = page["pageInfo"]["endCursor"]
        if not page["pageInfo"]["hasNextPage"]:
            return found


async def add_note(client: Client, job_id: str, message: str = "A note.") -> None:
    added = await mutate(client, "addJobNote", id=job_id, message=message)
    assert added["__typename"] == "JobLog", added


async def heard(source: Socket | Stream, id: str, wanted: int) -> list[str]:
    """The ids of the first `wanted` entries that are told."""
    found: list[str] = []
    while len(found) < wanted:
        payload = await (source.next() if isinstance(source, Stream) else source.next(id))
        found += [each["id"] for each in batch(payload)["events"]]
    return found


# jobEvents


async def test_a_replay_ends_with_caught_up_and_goes_on_with_what_is_new(client: Client) -> None:
    job = await new_job(client, name="a")
    await add_note(client, job["id"], "one")
    async with connected(client) as socket:
        id = await socket.subscribe(EVENTS, after=START)
        told = batch(await socket.next(id))
        assert [(each["type"], each["message"]) for each in told["events"]] == [
            ("STATUS_CHANGE", None),
            ("NOTE", "one"),
        ]
        assert (told["caughtUp"], told["gap"], told["snapshot"]) == (True, False, None)
        await add_note(client, job["id"], "two")
        new = batch(await socket.next(id))
        assert [(each["message"], each["job"]["name"]) for each in new["events"]] == [("two", "a")]
        assert new["caughtUp"] is True
        assert (await logged(client, new["cursor"])) == []


async def test_who_is_up_to_date_hears_so_at_once_in_an_empty_batch(client: Client) -> None:
    job = await new_job(client)
    for after in (None, "current"):
        if after is not None:
            found = await gql(client, "query($id: ID!) { job(id: $id) { cursor } }", id=job["id"])
            after = found["job"]["cursor"]  # noqa: PLW2901 - only known now
        async with streaming(client, EVENTS, after=after) as stream:
            told = batch(await stream.next())
            assert (told["events"], told["caughtUp"], told["gap"]) == ([], True, False)
            await add_note(client, job["id"], f"after {after}")
            new = batch(await stream.next())
            assert [each["message"] for each in new["events"]] == [f"after {after}"]


async def test_who_has_caught_up_stays_so_however_much_is_written(client: Client) -> None:
    rt = rt_of(client)
    job = await make_job(rt, viewer=ADMIN)

    async def write() -> None:
        for _ in range(30):
            await jobs.add_note(rt, ADMIN, job.id, "A note.")

    async with connected(client) as socket:
        id = await socket.subscribe(EVENTS)
        assert batch(await socket.next(id))["caughtUp"]
        writers = [asyncio.create_task(write()) for _ in range(5)]
        told: list[Json] = []
        while sum(len(each["events"]) for each in told) < 150:
            told.append(batch(await socket.next(id)))
        await asyncio.gather(*writers)
    assert [each["caughtUp"] for each in told] == [True] * len(told)


async def test_a_long_replay_comes_in_batches_of_which_only_the_last_has_caught_up(
    client: Client,
) -> None:
    job = await make_job(rt_of(client), viewer=ADMIN)
    for _ in range(250):
        await jobs.add_note(rt_of(client), ADMIN, job.id, "A note.")
    async with connected(client) as socket:
        id = await socket.subscribe(EVENTS, after=START)
        told = [batch(await socket.next(id)) for _ in range(3)]
        assert [len(each["events"]) for each in told] == [100, 100, 51]
        assert [each["caughtUp"] for each in told] == [False, False, True]
        ids = [entry["id"] for each in told for entry in each["events"]]
        assert ids == await logged(client)


async def test_types_job_and_filter_choose_what_is_told(client: Client) -> None:
    mine = await new_job(client, name="mine")
    other = await new_job(client, name="other", priority="URGENT")
    for job in (mine, other):
        await add_note(client, job["id"], job["name"])
    cases: list[tuple[Json, list[tuple[str, str]]]] = [
        ({"types": ["NOTE"]}, [("NOTE", "mine"), ("NOTE", "other")]),
        ({"types": []}, []),
        ({"jobId": mine["id"]}, [("STATUS_CHANGE", "mine"), ("NOTE", "mine")]),
        ({"where": {"priority": {"eq": "URGENT"}}, "types": ["NOTE"]}, [("NOTE", "other")]),
    ]
    for given, expected in cases:
        async with streaming(client, EVENTS, after=START, **given) as stream:
            told = batch(await stream.next())
            assert [(each["type"], each["job"]["name"]) for each in told["events"]] == expected


async def test_a_member_is_told_of_own_jobs_only_and_a_foreign_job_is_as_a_missing_one(
    client: Client, database_url: str
) -> None:
    mia = await make_key(database_url, "Mia", Role.MEMBER)
    ada = await make_key(database_url, "Ada", Role.ADMIN)
    foreign = await new_job(client, ada, name="ada's")
    await new_job(client, mia, name="mia's")
    async with streaming(client, EVENTS, mia, after=START, snapshot=True) as stream:
        first = batch(await stream.next())
        assert [each["name"] for each in first["snapshot"]] == ["mia's"]
        told = batch(await stream.next())
        assert [each["job"]["name"] for each in told["events"]] == ["mia's"]
    answers: list[Json] = []
    for id in (foreign["id"], "job_" + "0" * 32):
        async with streaming(client, EVENTS, mia, jobId=id) as stream:
            answer = await stream.next()
            answer["errors"][0]["message"] = answer["errors"][0]["message"].replace(id, "ID")
            answers.append(answer)
    assert answers[0] == answers[1]
    assert answers[0]["errors"][0]["extensions"] == {"code": "NOT_FOUND"}


async def test_a_position_that_is_none_is_an_error_with_its_path(client: Client) -> None:
    async with streaming(client, EVENTS, after="nonsense") as stream:
        (error,) = (await stream.next())["errors"]
        assert error["extensions"]["fields"][0]["path"] == ["after"]
        assert await stream.event() == ("complete", None)


# Snapshots


async def test_a_snapshot_and_what_follows_it_make_up_the_present(client: Client) -> None:
    rt, writing = rt_of(client), True
    made = [await make_job(rt, viewer=ADMIN, name=f"{n}") for n in range(24)]

    async def write(seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311
        while writing:
            if chance.random() < 0.2:
                made.append(await make_job(rt, viewer=ADMIN, name="new"))
            command = jobs.UpdateJob.model_validate(
                {"id": made[seed].id, "name": f"{chance.random()}"}
            )
            await jobs.update(rt, ADMIN, command)

    writers = [asyncio.create_task(write(seed)) for seed in range(24)]
    for _ in range(5):
        versions: dict[str, int] = {}
        async with streaming(client, EVENTS, snapshot=True) as stream:
            first = batch(await stream.next())
            assert first["events"] == []
            versions = {each["id"]: each["version"] for each in first["snapshot"]}
            for _ in range(4):
                for entry in batch(await stream.next())["events"]:
                    job_id, version = entry["job"]["id"], entry["payload"]["version"]
                    assert version == versions.get(job_id, 0) + 1
                    versions[job_id] = version
    writing = False
    await asyncio.gather(*writers)


async def test_a_snapshot_is_of_the_jobs_asked_for_whatever_they_are_chosen_by(
    client: Client,
) -> None:
    agent = await make_agent(rt_of(client), name="Clerk")
    cases: list[tuple[str, Json]] = [
        ("found", {"assign": {"agent_id": agent.id}, "tags": ["x"]}),
        ("without a tag", {"assign": {"agent_id": agent.id}}),
        ("without an agent", {"tags": ["x"]}),
    ]
    for name, given in cases:
        await make_job(rt_of(client), viewer=ADMIN, name=name, **given)
    where = {"agent": {"name": {"eq": "clerk"}}, "tags": {"any": ["x"]}}
    async with streaming(client, EVENTS, where=where, snapshot=True) as stream:
        assert [each["name"] for each in batch(await stream.next())["snapshot"]] == ["found"]


async def test_a_snapshot_of_too_many_jobs_is_refused_with_a_path(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        await new_job(client)
    monkeypatch.setattr("services.listening.MAX_SNAPSHOT", 2)
    async with streaming(client, EVENTS, snapshot=True) as stream:
        (error,) = (await stream.next())["errors"]
        assert error["extensions"]["fields"] == [
            {"path": ["snapshot"], "message": "would be of more than 2 jobs; narrow `where`"}
        ]
    assert hub(client).subscribers == 0


# Retention


async def archived(client: Client, name: str) -> Json:
    job = await new_job(client, name=name)
    await mutate(client, "cancelJob", input={"id": job["id"]})
    return await mutate(client, "archiveJob", id=job["id"])


async def test_a_gap_is_told_where_retention_removed_entries_and_nowhere_else(
    client: Client, database_url: str
) -> None:
    first = await new_job(client, name="first")
    old = await archived(client, "old")
    last = await new_job(client, name="last")
    pruned = await retention.prune(now())
    assert (pruned.jobs, pruned.entries) == (1, 3)
    assert (await retention.prune(now())).entries == 0
    async with streaming(client, EVENTS, after=START) as stream:
        told = batch(await stream.next())
        assert [each["job"]["name"] for each in told["events"]] == ["first", "last"]
        assert told["gap"] is True
        await add_note(client, last["id"])
        assert batch(await stream.next())["gap"] is False
    for given in ({"jobId": first["id"], "after": START}, {"after": told["cursor"]}, {}):
        async with streaming(client, EVENTS, **given) as stream:
            assert batch(await stream.next())["gap"] is False
    async with streaming(client, EVENTS, after=START, jobId=old["id"]) as stream:
        only = batch(await stream.next())
        assert (only["events"], only["gap"], only["caughtUp"]) == ([], True, True)
    found = await gql(client, "query($id: ID!) { job(id: $id) { cursor } }", id=old["id"])
    async with streaming(client, EVENTS, after=found["job"]["cursor"], jobId=old["id"]) as stream:
        assert batch(await stream.next())["gap"] is False


async def test_a_gap_of_a_foreign_job_is_not_told(client: Client, database_url: str) -> None:
    await archived(client, "the admin's")
    mia = await make_key(database_url, "Mia", Role.MEMBER)
    assert (await retention.prune(now())).jobs == 1
    async with streaming(client, EVENTS, mia, after=START) as stream:
        assert batch(await stream.next())["gap"] is False


# Joining


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_who_joins_while_others_write_misses_and_repeats_nothing(
    client: Client, transport: str
) -> None:
    rt, chance, written = rt_of(client), random.Random(5), 0  # noqa: S311
    job = await make_job(rt, viewer=ADMIN)
    done = asyncio.Event()

    async def write() -> None:
        nonlocal written
        for _ in range(40):
            await jobs.add_note(rt, ADMIN, job.id, "A note.")
            written += 1

    async def check(source: Socket | Stream, id: str, after: str | None) -> None:
        await done.wait()
        expected = await logged(client, after)
        assert await heard(source, id, len(expected)) == expected

    async def listen() -> None:
        begins = chance.randint(0, 70)
        await holds(lambda: written >= begins)
        seen = await JobLog.all().order_by("-seq").first()
        assert seen
        after = encode_position(chance.randint(0, seen.seq))
        if transport == "sse":
            async with streaming(client, EVENTS, after=after) as stream:
                await check(stream, "", after)
        else:
            async with connected(client) as socket:
                id = await socket.subscribe(EVENTS, after=after)
                await check(socket, id, after)

    writers = [asyncio.create_task(write()) for _ in range(2)]
    listeners = [asyncio.create_task(listen()) for _ in range(12)]
    await asyncio.gather(*writers)
    done.set()
    await asyncio.gather(*listeners)


async def test_many_who_come_at_once_join_though_others_never_stop_writing(
    client: Client,
) -> None:
    rt, writing = rt_of(client), True
    job = await make_job(rt, viewer=ADMIN)

    async def write() -> None:
        while writing:
            await jobs.add_note(rt, ADMIN, job.id, "A note.")

    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(connected(client)) for _ in range(40)]
        writers = [asyncio.create_task(write()) for _ in range(3)]
        ids = [await each.subscribe(EVENTS, after=START) for each in sockets]
        await holds(lambda: hub(client).subscribers == len(sockets))
        writing = False
        await asyncio.gather(*writers)
        expected = await logged(client)
        for socket, id in zip(sockets, ids, strict=True):
            assert await heard(socket, id, len(expected)) == expected


async def test_who_is_told_too_much_while_they_join_goes_on_by_themselves(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signoff.hub.MAX_HELD_BYTES", 1)
    rt = rt_of(client)
    job = await make_job(rt, viewer=ADMIN)
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(connected(client)) for _ in range(10)]
        ids = [await each.subscribe(EVENTS, after=START) for each in sockets]
        for _ in range(60):
            await jobs.add_note(rt, ADMIN, job.id, "A note.")
        expected = await logged(client)
        for socket, id in zip(sockets, ids, strict=True):
            assert await heard(socket, id, len(expected)) == expected
        await holds(lambda: hub(client).subscribers == len(sockets))


async def test_those_who_ask_alike_share_one_execution_whatever_their_transport_and_position(
    client: Client, database_url: str
) -> None:
    await new_job(client, name="old")
    async with (
        connected(client) as one,
        connected(client) as two,
        streaming(client, CHANGES) as stream,
    ):
        first = await one.subscribe(CHANGES, after=START)
        second = await two.subscribe(CHANGES)
        assert (await one.next(first))["data"]["jobStatusChanged"]["job"]["name"] == "old"
        await holds(lambda: hub(client).subscribers == 3)
        assert hub(client).groups == 1
        before = counted(rt_of(client).telemetry.frames)
        await new_job(client, name="new")
        told = [await one.next(first), await two.next(second), await stream.next()]
        assert told[0] == told[1] == told[2]
        assert told[0]["data"]["jobStatusChanged"]["job"]["name"] == "new"
        after = counted(rt_of(client).telemetry.frames)
        assert after - before == 3
    await new_job(client, name="to nobody")
    await holds(lambda: (hub(client).subscribers, hub(client).groups) == (0, 0))


async def test_what_makes_a_difference_is_not_shared(client: Client, database_url: str) -> None:
    keys = [await make_key(database_url, name, Role.MEMBER) for name in ("Mia", "Olaf")]
    keys += [await make_key(database_url, name, Role.ADMIN) for name in ("Ada", "Abe")]
    opened: list[Any] = []
    groups: list[int] = []
    for key, given in [
        *[(key, {}) for key in keys],
        (keys[2], {"types": ["NOTE"]}),
        (keys[3], {"after": START}),
        (keys[3], {"snapshot": True}),
    ]:
        context = streaming(client, EVENTS, key, **given)
        stream = await context.__aenter__()
        opened.append(context)
        await stream.next()
        await holds(lambda: hub(client).subscribers == len(opened))
        groups.append(hub(client).groups)
    assert groups == [1, 2, 3, 3, 4, 4, 4]
    for context in opened:
        await context.__aexit__(None, None, None)


async def test_an_id_may_be_used_again_at_once_with_another_position(client: Client) -> None:
    job = await new_job(client, name="a")
    async with connected(client) as socket:
        for lap in range(10):
            payload = {"query": EVENTS, "variables": {"after": START}}
            await socket.send({"id": "x", "type": "subscribe", "payload": payload})
            assert len(batch(await socket.next("x"))["events"]) == lap + 1
            await socket.send({"id": "x", "type": "complete"})
            await socket.ping()
            await add_note(client, job["id"])
        await socket.ping()


async def test_who_ends_a_subscription_is_told_nothing_more_and_may_use_its_id_at_once(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "PART_BYTES", 1)  # so each is written by itself
    rt = rt_of(client)
    job = await make_job(rt, viewer=ADMIN)
    other = {"id": "x", "type": "subscribe", "payload": {"query": "{ viewer { id } }"}}
    async with connected(client) as socket, streaming(client, CHANGES) as stream:
        for _ in range(5):
            query = {"query": CHANGES}
            await socket.send({"id": "x", "type": "subscribe", "payload": query})
            await holds(lambda: hub(client).subscribers == 2)
            await changed(rt, job.id, 100)
            await socket.next("x")
            for message in ({"id": "x", "type": "complete"}, {"type": "ping"}, other):
                await socket.send(message)
            while (told := await socket.receive())["type"] == "next":
                assert "jobStatusChanged" in told["payload"]["data"]
            assert told == {"type": "pong"}
            assert await socket.next("x") == {"data": {"viewer": {"id": "local"}}}
            assert await socket.receive() == {"id": "x", "type": "complete"}
            for _ in range(100):
                await stream.next()


async def changed(rt: Runtime, job_id: Any, count: int) -> None:
    """So many changes of a job's status, of which listeners are told at once."""
    changes = [
        JobLog(
            job_id=job_id,
            type=JobLogType.STATUS_CHANGE,
            status=JobStatus.PENDING,
            payload_json='{"from": null, "to": "PENDING", "reason": "CREATED"}',
            actor_kind=ActorKind.SYSTEM,
            actor_name="Elsewhere",
        )
        for _ in range(count)
    ]
    await JobLog.bulk_create(changes)
    rt.events.wake()


async def test_a_message_that_cannot_be_made_ends_its_subscription_and_no_other(
    client: Client,
) -> None:
    job = await new_job(client)
    async with connected(client) as socket, streaming(client, CHANGES) as stream:
        changes = await socket.subscribe(CHANGES)
        events = await socket.subscribe(EVENTS)
        batch(await socket.next(events))
        await holds(lambda: hub(client).subscribers == 3)
        entry = await JobLog.all().first()
        assert entry
        entry.payload_json = '{"from": "NONSENSE"}'
        await JobLog.create(
            **{name: getattr(entry, name) for name in ("job_id", "type", "status", "payload_json")},
            actor_kind=entry.actor_kind,
            actor_name="Elsewhere",
        )
        rt_of(client).events.wake()
        told = {(each := await socket.receive())["type"]: each for _ in range(2)}
        assert (told["next"]["id"], told["error"]["id"]) == (events, changes)
        assert told["error"]["payload"][0]["extensions"]["code"] == "INTERNAL"
        assert (await stream.next())["errors"][0]["extensions"]["code"] == "INTERNAL"
        await add_note(client, job["id"])
        assert len(batch(await socket.next(events))["events"]) == 1


# Slow readers


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_who_reads_too_slowly_is_closed_with_a_code_and_resumes_without_a_loss(
    client: Client, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscribers, "GRACE_SECONDS", 20)
    rt = rt_of(client)
    job = await make_job(rt, viewer=ADMIN)
    after = encode_position((await jobs.add_note(rt, ADMIN, job.id, "first")).seq)
    async with connected(client) as other:
        theirs = await other.subscribe(EVENTS, after=after)
        batch(await other.next(theirs))
        if transport == "websocket":
            async with connected(client) as socket:
                await socket.subscribe(EVENTS, after=after)
                told = await _flood(client, job.id, other, theirs)
                seen, cursor = await _rest(socket, after)
        else:
            async with streaming(client, EVENTS, after=after) as stream:
                told = await _flood(client, job.id, other, theirs)
                seen, cursor = await _rest(stream, after)
    expected = await logged(client, after)
    assert told == expected
    assert seen == expected[: len(seen)]
    assert len(seen) < len(expected)
    async with streaming(client, EVENTS, after=cursor) as stream:
        seen += await heard(stream, "", len(expected) - len(seen))
    assert seen == expected


async def _flood(client: Client, job_id: Any, other: Socket, id: str) -> list[str]:
    """Write until somebody is found too slow; returns what one who reads has heard by then."""
    rt, told, text = rt_of(client), list[str](), "🐝" * 2000  # four bytes each
    await holds(lambda: hub(client).subscribers == 2)

    def slow() -> float:
        return counted(rt.telemetry.slow)

    while not slow():
        await asyncio.gather(*[jobs.add_note(rt, ADMIN, job_id, text) for _ in range(20)])
        told += await heard(other, id, 20)
    return told


async def _rest(source: Socket | Stream, cursor: str) -> tuple[list[str], str]:
    """What was still sent before it was closed, and the last cursor of it."""
    seen: list[str] = []
    while True:
        if isinstance(source, Stream):
            payload = await source.next()
            if "errors" in payload:
                assert payload["errors"][0]["extensions"] == {"code": "SLOW_CONSUMER"}
                assert await source.event() == ("complete", None)
                return seen, cursor
        else:
            message = await source.ws.receive(timeout=20)
            if message.data == subscribers.TOO_SLOW:
                assert message.extra == subscribers.TOO_SLOW_REASON
                return seen, cursor
            payload = message.json()["payload"]
        told = batch(payload)
        seen += [each["id"] for each in told["events"]]
        cursor = told["cursor"]


async def test_a_reader_who_never_reads_again_costs_no_memory_for_long(
    database_url: str,
    tmp_path: Path,
    aiohttp_client: AiohttpClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subscribers, "GRACE_SECONDS", 0.2)
    client = await aiohttp_client(create_app(settings_for(database_url, tmp_path)))
    rt = rt_of(client)
    job = await make_job(rt, viewer=ADMIN)
    async with connected(client) as other, connected(client) as socket:
        theirs = await other.subscribe(EVENTS)
        batch(await other.next(theirs))
        await socket.subscribe(EVENTS)
        await _flood(client, job.id, other, theirs)
        await holds(lambda: hub(client).subscribers == 1)


# Frames


@pytest.mark.parametrize("size", [0, 10, 125, 126, 65_534, 65_535, 65_536, 200_000])
async def test_frames_of_every_length_are_read_as_what_was_written(
    size: int, aiohttp_client: AiohttpClient
) -> None:
    answers = [b'"%s"' % (b"x" * size), b'"second"']

    async def write(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        messages = Messages(answers)
        assert request.transport
        for id in ("1", 'a"b', "1"):
            request.transport.write(messages.frames(next_head(id)))
        await ws.send_str("between")
        await ws.close()
        return ws

    app = web.Application()
    app.router.add_get("/", write)
    client = await aiohttp_client(app)
    async with client.ws_connect("/", max_msg_size=1_000_000) as ws:
        told = [(await ws.receive_json(timeout=20)) for _ in range(6)]
        assert [(each["id"], len(each["payload"])) for each in told] == [
            (id, length) for id in ("1", 'a"b', "1") for length in (size, 6)
        ]
        assert {each["type"] for each in told} == {"next"}
        assert await ws.receive_str(timeout=20) == "between"


# Who shares with whom


def test_a_scope_holds_those_alone_who_are_shown_the_same() -> None:
    abe = replace(ADMIN, id="abe", name="Abe", key_id=uuid4(), expires_at=now())
    assert abe.scope == ADMIN.scope
    sees = replace(MEMBER, sees_workspace=True)
    different = [
        ADMIN,
        READER,
        MEMBER,
        sees,
        replace(sees, id="olaf"),
        replace(MEMBER, id="olaf"),
        replace(ADMIN, workspace_id=2),
        replace(ADMIN, agents=frozenset({uuid4()})),
        replace(ADMIN, owners=frozenset({"mia"})),
        replace(ADMIN, id="abe", owners=frozenset({"mia"})),
    ]
    assert len({each.scope for each in different}) == len(different)


async def test_those_of_other_workspaces_share_nothing(client: Client, database_url: str) -> None:
    elsewhere = await make_workspace(database_url, "Elsewhere")
    ada = await make_key(database_url, "Ada", Role.ADMIN)
    eve = await make_key(database_url, "Eve", Role.ADMIN, workspace_id=elsewhere)
    async with streaming(client, EVENTS, ada) as ours, streaming(client, EVENTS, eve) as theirs:
        for stream in (ours, theirs):
            assert batch(await stream.next())["caughtUp"]
        await holds(lambda: (hub(client).subscribers, hub(client).groups) == (2, 2))
        await new_job(client, ada, name="ours")
        await new_job(client, eve, name="theirs")
        for stream, name in ((ours, "ours"), (theirs, "theirs")):
            told = batch(await stream.next())["events"]
            assert [each["job"]["name"] for each in told] == [name]


# What stands before it


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_too_dear_a_subscription_is_refused_before_anybody_listens(
    client: Client, transport: str
) -> None:
    query = """subscription { jobEvents(snapshot: true) {
      snapshot { logs(first: 50) { nodes { id } } } } }"""
    if transport == "sse":
        async with streaming(client, query) as stream:
            (error,) = (await stream.next())["errors"]
            assert await stream.event() == ("complete", None)
    else:
        async with connected(client) as socket:
            id = await socket.subscribe(query)
            message = await socket.receive()
            assert (message["type"], message["id"]) == ("error", id)
            (error,) = message["payload"]
            await socket.ping()
    assert error["extensions"]["code"] == "COST_EXCEEDED"
    assert (hub(client).subscribers, hub(client).groups) == (0, 0)


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_a_subscription_is_kept_and_so_it_is_no_larger_than_this(
    client: Client, transport: str
) -> None:
    query = "subscription { jobEvents { caughtUp } }"
    large = "x" * MAX_ASKED_BYTES
    if transport == "sse":
        async with streaming(client, query, spare=large) as stream:
            (error,) = (await stream.next())["errors"]
            assert await stream.event() == ("complete", None)
    else:
        async with connected(client) as socket:
            id = await socket.subscribe(query, spare=large)
            message = await socket.receive()
            assert (message["type"], message["id"]) == ("error", id)
            (error,) = message["payload"]
            id = await socket.subscribe(query, spare="x" * (MAX_ASKED_BYTES - 500))
            assert batch(await socket.next(id))["caughtUp"] is True
    assert error["extensions"]["code"] == "LIMIT_EXCEEDED"
    assert str(MAX_ASKED_BYTES) in error["message"]


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_who_shares_is_ended_by_a_revoked_key_and_the_others_are_not(
    client: Client, database_url: str, transport: str
) -> None:
    ada, abe = [await make_key(database_url, name, Role.ADMIN) for name in ("Ada", "Abe")]
    async with streaming(client, CHANGES, ada) as stays:
        if transport == "sse":
            async with streaming(client, CHANGES, abe) as stream:
                await holds(lambda: (hub(client).subscribers, hub(client).groups) == (2, 1))
                await revoke_key(database_url, abe)
                (error,) = (await stream.next())["errors"]
                assert error["extensions"]["code"] == "UNAUTHENTICATED"
        else:
            async with connected(client, {"Authorization": f"Bearer {abe}"}) as socket:
                await socket.subscribe(CHANGES)
                await holds(lambda: (hub(client).subscribers, hub(client).groups) == (2, 1))
                await revoke_key(database_url, abe)
                assert await socket.closed() == 4403
        await holds(lambda: hub(client).subscribers == 1)
        await new_job(client, ada, name="new")
        assert (await stays.next())["data"]["jobStatusChanged"]["job"]["name"] == "new"
