"""What a hostile request costs the server: each limit, what was tried, the answer and the time.

    python benchmarks/limits.py

A server as `signoff serve` runs it, on SQLite, with its default settings but for the rate,
which would answer first. Each request is sent three times and the quickest counts; meanwhile
`{ __typename }` is asked without a pause, and the longest it had to wait is how long the event
loop was held up. Prints the table of docs/reference/limits.md.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import environ
from typing import Any

import aiohttp

PORT = 8395
URL = f"http://127.0.0.1:{PORT}/graphql"
TIMES = 3
PROBE = {"query": "{ __typename }"}
WHERE = "query($where: JobFilter) { jobs(where: $where) { nodes { id } } }"
PAGES = "query($n: Int) { jobs(first: $n) { nodes { logs(first: $n) { nodes { id type } } } } }"
CREATE = "mutation($i: CreateJobInput!) { createJob(input: $i) { __typename } }"


@dataclass(frozen=True)
class Attack:
    limit: str
    tried: str
    query: str
    variables: dict[str, Any]


def repeated(text: str, times: int) -> str:
    return "{ " + " ".join(text.format(n=n) for n in range(times)) + " }"


def doubling(levels: int, last: str) -> str:
    parts = [f"fragment F{n} on Query {{ ...F{n + 1} ...F{n + 1} }}" for n in range(levels)]
    return f"{{ ...F0 }} {' '.join(parts)} fragment F{levels} on Query {{ {last} }}"


AGENTS = "agent { id } " * 10


def spread(number: int, fields: str = "id name", on: str = "Viewer") -> str:
    names = " ".join(f"...F{n}" for n in range(number))
    around = f"viewer {{ {names} }}" if on == "Viewer" else f"jobs {{ nodes {{ {names} }} }}"
    return f"{{ {around} }} " + " ".join(
        f"fragment F{n} on {on} {{ {fields} }}" for n in range(number)
    )


def loop(lists: int) -> str:
    return "{ __schema { types { " + "fields { type { " * lists + "name" + " } }" * lists + " } } }"


BRANCHES = [{"name": {"eq": "x"}}] * 10_000


def attacks() -> Iterator[Attack]:
    yield from documents()
    yield from costs()
    yield from inputs()


def attack(limit: str, tried: str, query: str, **variables: Any) -> Attack:
    return Attack(limit, tried, query, variables)


def documents() -> Iterator[Attack]:
    includes = "@include(if: true) " * 200
    deep = "{ nodes { agent { jobs " * 10 + "{ __typename }" + "} } }" * 10
    fields = "{ viewer {" + "x " * 1_000 + "} }"
    unknown = "{ viewer { " + " ".join(f"x{n}" for n in range(1_000)) + " } }"
    roots = repeated("viewer {{ id }} __typename", 26)
    yield attack("characters", "a document of 2 MB", "{ viewer { id } } #" + "x" * 2_000_000)
    yield attack("characters", "10,000 aliases", repeated("a{n}: viewer {{ id }}", 10_000))
    yield attack("tokens", "500 aliases", repeated("a{n}: viewer {{ id }}", 500))
    yield attack("tokens", "900 open braces", "{a" * 900)
    yield attack("aliases", "300 aliases", repeated("a{n}: viewer {{ id }}", 300))
    yield attack("aliases", "fragments that double 59 times", doubling(59, "a: viewer { id }"))
    yield attack("root fields", "52 root fields", roots)
    yield attack("repetitions", "one field 1,000 times", fields)
    yield attack("depth", "32 levels", "{ jobs " + deep + "}")
    yield attack("directives", "200 directives", "{ viewer { id " + includes + "} }")
    yield attack("mistakes", "1,000 unknown fields", unknown)
    yield attack(
        "comparisons", "40 fragments with 10 fields each, side by side", spread(40, AGENTS, "Job")
    )
    yield attack("fragments", "150 fragments side by side", spread(150))
    yield attack("none", "60 fragments side by side", spread(60))


def costs() -> Iterator[Attack]:
    yield attack("cost", "100 jobs with 100 entries each", PAGES, n=100)
    yield attack("none", "the dearest page that is taken", PAGES, n=91)
    yield attack("introspection", "lists 5 deep", loop(5))
    yield attack("none", "introspection, lists 2 deep", loop(2))


def inputs() -> Iterator[Attack]:
    few = {"and": [{"or": BRANCHES[:45]}] * 4}
    literal = "{ jobs(where: {or: [" + "{} " * 400 + "]}) { nodes { id } } }"
    items = {"items": [{"text": "x"}] * 20_000}
    job = {"name": "x", "acceptanceCriteria": items}
    yield attack("input values", "10,000 filters in variables", WHERE, where={"or": BRANCHES})
    yield attack("filters", "400 filters in the document", literal)
    yield attack("none", "185 filters in variables", WHERE, where=few)
    yield attack("input values", "20,000 criteria", CREATE, i=job)


@contextmanager
def server() -> Generator[None]:
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "SIGNOFF_DATABASE_URL": f"sqlite:///{folder}/signoff.db",
            "SIGNOFF_RATE_PER_MINUTE": "0",
            "SIGNOFF_SAMPLE_AGENT": "false",
        }
        command = [sys.executable, "-m", "signoff", "serve", "--port", str(PORT)]
        process = subprocess.Popen(command, env=dict(environ) | settings, stdout=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.terminate()
            process.wait()


async def ready(session: aiohttp.ClientSession) -> None:
    for _ in range(600):
        try:
            async with session.post(URL, json=PROBE) as response:
                await response.read()
                return
        except aiohttp.ClientConnectionError:
            await asyncio.sleep(0.1)
    raise TimeoutError("the server does not answer")


async def sent(session: aiohttp.ClientSession, attack: Attack, nth: int) -> tuple[str, float]:
    """What came back, in short, and the milliseconds it took; the document is new each time."""
    query = f"{attack.query} #{nth}"
    body = json.dumps({"query": query, "variables": attack.variables}).encode()
    headers = {"Content-Type": "application/json"}
    began = time.perf_counter()
    async with session.post(URL, data=body, headers=headers) as response:
        answer = json.loads(await response.read())
        took = (time.perf_counter() - began) * 1000
    errors = answer.get("errors")
    return (errors[0]["extensions"]["code"] if errors else "answered"), took


async def probed(session: aiohttp.ClientSession, waits: list[float]) -> None:
    while True:
        began = time.perf_counter()
        async with session.post(URL, json=PROBE) as response:
            await response.read()
        waits.append((time.perf_counter() - began) * 1000)


async def measured(session: aiohttp.ClientSession, attack: Attack) -> str:
    results: list[tuple[float, float, str]] = []
    for nth in range(TIMES):
        waits: list[float] = []
        probe = asyncio.create_task(probed(session, waits))
        await asyncio.sleep(0.05)
        told, took = await sent(session, attack, nth)
        await asyncio.sleep(0.05)
        probe.cancel()
        results.append((took, max(waits), told))
    took, held, told = min(results)
    return f"| {attack.limit} | {attack.tried} | `{told}` | {took:.0f} ms | {held:.0f} ms |"


async def table() -> None:
    async with aiohttp.ClientSession() as session:
        await ready(session)
        print("| limit | tried | answer | took | others waited |\n|---|---|---|---|---|")
        for attack in attacks():
            print(await measured(session, attack), flush=True)


if __name__ == "__main__":
    with server():
        asyncio.run(table())
