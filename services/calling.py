"""Asking the agent: tries, pauses, and what becomes of the job when it does not answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from itertools import count
from typing import Any

import orjson

from models import Agent, AttemptState, JobLog, JobLogType, JobPhase, StatusReason, jsontext
from services import (
    agents,
    attempts,
    budgets,
    callback_urls,
    circuits,
    responses,
    telemetry,
    tracing,
)
from services.agent_http import (
    Accepted,
    AgentCallFailed,
    AgentFault,
    AgentReply,
    AgentRequest,
)
from services.attempts import Run
from services.errors import BudgetExceeded
from services.openings import Failure
from services.rules import Event
from services.runtime import Runtime
from services.tracing import ERROR, Kind
from services.transactions import atomic
from services.values import public_id

TICK = 0.01
"""A clock may ring this much early."""
PAUSE = "retryInSeconds"


async def ask(rt: Runtime, this: Run) -> AgentReply | Accepted | None:
    """What the agent answered, not on record yet; None if the job was settled without that."""
    if not this.agent.idempotent and (_was_cut_off(this) or _is_a_repetition(this)):
        await _refuse(rt, this)
        return None
    if this.attempt.started_at is not None and this.job.phase is JobPhase.RETRY_WAIT:
        await asyncio.sleep(min(await _pause_left(this), await budgets.seconds_left(this)))
    clock = asyncio.get_running_loop().time
    left = await budgets.seconds_left(this)
    deadline = clock() + min(this.agent.timeout_seconds, left)
    request = request_of(rt, this)
    # An earlier process or attempt may have got through to an agent that may be asked twice; to
    # any other it did not, or this were not done.
    executed = _is_a_repetition(this) or (
        this.attempt.started_at is not None and this.agent.idempotent
    )
    for tries in count(1):
        try:
            await _record_request(rt, this, tries, in_time=left > 0)
            answer = await measured(rt, this, rt.agents.call(request, deadline=deadline - clock()))
        except BudgetExceeded as over:
            await budgets.end(rt, this, over, executed=executed)
            return None
        except AgentCallFailed as failure:
            executed = executed or failure.may_have_executed
            pause = _pause(rt, failure, tries)
            again = _may_repeat(failure, this.agent) and tries < rt.options.agent_tries
            if again and clock() + pause < deadline:
                await _record_failure(rt, this, failure, pause, executed=executed)
                await asyncio.sleep(pause)
                continue
            ours = left < this.agent.timeout_seconds and clock() >= deadline - TICK
            over = budgets.over_time(this) if ours else None
            await settle_failure(rt, this, failure, executed=executed, over=over)
            return None
        return answer
    raise AssertionError


def request_of(rt: Runtime, this: Run) -> AgentRequest:
    """What the agent is sent for the attempt."""
    return agents.request_for(
        rt,
        this.agent,
        body=this.body,
        job_id=public_id("job", this.job.id),
        attempt_number=this.attempt.number,
        idempotency_key=this.key,
        feedback=jsontext.loads(this.attempt.feedback_json),
        callback_url=callback_urls.url_for(rt, this.attempt.id),
    )


async def measured(
    rt: Runtime, this: Run, under_way: Awaitable[AgentReply | Accepted]
) -> AgentReply | Accepted:
    """One request to the agent, measured and traced."""
    about = {"signoff.agent.id": public_id("agent", this.agent.id)}
    with (
        tracing.span(rt.tracer, "agent call", Kind.CLIENT, about) as told,
        telemetry.timed(rt.telemetry.agent_calls) as call,
    ):
        try:
            answer = await under_way
        except AgentCallFailed as failure:
            call.outcome = told[ERROR] = failure.fault.value
            raise
        call.outcome = telemetry.OK
        status = None if isinstance(answer, Accepted) else answer.status
        told["http.response.status_code"] = status or HTTPStatus.ACCEPTED
        return answer


async def _pause_left(this: Run) -> float:
    """Seconds until the next try, where the worker that began to wait for it has ended.

    The log has when that was and how long the pause was to be: the agent may have asked for it.
    """
    answers = JobLog.filter(attempt_id=this.attempt.id, type=JobLogType.AGENT_RESPONSE)
    for entry in await answers.order_by("-seq"):
        pause = jsontext.loads(entry.payload_json or "{}").get(PAUSE)
        if pause is not None:  # else what a worker that was lost told late
            return pause - (datetime.now(UTC) - entry.created_at).total_seconds()
    return 0.0


def _was_cut_off(this: Run) -> bool:
    """Whether a server stopped in the midst of a call; between two tries none was under way."""
    return this.attempt.started_at is not None and this.job.phase is not JobPhase.RETRY_WAIT


def _is_a_repetition(this: Run) -> bool:
    """Whether an earlier attempt, or a try of this one elsewhere, may have done this very work."""
    return this.attempt.idempotency_key is not None


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
async def _record_request(rt: Runtime, this: Run, tries: int, *, in_time: bool) -> None:
    """Raises `BudgetExceeded` for a call that there is nothing left for."""
    if not in_time:
        raise budgets.over_time(this)
    set_aside = _reserve(this)
    body = this.body
    started = this.attempt.started_at or datetime.now(UTC)
    columns = {"state": AttemptState.RUNNING, "started_at": started, "request_json": body}
    await attempts.advance(
        rt,
        this,
        JobPhase.CALLING_AGENT,
        attempt=columns | set_aside.attempt,
        **set_aside.job,
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


def _reserve(this: Run) -> budgets.Entry:
    """What is set aside for this very work already is not set aside again."""
    if budgets.held(this.attempt) != budgets.NOTHING:
        return budgets.NO_ENTRY
    return budgets.reserve(this, budgets.of_call(this.agent), f"a call of “{this.agent.name}”")


def _count(this: Run, failure: AgentCallFailed, *, executed: bool) -> budgets.Entry:
    """A call that nobody took cost nothing; any other one what it says, or nobody knows."""
    held = budgets.held(this.attempt)
    return budgets.settle(this, held, failure.usage) if executed else budgets.release(this, held)


@atomic
async def _record_failure(
    rt: Runtime, this: Run, failure: AgentCallFailed, pause: float, *, executed: bool
) -> None:
    taken = _count(this, failure, executed=executed)
    # By this whoever goes on knows, even if the agent ceases to be idempotent meanwhile.
    columns = {"idempotency_key": this.key} if executed else {}
    await attempts.advance(
        rt, this, JobPhase.RETRY_WAIT, attempt=columns | taken.attempt, **taken.job
    )
    circuits.failed(rt, this, failure)
    message = f"{failure} Trying again in {pause:.1f} s."
    told = _described(failure) | {PAUSE: round(pause, 3)}
    attempts.tell(this, JobLogType.AGENT_RESPONSE, message, told)


def _described(failure: AgentCallFailed) -> dict[str, Any]:
    return {
        "error": failure.fault,
        "httpStatus": failure.http_status,
        "mayHaveExecuted": failure.may_have_executed,
        "excerpt": failure.excerpt,
    } | responses.usage(failure.usage)


REASONS: Mapping[AgentFault, StatusReason] = {
    AgentFault.UNREACHABLE: StatusReason.AGENT_UNREACHABLE,
    AgentFault.TIMEOUT: StatusReason.AGENT_TIMEOUT,
    AgentFault.REJECTED: StatusReason.AGENT_REJECTED,
}


@atomic
async def settle_failure(
    rt: Runtime,
    this: Run,
    failure: AgentCallFailed,
    *,
    executed: bool,
    over: BudgetExceeded | None = None,
) -> None:
    """An agent that was never reached leaves the job ASSIGNED; else it must be looked at.

    With `over` it was cut off, since the job's time was over.
    """
    attempts.tell(this, JobLogType.AGENT_RESPONSE, str(failure), _described(failure))
    taken = _count(this, failure, executed=executed)
    if over is not None:
        await budgets.end(rt, this, over, executed=executed, entry=taken)
        return
    circuits.failed(rt, this, failure)
    error = Failure(
        failure.fault,
        str(failure),
        retryable=failure.transient,
        may_have_executed=executed,
        lasting=_is_lasting(failure),
        retry_after=failure.retry_after or 0.0,
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
        attempt=taken.attempt,
        **taken.job,
    )


def _is_lasting(failure: AgentCallFailed) -> bool:
    """Whether the agent would say the same to the next attempt."""
    if failure.fault is AgentFault.UNREACHABLE:
        return not failure.transient
    return failure.fault in (AgentFault.REJECTED, AgentFault.REDIRECTED)


async def _refuse(rt: Runtime, this: Run) -> None:
    """The agent may have done the work, and would do it twice if it were asked again."""
    cut_off = _was_cut_off(this)
    why = "The server stopped while the agent was at work" if cut_off else "An attempt failed"
    message = (
        f"{why}, and the agent is not declared idempotent: it may have done the work, so it was "
        "not asked again. Execute the job again if that is safe."
    )
    reason = StatusReason.WORKER_LOST if cut_off else StatusReason.AGENT_ERROR
    code = reason if cut_off else "NOT_REPEATED"
    error = Failure(code, message, retryable=True, may_have_executed=True)
    event = Event.LOSE if cut_off else Event.FAIL
    await attempts.settle(rt, this, event, reason, message, error=error)
