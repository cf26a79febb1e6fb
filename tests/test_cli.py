"""The command line in processes of its own: what it prints, and how it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.fernet import Fernet

from models import Agent
from services import agents
from services.actors import LOCAL_ADMIN
from services.agents import SaveAgent
from services.runtime import Runtime
from signoff import sample
from tests.fakes.agents import fake_agent
from tests.support.databases import sqlite_url
from tests.support.graphql import SAYS_OK, SDL_FILE, Json, echo, mutation

SECONDS = 60
"""Longest wait for a process on a busy machine."""


SHELL = """
import json, os, sys, tempfile
from signoff.cli import main

for line in sys.stdin:
    folder, arguments, environment = json.loads(line)
    files = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    if (child := os.fork()) == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(files[0].fileno(), 1)
        os.dup2(files[1].fileno(), 2)
        os.chdir(folder)
        os.environ.update(environment)
        main(arguments)
        sys.exit()
    _, status = os.waitpid(child, 0)
    texts = []
    for file in files:
        file.seek(0)
        texts.append(file.read().decode())
    print(json.dumps([os.waitstatus_to_exitcode(status), *texts]), flush=True)
"""
"""Every command in a process of its own, forked when all that takes long is imported."""


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Nothing of the developer's own settings."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SIGNOFF_", "OPENAI_"))}
    return {**clean, "SIGNOFF_PORT": "0", "PYTHONPATH": str(SDL_FILE.parent), **given}


@dataclass
class Shell:
    process: subprocess.Popen[str]
    folder: Path

    def run(self, *arguments: str, **given: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps([str(self.folder), arguments, given]) + "\n")
        self.process.stdin.flush()
        code, out, err = json.loads(self.process.stdout.readline())
        return code, out, err

    def done(self, *arguments: str, **given: str) -> str:
        """What a command printed that must succeed."""
        code, out, err = self.run(*arguments, **given)
        assert code == 0, err
        return out

    def refusal(self, *arguments: str, **given: str) -> str:
        """The one line that a refused command leaves."""
        code, out, err = self.run(*arguments, **given)
        assert (code, out) == (1, ""), err
        (line,) = err.splitlines()
        assert line.startswith("signoff: ")
        return line.removeprefix("signoff: ")


@pytest.fixture(scope="module")
def shell_process() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", SHELL],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment({}),
        text=True,
    ) as process:
        yield process


@pytest.fixture
def shell(shell_process: subprocess.Popen[str], tmp_path: Path) -> Shell:
    return Shell(shell_process, tmp_path)


@dataclass
class Running:
    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list[str])
    errors: list[str] = field(default_factory=list[str])
    url: str = ""

    async def ready(self) -> None:
        """Return when it has said so, with all that it says then."""
        assert self.process.stdout
        async with asyncio.timeout(SECONDS):
            while line := (await self.process.stdout.readline()).decode():
                self.lines.append(line.rstrip())
                if found := re.search(r"GraphQL +(http://\S+)/graphql", line):
                    self.url = found[1]
                if line.startswith("  Judge  ") or "worker is ready" in line:
                    return
        pytest.fail("\n".join(self.lines + self.errors))

    async def listen(self) -> None:
        assert self.process.stderr
        while line := (await self.process.stderr.readline()).decode():
            self.errors.append(line.rstrip())

    async def ask(self, query: str, key: str | None = None, **variables: Any) -> Json:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        body = {"query": query, "variables": variables}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/graphql", json=body, headers=headers) as got,
        ):
            return {"status": got.status} | await got.json()


@asynccontextmanager
async def started(folder: Path, *arguments: str, **given: str) -> AsyncGenerator[Running]:
    """A server or worker under way; asked to stop at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "signoff", *arguments),
        cwd=folder,
        env=environment(given),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    running = Running(process)
    listening = asyncio.create_task(running.listen())
    try:
        yield running
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(SECONDS):
            assert await process.wait() == 0, running.errors
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await listening


@asynccontextmanager
async def ready(folder: Path, *arguments: str, **given: str) -> AsyncGenerator[Running]:
    async with started(folder, *arguments, **given) as running:
        await running.ready()
        yield running


@pytest.fixture
async def taken_port() -> AsyncIterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


# Refusals


def test_a_taken_port_is_refused_in_one_line(shell: Shell, taken_port: int) -> None:
    assert shell.refusal("serve", "--port", str(taken_port)) == (
        f"port {taken_port} of 127.0.0.1 is taken; stop what listens there, "
        "or choose another with --port (0 for any that is free)"
    )


def test_a_database_url_of_no_known_kind_is_refused(shell: Shell) -> None:
    for command, url in (
        ("serve", "mysql://me:s3cret@host/db"),
        ("worker", "signoff.db"),
        ("keys", "sqlite:x"),
        ("migrate", "postgres//me:s3cret@h"),
    ):
        assert shell.refusal(command, SIGNOFF_DATABASE_URL=url) == (
            "SIGNOFF_DATABASE_URL must begin with sqlite:// or postgres://; "
            "for example sqlite://signoff.db"
        )
    for command, url in (
        ("serve", "sqlite://"),
        ("keys", "sqlite://."),
        ("migrate", "sqlite://:memory:"),
    ):
        assert shell.refusal(command, SIGNOFF_DATABASE_URL=url) == (
            "SIGNOFF_DATABASE_URL must name a file, for example sqlite://signoff.db"
        )
    for command, url in (
        ("serve", "postgres://me:s3cret@127.0.0.1:notaport/db"),
        ("worker", "postgres://me:s3cret/x@127.0.0.1/db"),
        ("keys", "postgres://me:s3cret#x@127.0.0.1/db"),
        ("migrate", "postgres://[s3cret/db"),
    ):
        line = shell.refusal(command, SIGNOFF_DATABASE_URL=url)
        assert line.startswith("SIGNOFF_DATABASE_URL is not a URL of Postgres; it looks like ")
        assert "s3cret" not in line


@pytest.mark.parametrize("command", ["serve", "worker", "migrate"])
def test_a_postgres_that_is_not_there_is_refused_without_its_password(
    shell: Shell, command: str
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        for url in (
            f"postgres://me:s3cret@127.0.0.1:{port}/db",
            "postgres://me:s3cret@no-such-host.invalid/db",
            f"postgres://127.0.0.1:{port}/db?password=s3cret",
        ):
            line = shell.refusal(command, SIGNOFF_DATABASE_URL=url)
            assert "SIGNOFF_DATABASE_URL" in line, url
            assert "s3cret" not in line, url


def test_a_postgres_database_that_is_not_there_is_refused(
    shell: Shell, postgres_server: Any
) -> None:
    line = shell.refusal("migrate", SIGNOFF_DATABASE_URL=postgres_server.url("nothing"))
    assert '"nothing" does not exist' in line


def test_an_sqlite_file_that_cannot_be_is_refused(tmp_path: Path, shell: Shell) -> None:
    (tmp_path / "text.db").write_text("no database\n" * 1000)
    for file in ("no/such/folder/signoff.db", "text.db"):
        line = shell.refusal("serve", SIGNOFF_DATABASE_URL=f"sqlite://{file}")
        assert line.startswith("the SQLite file "), line
        assert line.endswith("check SIGNOFF_DATABASE_URL")


def test_another_address_than_loopback_needs_a_key(shell: Shell) -> None:
    for host in ("0.0.0.0", "::"):  # noqa: S104
        line = shell.refusal("serve", "--host", host)
        assert line == (
            f"will not listen on {host} before there is an API key, since anybody could use the "
            "server; make one with: signoff keys create --role admin --name you"
        )


def test_an_address_of_another_machine_is_refused(shell: Shell) -> None:
    shell.done("keys", "create", "--role", "admin", "--name", "ada")
    line = shell.refusal("serve", "--host", "192.0.2.1", "--port", "1")
    assert line.startswith("cannot listen on 192.0.2.1:1: ")


def test_a_worker_on_sqlite_is_refused(tmp_path: Path, shell: Shell) -> None:
    line = shell.refusal("worker")
    assert line.startswith("a worker beside the server needs Postgres")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["serve", "worker", "migrate"])
def test_a_setting_that_cannot_be_is_named(tmp_path: Path, shell: Shell, command: str) -> None:
    for name, value in (
        ("SIGNOFF_PORT", "65536"),
        ("SIGNOFF_PORT", "http"),
        ("SIGNOFF_LOG_LEVEL", "LOUD"),
        ("SIGNOFF_LEASE_SECONDS", "0"),
        ("SIGNOFF_ALLOW_PRIVATE_AGENTS", "perhaps"),
    ):
        assert shell.refusal(command, **{name: value}).startswith(f"{name}: "), name
    assert list(tmp_path.iterdir()) == []


def test_a_secret_key_that_is_none_is_refused(tmp_path: Path, shell: Shell) -> None:
    for value in ("short", "x" * 43, "é" * 44):
        line = shell.refusal("serve", SIGNOFF_SECRET_KEY=value)
        assert line.startswith("SIGNOFF_SECRET_KEY is not a Fernet key"), value
        assert value not in line
    (tmp_path / "mine.key").write_text("nonsense\n")
    line = shell.refusal("serve", SIGNOFF_KEY_FILE="mine.key")
    assert line.startswith("mine.key is not a Fernet key")
    line = shell.refusal("serve", SIGNOFF_KEY_FILE="no/folder/signoff.key")
    assert line.startswith("the key file no/folder/signoff.key cannot be made")


def test_an_unknown_command_is_refused_with_the_usage(shell: Shell) -> None:
    for arguments in ((), ("nonsense",), ("keys", "create", "--role", "king", "--name", "x")):
        code, out, err = shell.run(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("usage: signoff")
        assert "Traceback" not in err


# Small commands


def test_the_version_and_the_schema_are_printed(tmp_path: Path, shell: Shell) -> None:
    assert shell.done("--version") == f"signoff {version('signoff')}\n"
    assert shell.done("schema") == SDL_FILE.read_text()
    assert list(tmp_path.iterdir()) == []


def test_the_committed_schema_is_compared(tmp_path: Path, shell: Shell) -> None:
    remedy = "schema.graphql is not the schema; run: signoff schema > schema.graphql"
    assert shell.refusal("schema", "--check") == remedy
    (tmp_path / "schema.graphql").write_text(SDL_FILE.read_text())
    assert shell.done("schema", "--check") == "schema.graphql is up to date.\n"
    with (tmp_path / "schema.graphql").open("a") as file:
        file.write("#\n")
    assert shell.refusal("schema", "--check") == remedy


def test_migrating_twice_says_the_same(shell: Shell, empty_database_url: str) -> None:
    for _ in range(2):
        printed = shell.done("migrate", SIGNOFF_DATABASE_URL=empty_database_url)
        assert printed == "The database is up to date.\n"


def test_keys_are_made_listed_and_revoked(tmp_path: Path, shell: Shell) -> None:
    assert shell.done("keys").startswith("No keys yet.")
    code, out, err = shell.run("keys", "create", "--role", "member", "--name", "Mia M.")
    key = out.strip()
    assert re.fullmatch(r"signoff_[\w-]{43}", key)
    assert (code, err) == (0, "Keep it now: it is not shown again.\n")
    listed = shell.done("keys", "list")
    assert key not in listed
    assert re.fullmatch(rf"{key[:14]}…  MEMBER  active +never used +Mia M\.\n", listed)
    assert shell.done("keys", "revoke", key[:14]) == "Revoked the key of Mia M..\n"
    assert "revoked 20" in shell.done("keys", "list")
    for prefix in (key[:14], "signoff_"):
        line = shell.refusal("keys", "revoke", prefix)
        assert line.startswith("no active key begins with")


def test_a_name_that_is_nobodys_gets_no_key(shell: Shell) -> None:
    for name in ("   ", "System", "x" * 201):
        line = shell.refusal("keys", "create", "--role", "admin", "--name", name)
        assert line.startswith("name: "), line
    assert shell.done("keys").startswith("No keys yet.")


def test_keys_are_narrowed_and_end_and_are_for_a_workspace(shell: Shell) -> None:
    assert shell.done("workspaces", "create", "acme") == "Made the workspace “acme”.\n"
    assert shell.refusal("workspaces", "create", "acme").startswith("name: a workspace “acme”")
    listed = shell.done("workspaces")
    assert re.fullmatch(r"[\d-]{10}  default\n[\d-]{10}  acme\n", listed)
    make = ("keys", "create", "--role", "admin", "--name", "bob")
    shell.done(*make, "--workspace", "acme", "--expires", "30d", "--owners", "mia, olaf")
    listed = shell.done("keys", "list")
    assert re.fullmatch(
        r"signoff_[\w-]+…  ADMIN   until [\d-]{10} +never used +bob  in acme\n", listed
    )
    line = shell.refusal(*make, "--workspace", "nowhere")
    assert line == "there is no workspace “nowhere”; see: signoff workspaces list"
    line = shell.refusal(*make, "--agents", "agent_" + "0" * 32)
    assert line == "input.agentIds.0: there is no such agent"
    for wrong in (("--expires", "3y"), ("--expires", "0d"), ("--agents", "job_1")):
        code, out, err = shell.run(*make, *wrong)
        assert (code, out) == (2, ""), wrong
        assert "must be" in err or "is not the id of an agent" in err
    assert shell.done("keys") == listed


# Servers

VIEWER = "{ viewer { name role } }"


async def test_a_server_on_an_empty_folder_says_where_everything_is(
    tmp_path: Path, shell: Shell
) -> None:
    async with ready(tmp_path, "serve") as server:
        assert server.lines[:4] == [
            f"Signoff {version('signoff')} is ready.",
            f"  GraphQL    {server.url}/graphql   (HTTP, WebSocket, SSE)",
            f"  GraphiQL   {server.url}/graphiql   (docs and ready-made examples)",
            f"  Health     {server.url}/healthz",
        ]
        assert f"  Agent      “Sample agent” at {server.url}/sample-agent" in server.lines
        answer = await server.ask(VIEWER)
        assert answer["data"]["viewer"] == {"name": "Local admin", "role": "ADMIN"}
        second = await asyncio.to_thread(shell.refusal, "serve")
        assert second.startswith("another `signoff serve` works on signoff.db; stop it first")
        assert await asyncio.to_thread(shell.done, "migrate") == "The database is up to date.\n"
        key_file = tmp_path / "signoff.key"
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        Fernet(key_file.read_text().strip())
    assert (tmp_path / "signoff.db").exists()
    await the_sample_agent_moves_along_and_does_work(tmp_path)


async def the_sample_agent_moves_along_and_does_work(tmp_path: Path) -> None:
    """On another port than the time before."""
    async with ready(tmp_path, "serve") as server:
        found = await server.ask("{ agents { nodes { id name endpointUrl } } }")
        (second,) = found["data"]["agents"]["nodes"]
        assert second["endpointUrl"] == f"{server.url}/sample-agent"
        job = {
            "name": "Summary",
            "input": {"text": "Hello there. How are you? Fine."},
            "acceptanceCriteria": {
                "items": [{"text": "Hello", "kind": "CONTAINS", "config": {"value": "Hello"}}]
            },
            "assign": {"agentId": second["id"]},
        }
        made = (await server.ask(mutation("createJob"), input=job))["data"]["createJob"]
        given = {"id": made["id"], "waitSeconds": 30}
        ran = (await server.ask(mutation("executeJob"), input=given))["data"]["executeJob"]
        assert (ran["status"], ran["result"]) == (
            "COMPLETED",
            {"summary": "Hello there. How are you?", "words": 5},
        )


async def test_no_sample_agent_beside_the_users_own(rt: Runtime) -> None:
    assert await sample.register(rt, "http://127.0.0.1:1") is not None
    moved = await sample.register(rt, "http://127.0.0.1:2")
    assert moved is not None
    assert moved.endpoint_url == "http://127.0.0.1:2/sample-agent"
    mine = {"id": moved.id, "name": "Mine", "endpoint_url": "http://127.0.0.1:9/"}
    await agents.save(rt, LOCAL_ADMIN, SaveAgent.model_validate(mine))
    assert await sample.register(rt, "http://127.0.0.1:3") is None
    assert await Agent.all().values_list("name", flat=True) == ["Mine"]


async def test_the_first_key_closes_the_door_and_a_revoked_one_opens_nothing(
    tmp_path: Path,
    shell: Shell,
) -> None:
    async with ready(tmp_path, "serve", SIGNOFF_LOG_LEVEL="DEBUG") as server:
        assert (await server.ask(VIEWER))["status"] == 200
        await get_secretly(server)
        make = ("keys", "create", "--role", "viewer", "--name", "vera")
        key = (await asyncio.to_thread(shell.done, *make)).strip()
        async with asyncio.timeout(SECONDS):
            while (await server.ask(VIEWER))["status"] != 401:
                await asyncio.sleep(0.05)
        answer = await server.ask(VIEWER, key)
        assert answer["data"]["viewer"] == {"name": "vera", "role": "VIEWER"}
        await asyncio.to_thread(shell.done, "keys", "revoke", key[:14])
        async with asyncio.timeout(SECONDS):
            while (await server.ask(VIEWER, key))["status"] != 401:
                await asyncio.sleep(0.05)
        refused = await server.ask(VIEWER, key)
        assert refused["errors"][0]["extensions"] == {"code": "UNAUTHENTICATED"}
        assert (await server.ask(VIEWER))["status"] == 401
    requests = [each for each in map(json.loads, server.errors) if each["event"] == "request"]
    assert {(each["path"], each["method"]) for each in requests} == {
        ("/graphql", "GET"),
        ("/graphql", "POST"),
    }
    assert all(each["request_id"] for each in requests)
    assert "s3cret" not in "\n".join(server.errors)


async def get_secretly(server: Running) -> None:
    """A query in the query string, which must not reach the log."""
    params = {"query": '{ node(id: "s3cret") { id } }'}
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{server.url}/graphql", params=params) as got,
    ):
        assert await got.json() == {"data": {"node": None}}


@pytest.mark.parametrize("database_kind", ["postgres"])
async def test_two_servers_start_at_once_on_one_database(
    tmp_path: Path, empty_database_url: str
) -> None:
    given = {"SIGNOFF_DATABASE_URL": empty_database_url}
    async with (
        started(tmp_path, "serve", **given) as one,
        started(tmp_path, "serve", **given) as two,
    ):
        await asyncio.gather(one.ready(), two.ready())
        for server in (one, two):
            job = {"name": "x", "acceptanceCriteria": SAYS_OK}
            answer = await server.ask(mutation("createJob"), input=job)
            assert answer["data"]["createJob"]["__typename"] == "Job"
        for server in (one, two):
            answer = await server.ask("{ jobs { totalCount } }")
            assert answer["data"]["jobs"]["totalCount"] == 2


@pytest.mark.parametrize("database_kind", ["postgres"])
async def test_a_worker_does_what_a_server_accepted(
    tmp_path: Path, empty_database_url: str
) -> None:
    given = {
        "SIGNOFF_DATABASE_URL": empty_database_url,
        "SIGNOFF_ALLOW_PRIVATE_AGENTS": "true",
    }
    async with (
        fake_agent(echo) as endpoint,
        ready(tmp_path, "worker", **given) as worker,
        ready(tmp_path, "serve", **given) as server,
    ):
        assert worker.lines == ["Signoff worker is ready."]
        assert server.lines[0].endswith("is ready.")
        agent = {"name": "Echo", "endpointUrl": endpoint.url}
        saved = (await server.ask(mutation("saveAgent"), input=agent))["data"]["saveAgent"]
        job = {
            "name": "x",
            "input": {"ok": True},
            "acceptanceCriteria": SAYS_OK,
            "assign": {"agentId": saved["id"]},
        }
        for _ in range(20):
            made = (await server.ask(mutation("createJob"), input=job))["data"]["createJob"]
            ask = {"id": made["id"], "waitSeconds": 30}
            ran = (await server.ask(mutation("executeJob"), input=ask))["data"]["executeJob"]
            assert ran["status"] == "COMPLETED"
        assert len(endpoint.received) == 20


async def test_a_server_ends_at_once_when_asked_to(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "other.db")
    async with (
        ready(tmp_path, "serve", SIGNOFF_DATABASE_URL=url) as server,
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{server.url}/graphql", protocols=["graphql-transport-ws"]) as ws,
    ):
        await ws.send_json({"type": "connection_init"})
        await ws.receive_json()
        server.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(20):
            message = await ws.receive()
            assert message.type in {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED}
            assert await server.process.wait() == 0
