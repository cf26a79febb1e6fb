"""Answers that agents send to the one-time URL of an attempt.

Any server takes one. It is put on record as a response is, whatever the attempt does at the
moment: the job's version decides between the two, and a request to the agent that is still open
is ended by whoever has it. A worker goes on from there.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Literal, cast

from models import Attempt, Job, JobLogType, JobPhase, LongCall, statements
from models.statements import Statement
from services import attempts, callback_urls, calling, execution, responses
from services.agent_http import (
    AgentCallFailed,
    AgentFault,
    AgentReply,
    AgentRequest,
    Reported,
    answers,
    failures,
)
from services.attempts import Run
from services.errors import IllegalTransition, InvalidInput, NotFound, VersionConflict
from services.runtime import Runtime
from services.transactions import atomic, current
from services.values import storable

PERSISTENCE = 10
"""How often it is looked anew what an attempt does that moves on all the time."""
MAX_TOLD = 500
ERRORS = range(400, 600)
FIRST = datetime.fromtimestamp(0, UTC)
"""Due before every look: looks may take long, and what is answered is only to be judged."""


@dataclass(frozen=True, slots=True)
class Callback:
    """`body` is JSON: the agent's answer, or with `is_problem` why there is none (RFC 9457)."""

    body: bytes
    is_problem: bool
    usage: Reported


async def find(rt: Runtime, token: str) -> Attempt:
    """The attempt that a token is for. Raises `NotFound`, for a forged one without a look."""
    attempt_id = callback_urls.attempt_id_of(rt.vault, token)
    found = attempt_id and await statements.fetch(Attempt, id=attempt_id)
    if not found:
        raise _unknown()
    return found


def _unknown() -> NotFound:
    return NotFound("callback")


async def receive(rt: Runtime, attempt: Attempt, callback: Callback) -> None:
    """Take an attempt's answer; one that was taken already is welcome again, and does nothing.

    Raises `NotFound` where none is expected any more, and `InvalidInput` for what is no answer.
    """
    for _ in range(PERSISTENCE):
        with suppress(IllegalTransition, VersionConflict):
            return await _receive(rt, attempt, callback)
    return await _receive(rt, attempt, callback)


async def _receive(rt: Runtime, attempt: Attempt, callback: Callback) -> None:
    this = await execution.run_of(attempt.job_id, attempt.number)
    assert this is not None  # noqa: S101 - no attempt is ever deleted
    answer = await _read(rt, this, callback)
    call = await statements.fetch(LongCall, attempt_id=attempt.id)
    if call is not None and call.answered_at is not None:
        return
    if not _is_expected(this):
        if call is None or call.refused_at is None:
            await _refuse(rt, this, answer)
        raise _unknown()
    if isinstance(answer, AgentReply):
        await _take(rt, this, answer)
    else:
        await _fail(rt, this, answer)
        rt.telemetry.ended(this.outcome or this.job.status_reason)


def _is_expected(this: Run) -> bool:
    asked = this.attempt.started_at is not None and this.attempt.responded_at is None
    is_current = this.job.attempt_count == this.attempt.number
    return asked and is_current and execution.is_running(this.job)


@atomic
async def _take(rt: Runtime, this: Run, reply: AgentReply) -> None:
    _note(this, "answered_at")
    entry = responses.take(rt, this, reply)
    await attempts.advance(rt, this, JobPhase.CHECKING_OUTPUT, attempt=entry.attempt, **entry.job)
    current().hand_on(this.job, FIRST)


@atomic
async def _fail(rt: Runtime, this: Run, failure: AgentCallFailed) -> None:
    _note(this, "answered_at")
    await calling.settle_failure(rt, this, failure, executed=True)


@atomic
async def _refuse(rt: Runtime, this: Run, answer: AgentReply | AgentCallFailed) -> None:
    """Log the first one that comes too late; who repeats it could fill the log else."""
    _note(this, "refused_at")
    if isinstance(answer, AgentReply):
        await responses.log_late(rt, this, answer)
        return
    this.job = await Job.get(id=this.job.id)
    told = {"error": answer.fault, "excerpt": answer.excerpt, "late": True}
    message = "Reported a failure after the attempt had ended; not applied."
    attempts.tell(this, JobLogType.AGENT_RESPONSE, message, told)


NOTE = """INSERT INTO "long_calls" ("attempt_id", "polls", "{column}") VALUES ($1, 0, $2)
    ON CONFLICT ("attempt_id") DO UPDATE SET "{column}" = excluded."{column}"
    WHERE "long_calls"."{column}" IS NULL"""


def _note(this: Run, column: Literal["answered_at", "refused_at"]) -> None:
    """Once; whoever comes at the same moment looks again."""

    async def noted() -> None:
        raise VersionConflict(this.job.version, this.job)

    values = [str(this.attempt.id), datetime.now(UTC)]
    statement = Statement(NOTE.format(column=column), values, "long_calls", guarded=True)
    current().require(statement, noted)


async def _read(rt: Runtime, this: Run, callback: Callback) -> AgentReply | AgentCallFailed:
    request = calling.request_of(rt, this)
    body = await answers.without_secrets(callback.body, request)
    value = _decoded(body, request)
    if callback.is_problem:
        failure = _problem(value, body, request)
        failure.usage = callback.usage
        return failure
    return AgentReply(None, body, value, attempts.milliseconds(this), callback.usage)


def _decoded(body: bytes, request: AgentRequest) -> Any:
    try:
        return answers.decode(body, HTTPStatus.OK, request)
    except AgentCallFailed as failure:
        message = str(failure)
    raise InvalidInput.at("body", message=message)


def _problem(value: Any, body: bytes, request: AgentRequest) -> AgentCallFailed:
    """The failure that the agent tells of, as if it had answered with the problem's status."""
    given = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    status = given.get("status")
    code = status if isinstance(status, int) and status in ERRORS else 500
    refusal = failures.refusal(code, retry_after=None)
    told = str(given.get("detail") or given.get("title") or "It does not say why.")
    why = answers.secrets_of(request).out_of_message(told)[:MAX_TOLD]
    return AgentCallFailed(
        refusal.fault if refusal else AgentFault.SERVER_ERROR,
        storable(f"The agent reports {failures.status_line(code)}. {why}"),
        may_have_executed=True,
        http_status=code,
        excerpt=answers.excerpt(body, request),
    )
