"""Agents and a judge that fail in every way, and remember what they were asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast
from urllib.parse import quote, unquote

import orjson

from tests.fakes import openai_server
from tests.fakes.agents import FakeAgent, Received
from tests.simulation.snapshot import Row

HUGE = 300_000
"""Bytes; more than the servers read."""
LONG = 90_000
"""Bytes; more than the log keeps of a payload."""
Json = dict[str, Any]
Acting = Callable[[Received, Json], Awaitable[None]]


def answer_of(input: Json) -> str:
    return f"right-{input['n']}"


def _right(received: Received, input: Json, **more: Any) -> bytes:
    return orjson.dumps({"answer": answer_of(input)} | more)


async def right(received: Received, input: Json) -> None:
    await received.answer(_right(received, input))


async def slow(received: Received, input: Json) -> None:
    await asyncio.sleep(0.25)
    await right(received, input)


async def long(received: Received, input: Json) -> None:
    await received.answer(_right(received, input, padding="x" * LONG))


async def metered(received: Received, input: Json) -> None:
    """With what it took, which is seldom what it was expected to take."""
    headers = ["signoff-input-tokens: 11", "signoff-output-tokens: 3", "signoff-cost-usd: 0.001"]
    await received.answer(_right(received, input), "200 OK", *headers)


async def wrong(received: Received, input: Json) -> None:
    await received.answer(b'{"answer": "wrong"}')


async def unfit(received: Received, input: Json) -> None:
    await received.answer(b'{"answer": 7}')


async def echo(received: Received, input: Json) -> None:
    """A right answer that repeats all that it was sent, secrets too."""
    await received.answer(_right(received, input, sent=received.headers))


async def shouting(received: Received, input: Json) -> None:
    """A refusal that repeats all that it was sent."""
    await received.answer(orjson.dumps(received.headers), "400 Bad Request")


async def huge(received: Received, input: Json) -> None:
    await received.answer(b'{"answer": "' + b"x" * HUGE + b'"}')


async def half(received: Received, input: Json) -> None:
    await received.send(b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"answer": ')
    received.close()


async def drop(received: Received, input: Json) -> None:
    received.close()


async def garble(received: Received, input: Json) -> None:
    await received.send(b"\x00\xff no HTTP at all\r\n\r\n")
    received.close()


async def stall(received: Received, input: Json) -> None:
    await received.stall()


async def drip(received: Received, input: Json) -> None:
    """So slowly that its time runs out."""
    await received.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")
    while True:
        await asyncio.sleep(0.1)
        await received.send(b" ")


def says(body: bytes, status: str = "200 OK", *headers: str) -> Acting:
    async def act(received: Received, input: Json) -> None:
        await received.answer(body, status, *headers)

    return act


async def later(received: Received, input: Json) -> None:
    """Accepts the work, and answers at a location that knows what it is about."""
    told = quote(orjson.dumps(input), safe="")
    await received.answer(b"", "202 Accepted", f"location: /later?{told}", "retry-after: 0")


async def forgets(received: Received, input: Json) -> None:
    """Accepts the work, and knows nothing of it then."""
    await received.answer(b"", "202 Accepted", "location: /forgotten", "retry-after: 0")


DECLINES: Mapping[str, Acting] = {
    "429": says(b"{}", "429 Too Many Requests"),
    "429 now": says(b"{}", "429 Too Many Requests", "retry-after: 0"),
    "503 now": says(b"{}", "503 Service Unavailable", "retry-after: 0"),
    "429 soon": says(b"{}", "429 Too Many Requests", "retry-after: 1"),
    "429 later": says(b"{}", "429 Too Many Requests", "retry-after: 2"),
}
"""Refusals that prove that the work was not done."""
WAYS: Mapping[str, Acting] = DECLINES | {
    "right": right,
    "slow": slow,
    "metered": metered,
    "long": long,
    "later": later,
    "forgets": forgets,
    "wrong": wrong,
    "unfit": unfit,
    "echo": echo,
    "shouting": shouting,
    "huge": huge,
    "half": half,
    "drop": drop,
    "garble": garble,
    "stall": stall,
    "drip": drip,
    "400": says(b'{"why": "no"}', "400 Bad Request"),
    "404": says(b"", "404 Not Found"),
    "500": says(b"oh", "500 Internal Server Error"),
    "503": says(b"{}", "503 Service Unavailable"),
    "302": says(b"", "302 Found", "location: http://127.0.0.1:9/"),
    "html": says(b"<html></html>"),
    "nan": says(b'{"answer": NaN}'),
    "empty": says(b""),
    "deep": says(b"[" * 300 + b"]" * 300),
    "scalar": says(b'"right"'),
}
GOOD = ("right", "right", "metered", "slow", "slow", "long", "echo", "later")
"""Those after which a job can be completed."""
NOT_YET = ("202 Accepted", "500 Internal Server Error", "202 Accepted")


@dataclass(frozen=True)
class Kind:
    """An agent as it is registered."""

    name: str
    settings: Json
    rude: float = 0.0
    """The share of connections that it closes unread."""

    @property
    def secret(self) -> str:
        return f"secret-of-{self.name}-0123456789"

    @property
    def idempotent(self) -> bool:
        return bool(self.settings.get("idempotent"))


OBJECT = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
KINDS = (
    Kind("steady", {"maxConcurrency": 10, "ratePerMinute": 1200}),
    Kind("narrow", {"maxConcurrency": 1, "outputSchema": OBJECT}, rude=0.1),
    Kind("again", {"idempotent": True, "acceptsFeedback": True, "maxCallTokens": 30}),
    Kind("strict", {"idempotent": True, "maxConcurrency": 2, "outputSchema": OBJECT}, rude=0.2),
)


@dataclass
class Asked:
    """A request as an agent saw it."""

    kind: Kind
    key: str
    way: str


@dataclass
class ScriptedAgent(FakeAgent):
    """Does what the job's input says: the n-th request for a job gets the n-th way."""

    kind: Kind = KINDS[0]
    dice: Random = field(default_factory=Random)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.dice.random() < self.kind.rude:
            writer.transport.abort()
            return
        await super().serve(reader, writer)


@dataclass
class Cast:
    """All agents and the judge."""

    judge: openai_server.FakeOpenAI
    agents: dict[str, ScriptedAgent] = field(default_factory=dict[str, ScriptedAgent])
    asked: list[Asked] = field(default_factory=list[Asked])
    at_work: int = 0
    """Requests that agents deal with now which might do their work twice."""
    _counts: dict[str, int] = field(default_factory=dict[str, int])
    _looks: dict[str, int] = field(default_factory=dict[str, int])

    def behaviour(self, kind: Kind) -> Callable[[Received], Awaitable[None]]:
        async def behave(received: Received) -> None:
            if received.start_line.startswith("GET"):
                await self._tell(received)
                return
            input = orjson.loads(received.body)
            job = received.headers["signoff-job-id"]
            turn = self._counts[job] = self._counts.get(job, -1) + 1
            way = input["script"][min(turn, len(input["script"]) - 1)]
            self.asked.append(Asked(kind, received.headers["idempotency-key"], way))
            self.at_work += not kind.idempotent
            try:
                await WAYS[way](received, input)
            finally:
                self.at_work -= not kind.idempotent

        return behave

    async def _tell(self, received: Received) -> None:
        """How far it is: at work at first, busy or broken at times, and done at last."""
        path, _, told = received.start_line.split(" ")[1].partition("?")
        if path != "/later":
            await received.answer(b"", "404 Not Found")
            return
        looks = self._looks[told] = self._looks.get(told, -1) + 1
        if looks < len(NOT_YET):
            await received.answer(b"", NOT_YET[looks])
            return
        await right(received, orjson.loads(unquote(told)))

    def asked_twice(self) -> list[str]:
        """Keys that an agent got again, though it might have done the work and would twice."""
        done: set[str] = set()
        wrong: list[str] = []
        for asked in self.asked:
            if not asked.kind.idempotent:
                if asked.key in done:
                    wrong.append(f"{asked.key} to {asked.kind.name}")
                if asked.way not in DECLINES:
                    done.add(asked.key)
        return wrong


@asynccontextmanager
async def acting(seed: int) -> AsyncGenerator[Cast]:
    """Everybody on stage, at addresses of their own."""
    async with openai_server.running() as judge:
        cast = Cast(judge)
        servers: list[asyncio.Server] = []
        try:
            for kind in KINDS:
                dice = Random(f"{seed}/{kind.name}")  # noqa: S311 - is to be repeated
                agent = ScriptedAgent(cast.behaviour(kind), kind=kind, dice=dice)
                server = await asyncio.start_server(agent.serve, "127.0.0.1", 0)
                agent.port = server.sockets[0].getsockname()[1]
                agent.url = f"http://127.0.0.1:{agent.port}/run"
                cast.agents[kind.name] = agent
                servers.append(server)
            yield cast
        finally:
            for server in servers:
                server.close()
            for agent in cast.agents.values():
                await agent.stop()


JUDGE_TROUBLE: Mapping[str, openai_server.Behaviour] = {
    "500": openai_server.fails(500),
    "429": openai_server.fails(429, headers={"retry-after": "0"}),
    "401": openai_server.fails(401),
    "html": openai_server.sends(b"<html></html>", "text/html"),
    "empty": openai_server.sends(b""),
    "prose": openai_server.says("It looks good to me."),
    "refuses": openai_server.refuses,
    "breaks": openai_server.breaks,
    "stops": openai_server.stops("length"),
    "cuts": openai_server.cuts,
    "hangs": openai_server.hangs,
    "silent": openai_server.judges(),
}


def holds_criteria(items: list[Row], output: Any) -> bool:
    """Whether an output truly meets criteria of the kinds that are made up here."""
    return all(_holds(item, output) for item in items if item["required"])


def _holds(item: Row, output: Any) -> bool:
    if item["kind"] == "LLM":
        return "must fail" not in item["text"] and "unclear" not in item["text"]
    config = item["config"]
    found: Any = cast("Json", output).get("answer") if isinstance(output, dict) else None
    if item["kind"] == "EXACT":
        return found == config["value"]
    return isinstance(found, str) and config["value"] in found
