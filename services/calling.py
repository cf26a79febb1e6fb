"""Asking the agent: tries, pauses, and what becomes of the job when it does not answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import count
from typing import Any

import orjson

from models import Agent, AttemptState, Job, JobLogType, JobPhase, StatusReason, jsontext
from services import agents, attempts
from services.agent_http import AgentCallFailed, AgentFault, AgentReply
from services.attempts import OVERTAKEN, Run
from services.lifecycle import Event
from services.runtime import Runtime
from services.transactions import atomic
from services.values import public_id


async def ask(rt: Runtime, this: Run) -> bool:
    """Get the agent's response on record; False if the job was settled without one."""
    if _was_cut_off(this) and not this.agent.idempotent:
        await _lose(rt, this)
        return False
    clock = asyncio.get_running_loop().time
    deadline = clock() + this.agent.timeout_seconds
    request = agents.request_for(
        rt,
        this.agent,
        body=this.job.input_json,
        job_id=public_id("job", this.job.id),
        attempt_number=this.attempt.number,
        idempotency_key=this.key,
        feedback=jsontext.loads(this.attempt.feedback_json),
    )
    # An earlier process may have got through to an agent that may be asked twice; to any other
    # it did not, or the attempt were lost.
    executed = this.attempt.started_at is not None and this.agent.idempotent
    for tries in count(1):
        await _record_request(rt, this, tries)
        try:
            reply = await rt.agents.call(request, deadline=deadline - clock())
        except AgentCallFailed as failure:
            executed = executed or failure.may_have_executed
            pause = _pause(rt, failure, tries)
            again = _may_repeat(failure, this.agent) and tries < rt.options.agent_tries
            if again and clock() + pause < deadline:
                await _record_failure(rt, this, failure, pause)
                await asyncio.sleep(pause)
                continue
            await _settle_failure(rt, this, failure, executed=executed)
            return False
        await _record_response(rt, this, reply)
        return True
    raise AssertionError


def _was_cut_off(this: Run) -> bool:
    """Whether a server stopped in the midst of a call; between two tries none was under way."""
    return this.attempt.started_at is not None and this.job.phase is not JobPhase.RETRY_WAIT


def _may_repeat(failure: AgentCallFailed, agent: Agent) -> bool:
    """Never a blind resend to an agent that might do the work twice."""
    return failure.transient and (agent.idempotent or not failure.may_have_executed)


def _pause(rt: Runtime, failure: AgentCallFailed, tries: int) -> float:
    """Seconds before the next try: what the agent asks for, else exponential with jitter."""
    if failure.retry_after is not None:
        return failure.retry_after
    ceiling = min(rt.options.retry_initial_seconds * 2 ** (tries - 1), rt.options.retry_max_seconds)
    return ceiling * random.uniform(0.5, 1)  # noqa: S311


@atomic
async def _record_request(rt: Runtime, this: Run, tries: int) -> None:
    body = this.job.input_json
    started = this.attempt.started_at or datetime.now(UTC)
    await attempts.advance(
        rt,
        this,
        JobPhase.CALLING_AGENT,
        attempt={"state": AttemptState.RUNNING, "started_at": started, "request_json": body},
    )
    this.attempt.started_at = started
    attempts.tell(
        this,
        JobLogType.AGENT_REQUEST,
        f"Asking “{this.agent.name}”." if tries == 1 else f"Asking again (try {tries}).",
        {
            "try": tries,
            "idempotencyKey": this.key,
            "feedback": orjson.Fragment(this.attempt.feedback_json),
            "body": orjson.Fragment(body),
        },
    )


@atomic
async def _record_failure(rt: Runtime, this: Run, failure: AgentCallFailed, pause: float) -> None:
    await attempts.advance(rt, this, JobPhase.RETRY_WAIT, attempt={})
    message = f"{failure} Trying again in {pause:.1f} s."
    attempts.tell(this, JobLogType.AGENT_RESPONSE, message, _described(failure))


def _described(failure: AgentCallFailed) -> dict[str, Any]:
    return {
        "error": failure.fault,
        "httpStatus": failure.http_status,
        "mayHaveExecuted": failure.may_have_executed,
        "excerpt": failure.excerpt,
    }


async def _record_response(rt: Runtime, this: Run, reply: AgentReply) -> None:
    try:
        await _apply_response(rt, this, reply)
    except OVERTAKEN:
        await _log_late(rt, this, reply)
        raise


@atomic
async def _apply_response(rt: Runtime, this: Run, reply: AgentReply) -> None:
    columns = {
        "response_json": reply.body.decode(),
        "http_status": reply.status,
        "latency_ms": reply.latency_ms,
        "responded_at": datetime.now(UTC),
    }
    await attempts.advance(rt, this, JobPhase.CHECKING_OUTPUT, attempt=columns)
    for name, value in columns.items():
        setattr(this.attempt, name, value)
    message = f"Answered with {reply.status} after {reply.latency_ms} ms."
    attempts.tell(this, JobLogType.AGENT_RESPONSE, message, _told(reply))


@atomic
async def _log_late(rt: Runtime, this: Run, reply: AgentReply) -> None:
    this.job = await Job.get(id=this.job.id)
    message = "Answered after the attempt had ended; not applied."
    attempts.tell(this, JobLogType.AGENT_RESPONSE, message, _told(reply) | {"late": True})


@atomic
async def log_aborted(rt: Runtime, this: Run) -> None:
    message = "The request was cut off, because the attempt had ended; the agent may have acted."
    told = {"error": "ABORTED", "mayHaveExecuted": True, "late": True}
    attempts.tell(this, JobLogType.AGENT_RESPONSE, message, told)


def _told(reply: AgentReply) -> dict[str, Any]:
    return {
        "httpStatus": reply.status,
        "latencyMs": reply.latency_ms,
        "body": orjson.Fragment(reply.body),
    }


REASONS: Mapping[AgentFault, StatusReason] = {
    AgentFault.UNREACHABLE: StatusReason.AGENT_UNREACHABLE,
    AgentFault.TIMEOUT: StatusReason.AGENT_TIMEOUT,
    AgentFault.REJECTED: StatusReason.AGENT_REJECTED,
}


@atomic
async def _settle_failure(
    rt: Runtime, this: Run, failure: AgentCallFailed, *, executed: bool
) -> None:
    """An agent that was never reached leaves the job ASSIGNED; else it must be looked at."""
    attempts.tell(this, JobLogType.AGENT_RESPONSE, str(failure), _described(failure))
    error = attempts.problem(
        failure.fault, str(failure), retryable=failure.transient, may_have_executed=executed
    )
    never = failure.fault is AgentFault.UNREACHABLE and not executed
    await attempts.settle(
        rt,
        this,
        Event.GIVE_BACK if never else Event.FAIL,
        StatusReason.AGENT_UNREACHABLE
        if never
        else REASONS.get(failure.fault, StatusReason.AGENT_ERROR),
        str(failure),
        error=error,
    )


async def _lose(rt: Runtime, this: Run) -> None:
    message = (
        "The server stopped while the agent was at work, and the agent is not declared "
        "idempotent: it may have done the work, so it was not asked again. Execute the job "
        "again if that is safe."
    )
    error = attempts.problem("WORKER_LOST", message, retryable=True, may_have_executed=True)
    await attempts.settle(rt, this, Event.LOSE, StatusReason.WORKER_LOST, message, error=error)
