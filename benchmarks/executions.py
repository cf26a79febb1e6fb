"""Executions per second through the whole loop, and how soon an accepted one reaches its agent.

    python benchmarks/executions.py                       # SQLite
    python benchmarks/executions.py postgres://…          # Postgres, an empty database

A server process as `signoff serve` runs it, an agent process on loopback that answers at
once, deterministic criteria, requests over HTTP. Throughput: all jobs are created first, then
executed with 50 requests at a time; the clock stops when the last one is COMPLETED. Latency:
one execution at a time, from the sending of executeJob to the arrival at the agent.
Then the same without HTTP and GraphQL: the services and their worker in this process, and the
latency also from the moment when the execution is accepted, so that nothing can lose it.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import uvloop
from aiohttp import web

from models import Job, JobStatus
from services import agents, execution, jobs
from services.actors import LOCAL_ADMIN
from services.agents import SaveAgent
from services.execution import ExecuteJob
from services.jobs import CreateJob
from services.runtime import Runtime
from services.values import public_id
from signoff import cli
from signoff.settings import Settings
from signoff.wiring import runtime

AGENT_PORT, SERVER_PORT = 8391, 8392
URL = f"http://127.0.0.1:{SERVER_PORT}"
AT_ONCE = 50
CREATE = """mutation ($input: CreateJobInput!) {
  createJob(input: $input) { __typename ... on Job { id } ... on Error { message } } }"""
EXECUTE = """mutation ($input: ExecuteJobInput!) {
  executeJob(input: $input) { __typename ... on Job { id } ... on Error { message } } }"""
COUNT = """{ jobs(where: {status: {eq: COMPLETED}}, first: 0) { totalCount } }"""
SAVE = """mutation ($input: SaveAgentInput!) {
  saveAgent(input: $input) { __typename ... on Agent { id } ... on Error { message } } }"""
CRITERIA = [
    {"text": "says ok", "kind": "EXACT", "config": {"value": "ok", "pointer": "/answer"}},
    {"text": "has it", "kind": "CONTAINS", "config": {"value": "o", "pointer": "/answer"}},
    {"text": "in time", "kind": "LATENCY", "config": {"maxMs": 60_000}},
]


def agent() -> None:
    """Answers at once, and tells when a request came."""
    arrivals: list[float] = []

    async def answer(request: web.Request) -> web.Response:
        arrivals.append(time.time())
        await request.read()
        return web.json_response({"answer": "ok"})

    async def told(request: web.Request) -> web.Response:
        return web.json_response(arrivals)

    app = web.Application()
    app.router.add_post("/", answer)
    app.router.add_get("/arrivals", told)
    web.run_app(app, host="127.0.0.1", port=AGENT_PORT, print=None, access_log=None)


@contextmanager
def agent_process() -> Generator[None]:
    there = multiprocessing.get_context("spawn").Process(target=agent, daemon=True)
    there.start()
    try:
        _until_it_listens()
        yield
    finally:
        there.terminate()
        there.join()


def _until_it_listens() -> None:
    """Else its circuit would be opened by the first executions."""
    for _ in range(300):
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", AGENT_PORT), timeout=1).close()
            return
        time.sleep(0.1)
    raise TimeoutError


@contextmanager
def running(database_url: str | None) -> Generator[None]:
    """An agent and a server, stopped at the end."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"SIGNOFF_KEY_FILE": str(Path(folder) / "signoff.key")}
        environment["SIGNOFF_DATABASE_URL"] = database_url or f"sqlite://{folder}/signoff.db"
        environment |= {"SIGNOFF_ALLOW_PRIVATE_AGENTS": "1", "SIGNOFF_SAMPLE_AGENT": "0"}
        environment["SIGNOFF_RATE_PER_MINUTE"] = "0"
        command = [sys.executable, "-m", "signoff", "serve", "--port", str(SERVER_PORT)]
        with agent_process():
            server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
            try:
                yield
            finally:
                server.terminate()
                server.wait(30)


async def ask(session: aiohttp.ClientSession, query: str, **variables: Any) -> Any:
    body = orjson.dumps({"query": query, "variables": variables})
    headers = {"content-type": "application/json"}
    async with session.post(f"{URL}/graphql", data=body, headers=headers) as response:
        answer = orjson.loads(await response.read())
    if "errors" in answer:
        raise RuntimeError(answer["errors"])
    (value,) = answer["data"].values()
    return value


async def ready(session: aiohttp.ClientSession) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                async with session.get(f"{URL}/healthz"):
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.1)


async def made(session: aiohttp.ClientSession, agent_id: str, count: int) -> list[str]:
    job = {
        "name": "benchmark",
        "acceptanceCriteria": {"items": CRITERIA},
        "input": {"q": "how are you?"},
        "assign": {"agentId": agent_id},
    }
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> str:
        async with gate:
            return (await ask(session, CREATE, input=job))["id"]

    return await asyncio.gather(*[one() for _ in range(count)])


async def throughput(session: aiohttp.ClientSession, ids: list[str]) -> float:
    """Executions per second, from the first request to the last completed job."""
    before = (await ask(session, COUNT))["totalCount"]
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(job_id: str) -> None:
        async with gate:
            await ask(session, EXECUTE, input={"id": job_id})

    began = time.perf_counter()
    await asyncio.gather(*[one(job_id) for job_id in ids])
    while (await ask(session, COUNT))["totalCount"] < before + len(ids):
        await asyncio.sleep(0.05)
    return len(ids) / (time.perf_counter() - began)


async def latencies(session: aiohttp.ClientSession, ids: list[str]) -> list[float]:
    """Milliseconds from the sending of executeJob to the arrival at the agent."""
    sent: list[float] = []
    for job_id in ids:
        sent.append(time.time())
        await ask(session, EXECUTE, input={"id": job_id, "waitSeconds": 10})
    return since(sent, await arrivals(session, len(ids)))


async def arrivals(session: aiohttp.ClientSession, newest: int) -> list[float]:
    async with session.get(f"http://127.0.0.1:{AGENT_PORT}/arrivals") as response:
        return (await response.json())[-newest:]


def since(began: list[float], ended: list[float]) -> list[float]:
    """Milliseconds, in order of their size."""
    return sorted((end - begin) * 1000 for begin, end in zip(began, ended, strict=True))


def show(what: str, times: list[float]) -> None:
    print(f"{what:16} {statistics.median(times):8.1f} ms p50, {times[-3]:.1f} ms p99")


async def measure(count: int) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        await ready(session)
        saved = await ask(
            session,
            SAVE,
            input={
                "name": f"fast {time.time()}",
                "endpointUrl": f"http://127.0.0.1:{AGENT_PORT}/",
                "maxConcurrency": 200,
            },
        )
        await throughput(session, await made(session, saved["id"], 100))  # warm
        began = time.perf_counter()
        ids = await made(session, saved["id"], count)
        print(f"createJob        {count / (time.perf_counter() - began):8.0f} /s")
        runs = [await throughput(session, ids[part::3]) for part in range(3)]
        each = ", ".join(f"{run:.0f}" for run in runs)
        print(f"executions       {max(runs):8.0f} /s   (runs {each})")
        show("sent to agent", await latencies(session, await made(session, saved["id"], 200)))


async def measure_alone(database_url: str | None, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder, agent_process():
        settings = Settings(
            database_url=database_url or f"sqlite://{folder}/signoff.db",
            key_file=Path(folder) / "signoff.key",
        )
        async with runtime(settings, allow_private_agents=True) as rt:
            made = await made_alone(rt, count)
            cli.keep_what_is_loaded()
            runs = [await throughput_alone(rt, made[part::4]) for part in range(4)][1:]
            each = ", ".join(f"{run:.0f}" for run in runs)
            print(f"without HTTP     {max(runs):8.0f} /s   (runs {each})")
            await latencies_alone(rt, await made_alone(rt, 200))


async def made_alone(rt: Runtime, count: int) -> list[Job]:
    url = f"http://127.0.0.1:{AGENT_PORT}/"
    command = SaveAgent(name=f"alone {time.time()}", endpoint_url=url, max_concurrency=200)
    saved = await agents.save(rt, LOCAL_ADMIN, command)
    draft = {
        "name": "benchmark",
        "acceptance_criteria": {"items": [dict(each) for each in CRITERIA]},
        "input": {"q": "how are you?"},
        "assign": {"agent_id": public_id("agent", saved.agent.id)},
    }
    return [
        await jobs.create(rt, LOCAL_ADMIN, CreateJob.model_validate(draft)) for _ in range(count)
    ]


async def throughput_alone(rt: Runtime, made: list[Job]) -> float:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(job: Job) -> None:
        async with gate:
            await execution.execute(rt, LOCAL_ADMIN, ExecuteJob(id=job.id))

    began = time.perf_counter()
    await asyncio.gather(*[one(job) for job in made])
    while await Job.filter(status=JobStatus.IN_EXECUTION).exists():
        await asyncio.sleep(0.01)
    return len(made) / (time.perf_counter() - began)


async def latencies_alone(rt: Runtime, made: list[Job]) -> None:
    asked: list[float] = []
    accepted: list[float] = []
    for job in made:
        asked.append(time.time())
        await execution.execute(rt, LOCAL_ADMIN, ExecuteJob(id=job.id))
        accepted.append(time.time())
        while await Job.filter(status=JobStatus.IN_EXECUTION).exists():
            await asyncio.sleep(0.01)
    async with aiohttp.ClientSession() as session:
        came = await arrivals(session, len(made))
    show("asked to agent", since(asked, came))
    show("accepted to agent", since(accepted, came))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database", nargs="?", help="postgres://… of an empty database")
    parser.add_argument("--count", type=int, default=1500)
    given = parser.parse_args()
    with running(given.database):
        asyncio.run(measure(given.count))
    uvloop.run(measure_alone(given.database, given.count))


if __name__ == "__main__":
    main()
