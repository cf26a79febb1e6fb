"""Waiting for an agent that answers later: it said 202, and perhaps where to look.

Nothing runs meanwhile. The entry in the queue says when some worker looks how far the agent is,
or gives the attempt up; an answer that comes by the callback URL has it looked at once.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from uuid import UUID

from models import Attempt, JobLogType, JobPhase, LongCall, QueueEntry, QueueState, statements
from models.statements import Statement
from services import attempts, budgets, calling, circuits
from services.agent_http import (
    Accepted,
    AgentCallFailed,
    AgentFault,
    AgentReply,
    answers,
    locations,
)
from services.attempts import Run
from services.errors import NotFound
from services.runtime import Runtime
from services.transactions import atomic, current
from services.values import public_id, storable

FINAL = frozenset(
    {AgentFault.REJECTED, AgentFault.REDIRECTED, AgentFault.NOT_JSON, AgentFault.TOO_LARGE}
)
"""What looking again would not mend; anything else is tried until the time is over."""
FORGOTTEN = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})
MAX_DOUBLINGS = 20
LOOK_SECONDS = 30.0
"""For one look at most, since it has a worker's place; how far it is an agent can tell at once."""


async def begin(rt: Runtime, this: Run, accepted: Accepted) -> None:
    """Let the attempt wait, or settle one whose answer could never come.

    Raises one of `OVERTAKEN`, also if the answer came by the callback URL already.
    """
    try:
        path = _path(rt, this, accepted)
    except AgentCallFailed as failure:
        await calling.settle_failure(rt, this, failure, executed=True)
        return
    await _begin(rt, this, path, accepted)


def _path(rt: Runtime, this: Run, accepted: Accepted) -> str | None:
    if accepted.location is None:
        if rt.options.public_url is None:
            raise _not_awaitable(
                "The agent answered 202 Accepted without a Location, and got no callback URL, "
                "since SIGNOFF_PUBLIC_URL is not set: its answer could never come."
            )
        return None
    try:
        path = locations.path_of(accepted.location, this.agent.endpoint_url)
        if answers.secrets_of(calling.request_of(rt, this)).are_in(path.encode()):
            raise ValueError("it has a secret in it that the agent was sent")  # noqa: TRY301
    except ValueError as error:
        message = f"The Location of the agent's 202 Accepted cannot be used: {error}."
        raise _not_awaitable(message) from None
    return path


def _not_awaitable(message: str) -> AgentCallFailed:
    return AgentCallFailed(
        AgentFault.NOT_AWAITABLE,
        message,
        may_have_executed=True,
        http_status=HTTPStatus.ACCEPTED.value,
    )


REMEMBER = """INSERT INTO "long_calls" ("attempt_id", "location", "ends_at", "polls")
    VALUES ($1, $2, $3, 0) ON CONFLICT ("attempt_id") DO UPDATE SET
    "location" = excluded."location", "ends_at" = excluded."ends_at", "polls" = 0,
    "trouble" = NULL"""


@atomic
async def _begin(rt: Runtime, this: Run, path: str | None, accepted: Accepted) -> None:
    now = datetime.now(UTC)
    ends_at = now + timedelta(seconds=this.agent.max_wait_seconds)
    await attempts.advance(rt, this, JobPhase.AWAITING_AGENT, attempt={})
    values = [str(this.attempt.id), path, ends_at]
    current().writes.append(Statement(REMEMBER, values, "long_calls"))
    circuits.answered(rt, this)
    how = "asking it how far it is" if path else "for its callback"
    message = f"Accepted; waiting until {ends_at.isoformat(timespec='seconds')}, {how}."
    told = {"httpStatus": HTTPStatus.ACCEPTED.value, "endsAt": ends_at}
    attempts.tell(this, JobLogType.AGENT_PROGRESS, message, told)
    pause = math.inf if path is None else _pause(rt, 0, accepted.retry_after)
    current().hand_on(this.job, _earliest(now, pause, await budgets.seconds_left(this), ends_at))


def path_alone(path: str) -> str:
    """Without the query, which may hold a secret of the agent's."""
    return path.partition("?")[0]


def _earliest(now: datetime, pause: float, left: float, ends_at: datetime) -> datetime:
    soonest = min(pause, max(left, 0.0))
    return ends_at if math.isinf(soonest) else min(ends_at, now + timedelta(seconds=soonest))


def _pause(rt: Runtime, polls: int, retry_after: float | None) -> float:
    """Seconds before the next look: what the agent asks for, else growing with jitter."""
    first = rt.options.retry_initial_seconds
    if retry_after is not None:
        return max(first, retry_after)
    ceiling = min(first * 2 ** min(polls, MAX_DOUBLINGS), rt.options.retry_max_seconds)
    return ceiling * random.uniform(0.5, 1)  # noqa: S311


async def look(rt: Runtime, this: Run, worker_id: UUID) -> AgentReply | None:
    """The agent's answer, not on record yet; None if there is none, and then all is said.

    What is still being worked on is given back to the queue. Raises one of `OVERTAKEN`.
    """
    call = await statements.fetch(LongCall, attempt_id=this.attempt.id)
    assert call is not None  # noqa: S101 - written with the phase
    left = await budgets.seconds_left(this)
    if left <= 0:
        await budgets.end(rt, this, budgets.over_time(this), executed=True)
        return None
    accepted, trouble = Accepted(None, None), None
    if call.location:
        try:
            answer = await _poll(rt, this, call.location, left)
        except AgentCallFailed as failure:
            if failure.fault in FINAL:
                await calling.settle_failure(rt, this, _as_final(failure), executed=True)
                return None
            accepted, trouble = Accepted(None, failure.retry_after), failure
        else:
            if isinstance(answer, AgentReply):
                return replace(answer, latency_ms=attempts.milliseconds(this))
            accepted = answer
    await _go_on(rt, this, call, worker_id, accepted, trouble)
    return None


async def _poll(rt: Runtime, this: Run, path: str, left: float) -> AgentReply | Accepted:
    request = calling.request_of(rt, this)
    seconds = min(this.agent.timeout_seconds, LOOK_SECONDS, left)
    return await calling.measured(rt, this, rt.agents.poll(request, path, deadline=seconds))


def _as_final(failure: AgentCallFailed) -> AgentCallFailed:
    if failure.http_status not in FORGOTTEN:
        return failure
    return AgentCallFailed(
        AgentFault.GONE,
        f"The agent knows nothing of the work that it accepted: it answered {failure.http_status} "
        "at its Location.",
        may_have_executed=True,
        transient=True,
        http_status=failure.http_status,
        excerpt=failure.excerpt,
    )


async def _go_on(
    rt: Runtime,
    this: Run,
    call: LongCall,
    worker_id: UUID,
    accepted: Accepted,
    trouble: AgentCallFailed | None,
) -> None:
    now = datetime.now(UTC)
    assert call.ends_at is not None  # noqa: S101 - written with the phase
    if call.ends_at <= now:
        await calling.settle_failure(rt, this, _too_late(this), executed=True)
        return
    pause = math.inf
    if call.location:
        pause = _pause(rt, call.polls, accepted.retry_after)
    ready_at = _earliest(now, pause, await budgets.seconds_left(this), call.ends_at)
    await _give_back(rt, this, call, worker_id, ready_at, trouble)
    rt.engine.wake(ready_at)


def _too_late(this: Run) -> AgentCallFailed:
    return AgentCallFailed(
        AgentFault.TIMEOUT,
        f"The agent accepted the work and did not answer within {this.agent.max_wait_seconds} "
        "seconds.",
        may_have_executed=True,
    )


LOOKED = """UPDATE "long_calls" SET "polls" = $2, "trouble" = $3
    WHERE "attempt_id" = $1 AND "answered_at" IS NULL"""


@atomic
async def _give_back(
    rt: Runtime,
    this: Run,
    call: LongCall,
    worker_id: UUID,
    ready_at: datetime,
    trouble: AgentCallFailed | None,
) -> None:
    """The job stays as it is, so its version does; the worker's entry is the fence.

    The worker may have the entry again, after a callback, so it is asked for that as well.
    It has survived this look: those that were lost before are not held against the attempt.
    """

    async def gone() -> None:
        raise NotFound(public_id("job", this.job.id))

    current().swap(
        QueueEntry,
        {"job_id": this.job.id, "number": this.attempt.number, "worker_id": worker_id},
        {
            "state": QueueState.AWAITING,
            "worker_id": None,
            "ready_at": ready_at,
            "failures": 0,
            "lost": 0,
        },
        gone,
    )
    current().settles(this.job)
    if this.attempt.resumptions:
        current().update(Attempt, {"id": this.attempt.id}, {"resumptions": 0})
    why = None if trouble is None else storable(str(trouble))
    values = [str(this.attempt.id), call.polls + 1, why]
    current().require(Statement(LOOKED, values, "long_calls", guarded=True), gone)
    if trouble is not None and not call.trouble:
        message = f"{trouble} It is asked again."
        told = {"error": trouble.fault, "httpStatus": trouble.http_status}
        attempts.tell(this, JobLogType.AGENT_PROGRESS, message, told)
