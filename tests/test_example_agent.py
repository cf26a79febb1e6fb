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
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient

from services import agent_http
from services.agent_http import sign
from signoff.app import create_app
from tests.support.graphql import gql, mutate
from tests.support.running import Client, settings_for

FILE = Path(__file__).parent.parent / "docs" / "examples" / "agent.py"
TEXT = "one two three four five six seven eight nine ten eleven"
LONG = FILE.with_name("long_agent.py")
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
async def running(url: str, secret: str, file: Path = FILE) -> AsyncGenerator[None]:
    """The agent, when it answers."""
    port = url.rpartition(":")[2].removesuffix("/run")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(file)),
        env=os.environ | {"SIGNING_SECRET": secret, "PORT": port, "SECONDS": "0.3"},
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


TEN_WORDS = FIVE_WORDS | {"config": {"pattern": r"^\w+( \w+){9}$", "pointer": "/summary"}}
ATTEMPT = """query($id: ID!) { job(id: $id) { currentAttempt {
    httpStatus error { code } longCall { polls location } } } }"""


async def test_the_one_for_long_work_answers_at_its_location(client: Client, url: str) -> None:
    attempt = await long_work_of(client, url)
    assert attempt["httpStatus"] == 200
    assert attempt["longCall"]["location"].startswith("/work/attempt_")


@pytest.fixture
async def called_back(database_url: str, tmp_path: Path, aiohttp_server: Any) -> Client:
    """A server that agents reach."""
    port = free_port()
    settings = settings_for(database_url, tmp_path, public_url=f"http://127.0.0.1:{port}")
    return TestClient(await aiohttp_server(create_app(settings), port=port))


async def test_the_one_for_long_work_answers_by_its_callback(called_back: Client, url: str) -> None:
    async with called_back:
        attempt = await long_work_of(called_back, url)
    assert (attempt["httpStatus"], attempt["longCall"]["polls"]) == (None, 0)


async def test_the_one_for_long_work_tells_at_its_location_of_work_that_failed(
    client: Client, url: str
) -> None:
    attempt = await long_work_of(client, url, text=7, status="RESUBMISSION_REQUIRED")
    assert attempt["error"] == {"code": "REJECTED"}


async def test_the_one_for_long_work_tells_by_its_callback_of_work_that_failed(
    called_back: Client, url: str
) -> None:
    async with called_back:
        attempt = await long_work_of(called_back, url, text=7, status="RESUBMISSION_REQUIRED")
    assert (attempt["longCall"]["polls"], attempt["error"]) == (0, {"code": "REJECTED"})


async def long_work_of(
    client: Client, url: str, text: object = TEXT, status: str = "COMPLETED"
) -> dict[str, Any]:
    """The attempt of a job that it did."""
    saved = {"name": "Summariser", "endpointUrl": url, "idempotent": True}
    agent = await mutate(client, "saveAgent", input=saved)
    wanted = {
        "name": "Summarise",
        "input": {"text": text},
        "acceptanceCriteria": {"items": [TEN_WORDS]},
        "assign": {"agentId": agent["id"]},
    }
    job = await mutate(client, "createJob", input=wanted)
    async with running(url, agent["signingSecret"], LONG):
        given = {"id": job["id"], "waitSeconds": 30}
        done = await mutate(client, "executeJob", input=given)
    assert done["status"] == status
    return (await gql(client, ATTEMPT, id=job["id"]))["job"]["currentAttempt"]
