"""An agent's response put on record: the checkpoint behind which it is never asked again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson

from models import Job, JobLogType, JobPhase
from services import attempts, budgets, circuits
from services.agent_http import AgentReply, Reported
from services.attempts import OVERTAKEN, Run
from services.budgets import Entry
from services.runtime import Runtime
from services.transactions import atomic


async def record(rt: Runtime, this: Run, reply: AgentReply) -> None:
    """Write it with the step to the checks, or raise one of `OVERTAKEN`."""
    try:
        await _advance(rt, this, reply)
    except OVERTAKEN:
        await log_late(rt, this, reply)
        raise


@atomic
async def _advance(rt: Runtime, this: Run, reply: AgentReply) -> None:
    entry = take(rt, this, reply)
    await attempts.advance(rt, this, JobPhase.CHECKING_OUTPUT, attempt=entry.attempt, **entry.job)


def take(rt: Runtime, this: Run, reply: AgentReply, *, judged: bool = False) -> Entry:
    """What the change under way has to write of it beside the log's entry.

    `judged` says that the change settles the attempt as well, so that it is no step of its own.
    """
    columns = {
        "response_json": reply.body.decode(),
        "http_status": reply.status,
        "latency_ms": reply.latency_ms,
        "responded_at": datetime.now(UTC),
    }
    taken = budgets.settle(this, budgets.held(this.attempt), reply.usage)
    vars(this.attempt).update(columns)
    circuits.answered(rt, this)
    message = f"Answered with {reply.status} after {reply.latency_ms} ms."
    told = {"judgedAtOnce": True} if judged else {}
    attempts.tell(this, JobLogType.AGENT_RESPONSE, message, told | _told(reply))
    return Entry({}, columns) | taken


@atomic
async def log_late(rt: Runtime, this: Run, reply: AgentReply) -> None:
    """Note one that changes nothing any more."""
    this.job = await Job.get(id=this.job.id)
    message = "Answered after the attempt had ended; not applied."
    attempts.tell(this, JobLogType.AGENT_RESPONSE, message, _told(reply) | {"late": True})


def _told(reply: AgentReply) -> dict[str, Any]:
    told = {"httpStatus": reply.status, "latencyMs": reply.latency_ms} | usage(reply.usage)
    return told | {"body": orjson.Fragment(reply.body)}


def usage(reported: Reported) -> dict[str, Any]:
    """What the log tells of the usage that an agent reported."""
    used = reported.to_json()
    return {"usage": used} if used else {}
