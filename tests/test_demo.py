"""`signoff demo` as a process, against a server in another process."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from models import Role
from signoff import demo, sample
from signoff.demo import DemoFailed
from tests.fakes.agents import fake_agent
from tests.support import databases
from tests.support.graphql import make_key, mutate
from tests.support.making import stalls
from tests.support.running import Client
from tests.support.server import Server, serving
from tests.test_readme import block

NOWHERE = "http://127.0.0.1:9"
SHOWN = "http://127.0.0.1:8080"
ID = re.compile(r"(agent|job|attempt)_[0-9a-f]{32}")


async def run_demo(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "signoff", "demo", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def told(text: str, url: str) -> str:
    """What is the same in every run."""
    return ID.sub(r"\1_…", text.replace(url, SHOWN))


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    return databases.sqlite_copy(migrated_sqlite, tmp_path)


@pytest.fixture
async def server(sqlite_url: str, tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(sqlite_url, tmp_path, SIGNOFF_SAMPLE_AGENT="1") as server:
        yield server


async def test_one_job_passes_and_one_is_fixed_as_the_readme_shows(server: Server) -> None:
    code, out, err = await run_demo("--url", server.url)
    assert (code, err) == (0, "")
    shown = told(out, server.url)
    for line in (
        "  status      IN_EXECUTION → RESUBMISSION_REQUIRED  (VERDICT_FAILED)",
        "              ✗ short: size(output.summary) <= 60 is false.",
        "  feedback    short: size(output.summary) <= 60 is false.",
        "              ✓ short: size(output.summary) <= 60 is true.",
        "  signed off  VALIDATED: this response is the job's result",
    ):
        assert line in shown.splitlines()
    assert shown == told(block("demo"), SHOWN)


async def test_a_server_with_keys_wants_one(server: Server, sqlite_url: str) -> None:
    key = await make_key(sqlite_url, "mia", Role.MEMBER)
    code, out, err = await run_demo("--url", server.url)
    assert (code, out) == (1, "")
    assert err == (
        "signoff: the server wants an API key: "
        "Send an API key as “Authorization: Bearer signoff_…”. Pass it with --key; "
        "make one with: signoff keys create --role member --name you\n"
    )
    code, out, err = await run_demo("--url", server.url, "--key", key)
    assert (code, err) == (0, "")
    assert "  viewer      mia (MEMBER)" in out.splitlines()


async def test_no_server() -> None:
    code, out, err = await run_demo("--url", NOWHERE)
    assert (code, out) == (1, "")
    assert err == (
        "signoff: no server answers at http://127.0.0.1:9; start one in another terminal with: "
        "signoff serve (or say where it is with --url)\n"
    )


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://127.0.0.1", "http://[", "/graphql"])
async def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(DemoFailed, match=r"^--url takes an address such as http://127.0.0.1:8080"):
        await demo.run(url, None)


async def test_a_server_without_the_sample_agent(client: Client) -> None:
    with pytest.raises(DemoFailed, match=r"^the server has no agent “Sample agent”"):
        await demo.run(str(client.make_url("/")), None)


async def test_something_else_than_signoff(client: Client) -> None:
    with pytest.raises(DemoFailed, match=r"is not Signoff; say where it is: --url$"):
        await demo.run(str(client.make_url("/elsewhere")), None)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"acceptsFeedback": False}, "takes no feedback any more"),
        ({}, r"should be COMPLETED, it is ASSIGNED: No connection"),
    ],
)
async def test_a_changed_sample_agent(client: Client, changes: dict[str, object], why: str) -> None:
    await save_agent(client, **changes)
    with pytest.raises(DemoFailed, match=why):
        await demo.run(str(client.make_url("/")), None)


async def test_a_paused_sample_agent(client: Client) -> None:
    id = await save_agent(client)
    await mutate(client, "setAgentAvailability", id=id, availability="PAUSED")
    with pytest.raises(DemoFailed, match=f"is PAUSED; make it ACTIVE with: .*{id}"):
        await demo.run(str(client.make_url("/")), None)


async def test_a_job_that_does_not_settle(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SETTLED_SECONDS", 1)
    async with fake_agent(stalls) as agent:
        await save_agent(client, endpointUrl=agent.url)
        with pytest.raises(DemoFailed, match=r"not settled in 1 s, it is IN_EXECUTION CALLING"):
            await demo.run(str(client.make_url("/")), None)


async def save_agent(client: Client, **given: object) -> str:
    """The id of an agent in the sample agent's place."""
    changes = {"name": sample.NAME, "endpointUrl": NOWHERE, "acceptsFeedback": True} | given
    saved = await mutate(client, "saveAgent", input=changes)
    assert saved["__typename"] == "Agent", saved
    return saved["id"]
