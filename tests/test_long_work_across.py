"""Long work over several processes: killed ones, servers without a worker, workers that poll."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.agents import FakeAgent, Received, fake_agent
from tests.support import consistency
from tests.support.making import answers, holds, in_turn, says_ok, stalls, until
from tests.support.server import Server, serving, working
from tests.test_crash import execution_of, in_phase, read, settled, types

pytestmark = pytest.mark.timeout(180)
PUBLIC = "http://signoff.test"
OK = {"answer": "ok"}
LATER = answers({}, "202 Accepted")
PATIENT = answers({}, "202 Accepted", "location: /work/7", "retry-after: 3600")
SOON = answers({}, "202 Accepted", "location: /work/7", "retry-after: 1")


def path_in(received: Received) -> str:
    return received.headers["signoff-callback-url"].removeprefix(PUBLIC)


async def posted(server: Server, path: str, value: Any = OK) -> int:
    async with server.session.post(server.url + path, json=value) as response:
        return response.status


def methods(agent: FakeAgent) -> list[str]:
    return [each.start_line.split(" ")[0] for each in agent.received]


async def test_what_is_awaited_goes_on_after_a_kill(database_url: str, tmp_path: Path) -> None:
    """By its location, by its callback, and with a look under way when the power went."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            serving(database_url, tmp_path, SIGNOFF_PUBLIC_URL=PUBLIC)
        )
        polled = await stack.enter_async_context(fake_agent(SOON))
        called = await stack.enter_async_context(fake_agent(LATER))
        looked_at = await stack.enter_async_context(fake_agent(in_turn(SOON, stalls)))
        ids = {
            agent.url: await execution_of(server, agent, idempotent=False)
            for agent in (polled, called, looked_at)
        }
        for id in ids.values():
            await in_phase(server, id, "AWAITING_AGENT")
        await holds(lambda: len(looked_at.received) == 2)
        await server.kill()
        polled.behave = looked_at.behave = says_ok
        await server.start()
        assert (await read(server, ids[called.url]))["phase"] == "AWAITING_AGENT"
        assert await posted(server, path_in(called.received[0])) == 204
        for id in ids.values():
            job = await settled(server, id)
            assert (job["status"], job["result"]) == ("COMPLETED", OK)
            assert job["attemptCount"] == 1
            assert types(job).count("AGENT_REQUEST") == 1
        assert methods(polled).count("POST") == 1
        assert methods(called) == ["POST"]
        assert methods(looked_at)[:2] == ["POST", "GET"]
        assert methods(looked_at).count("POST") == 1
    await consistency.check(database_url)


async def test_callback_to_a_server_that_came_after_the_open_request_was_cut_off(
    database_url: str, tmp_path: Path
) -> None:
    """The agent knows its URL from a request that nobody waits for any more."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            serving(database_url, tmp_path, SIGNOFF_PUBLIC_URL=PUBLIC)
        )
        agent = await stack.enter_async_context(fake_agent(in_turn(stalls, LATER)))
        id = await execution_of(server, agent, idempotent=True)
        await holds(lambda: len(agent.received) == 1)
        await server.kill()
        await server.start()
        await in_phase(server, id, "AWAITING_AGENT")
        first, again = agent.received
        assert path_in(first) == path_in(again)
        assert await posted(server, path_in(first)) == 204
        assert (await settled(server, id))["status"] == "COMPLETED"


async def test_workers_look_and_servers_take_callbacks(postgres_url: str, tmp_path: Path) -> None:
    """Two servers without a worker, two workers: any of them may be the one that is told."""
    async with AsyncExitStack() as stack:
        public = {"SIGNOFF_PUBLIC_URL": PUBLIC}
        folders = [tmp_path / "a", tmp_path / "b"]
        for folder in folders:
            folder.mkdir()
        key = {"SIGNOFF_KEY_FILE": str(tmp_path / "signoff.key")}
        servers = [
            await stack.enter_async_context(
                serving(postgres_url, folder, "--no-worker", **public, **key)
            )
            for folder in folders
        ]
        for folder, name in zip(folders, ("one", "two"), strict=True):
            await stack.enter_async_context(working(postgres_url, folder, name, **public, **key))
        open_call = await stack.enter_async_context(fake_agent(stalls))
        being_asked = await stack.enter_async_context(fake_agent(in_turn(SOON, stalls)))
        waiting = await stack.enter_async_context(fake_agent(PATIENT))
        polled = await stack.enter_async_context(fake_agent(in_turn(SOON, LATER, says_ok)))
        agents = (open_call, being_asked, waiting, polled)
        ids = [await execution_of(servers[0], agent, idempotent=False) for agent in agents]
        await holds(lambda: len(open_call.received) == 1 and len(being_asked.received) == 2)
        await in_phase(servers[0], ids[2], "AWAITING_AGENT")
        for agent in (open_call, being_asked, waiting):
            path = path_in(agent.received[0])
            answered = [posted(each, path) for each in servers for _ in range(2)]
            assert set(await asyncio.gather(*answered)) == {204}
        for id in ids:
            job = await settled(servers[1], id)
            assert (job["status"], job["result"]) == ("COMPLETED", OK)
            assert types(job).count("AGENT_RESPONSE") == 1
        async with asyncio.timeout(10):
            await asyncio.gather(open_call.all_closed(), being_asked.all_closed())
        assert [methods(agent).count("POST") for agent in agents] == [1, 1, 1, 1]
    await consistency.check(postgres_url)


async def test_a_stop_gives_back_what_is_being_looked_at(database_url: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving(database_url, tmp_path))
        agent = await stack.enter_async_context(fake_agent(in_turn(SOON, stalls)))
        id = await execution_of(server, agent, idempotent=False)
        await holds(lambda: len(agent.received) == 2)
        assert await server.stop() == 0
        (entries,) = await consistency.read(database_url, 'SELECT * FROM "queue_entries"')
        assert [(each["state"], each["worker_id"]) for each in entries] == [("AWAITING", None)]
        agent.behave = says_ok
        await server.start()
        assert (await settled(server, id))["status"] == "COMPLETED"
        assert methods(agent) == ["POST", "GET", "GET"]

        async def nothing_left() -> bool:
            (left,) = await consistency.read(database_url, 'SELECT * FROM "queue_entries"')
            return left == []

        await until(nothing_left)
