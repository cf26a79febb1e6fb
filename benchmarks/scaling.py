"""Throughput with 1, 2 and 4 workers and with 1, 100 and 1,000 agents on Postgres; idle cost.

    python benchmarks/scaling.py postgres://…        # an empty database

Executions are accepted while no worker runs. Then workers start, and the time from the first
call of an agent to the completion of the last job counts, so what is measured is the workers
and Postgres alone. Each line also tells the processor time that a job took, by whom: what is
near to a whole core is what saturates first. Ratios are to the first line of the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from executions import AGENT_PORT, COUNT, CRITERIA, SAVE, SERVER_PORT, agent_process, ask, ready

CREATE = """mutation ($input: CreateJobInput!) {
  createJob(input: $input) { __typename ... on Job { id } ... on Error { message } } }"""
EXECUTE = """mutation ($input: ExecuteJobInput!) {
  executeJob(input: $input) { __typename ... on Job { id } ... on Error { message } } }"""
AT_ONCE = 20
IDLE_SECONDS = 20


@dataclass(frozen=True)
class Measured:
    """Executions per second, and milliseconds of processor time an execution."""

    rate: float
    workers_ms: float
    postgres_ms: float


def environment(database_url: str, folder: str) -> dict[str, str]:
    return os.environ | {
        "SIGNOFF_DATABASE_URL": database_url,
        "SIGNOFF_KEY_FILE": str(Path(folder) / "signoff.key"),
        "SIGNOFF_ALLOW_PRIVATE_AGENTS": "1",
        "SIGNOFF_SAMPLE_AGENT": "0",
        "SIGNOFF_RATE_PER_MINUTE": "0",
    }


@contextmanager
def process(given: Mapping[str, str], *arguments: str) -> Generator[psutil.Process]:
    """`signoff …`, asked to end at the end."""
    command = [sys.executable, "-m", "signoff", *arguments]
    started = subprocess.Popen(command, env=given, stdout=subprocess.DEVNULL)
    try:
        yield psutil.Process(started.pid)
    finally:
        started.terminate()
        started.wait(30)


def processor_seconds(processes: list[psutil.Process]) -> float:
    total = 0.0
    for each in processes:
        try:
            used = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += used.user + used.system
    return total


def postgres() -> list[psutil.Process]:
    return [each for each in psutil.process_iter(["name"]) if each.info["name"] == "postgres"]


async def accepted(session: aiohttp.ClientSession, agents: list[str], count: int) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        job = {
            "name": "benchmark",
            "acceptanceCriteria": {"items": CRITERIA},
            "input": {"q": "how are you?"},
            "assign": {"agentId": agents[number % len(agents)]},
        }
        async with gate:
            made = await ask(session, CREATE, input=job)
            await ask(session, EXECUTE, input={"id": made["id"]})

    await asyncio.gather(*[one(number) for number in range(count)])


async def saved(session: aiohttp.ClientSession, count: int) -> list[str]:
    found: list[str] = []
    for number in range(count):
        given = {
            "name": f"{count}-{number}-{time.time()}",
            "endpointUrl": f"http://127.0.0.1:{AGENT_PORT}/",
            "maxConcurrency": 100,
        }
        found.append((await ask(session, SAVE, input=given))["id"])
    return found


async def drained(
    session: aiohttp.ClientSession, given: Mapping[str, str], workers: int, agents: int, count: int
) -> Measured:
    done: int = (await ask(session, COUNT))["totalCount"]
    await accepted(session, await saved(session, agents), count)

    async def completed() -> int:
        return (await ask(session, COUNT))["totalCount"] - done

    running = [process(given, "worker") for _ in range(workers)]
    processes = [each.__enter__() for each in running]
    try:
        while not (first := await completed()):
            await asyncio.sleep(0.02)
        began, used, backends = time.perf_counter(), processor_seconds(processes), postgres()
        database = processor_seconds(backends)
        while (now := await completed()) < count:
            await asyncio.sleep(0.05)
        seconds, rest = time.perf_counter() - began, now - first
        return Measured(
            rest / seconds,
            (processor_seconds(processes) - used) / rest * 1000,
            (processor_seconds(postgres()) - database) / rest * 1000,
        )
    finally:
        for each in running:
            each.__exit__(None, None, None)


async def idle(given: Mapping[str, str]) -> float:
    """The share of a core that a server with a worker takes while nothing happens."""
    with process(given, "serve", "--port", str(SERVER_PORT + 1)) as server:
        await asyncio.sleep(5)
        began = processor_seconds([server])
        await asyncio.sleep(IDLE_SECONDS)
        return (processor_seconds([server]) - began) / IDLE_SECONDS


async def measure(database_url: str, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder, agent_process():
        given = environment(database_url, folder)
        serve = ("serve", "--no-worker", "--port", str(SERVER_PORT))
        with process(given, *serve):
            async with aiohttp.ClientSession() as session:
                await ready(session)
                base: Measured | None = None
                for workers, agents in ((1, 1), (2, 1), (4, 1), (1, 1), (1, 100), (1, 1000)):
                    found = await drained(session, given, workers, agents, count)
                    base = base or found
                    print(
                        f"{workers} workers, {agents:4} agents: {found.rate:6.0f} /s "
                        f"({found.rate / base.rate:.2f} x); processor ms a job: "
                        f"workers {found.workers_ms:.1f}, Postgres {found.postgres_ms:.1f}",
                        flush=True,
                    )
        print(f"idle on Postgres: {await idle(given):.2%} of a core")
        sqlite: dict[str, Any] = given | {"SIGNOFF_DATABASE_URL": f"sqlite://{folder}/idle.db"}
        print(f"idle on SQLite:   {await idle(sqlite):.2%} of a core")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database", help="postgres://… of an empty database")
    parser.add_argument("--count", type=int, default=1500)
    given = parser.parse_args()
    asyncio.run(measure(given.database, given.count))


if __name__ == "__main__":
    main()
