"""Criteria that code checks. A check says FAIL of an output, ERROR only of itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from traceback import format_exc
from typing import Any

import structlog

from models import CriterionKind, VerdictOutcome, jsontext
from services import json_schemas
from services.criteria import Criterion
from services.judges import languages, pointers
from services.judges.base import CriterionResult, Evidence, Subject
from services.judges.languages import NotEvaluated, cut, shown
from services.judges.sandbox import Sandbox, WouldTakeTime

PASS, FAIL = VerdictOutcome.PASS, VerdictOutcome.FAIL

# Characters times states of a pattern that are searched in this process: 20 ms at worst.
CHEAP_SEARCH = 2_000_000

Check = Callable[[Subject, Criterion, Sandbox], Awaitable[CriterionResult]]
log = structlog.stdlib.get_logger()


async def run_checks(
    subject: Subject, criteria: Sequence[Criterion], sandbox: Sandbox
) -> list[CriterionResult]:
    """A result for each criterion that code can check, in their order; not for kind LLM."""
    return [
        await _run(CHECKS[criterion.kind], subject, criterion, sandbox)
        for criterion in criteria
        if criterion.kind in CHECKS
    ]


async def exact(subject: Subject, criterion: Criterion, sandbox: Sandbox) -> CriterionResult:
    pointer, value = _located(subject, criterion)
    wanted = criterion.config["value"]
    if languages.same(value, wanted):
        return _found(criterion, f"{_at(pointer)} is {shown(wanted)}.", pointer, value)
    reason = f"Expected {_at(pointer)} to be {shown(wanted)}, it is {shown(value)}."
    return _not(criterion, reason, pointer, value)


async def contains(subject: Subject, criterion: Criterion, sandbox: Sandbox) -> CriterionResult:
    pointer, value = _located(subject, criterion)
    text, wanted = _text(value), criterion.config["value"]
    if criterion.config.get("ignoreCase"):
        found = wanted.casefold() in text.casefold()
    else:
        found = wanted in text
    if found:
        return _found(criterion, f"{_at(pointer)} contains {shown(wanted)}.", pointer, wanted)
    reason = f"Expected {_at(pointer)} to contain {shown(wanted)}, it is {shown(value)}."
    return _not(criterion, reason, pointer, value)


async def regex(subject: Subject, criterion: Criterion, sandbox: Sandbox) -> CriterionResult:
    pointer, value = _located(subject, criterion)
    text, pattern = _text(value), criterion.config["pattern"]
    if len(text) * languages.regex(pattern).programsize <= CHEAP_SEARCH:
        span = languages.search(pattern, text)
    else:
        span = await sandbox.search(pattern, text)
    if span:
        match = text[slice(*span)]
        reason = f"{_at(pointer)} matches {cut(pattern)} with {shown(match)}."
        return _found(criterion, reason, pointer, match)
    reason = f"Expected {_at(pointer)} to match {cut(pattern)}, it is {shown(value)}."
    return _not(criterion, reason, pointer, value)


async def json_schema(subject: Subject, criterion: Criterion, sandbox: Sandbox) -> CriterionResult:
    pointer, value = _located(subject, criterion)
    schema = jsontext.dumps(criterion.config["schema"])
    mismatch = await json_schemas.check_within(sandbox, schema, value)
    if mismatch is None:
        return _found(criterion, f"{_at(pointer)} fits the schema.", pointer, value)
    place = pointer + mismatch.pointer
    reason = f"{_at(place)} does not fit the schema ({mismatch.keyword}): {mismatch.message}."
    return _not(criterion, reason, place, pointers.resolve(value, mismatch.pointer))


async def json_path(subject: Subject, criterion: Criterion, sandbox: Sandbox) -> CriterionResult:
    """`value`: some selected node equals it. `exists`: something is selected, or nothing."""
    config, path = criterion.config, cut(criterion.config["path"])
    wanted = [config["value"]] if "value" in config else []
    answer = await sandbox.find(config["path"], subject.output, wanted)
    found, first = answer["found"], answer["first"]
    place = found or first
    evidence = [_place(place)] if place else []
    if bool(found) == config.get("exists", True):
        reason = f"{path} selects {found['shown']}." if found else f"{path} selects nothing."
        return CriterionResult.of(criterion.key, PASS, reason, *evidence)
    what = (
        shown(wanted[0]) if wanted else ("something" if config.get("exists", True) else "nothing")
    )
    selects = place["shown"] if place else "nothing"
    reason = f"Expected {path} to select {what}, it selects {selects}."
    return CriterionResult.of(criterion.key, FAIL, reason, *evidence)


async def expression(subject: Subject, criterion: Criterion, sandbox: Sandbox) -> CriterionResult:
    """True passes. False, and what cannot be computed of this output (no such key), fails.

    An expression that exceeds its limits, or gives something else, is an ERROR.
    """
    source = criterion.config["cel"]
    variables = {"input": subject.input, "output": subject.output, "job": subject.job}
    holds, why = await sandbox.evaluate(source, variables)
    source = cut(source)
    if holds:
        return CriterionResult.of(criterion.key, PASS, f"{source} is true.")
    reason = f"{source} cannot be computed of this output: {why}." if why else f"{source} is false."
    return CriterionResult.of(criterion.key, FAIL, reason)


async def latency(subject: Subject, criterion: Criterion, sandbox: Sandbox) -> CriterionResult:
    took, limit = subject.latency_ms, criterion.config["maxMs"]
    if took <= limit:
        reason = f"The agent answered in {took} ms, within {limit} ms."
        return CriterionResult.of(criterion.key, PASS, reason)
    reason = f"Expected an answer within {limit} ms, the agent took {took} ms."
    return CriterionResult.of(criterion.key, FAIL, reason)


CHECKS: Mapping[CriterionKind, Check] = {
    CriterionKind.EXACT: exact,
    CriterionKind.CONTAINS: contains,
    CriterionKind.REGEX: regex,
    CriterionKind.JSON_SCHEMA: json_schema,
    CriterionKind.JSON_PATH: json_path,
    CriterionKind.EXPRESSION: expression,
    CriterionKind.LATENCY: latency,
}


class NothingThere(Exception):
    """The output has nothing at the pointer."""


async def _run(
    check: Check, subject: Subject, criterion: Criterion, sandbox: Sandbox
) -> CriterionResult:
    try:
        return await check(subject, criterion, sandbox)
    except WouldTakeTime:
        raise
    except NothingThere as e:
        return CriterionResult.of(criterion.key, FAIL, f"There is nothing at {e} in the output.")
    except NotEvaluated as e:
        return CriterionResult.errored(criterion.key, f"The check came to no answer: {e}.")
    except Exception:  # noqa: BLE001 - a bug of ours must not reject good work
        # Not `log.exception`: a formatter that shows locals would write out the whole output.
        log.error("check broke", kind=criterion.kind, traceback=format_exc(limit=-5))  # noqa: TRY400
        return CriterionResult.errored(criterion.key, "The check broke; this is a bug of Signoff.")


def _located(subject: Subject, criterion: Criterion) -> tuple[str, Any]:
    pointer: str = criterion.config.get("pointer", "")
    try:
        return pointer, pointers.resolve(subject.output, pointer)
    except LookupError:
        raise NothingThere(pointer) from None


def _at(pointer: str) -> str:
    return f"the output at {pointer}" if pointer else "the output"


def _text(value: Any) -> str:
    """A string as it is; of anything else its compact JSON."""
    return value if isinstance(value, str) else languages.compact(value)


def _quote(value: Any) -> str:
    text = _text(value)
    return text[: languages.SHOWN]


def _found(criterion: Criterion, reason: str, pointer: str, value: Any) -> CriterionResult:
    evidence = Evidence(pointer, _quote(value), verified=True)
    return CriterionResult.of(criterion.key, PASS, reason[0].upper() + reason[1:], evidence)


def _not(criterion: Criterion, reason: str, pointer: str, value: Any) -> CriterionResult:
    evidence = Evidence(pointer, _quote(value), verified=True)
    return CriterionResult.of(criterion.key, FAIL, reason[0].upper() + reason[1:], evidence)


def _place(place: Mapping[str, Any]) -> Evidence:
    return Evidence(pointers.of(place["location"]), place["shown"], verified=True)
