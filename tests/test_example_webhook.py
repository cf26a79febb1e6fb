"""The receiver of the how-to, as a process, made a webhook of and told of a job."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from services.agent_http import new_secret, sign
from tests.support.graphql import mutate, new_job
from tests.support.running import Client

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docs" / "examples" / "webhook.py"
SECONDS = 30


def test_the_how_to_shows_the_file_that_is_tested() -> None:
    text = (ROOT / "docs" / "howto" / "webhooks.md").read_text("utf-8")
    (shown,) = re.findall(
        r"<!-- receiver -->\n```python\n(.*?)```\n<!-- /receiver", text, re.DOTALL
    )
    assert shown == FILE.read_text("utf-8")


@pytest.fixture
def url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/"


@asynccontextmanager
async def running(url: str, secret: str) -> AsyncGenerator[Process]:
    """The receiver, when it answers."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(FILE)),
        env=os.environ | {"WEBHOOK_SECRET": secret, "PORT": url.rpartition(":")[2].strip("/")},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=PIPE,
    )
    try:
        async with asyncio.timeout(SECONDS):
            while await status(url, {}) is None:
                assert process.returncode is None
                await asyncio.sleep(0.05)
        yield process
    finally:
        process.kill()
        await process.communicate()


async def status(url: str, headers: dict[str, str], body: bytes = b"{}") -> int | None:
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=body, headers=headers) as response,
        ):
            return response.status
    except aiohttp.ClientConnectionError:
        return None


async def test_it_hears_of_a_job(client: Client, url: str) -> None:
    made = await mutate(client, "saveWebhook", input={"url": url, "types": ["STATUS_CHANGE"]})
    async with running(url, made["secret"]) as process:
        assert process.stdout
        await new_job(client)
        async with asyncio.timeout(SECONDS):
            assert await process.stdout.readline() == b"job.status_changed PENDING\n"
            await mutate(client, "testWebhook", id=made["webhook"]["id"])
            assert await process.stdout.readline() == b"webhook.test \n"


async def test_it_believes_only_what_is_signed_and_fresh(url: str) -> None:
    secret, body, now = new_secret(), b'{"type": "x", "data": {}}', int(time.time())
    good = sign(secret, id="delivery_1", timestamp=now, body=body)
    other = sign(new_secret(), id="delivery_1", timestamp=now, body=body)
    both = good | {"webhook-signature": f"{other['webhook-signature']} {good['webhook-signature']}"}
    old = sign(secret, id="delivery_1", timestamp=now - 400, body=body)
    async with running(url, secret):
        for headers, expected in ((good, 204), (both, 204), (other, 401), (old, 401), ({}, 401)):
            assert await status(url, headers, body) == expected
        assert await status(url, good, body + b" ") == 401
