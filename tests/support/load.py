"""Clients who make and execute jobs without a break, and remember what they were told."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import uuid4

import aiohttp

from tests.support.making import SAYS_OK
from tests.support.server import Server

SAVE = "mutation($input: SaveAgentInput!) { saveAgent(input: $input) { ... on Agent { id } } }"
CREATE = """mutation($input: CreateJobInput!) {
  createJob(input: $input) { __typename ... on Job { id version } ... on Error { message } } }"""
EXECUTE = """mutation($input: ExecuteJobInput!) {
  executeJob(input: $input) { __typename ... on Job { id status } ... on Error { message } } }"""
STATUS = "query($id: ID!) { job(id: $id) { status phase } }"
PAUSE_SECONDS = 0.1
Json = dict[str, Any]


async def save_agent(server: Server, url: str, **given: Any) -> str:
    wanted = {"name": url, "endpointUrl": url, "idempotent": True, "maxConcurrency": 100}
    saved = await server.graphql(SAVE, input=wanted | given)
    return saved["saveAgent"]["id"]


@dataclass
class Load:
    """Clients of one server, and one agent.

    `acknowledged` are jobs and what was said to have been done to them; `refused` counts the
    codes of answers that asked to try again.
    """

    server: Server
    agent_id: str
    acknowledged: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    refused: Counter[str] = field(default_factory=Counter[str])
    stopped: bool = False

    async def client(self) -> None:
        """One job after the other."""
        while not self.stopped:
            await self.job()

    async def job(self, **given: Any) -> str:
        wanted: Json = {
            "name": "A job",
            "acceptanceCriteria": SAYS_OK,
            "assign": {"agentId": self.agent_id},
        }
        made = await self._done("createJob", CREATE, wanted | given)
        self.acknowledged.append((made["id"], "CREATE"))
        await self._done("executeJob", EXECUTE, {"id": made["id"]})
        self.acknowledged.append((made["id"], "EXECUTE"))
        return made["id"]

    async def _done(self, name: str, query: str, command: Json) -> Json:
        """Repeats the request with its key until it is answered."""
        command |= {"idempotencyKey": str(uuid4())}
        for _ in count():
            try:
                answer = await self.server.answer(query, input=command)
            except (aiohttp.ClientError, TimeoutError) as error:
                self.refused[f"NO_ANSWER {error!r}"] += 1
            else:
                if "errors" not in answer:
                    found = answer["data"][name]
                    assert found["__typename"] == "Job", found
                    return found
                (error,) = answer["errors"]
                self.refused[error["extensions"]["code"]] += 1
                assert error["extensions"]["code"] == "UNAVAILABLE", error
            await asyncio.sleep(PAUSE_SECONDS)
        raise AssertionError

    @property
    def jobs(self) -> list[str]:
        return [id for id, event in self.acknowledged if event == "EXECUTE"]

    async def all_completed(self, seconds: float = 60) -> None:
        """Return when every job that was accepted is completed."""
        async with asyncio.timeout(seconds):
            for id in self.jobs:
                while (await self.server.graphql(STATUS, id=id))["job"]["status"] != "COMPLETED":
                    await asyncio.sleep(PAUSE_SECONDS)


@asynccontextmanager
async def loaded(server: Server, agent_url: str, clients: int) -> AsyncGenerator[Load, None]:
    """Clients at work meanwhile; at the end each has finished what it was at."""
    load = Load(server, await save_agent(server, agent_url))
    tasks = [asyncio.create_task(load.client()) for _ in range(clients)]
    try:
        yield load
    finally:
        load.stopped = True
        await asyncio.gather(*tasks)
