"""What code alone finds in an agent's response, before a language model is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models import CriterionKind, VerdictOutcome, jsontext
from services import json_schemas
from services.attempts import Run
from services.criteria import Checklist, Criterion
from services.json_schemas import Mismatch
from services.judges import checks
from services.judges.base import CriterionResult, Subject
from services.judges.sandbox import NoSandbox, Sandbox

AT_ONCE = NoSandbox()
"""For an examination that takes no time, or does not come about."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What code finds in a response; `asked` are the items left to a language model."""

    checklist: Checklist
    subject: Subject
    mismatch: Mismatch | None = None
    results: Sequence[CriterionResult] = ()
    asked: Sequence[Criterion] = ()


async def examine(this: Run, response: str, took_ms: int, sandbox: Sandbox) -> Examination:
    """Hold a response against the agent's schema, then the criteria that code can check.

    Raises `NotEvaluated` where the schema gives no answer.
    """
    checklist = Checklist(
        text=this.criteria.text,
        items=jsontext.loads(this.criteria.items_json),
        pass_threshold=this.criteria.pass_threshold,
    )
    output = jsontext.loads(response)
    subject = Subject(
        input=jsontext.loads(this.body),
        output=output,
        job={"name": this.job.name, "description": this.job.description},
        latency_ms=took_ms,
    )
    mismatch = await json_schemas.check_within(sandbox, this.agent.output_schema_json, output)
    if mismatch:
        return Examination(checklist, subject, mismatch)
    judged = [item for item in checklist.items if item.kind is CriterionKind.LLM]
    checked = [item for item in checklist.items if item.kind is not CriterionKind.LLM]
    results = await checks.run_checks(subject, checked, sandbox)
    if judged and _lost(checked, results):
        why = "Not asked: a required check had failed already."
        results += [_skipped(item, why) for item in judged]
        judged = []
    return Examination(checklist, subject, None, ordered(checklist, results), judged)


def _lost(checked: Sequence[Criterion], results: Sequence[CriterionResult]) -> bool:
    required = {item.key for item in checked if item.required}
    return any(r.outcome is VerdictOutcome.FAIL and r.key in required for r in results)


def _skipped(item: Criterion, why: str) -> CriterionResult:
    return CriterionResult.of(item.key, VerdictOutcome.SKIPPED, why)


def ordered(checklist: Checklist, results: Sequence[CriterionResult]) -> list[CriterionResult]:
    """Those that there are, in the order of the checklist."""
    by_key = {result.key: result for result in results}
    return [by_key[item.key] for item in checklist.items if item.key in by_key]
