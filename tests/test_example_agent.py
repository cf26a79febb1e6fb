"""The README's agent, as a process, registered over HTTP and given a job."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from services import agent_http
from services.agent_http import sign
from tests.support.graphql import mutate
from tests.support.running import Client

FILE = Path(__file__).parent.parent / "docs" / "examples" / "agent.py"
TEXT = "one two three four five six seven eight nine ten eleven"
FIVE_WORDS = {
    "key": "five",
    "text": "It has at most five words",
    "kind": "REGEX",
    "config": {"pattern": r"^\w+( \w+){0,4}$", "pointer": "/summary"},
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def url() -> str:
    return f"http://127.0.0.1:{free_port()}/run"


@asynccontextmanager
async def running(url: str, secret: str) -> AsyncGenerator[None]:
    """The agent, when it answers."""
    port = url.rpartition(":")[2].removesuffix("/run")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(FILE)),
        env=os.environ | {"SIGNING_SECRET": secret, "PORT": port},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(30):
            while await status(url, {}) is None:
                assert process.returncode is None
                await asyncio.sleep(0.05)
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def status(url: str, headers: dict[str, str], body: bytes = b"{}") -> int | None:
    """What it answers to a POST; None while nobody listens."""
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=body, headers=headers) as response,
        ):
            return response.status
    except aiohttp.ClientConnectorError:
        return None


async def test_it_does_a_job_and_does_better_with_feedback(client: Client, url: str) -> None:
    agent = await mutate(
        client,
        "saveAgent",
        input={"name": "Summariser", "endpointUrl": url, "acceptsFeedback": True},
    )
    job = await mutate(
        client,
        "createJob",
        input={
            "name": "Summarise",
            "input": {"text": TEXT},
            "acceptanceCriteria": {"items": [FIVE_WORDS]},
            "assign": {"agentId": agent["id"]},
        },
    )
    execute = {"id": job["id"], "waitSeconds": 30}
    async with running(url, agent["signingSecret"]):
        first = await mutate(client, "executeJob", input=execute)
        assert (first["status"], first["result"]) == ("RESUBMISSION_REQUIRED", None)
        second = await mutate(client, "executeJob", input=execute)
    assert second["status"] == "COMPLETED"
    assert second["result"] == {"summary": "one two three four five"}


async def test_it_refuses_who_does_not_know_the_secret(url: str) -> None:
    secret, now = agent_http.new_secret(), int(time.time())
    body = b'{"text": "hello"}'
    async with running(url, secret):
        good = sign(secret, id="attempt_1", timestamp=now, body=body)
        assert await status(url, good, body) == 200
        assert await status(url, {}, body) == 401
        assert await status(url, good, b'{"text": "bye"}') == 401
        stranger = sign(agent_http.new_secret(), id="attempt_1", timestamp=now, body=body)
        assert await status(url, stranger, body) == 401
        old = sign(secret, id="attempt_1", timestamp=now - 400, body=body)
        assert await status(url, old, body) == 401
