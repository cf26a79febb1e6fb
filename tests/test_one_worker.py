"""One process to a SQLite file runs executions: a second would take them for left behind."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.agents import FakeAgent, Received, fake_agent
from tests.support import commands
from tests.support.making import SAYS_OK, says_ok, until
from tests.support.server import Server, serving

pytestmark = [
    pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True),
    pytest.mark.timeout(180),
]

SAVE = "mutation($input: SaveAgentInput!) { saveAgent(input: $input) { ... on Agent { id } } }"
CREATE = "mutation($input: CreateJobInput!) { createJob(input: $input) { ... on Job { id } } }"
EXECUTE = "mutation($input: ExecuteJobInput!) { executeJob(input: $input) { ... on Job { id } } }"
JOB = """
query($id: ID!) {
  job(id: $id) {
    version status phase statusReason result attemptCount
    attempts { nodes { state error { code } } }
    logs(first: 100) { nodes { type } }
  }
}"""


async def execution(server: Server, agent: FakeAgent) -> str:
    """The id of a job that was just told to run."""
    given = {"name": "Slow", "endpointUrl": agent.url}
    saved = await server.graphql(SAVE, input=given)
    job = {
        "name": "A job",
        "acceptanceCriteria": SAYS_OK,
        "assign": {"agentId": saved["saveAgent"]["id"]},
    }
    made = await server.graphql(CREATE, input=job)
    id = made["createJob"]["id"]
    await server.graphql(EXECUTE, input={"id": id})
    return id


async def read(server: Server, id: str) -> dict[str, Any]:
    return (await server.graphql(JOB, id=id))["job"]


async def completed(server: Server, id: str) -> dict[str, Any]:
    async def found() -> dict[str, Any] | None:
        job = await read(server, id)
        return None if job["status"] == "IN_EXECUTION" else job

    return await until(found)


@pytest.fixture(params=["same path", "absolute path", "symbolic link"])
def spelled(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of the file `signoff.db` of this folder, as a second server may be given it."""
    if request.param == "symbolic link":
        (tmp_path / "other").mkdir()
        link = tmp_path / "other" / "linked.db"
        link.symlink_to(tmp_path / "signoff.db")
        return f"sqlite://{link}"
    return (
        "sqlite://signoff.db" if request.param == "same path" else f"sqlite://{tmp_path}/signoff.db"
    )


async def test_a_second_server_on_the_file_is_refused_and_disturbs_nothing(
    database_url: str, tmp_path: Path, spelled: str
) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def waits(received: Received) -> None:
        asked.set()
        await go_on.wait()
        await says_ok(received)

    assert database_url == f"sqlite://{tmp_path}/signoff.db"
    async with (
        fake_agent(waits) as agent,
        serving("sqlite://signoff.db", tmp_path) as server,
    ):
        id = await execution(server, agent)
        await asked.wait()
        before = await read(server, id)
        assert (before["status"], before["phase"]) == ("IN_EXECUTION", "CALLING_AGENT")
        settings = dict(server.environment) | {"SIGNOFF_DATABASE_URL": spelled}
        code, out, err = await commands.run(tmp_path, settings, "serve", "--port", "0")
        assert (code, out) == (1, ""), err
        (line,) = err.splitlines()
        assert re.fullmatch(
            r"signoff: another `signoff serve` works on \S+; stop it first, "
            r"or use Postgres for several processes",
            line,
        )
        assert await read(server, id) == before
        go_on.set()
        job = await completed(server, id)
        assert (job["status"], job["statusReason"]) == ("COMPLETED", "VERDICT_PASSED")
        assert (job["result"], job["attemptCount"]) == ({"answer": "ok"}, 1)
        assert job["attempts"]["nodes"] == [{"state": "SUCCEEDED", "error": None}]
        assert len(agent.received) == 1


async def test_keys_are_made_beside_a_running_server(database_url: str, tmp_path: Path) -> None:
    async with serving(database_url, tmp_path) as server:
        make = ("keys", "create", "--role", "admin", "--name", "ada")
        code, out, err = await commands.run(tmp_path, server.environment, *make)
        assert code == 0, err
        assert re.fullmatch(r"signoff_[\w-]{43}\n", out)
        server.session.headers["Authorization"] = f"Bearer {out.strip()}"
        viewer = (await server.graphql("{ viewer { name role } }"))["viewer"]
        assert viewer == {"name": "ada", "role": "ADMIN"}


async def test_the_next_server_starts_after_the_first_was_killed(
    database_url: str, tmp_path: Path
) -> None:
    async with serving(database_url, tmp_path) as server:
        await server.kill()
        await server.start()
        assert (await server.graphql("{ viewer { name } }"))["viewer"] == {"name": "Local admin"}
