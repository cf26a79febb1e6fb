"""Webhooks across crashes and several workers: at least once, and once at a time."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.agents import FakeAgent, Received, fake_agent
from tests.support.hooks import heard, ids, takes, told, verified
from tests.support.making import SAYS_OK, holds, stalls, until
from tests.support.server import Server, serving, working

SAVE = """
mutation($input: SaveWebhookInput!) {
  saveWebhook(input: $input) { __typename ... on NewWebhook { secret webhook { id } } }
}"""
CREATE = """
mutation($input: CreateJobInput!) { createJob(input: $input) { ... on Job { id } } }"""
READ = """
query($id: ID!) {
  webhook(id: $id) { deliveries(first: 100) { totalCount nodes { id state attempts } } }
}"""
QUICK = {"SIGNOFF_WEBHOOK_TIMEOUT_SECONDS": "3"}
"""So that a delivery of a lost worker is taken on after six seconds."""


async def make_hook(server: Server, endpoint: FakeAgent) -> tuple[str, str]:
    given = {"url": endpoint.url, "types": ["STATUS_CHANGE"]}
    made = (await server.graphql(SAVE, input=given))["saveWebhook"]
    return made["webhook"]["id"], made["secret"]


async def make_jobs(server: Server, count: int) -> list[str]:
    given = {"name": "A job", "acceptanceCriteria": SAYS_OK}
    made = await asyncio.gather(*[server.graphql(CREATE, input=given) for _ in range(count)])
    return [each["createJob"]["id"] for each in made]


async def settled(server: Server, id: str, count: int) -> list[dict[str, Any]]:
    async def found() -> list[dict[str, Any]] | None:
        page = (await server.graphql(READ, id=id))["webhook"]["deliveries"]
        done = [each["state"] == "SUCCEEDED" for each in page["nodes"]]
        return page["nodes"] if page["totalCount"] == count and all(done) else None

    return await until(found, 90)


async def test_what_a_killed_server_had_sent_is_sent_again_with_the_same_id(
    database_url: str, tmp_path: Path
) -> None:
    """It is stopped, then answered, then killed: it has the answer and cannot have written it."""
    stopped, answered = asyncio.Event(), asyncio.Event()

    async def answers_in_between(received: Received) -> None:
        await stopped.wait()
        await received.answer(b"")
        answered.set()

    async with (
        fake_agent(answers_in_between) as endpoint,
        serving(database_url, tmp_path, **QUICK) as server,
    ):
        id, secret = await make_hook(server, endpoint)
        (job_id,) = await make_jobs(server, 1)
        await heard(endpoint, 1)
        server.freeze()
        stopped.set()
        await answered.wait()
        await server.kill()
        endpoint.behave = takes
        await server.start()
        await heard(endpoint, 2)
        assert len(set(ids(endpoint.received))) == 1
        events = [verified(each, secret) for each in endpoint.received]
        assert events[0] == events[1]
        assert events[0]["data"]["jobId"] == job_id
        (delivery,) = await settled(server, id, 1)
        assert delivery["attempts"] == 2


async def test_events_of_a_killed_server_are_delivered_by_the_next(
    database_url: str, tmp_path: Path
) -> None:
    """Whatever was answered to a client is told, wherever the kill came in between."""
    async with (
        fake_agent(takes) as endpoint,
        serving(database_url, tmp_path, **QUICK) as server,
    ):
        id, _ = await make_hook(server, endpoint)
        made: list[str] = []
        for _ in range(3):
            made += await make_jobs(server, 10)
            await server.kill()
            await server.start()
        await settled(server, id, 30)
        assert {event["data"]["jobId"] for event in told(endpoint.received)} == set(made)
        assert len(set(ids(endpoint.received))) == 30


@pytest.mark.timeout(180)
async def test_several_workers_deliver_each_event_once(postgres_url: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        endpoint = await stack.enter_async_context(fake_agent(takes))
        server = await stack.enter_async_context(serving(postgres_url, tmp_path, "--no-worker"))
        for name in ("one", "two"):
            await stack.enter_async_context(working(postgres_url, tmp_path, name))
        id, _ = await make_hook(server, endpoint)
        for _ in range(3):
            await make_jobs(server, 20)
        deliveries = await settled(server, id, 60)
        assert {each["attempts"] for each in deliveries} == {1}
        assert Counter(ids(endpoint.received)) == Counter(each["id"] for each in deliveries)


@pytest.mark.timeout(180)
async def test_a_killed_workers_delivery_is_taken_on_by_another(
    postgres_url: str, tmp_path: Path
) -> None:
    dead = asyncio.Event()

    async def waits(received: Received) -> None:
        await dead.wait()

    async with AsyncExitStack() as stack:
        endpoint = await stack.enter_async_context(fake_agent(waits))
        server = await stack.enter_async_context(
            serving(postgres_url, tmp_path, "--no-worker", **QUICK)
        )
        one = await stack.enter_async_context(working(postgres_url, tmp_path, "one", **QUICK))
        id, _ = await make_hook(server, endpoint)
        await make_jobs(server, 1)
        await heard(endpoint, 1)
        await one.kill()
        dead.set()
        endpoint.behave = takes
        await stack.enter_async_context(working(postgres_url, tmp_path, "two", **QUICK))
        await heard(endpoint, 2)
        assert len(set(ids(endpoint.received))) == 1
        await settled(server, id, 1)


async def test_a_server_without_worker_delivers_nothing(postgres_url: str, tmp_path: Path) -> None:
    async with (
        fake_agent(takes) as endpoint,
        serving(postgres_url, tmp_path, "--no-worker", **QUICK) as server,
    ):
        id, _ = await make_hook(server, endpoint)
        await make_jobs(server, 3)
        async with working(postgres_url, tmp_path, "one", **QUICK) as worker:
            await holds(lambda: len(endpoint.received) == 3)
            await settled(server, id, 3)
            assert await worker.stop() == 0


async def test_what_a_stopped_server_was_sending_is_given_back(
    database_url: str, tmp_path: Path
) -> None:
    """Not after the lease of a minute: it said so itself."""
    patient = {"SIGNOFF_WEBHOOK_TIMEOUT_SECONDS": "30"}
    async with (
        fake_agent(stalls) as endpoint,
        serving(database_url, tmp_path, **patient) as server,
    ):
        id, _ = await make_hook(server, endpoint)
        await make_jobs(server, 1)
        await heard(endpoint, 1)
        assert await server.stop() == 0
        endpoint.behave = takes
        await server.start()
        await heard(endpoint, 2)
        (delivery,) = await settled(server, id, 1)
        assert delivery["attempts"] == 2
