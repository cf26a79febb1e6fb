"""The world: who is in it, what they ask for, and what they know."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from itertools import zip_longest
from pathlib import Path
from random import Random
from typing import Any, TypeVar, cast

import aiohttp
from graphql import GraphQLUnionType

from models import JobLogType, JobStatus, Role
from tests.simulation import actors, fleet, invariants, snapshot
from tests.simulation.actors import KINDS, Cast
from tests.simulation.fleet import Fleet, Machine
from tests.simulation.ledger import Ledger, Outcome, Request
from tests.simulation.snapshot import Snapshot
from tests.simulation.stream import Subscriber
from tests.support.graphql import arguments_of, make_key, root
from tests.support.making import until

Json = dict[str, Any]
T = TypeVar("T")

JUDGE_KEY = "sk-of-the-judge-0123456789"
USERS = {
    "ada": Role.ADMIN,
    "bert": Role.ADMIN,
    "mia": Role.MEMBER,
    "olaf": Role.MEMBER,
    "nils": Role.MEMBER,
    "vera": Role.VIEWER,
}
SETTINGS = {
    "SIGNOFF_ALLOW_PRIVATE_AGENTS": "1",
    "SIGNOFF_SAMPLE_AGENT": "0",
    "SIGNOFF_LEASE_SECONDS": "1.5",
    "SIGNOFF_HEARTBEAT_SECONDS": "0.3",
    "SIGNOFF_MAX_LOSSES": "2",
    "SIGNOFF_SHUTDOWN_SECONDS": "0.5",
    "SIGNOFF_AGENT_TRIES": "3",
    "SIGNOFF_RETRY_INITIAL_SECONDS": "0.01",
    "SIGNOFF_RETRY_MAX_SECONDS": "0.05",
    "SIGNOFF_AGENT_MAX_RESPONSE_BYTES": "200000",
    "SIGNOFF_JUDGE_TIMEOUT_SECONDS": "2",
    "SIGNOFF_CIRCUIT_FAILURES": "4",
    "SIGNOFF_CIRCUIT_SECONDS": "0.2",
    "SIGNOFF_LOG_LEVEL": "WARNING",
    "OPENAI_API_KEY": JUDGE_KEY,
}
SETTLE_SECONDS = 60
DISTURBED_SECONDS = 2
"""For so long a server may say that its database is away, after its connections were cut."""
TOLD = 150
"""Lines of the story that a failure shows."""


class Broken(AssertionError):
    """An invariant does not hold."""

    def __init__(self, problems: Sequence[str]) -> None:
        shown = "\n  ".join(problems[:20])
        super().__init__(f"{len(problems)} problems:\n  {shown}")
        self.problems = problems


@dataclass
class Known:
    """A job as its last answer told of it."""

    id: str
    owner: str
    version: int
    status: JobStatus


@dataclass(frozen=True)
class Step:
    """One thing to be done; everything about it comes from its dice."""

    number: int
    dice: Random
    name: str = ""

    @classmethod
    def of(cls, seed: object, number: int = 0) -> Step:
        return cls(number, Random(f"{seed}/{number}"))  # noqa: S311 - is to be repeated

    @property
    def mark(self) -> str:
        """A text that is of this step alone."""
        return f"step {self.name or self.number}"

    def part(self, number: int) -> Step:
        return Step(self.number, self.dice, f"{self.number}.{number}")

    def chance(self, share: float) -> bool:
        return self.dice.random() < share

    def one(self, of: Sequence[T]) -> T:
        return self.dice.choice(of)


@dataclass
class World:
    seed: int
    database_url: str
    fleet: Fleet
    cast: Cast
    keys: Mapping[str, str]
    agents: dict[str, str] = field(default_factory=dict[str, str])
    jobs: dict[str, Known] = field(default_factory=dict[str, Known])
    ledger: Ledger = field(default_factory=Ledger)
    keyed: deque[tuple[str, str, Json, Request]] = field(
        default_factory=lambda: deque[tuple[str, str, Json, Request]](maxlen=50)
    )
    subscribers: list[Subscriber] = field(default_factory=list[Subscriber])
    story: list[str] = field(default_factory=list[str])
    counts: Counter[str] = field(default_factory=Counter[str])
    left_over: list[str] = field(default_factory=list[str])

    @property
    def on_sqlite(self) -> bool:
        return self.database_url.startswith("sqlite:")

    def tell(self, line: str) -> None:
        self.story.append(line)

    async def server(self, step: Step) -> Machine:
        """One that may be asked, as soon as there is one."""

        async def found() -> list[Machine]:
            return [machine for machine in self.fleet.servers if machine.up.is_set()]

        return step.one(await until(found, fleet.SECONDS))

    async def ask(self, step: Step, user: str, query: str, variables: Json) -> Json | None:
        """The data of an operation; None where nobody knows what became of it."""
        machine = await self.server(step)
        began = asyncio.get_running_loop().time()
        try:
            async with self.fleet.session.post(
                f"{machine.url}/graphql",
                json={"query": query, "variables": variables},
                headers={"Authorization": f"Bearer {self.keys[user]}"},
            ) as response:
                body = await response.json()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.counts[type(error).__name__] += 1
            return None
        if body.get("errors"):
            self._unexpected(machine, began, body["errors"])
            return None
        return body["data"]

    def _unexpected(self, machine: Machine, began: float, errors: list[Json]) -> None:
        """An error of the server's is one of ours if nobody had disturbed it."""
        code = errors[0].get("extensions", {}).get("code", "?")
        self.counts[code] += 1
        if machine.up.is_set() and began > self.fleet.disturbed_at + DISTURBED_SECONDS:
            raise Broken([f"the server answered {errors}"])

    async def mutate(
        self, step: Step, user: str, name: str, variables: Json, request: Request
    ) -> Json | None:
        """Send it, and put down what was answered; the answer if it was done."""
        self.ledger.requests.append(request)
        line = f"{step.number:06} {user} {name} {json.dumps(variables)} -> "
        data = await self.ask(step, user, document(name), variables)
        if data is None:
            self.tell(line + "?")
            return None
        answer = cast("Json", data[name])
        kind = answer.pop("__typename")
        self.counts[f"{name} {kind}"] += 1
        self.tell(f"{line}{kind} {json.dumps(answer)}")
        given = variables.get("input", variables)
        self.counts["races"] += kind == "VersionConflict" and "expectedVersion" not in given
        if kind not in ("Job", "JobLog", "Agent"):
            request.outcome = Outcome.REFUSED
            return None
        if kind == "Job":
            self._learn(user, answer)
        if kind == "Job" and not (given.get("idempotencyKey") or given.get("waitSeconds")):
            request.version = answer["version"]
        request.outcome = Outcome.ACKED
        return answer

    def _learn(self, user: str, job: Json) -> None:
        known = self.jobs.setdefault(job["id"], Known(job["id"], user, 0, JobStatus.PENDING))
        if job["version"] > known.version:
            known.version, known.status = job["version"], JobStatus(job["status"])

    def broken_rules(self, found: Snapshot, acked: frozenset[str]) -> list[str]:
        entries = invariants.entries_of(found)
        names = [each[0].payload["changes"]["name"] for each in entries.values()]
        return [
            *invariants.problems(found, USERS),
            *self.ledger.problems(entries, names, acked),
            *self.cast.asked_twice(),
        ]

    async def check(self) -> Snapshot:
        """Hold everything there is at this moment against the invariants."""
        acked = self.ledger.acked()
        found = await snapshot.take(self.database_url)
        problems = self.broken_rules(found, acked)
        if problems:
            raise Broken(problems)
        return found

    async def settle(self) -> Snapshot:
        """Let everything that is under way come to its end; nothing may be left over."""
        self.cast.judge.script.clear()
        for agent in self.agents.values():
            await self.activate(agent)

        async def settled() -> bool:
            for agent in self.agents.values():
                await self.heal(agent)
            found = await snapshot.take(self.database_url)
            self.left_over = invariants.waiting(found, datetime.now(UTC))
            return not self.left_over

        try:
            await until(settled, SETTLE_SECONDS)
        except TimeoutError:
            raise Broken([f"{job} is left over" for job in self.left_over]) from None
        return await self.check()

    async def heal(self, agent: str) -> None:
        """Close its circuit, however long it would be open."""
        step = Step.of(agent)
        request = Request("ada", "resetAgentCircuit", f"heal {agent} {len(self.story)}")
        await self.mutate(step, "ada", "resetAgentCircuit", {"id": agent}, request)

    async def activate(self, agent: str) -> None:
        """Have it take work again, however often it must be asked for."""
        step = Step.of(agent)
        while not await self.set_availability(step, "ada", agent, "ACTIVE"):
            await asyncio.sleep(0.02)

    async def set_availability(
        self, step: Step, user: str, agent: str, availability: str
    ) -> Json | None:
        name = "setAgentAvailability"
        request = Request(user, name, f"{step.mark} {availability}")
        variables = {"id": agent, "availability": availability}
        return await self.mutate(step, user, name, variables, request)

    async def hear_all(self, found: Snapshot) -> None:
        """Every subscriber has heard of every change of status once, in its order."""
        told = [
            (e.seq, e.tells("from"), e.tells("to"), e.tells("reason"), e.actor or "Signoff", job)
            for job, entries in invariants.entries_of(found).items()
            for e in entries
            if e.type is JobLogType.STATUS_CHANGE
        ]
        told.sort()
        for subscriber in self.subscribers:

            async def heard(it: Subscriber = subscriber) -> bool:
                if it.ended is not None:
                    it.ended.result()
                return it.position >= told[-1][0]

            await until(heard)
            seen = [change for change in subscriber.seen if change[0] <= told[-1][0]]
            if seen != told:
                pairs = zip_longest(seen, told)
                raise Broken([f"heard {a}, told {b}" for a, b in pairs if a != b])

    def tell_all(self, problems: Sequence[str]) -> str:
        """The seed, and the end of the story with all that is about the jobs in trouble."""
        about = {word.strip(":,") for text in problems for word in text.split() if "job_" in word}
        earlier = [line for line in self.story[:-TOLD] if any(job in line for job in about)]
        return "\n".join(
            [
                f"SIGNOFF_SIMULATION_SEED={self.seed}, after {len(self.story)} lines:",
                *earlier[-TOLD:],
                "…",
                *self.story[-TOLD:],
                str(dict(self.counts)),
            ]
        )


@cache
def document(name: str) -> str:
    """A mutation that asks for what the world remembers of its answer."""
    field_ = root("Mutation")[name]
    union = cast("GraphQLUnionType", cast("Any", field_.type).of_type)
    known = {"Job": "id version status", "JobLog": "id", "Agent": "id"}
    parts = [f"... on {t.name} {{ {known[t.name]} }}" for t in union.types if t.name in known]
    declared, passed = arguments_of(field_)
    return (
        f"mutation{declared} {{ {name}{passed} {{ __typename {' '.join(parts)} "
        "... on Error { code message } } }"
    )


@asynccontextmanager
async def living(seed: int, database_url: str, folder: Path) -> AsyncGenerator[World]:
    """A world with users, agents and running servers; it ends with all of them."""
    keys = {name: await make_key(database_url, name, role) for name, role in USERS.items()}
    async with actors.acting(seed) as cast_:
        environment = SETTINGS | {
            "SIGNOFF_DATABASE_URL": database_url,
            "SIGNOFF_KEY_FILE": str(folder / "signoff.key"),
            "OPENAI_BASE_URL": cast_.judge.base_url,
        }
        async with fleet.nursing(folder, environment) as machines:
            world = World(seed, database_url, machines, cast_, keys)
            await machines.add("first", "serve")
            if not world.on_sqlite:
                await machines.add("second", "serve")
            await _hire(world)
            following = [_follow(world, number) for number in range(len(machines.servers))]
            try:
                yield world
            finally:
                for task in following:
                    task.cancel()
                await asyncio.wait(following)


def _follow(world: World, number: int) -> asyncio.Task[None]:
    subscriber = Subscriber(world.keys["ada"])
    world.subscribers.append(subscriber)
    task = asyncio.create_task(subscriber.follow(world.fleet, number))
    task.add_done_callback(subscriber.end)
    return task


async def _hire(world: World) -> None:
    """Register the agents, and one that is nowhere."""
    step = Step.of(world.seed)
    endpoints = {name: agent.url for name, agent in world.cast.agents.items()}
    settings = {kind.name: kind.settings | _secret(kind.secret) for kind in KINDS}
    for name in (*endpoints, "nowhere"):
        given = {"name": name, "timeoutSeconds": 1} | settings.get(name, {})
        given["endpointUrl"] = endpoints.get(name, "http://127.0.0.1:9/run")
        request = Request("ada", "saveAgent", f"hire {name}")
        saved = await world.mutate(step, "ada", "saveAgent", {"input": given}, request)
        assert saved, world.story
        world.agents[name] = saved["id"]


def _secret(secret: str) -> Json:
    return {"authHeader": f"Authorization: Bearer {secret}"}
