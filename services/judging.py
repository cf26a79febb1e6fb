"""Holding an attempt's recorded response against the output schema and the criteria."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from models import (
    CompletionMode,
    CriterionKind,
    Job,
    JobLogType,
    JobPhase,
    StatusReason,
    Verdict,
    VerdictOutcome,
    jsontext,
)
from services import attempts, json_schemas, telemetry, tracing
from services.attempts import Run
from services.criteria import Checklist, Criterion
from services.judges import checks
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
from services.lifecycle import Event
from services.runtime import Runtime
from services.tracing import ERROR, Kind
from services.transactions import atomic, current
from services.values import public_id, storable


@dataclass(slots=True)
class Judgement:
    """What the judges said, before it is decided."""

    results: list[CriterionResult]
    judge: dict[str, Any]
    response: Any = None
    input_tokens: int = 0
    output_tokens: int = 0
    latency_ms: int = 0

    @property
    def listed(self) -> list[dict[str, Any]]:
        return [result.to_json() for result in self.results]


async def judge(rt: Runtime, this: Run) -> None:
    """Settle the job by its recorded response, or leave it to a reviewer.

    Raises one of `OVERTAKEN` if the attempt was ended meanwhile.
    """
    output = jsontext.loads(this.attempt.response_json or "null")
    try:
        mismatch = await json_schemas.check_within(
            rt.sandbox, this.agent.output_schema_json, output
        )
    except NotEvaluated as error:
        await leave_to_review(rt, this, f"The outputSchema could not be checked: {error}")
        return
    if mismatch:
        where = mismatch.pointer or "the top"
        message = f"The response does not fit the outputSchema at {where}: {mismatch.message}"
        error = attempts.problem(
            "OUTPUT_SCHEMA_INVALID", message, retryable=True, may_have_executed=True
        )
        reason = StatusReason.OUTPUT_SCHEMA_INVALID
        await attempts.settle(rt, this, Event.FAIL, reason, message, error=error)
        return
    checklist = Checklist(
        text=this.criteria.text,
        items=jsontext.loads(this.criteria.items_json),
        pass_threshold=this.criteria.pass_threshold,
    )
    subject = Subject(
        input=jsontext.loads(this.job.input_json),
        output=output,
        job={"name": this.job.name, "description": this.job.description},
        latency_ms=this.attempt.latency_ms or 0,
    )
    judgement = await _judgement(rt, this, checklist, subject)
    try:
        await _apply(rt, this, judgement, decide(checklist, judgement.results))
    except attempts.OVERTAKEN:
        await _log_late(rt, this, judgement)
        raise


@atomic
async def leave_to_review(rt: Runtime, this: Run, why: str) -> None:
    """Keep the response; a person decides. Raises one of `OVERTAKEN`."""
    attempts.tell(this, JobLogType.VALIDATOR_RESPONSE, why, None)
    await _await_review(rt, this, why)


async def _await_review(rt: Runtime, this: Run, why: str) -> None:
    """A broken or missing judge neither passes nor rejects: a person decides."""
    await attempts.advance(
        rt,
        this,
        JobPhase.AWAITING_REVIEW,
        attempt={},
        status_reason=StatusReason.VALIDATOR_ERROR,
        status_message=storable(why),
    )


async def _judgement(rt: Runtime, this: Run, checklist: Checklist, subject: Subject) -> Judgement:
    """Checks first; a language model is asked about LLM items only, and only if it matters."""
    judged = [item for item in checklist.items if item.kind is CriterionKind.LLM]
    checked = [item for item in checklist.items if item.kind is not CriterionKind.LLM]
    results = await checks.run_checks(subject, checked, rt.sandbox)
    if not judged:
        return Judgement(results, {"kind": "checks"})
    if _lost(checked, results):
        why = "Not asked: a required check had failed already."
        skipped = [_skipped(item, why) for item in judged]
        return Judgement(_ordered(checklist, results + skipped), {"kind": "checks"})
    judgement = await _ask(rt, this, subject, judged)
    judgement.results = _ordered(checklist, results + judgement.results)
    return judgement


def _lost(checked: Sequence[Criterion], results: Sequence[CriterionResult]) -> bool:
    required = {item.key for item in checked if item.required}
    return any(r.outcome is VerdictOutcome.FAIL and r.key in required for r in results)


def _skipped(item: Criterion, why: str) -> CriterionResult:
    return CriterionResult.of(item.key, VerdictOutcome.SKIPPED, why)


def _ordered(checklist: Checklist, results: Sequence[CriterionResult]) -> list[CriterionResult]:
    by_key = {result.key: result for result in results}
    return [by_key[item.key] for item in checklist.items]


async def _ask(rt: Runtime, this: Run, subject: Subject, judged: list[Criterion]) -> Judgement:
    """What the language model says; where it cannot be asked, errors that say why."""
    if rt.judge is None:
        why = "No LLM judge is configured: set OPENAI_API_KEY, or review the attempt by hand."
        return Judgement(errored(judged, why), {"kind": "llm", "model": None})
    request = rt.judge.prepare(subject, judged)
    identity = {"kind": "llm", "model": rt.judge.model, "promptHash": request.prompt_hash}
    await _record_request(rt, this, identity | {"request": request.to_json()})
    try:
        answer = await _call(rt, rt.judge, request)
    except JudgeFailed as failure:
        raw = {"error": failure.code, "raw": failure.raw}
        return Judgement(errored(judged, str(failure)), identity, raw)
    return _answered(answer, identity)


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


def _answered(answer: LLMAnswer, identity: dict[str, Any]) -> Judgement:
    return Judgement(
        list(answer.results),
        identity | {"model": answer.model},
        answer.raw,
        answer.input_tokens,
        answer.output_tokens,
        answer.latency_ms,
    )


@atomic
async def _record_request(rt: Runtime, this: Run, payload: dict[str, Any]) -> None:
    await attempts.advance(rt, this, JobPhase.VALIDATING, attempt={})
    message = f"Asking the judge {payload['model']}."
    attempts.tell(this, JobLogType.VALIDATOR_REQUEST, message, payload)


@atomic
async def _apply(
    rt: Runtime,
    this: Run,
    judgement: Judgement,
    decision: Decision,
) -> None:
    """Write the verdict and settle the job by it."""
    if judgement.judge["kind"] == "checks":
        asked = {"kind": "checks", "criteria": orjson.Fragment(this.criteria.items_json)}
        attempts.tell(this, JobLogType.VALIDATOR_REQUEST, "Running the checks.", asked)
    attempts.tell(
        this,
        JobLogType.VALIDATOR_RESPONSE,
        f"Judged {len(judgement.results)} criteria.",
        _told(judgement),
    )
    verdict = Verdict(
        job_id=this.job.id,
        attempt_id=this.attempt.id,
        criteria_set_id=this.criteria.id,
        outcome=decision.outcome,
        score=decision.score,
        summary=decision.summary,
        results_json=jsontext.dumps(judgement.listed),
        judge_json=jsontext.dumps(judgement.judge),
        input_tokens=judgement.input_tokens,
        output_tokens=judgement.output_tokens,
        latency_ms=judgement.latency_ms,
    )
    current().insert(verdict)
    told = {
        "outcome": decision.outcome,
        "score": decision.score,
        "verdictId": public_id("verdict", verdict.id),
        "criteriaVersion": this.criteria.version,
    }
    attempts.tell(this, JobLogType.VERDICT, decision.summary, told)
    await _settle(rt, this, decision)


def _told(judgement: Judgement) -> dict[str, Any]:
    return {
        "results": judgement.listed,
        "response": judgement.response,
        "inputTokens": judgement.input_tokens,
        "outputTokens": judgement.output_tokens,
        "latencyMs": judgement.latency_ms,
    }


@atomic
async def _log_late(rt: Runtime, this: Run, judgement: Judgement) -> None:
    this.job = await Job.get(id=this.job.id)
    message = "Judged after the attempt had ended; not applied."
    told = _told(judgement) | {"late": True}
    attempts.tell(this, JobLogType.VALIDATOR_RESPONSE, message, told)


async def _settle(rt: Runtime, this: Run, decision: Decision) -> None:
    if decision.outcome is VerdictOutcome.PASS:
        await attempts.settle(
            rt,
            this,
            Event.PASS,
            StatusReason.VERDICT_PASSED,
            decision.summary,
            result_json=this.attempt.response_json,
            completion_mode=CompletionMode.VALIDATED,
        )
    elif decision.outcome is VerdictOutcome.FAIL:
        reason = StatusReason.VERDICT_FAILED
        await attempts.settle(rt, this, Event.FAIL, reason, decision.summary)
    else:
        await _await_review(rt, this, decision.summary)


def reasons(verdict: Verdict) -> list[str]:
    """What a failed verdict had against the work, one sentence a criterion."""
    return [
        f"{result['key']}: {result['reason']}"
        for result in jsontext.loads(verdict.results_json)
        if result["outcome"] == VerdictOutcome.FAIL
    ]
