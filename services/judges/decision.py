"""The outcome of a verdict, computed from its results and never read from a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models import VerdictOutcome
from services.criteria import Checklist, Criterion
from services.judges.base import CriterionResult
from services.values import storable

PASS, FAIL = VerdictOutcome.PASS, VerdictOutcome.FAIL
INCONCLUSIVE, ERROR = VerdictOutcome.INCONCLUSIVE, VerdictOutcome.ERROR

# Shares are sums of floats: 0.1 + 0.2 shall reach 0.3.
CLOSE = 1e-9
NAMED = 5
REASON = 300


@dataclass(frozen=True, slots=True)
class Decision:
    """`score` is the weighted share of criteria known to have passed."""

    outcome: VerdictOutcome
    score: float
    summary: str


def decide(checklist: Checklist, results: Sequence[CriterionResult]) -> Decision:
    """A required FAIL fails; a required one without answer leaves it open; then the share decides.

    While some optional ones are open the share lies between two bounds, and
    decides only if both lie on the same side of the threshold.
    A criterion without a result, or with two, is an ERROR.
    """
    judged = [(item, _result(item, results)) for item in checklist.items]
    score = _share(judged, {PASS})
    outcome = _required(judged) or _threshold(checklist.pass_threshold, score, judged)
    return Decision(outcome, score, _summary(outcome, score, checklist, judged))


Judged = Sequence[tuple[Criterion, CriterionResult]]


def _result(item: Criterion, results: Sequence[CriterionResult]) -> CriterionResult:
    found = [result for result in results if result.key == item.key]
    if len(found) == 1:
        return found[0]
    why = "It was judged twice." if found else "It was not judged."
    return CriterionResult.errored(item.key, why)


def _share(judged: Judged, counted: set[VerdictOutcome]) -> float:
    total = sum(item.weight for item, _ in judged)
    return sum(item.weight for item, result in judged if result.outcome in counted) / total


def _required(judged: Judged) -> VerdictOutcome | None:
    """What the required criteria alone lead to; nothing when all of them passed."""
    outcomes = {result.outcome for item, result in judged if item.required}
    if FAIL in outcomes:
        return FAIL
    if ERROR in outcomes:
        return ERROR
    return INCONCLUSIVE if outcomes - {PASS} else None


def _threshold(threshold: float, low: float, judged: Judged) -> VerdictOutcome:
    high = _share(judged, set(VerdictOutcome) - {FAIL})
    if low >= threshold - CLOSE:
        return PASS
    if high < threshold - CLOSE:
        return FAIL
    return ERROR if any(result.outcome is ERROR for _, result in judged) else INCONCLUSIVE


def _summary(outcome: VerdictOutcome, score: float, checklist: Checklist, judged: Judged) -> str:
    passed = sum(result.outcome is PASS for _, result in judged)
    head = f"{passed} of {len(judged)} criteria passed"
    if checklist.pass_threshold:
        head += f" (score {score:.2f}, threshold {checklist.pass_threshold:.2f})"
    if outcome is PASS and passed == len(judged):
        return f"{head}."
    return " ".join((f"{head}.", *_named(judged)))


def _named(judged: Judged) -> list[str]:
    """The criteria that did not pass, required and failed ones first."""
    order = [FAIL, ERROR, INCONCLUSIVE, VerdictOutcome.SKIPPED]
    open_ = [(item, result) for item, result in judged if result.outcome is not PASS]
    open_.sort(key=lambda pair: (order.index(pair[1].outcome), not pair[0].required))
    lines = [_line(item, result) for item, result in open_[:NAMED]]
    more = len(open_) - NAMED
    return [*lines, f"And {more} more."] if more > 0 else lines


def _line(item: Criterion, result: CriterionResult) -> str:
    optional = "" if item.required else ", optional"
    reason = result.reason if len(result.reason) <= REASON else f"{result.reason[:REASON]}…"
    text = item.text if len(item.text) <= REASON else f"{item.text[:REASON]}…"
    line = f"{result.outcome} {item.key} “{text}”{optional}: {reason}"
    return storable(line)
