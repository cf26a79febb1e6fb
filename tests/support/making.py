"""Agents, jobs and callers to test with, and waiting for what others do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import orjson

from models import ActorKind, Agent, Attempt, Job, JobLog, Role, jsontext
from models.base import uuid7
from services import agents, execution, jobs
from services.actors import LOCAL_ADMIN, Viewer
from services.agents import SaveAgent
from services.execution import ExecuteJob
from services.jobs import CreateJob
from services.runtime import Runtime
from tests.fakes.agents import Behaviour, Received

T = TypeVar("T")

ADMIN = LOCAL_ADMIN
MEMBER = Viewer(ActorKind.API_KEY, "mia", "Mia", Role.MEMBER)
OTHER = Viewer(ActorKind.API_KEY, "olaf", "Olaf", Role.MEMBER)
READER = Viewer(ActorKind.API_KEY, "vera", "Vera", Role.VIEWER)

NOWHERE = "http://127.0.0.1:9/run"
"""Nothing listens there."""
SAYS_OK: dict[str, Any] = {
    "items": [
        {
            "key": "ok",
            "text": "The answer is ok.",
            "kind": "EXACT",
            "config": {"value": "ok", "pointer": "/answer"},
        }
    ]
}
"""Criteria that need no language model."""
IS_POLITE: dict[str, Any] = {"text": "- The answer is polite."}
"""Criteria that only a language model can judge."""


def answers(value: Any, status: str = "200 OK", *headers: str) -> Behaviour:
    """The same JSON every time."""

    async def behave(received: Received) -> None:
        await received.answer(orjson.dumps(value), status, *headers)

    return behave


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """One behaviour a request; the last one from then on."""
    waiting = list(behaviours)

    async def behave(received: Received) -> None:
        await (waiting.pop(0) if len(waiting) > 1 else waiting[0])(received)

    return behave


async def stalls(received: Received) -> None:
    await received.stall()


says_ok = answers({"answer": "ok"})
says_no = answers({"answer": "no"})


def key_of(received: Received) -> str:
    return received.headers["idempotency-key"]


async def make_agent(rt: Runtime, url: str = NOWHERE, **given: Any) -> Agent:
    name = f"Agent {uuid7().hex[-8:]}"
    command = SaveAgent.model_validate({"name": name, "endpoint_url": url} | given)
    return (await agents.save(rt, LOCAL_ADMIN, command)).agent


async def make_job(
    rt: Runtime, agent: Agent | None = None, viewer: Viewer = MEMBER, **given: Any
) -> Job:
    """A job of `viewer`, assigned if there is an agent."""
    wanted: dict[str, Any] = {"name": "A job", "acceptance_criteria": SAYS_OK}
    if agent is not None:
        wanted["assign"] = {"agent_id": agent.id}
    return await jobs.create(rt, viewer, CreateJob.model_validate(wanted | given))


async def execute(rt: Runtime, job: Job, viewer: Viewer = MEMBER, **given: Any) -> Job:
    """Execute and wait for the outcome, which must come within 30 s."""
    wanted: dict[str, Any] = {"id": job.id, "wait_seconds": 30}
    done = await execution.execute(rt, viewer, ExecuteJob.model_validate(wanted | given))
    assert given.get("wait_seconds") == 0 or not execution.is_running(done)
    return done


async def logs_of(job: Job) -> list[JobLog]:
    return await JobLog.filter(job_id=job.id).order_by("seq")


async def log_types(job: Job) -> list[str]:
    return [entry.type.value for entry in await logs_of(job)]


async def attempts_of(job: Job) -> list[Attempt]:
    return await Attempt.filter(job_id=job.id).order_by("number")


async def error_of(job: Job) -> dict[str, Any]:
    """What the job's last attempt keeps of its failure."""
    attempt = (await attempts_of(job))[-1]
    return jsontext.loads(attempt.error_json or "{}")


async def snapshot(job: Job) -> dict[str, Any]:
    """Everything written about a job: to show that nothing changed."""
    return {
        "job": await Job.get(id=job.id).values(),
        "attempts": await Attempt.filter(job_id=job.id).order_by("number").values(),
        "logs": await JobLog.filter(job_id=job.id).order_by("seq").values(),
    }


async def until(found: Callable[[], Awaitable[T | None]], seconds: float = 30) -> T:
    """What `found` finds; asked again and again for what nobody tells us of."""
    async with asyncio.timeout(seconds):
        while not (value := await found()):
            await asyncio.sleep(0.02)
    return value


async def holds(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Return when `condition` is true."""

    async def found() -> bool:
        return condition()

    await until(found, seconds)
