"""The outcome of a verdict, over all combinations that matter."""

from __future__ import annotations

from itertools import product

import pytest

from models import VerdictOutcome
from services.criteria import Checklist, Criterion
from services.judges.base import CriterionResult
from services.judges.decision import Decision, decide

PASS, FAIL = VerdictOutcome.PASS, VerdictOutcome.FAIL
INCONCLUSIVE, ERROR = VerdictOutcome.INCONCLUSIVE, VerdictOutcome.ERROR
SKIPPED = VerdictOutcome.SKIPPED
OUTCOMES = tuple(VerdictOutcome)


def decided(
    required: tuple[VerdictOutcome, ...],
    optional: tuple[VerdictOutcome, ...] = (),
    threshold: float = 0,
    weights: tuple[float, ...] = (),
) -> Decision:
    outcomes = (*required, *optional)
    items = tuple(
        Criterion(
            key=f"k{n}",
            text=f"text {n}",
            required=n < len(required),
            weight=weights[n] if weights else 1,
        )
        for n in range(len(outcomes))
    )
    results = [
        CriterionResult.of(item.key, outcome, f"reason {n}.")
        for n, (item, outcome) in enumerate(zip(items, outcomes, strict=True))
    ]
    return decide(Checklist(text="t", items=items, pass_threshold=threshold), results)


@pytest.mark.parametrize("required", list(product(OUTCOMES, repeat=3)))
def test_required_criteria_decide(required: tuple[VerdictOutcome, ...]) -> None:
    if FAIL in required:
        expected = FAIL
    elif ERROR in required:
        expected = ERROR
    elif set(required) == {PASS}:
        expected = PASS
    else:
        expected = INCONCLUSIVE

    assert decided(required).outcome is expected
    assert decided(required, (PASS, FAIL)).outcome is expected


@pytest.mark.parametrize("optional", list(product(OUTCOMES, repeat=3)))
@pytest.mark.parametrize("threshold", [0, 0.3, 0.5, 0.75, 1])
def test_then_the_share_of_all_criteria_decides(
    optional: tuple[VerdictOutcome, ...], threshold: float
) -> None:
    """Whatever the open ones turn out to be: they decide only if they cannot change it."""
    open_ = [n for n, outcome in enumerate(optional) if outcome not in {PASS, FAIL}]
    possible: set[VerdictOutcome] = set()
    for settled in product((PASS, FAIL), repeat=len(open_)):
        world = list(optional)
        for n, outcome in zip(open_, settled, strict=True):
            world[n] = outcome
        passed = 1 + world.count(PASS)
        possible.add(PASS if passed / 4 >= threshold else FAIL)
    expected = (
        possible.pop() if len(possible) == 1 else (ERROR if ERROR in optional else INCONCLUSIVE)
    )

    decision = decided((PASS,), optional, threshold)

    assert decision.outcome is expected
    assert decision.score == (1 + optional.count(PASS)) / 4


def test_optional_failures_alone_never_fail() -> None:
    assert decided((PASS,), (FAIL, ERROR, SKIPPED)).outcome is PASS


def test_a_required_failure_fails_whatever_the_share() -> None:
    assert decided((FAIL,), (PASS,) * 9, 0.5).outcome is FAIL


@pytest.mark.parametrize(
    ("weights", "outcome", "score"),
    [((3, 1), PASS, 0.75), ((1, 3), FAIL, 0.25), ((1, 1), PASS, 0.5)],
)
def test_weights(weights: tuple[float, ...], outcome: VerdictOutcome, score: float) -> None:
    decision = decided((), (PASS, FAIL), 0.5, weights)

    assert (decision.outcome, decision.score) == (outcome, score)


def test_shares_are_not_lost_to_rounding() -> None:
    weights = (0.1, 0.2, 0.7)

    assert decided((), (PASS, PASS, FAIL), 0.3, weights).outcome is PASS
    assert decided((), (PASS,) * 3, 1, (0.1,) * 3).outcome is PASS


@pytest.mark.parametrize("times", [0, 2])
def test_a_criterion_not_judged_once_is_an_error(times: int) -> None:
    checklist = Checklist(text="t", items=(Criterion(key="k", text="x"),))

    decision = decide(checklist, [CriterionResult.of("k", PASS, "Good.")] * times)

    why = "It was not judged." if times == 0 else "It was judged twice."
    assert decision == Decision(ERROR, 0.0, f"0 of 1 criteria passed. ERROR k “x”: {why}")


def test_results_of_unknown_criteria_count_for_nothing() -> None:
    checklist = Checklist(text="t", items=(Criterion(key="k", text="x"),))
    results = [CriterionResult.of("k", FAIL, "Bad."), CriterionResult.of("z", PASS, "Good.")]

    assert decide(checklist, results).outcome is FAIL


def test_the_summary_names_what_did_not_pass() -> None:
    assert decided((PASS, PASS)).summary == "2 of 2 criteria passed."
    assert decided((PASS, ERROR, FAIL), (FAIL, PASS)).summary == (
        "2 of 5 criteria passed. FAIL k2 “text 2”: reason 2. "
        "FAIL k3 “text 3”, optional: reason 3. ERROR k1 “text 1”: reason 1."
    )
    assert decided((), (PASS, FAIL), 0.25).summary == (
        "1 of 2 criteria passed (score 0.50, threshold 0.25). FAIL k1 “text 1”, optional: reason 1."
    )
    assert decided((FAIL,) * 7).summary.endswith("reason 4. And 2 more.")


def test_a_summary_can_be_stored() -> None:
    checklist = Checklist(text="t", items=(Criterion(key="k", text="x" * 2_000),))
    results = [CriterionResult.of("k", FAIL, "a\0b" * 1_000)]

    summary = decide(checklist, results).summary

    assert "\0" not in summary
    assert len(summary) < 700
