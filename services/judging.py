"""Holding an attempt's recorded response against the output schema and the criteria."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from typing import Any

import orjson
import structlog

from models import (
    CompletionMode,
    Job,
    JobLogType,
    JobPhase,
    StatusReason,
    Verdict,
    VerdictOutcome,
    jsontext,
)
from services import attempts, budgets, openings, responses, retries, telemetry, tracing
from services.agent_http import AgentReply, Reported
from services.agent_http.usage import NOTHING as UNREPORTED
from services.attempts import Run
from services.budgets import NO_ENTRY, NOTHING, Amount, Entry
from services.criteria import Criterion
from services.errors import BudgetExceeded
from services.examining import AT_ONCE, Examination, examine, ordered
from services.json_schemas import Mismatch
from services.judges.base import (
    CriterionResult,
    JudgeFailed,
    LLMAnswer,
    LLMJudge,
    LLMRequest,
    Subject,
    errored,
)
from services.judges.decision import Decision, decide
from services.judges.languages import NotEvaluated
from services.openings import Failure
from services.rules import Event
from services.runtime import Runtime
from services.shielding import to_the_end
from services.tracing import ERROR, Kind
from services.transactions import atomic, current
from services.values import public_id, storable

logger = structlog.get_logger(__name__)


@dataclass(slots=True)
class Judgement:
    """What the judges said, before it is decided."""

    results: list[CriterionResult]
    judge: dict[str, Any]
    response: Any = None
    used: Reported = UNREPORTED
    reserved: Amount = NOTHING
    latency_ms: int = 0

    @property
    def listed(self) -> list[dict[str, Any]]:
        return [result.to_json() for result in self.results]


async def receive(rt: Runtime, this: Run, reply: AgentReply) -> None:
    """Put the agent's reply on record and judge it, in one step where judging takes no time.

    Whatever would come before that, the reply does: it cost somebody's work.
    Raises one of `OVERTAKEN` if the attempt was ended meanwhile.
    """
    found = at_once = None
    with suppress(Exception):  # it comes again below, with the reply on record
        found = await examine(this, reply.body.decode(), reply.latency_ms, AT_ONCE)
        at_once = found if _ends_by(this, found) else None
    if at_once is None or not await _is_settled(rt, this, at_once, reply):
        await to_the_end(rt, responses.record(rt, this, reply))
        await judge(rt, this, found)


async def _is_settled(rt: Runtime, this: Run, found: Examination, reply: AgentReply) -> bool:
    """Whether reply and verdict are written; if not, nothing is."""
    job, attempt = copy(this.job), copy(this.attempt)
    try:
        await to_the_end(rt, _record(rt, this, found, _by_checks(found), reply))
    except attempts.OVERTAKEN:
        raise
    except Exception:
        logger.exception("to be judged again, with the reply on record")
        this.job, this.attempt = job, attempt
        return False
    return True


def _ends_by(this: Run, found: Examination) -> bool:
    """Whether the attempt ends by that alone: nothing is asked, read or waited for before."""
    if found.asked:
        return False
    if retries.policy_of(this.job, this.agent).max_attempts == 1:
        return True
    decision = decide(found.checklist, found.results)
    return found.mismatch is None and decision.outcome is not VerdictOutcome.FAIL


async def judge(rt: Runtime, this: Run, found: Examination | None = None) -> None:
    """Settle the job by its recorded response, or leave it to a reviewer.

    `found` is what was found in it already.
    Raises one of `OVERTAKEN` if the attempt was ended meanwhile.
    """
    response, took = this.attempt.response_json or "null", this.attempt.latency_ms or 0
    try:
        found = found or await examine(this, response, took, rt.sandbox)
    except NotEvaluated as error:
        await leave_to_review(rt, this, f"The outputSchema could not be checked: {error}")
        return
    try:
        judgement = await _judgement(rt, this, found)
    except BudgetExceeded as over:
        await budgets.end(rt, this, over, executed=True)
        return
    await to_the_end(rt, _record(rt, this, found, judgement))


def _by_checks(found: Examination) -> Judgement:
    return Judgement(list(found.results), {"kind": "checks"})


async def _judgement(rt: Runtime, this: Run, found: Examination) -> Judgement:
    """Raises `BudgetExceeded` where a language model is to be asked and nothing is left."""
    if not found.asked:
        return _by_checks(found)
    judgement = await _ask(rt, this, found.subject, found.asked)
    judgement.results = ordered(found.checklist, [*found.results, *judgement.results])
    return judgement


async def _record(
    rt: Runtime,
    this: Run,
    found: Examination,
    judgement: Judgement,
    reply: AgentReply | None = None,
) -> None:
    """Settle by what was found; `reply` is one that is not on record yet."""
    try:
        await _settle(rt, this, found, judgement, reply)
    except attempts.OVERTAKEN:
        if reply is not None:
            await responses.log_late(rt, this, reply)
        elif found.mismatch is None:
            await _log_late(rt, this, judgement)
        raise


@atomic
async def _settle(
    rt: Runtime,
    this: Run,
    found: Examination,
    judgement: Judgement,
    reply: AgentReply | None,
) -> None:
    taken = NO_ENTRY if reply is None else responses.take(rt, this, reply, judged=True)
    if found.mismatch is not None:
        await _refuse(rt, this, found.mismatch, taken)
    else:
        await _apply(rt, this, judgement, decide(found.checklist, judgement.results), taken)


async def _refuse(rt: Runtime, this: Run, mismatch: Mismatch, taken: Entry) -> None:
    where = mismatch.pointer or "the top"
    message = f"The response does not fit the outputSchema at {where}: {mismatch.message}"
    reason = StatusReason.OUTPUT_SCHEMA_INVALID
    error = Failure(reason, message, retryable=True, may_have_executed=True, reasons=[message])
    await attempts.settle(
        rt, this, Event.FAIL, reason, message, error=error, attempt=taken.attempt, **taken.job
    )


@atomic
async def leave_to_review(rt: Runtime, this: Run, why: str) -> None:
    """Keep the response; a person decides. Raises one of `OVERTAKEN`."""
    attempts.tell(this, JobLogType.VALIDATOR_RESPONSE, why, None)
    await _await_review(rt, this, why)


async def _await_review(rt: Runtime, this: Run, why: str, taken: Entry = NO_ENTRY) -> None:
    """A broken or missing judge neither passes nor rejects: a person decides."""
    await attempts.advance(
        rt,
        this,
        JobPhase.AWAITING_REVIEW,
        attempt=taken.attempt,
        status_reason=StatusReason.VALIDATOR_ERROR,
        status_message=storable(why),
        **taken.job,
    )


async def _ask(rt: Runtime, this: Run, subject: Subject, judged: Sequence[Criterion]) -> Judgement:
    """What the language model says; where it cannot be asked, errors that say why."""
    if rt.judge is None:
        why = "No LLM judge is configured: set OPENAI_API_KEY, or review the attempt by hand."
        return Judgement(errored(judged, why), {"kind": "llm", "model": None})
    request = rt.judge.prepare(subject, judged)
    identity = {"kind": "llm", "model": rt.judge.model, "promptHash": request.prompt_hash}
    reserved = budgets.of_question(rt.options, request)
    in_time = await budgets.seconds_left(this) > 0
    payload = identity | {"request": request.to_json()}
    await _record_request(rt, this, payload, reserved, in_time=in_time)
    try:
        answer = await _call(rt, rt.judge, request)
    except JudgeFailed as failure:
        raw = {"error": failure.code, "raw": failure.raw}
        used = _reported(rt, failure.tokens)
        results = errored(judged, str(failure))
        return Judgement(results, _priced(identity, used), raw, used, reserved)
    tokens = (answer.input_tokens, answer.output_tokens)
    used = _reported(rt, tokens if any(tokens) else None)
    return Judgement(
        list(answer.results),
        _priced(identity | {"model": answer.model}, used),
        answer.raw,
        used,
        reserved,
        answer.latency_ms,
    )


def _reported(rt: Runtime, tokens: tuple[int, int] | None) -> Reported:
    return Reported(*tokens, budgets.price(rt.options, *tokens)) if tokens else Reported()


def _priced(identity: dict[str, Any], used: Reported) -> dict[str, Any]:
    """What a verdict keeps of its judge, and whether its cost is known."""
    return identity | {"priced": used.cost_micros is not None}


async def _call(rt: Runtime, judge: LLMJudge, request: LLMRequest) -> LLMAnswer:
    """One question to the judge, measured and traced."""
    about = {"gen_ai.request.model": judge.model}
    with (
        tracing.span(rt.tracer, "judge call", Kind.CLIENT, about) as told,
        telemetry.timed(rt.telemetry.judge_calls) as call,
    ):
        try:
            answer = await judge.ask(request)
        except JudgeFailed as failure:
            call.outcome = told[ERROR] = failure.code
            raise
        call.outcome = telemetry.OK
        told["gen_ai.usage.input_tokens"] = answer.input_tokens
        told["gen_ai.usage.output_tokens"] = answer.output_tokens
        rt.telemetry.judged(answer.input_tokens, answer.output_tokens)
        return answer


@atomic
async def _record_request(
    rt: Runtime, this: Run, payload: dict[str, Any], need: Amount, *, in_time: bool
) -> None:
    """Raises `BudgetExceeded` for a question that there is nothing left for."""
    if not in_time:
        raise budgets.over_time(this)
    set_aside = budgets.reserve(this, need, f"to ask the judge {payload['model']}")
    await attempts.advance(
        rt, this, JobPhase.VALIDATING, attempt=set_aside.attempt, **set_aside.job
    )
    message = f"Asking the judge {payload['model']}."
    attempts.tell(this, JobLogType.VALIDATOR_REQUEST, message, payload)


async def _apply(
    rt: Runtime, this: Run, judgement: Judgement, decision: Decision, taken: Entry
) -> None:
    """Write the verdict and settle the job by it."""
    results = jsontext.dumps(judgement.listed)
    if judgement.judge["kind"] == "checks":
        asked = {"kind": "checks", "criteria": orjson.Fragment(this.criteria.items_json)}
        attempts.tell(this, JobLogType.VALIDATOR_REQUEST, "Running the checks.", asked)
    message = f"Judged {len(judgement.results)} criteria."
    attempts.tell(this, JobLogType.VALIDATOR_RESPONSE, message, _told(judgement, results))
    verdict = _verdict(this, judgement, decision, results)
    current().insert(verdict)
    told = {
        "outcome": decision.outcome,
        "score": decision.score,
        "verdictId": public_id("verdict", verdict.id),
        "criteriaVersion": this.criteria.version,
    }
    attempts.tell(this, JobLogType.VERDICT, decision.summary, told)
    taken |= budgets.settle(this, judgement.reserved, judgement.used, by_judge=True)
    await _conclude(rt, this, decision, openings.reasons(verdict), taken)


def _verdict(this: Run, judgement: Judgement, decision: Decision, results: str) -> Verdict:
    return Verdict(
        job_id=this.job.id,
        attempt_id=this.attempt.id,
        criteria_set_id=this.criteria.id,
        outcome=decision.outcome,
        score=decision.score,
        summary=decision.summary,
        results_json=results,
        judge_json=jsontext.dumps(judgement.judge),
        input_tokens=judgement.used.input_tokens or 0,
        output_tokens=judgement.used.output_tokens or 0,
        cost_micros=judgement.used.cost_micros or 0,
        latency_ms=judgement.latency_ms,
    )


def _told(judgement: Judgement, results: str) -> dict[str, Any]:
    return {
        "results": orjson.Fragment(results),
        "response": judgement.response,
        "inputTokens": judgement.used.input_tokens or 0,
        "outputTokens": judgement.used.output_tokens or 0,
        "latencyMs": judgement.latency_ms,
    }


@atomic
async def _log_late(rt: Runtime, this: Run, judgement: Judgement) -> None:
    this.job = await Job.get(id=this.job.id)
    message = "Judged after the attempt had ended; not applied."
    told = _told(judgement, jsontext.dumps(judgement.listed)) | {"late": True}
    attempts.tell(this, JobLogType.VALIDATOR_RESPONSE, message, told)


async def _conclude(
    rt: Runtime, this: Run, decision: Decision, reasons: Sequence[str], taken: Entry
) -> None:
    if decision.outcome is VerdictOutcome.PASS:
        await attempts.settle(
            rt,
            this,
            Event.PASS,
            StatusReason.VERDICT_PASSED,
            decision.summary,
            attempt=taken.attempt,
            result_json=this.attempt.response_json,
            completion_mode=CompletionMode.VALIDATED,
            **taken.job,
        )
    elif decision.outcome is VerdictOutcome.FAIL:
        reason = StatusReason.VERDICT_FAILED
        error = Failure(
            reason, decision.summary, retryable=True, may_have_executed=True, reasons=reasons
        )
        await attempts.settle(
            rt,
            this,
            Event.FAIL,
            reason,
            decision.summary,
            error=error,
            attempt=taken.attempt,
            **taken.job,
        )
    else:
        await _await_review(rt, this, decision.summary, taken)
