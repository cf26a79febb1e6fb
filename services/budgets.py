"""Budgets: what a job may take in money, tokens and time, its judge included.

What a call may take at most is set aside before it is made, in the transaction that records
the request, and replaced by what it took in the one that records the answer. So what is counted
is never less than what was used, whenever a process ends. An attempt's `reserved_…` columns say
what of the job's sums is set aside and not reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any
from uuid import UUID

from pydantic import Field

from models import Agent, Attempt, Job, StatusReason, jsontext, statements
from services import attempts
from services.agent_http import Reported
from services.agent_http.usage import MICROS, micros
from services.attempts import Run
from services.errors import BudgetExceeded
from services.judges.base import LLMRequest
from services.openings import Failure
from services.rules import Event
from services.runtime import Options, Runtime
from services.values import MAX_INT32, Command

YEAR = 31_536_000


class BudgetDraft(Command):
    """What a job may take, over all its attempts; what is left out is not limited."""

    max_cost_usd: float | None = Field(
        default=None, ge=1 / MICROS, le=1_000_000, description="Of agents and the judge."
    )
    max_tokens: int | None = Field(
        default=None, ge=1, le=MAX_INT32, description="In and out, of agents and the judge."
    )
    max_wall_seconds: int | None = Field(
        default=None,
        ge=1,
        le=YEAR,
        description="For one execution with its retries, from the start of its first attempt.",
    )

    def stored(self) -> str | None:
        """As JSON text, None for a budget without limits."""
        given = self.model_dump(exclude_none=True)
        if "max_cost_usd" in given:
            given["max_micros"] = _rounded(given.pop("max_cost_usd"))
        return jsontext.dumps(given) if given else None


def _rounded(usd: float) -> int:
    return int((Decimal(str(usd)) * MICROS).to_integral_value(ROUND_HALF_UP))


@dataclass(frozen=True, slots=True)
class Budget:
    max_micros: int | None = None
    max_tokens: int | None = None
    max_wall_seconds: int | None = None


def of(job: Job) -> Budget | None:
    given = jsontext.loads_or_none(job.budget_json)
    return Budget(**given) if given else None


@dataclass(frozen=True, slots=True)
class Amount:
    tokens: int = 0
    micros: int = 0


NOTHING = Amount()


def of_call(agent: Agent) -> Amount:
    """What one call of the agent may take, as it was declared."""
    return Amount(agent.max_call_tokens or 0, agent.max_call_micros or 0)


def of_question(options: Options, request: LLMRequest) -> Amount:
    """What a question to the judge may take; what has no price counts no money."""
    estimated, most = request.estimated_tokens, request.max_output_tokens
    return Amount(estimated + most, price(options, estimated, most) or 0)


def price(options: Options, input_tokens: int, output_tokens: int) -> int | None:
    """What the judge's tokens cost; None where its prices are not known."""
    if options.judge_input_usd is None or options.judge_output_usd is None:
        return None
    per_million = Decimal(str(options.judge_input_usd)) * input_tokens + (
        Decimal(str(options.judge_output_usd)) * output_tokens
    )
    return micros(per_million / MICROS)


def demand(job: Job, need: Amount, what: str) -> None:
    """Raise `BudgetExceeded` unless `need` is left, and anything at all."""
    budget = of(job)
    if budget is None:
        return
    used = Amount(job.input_tokens + job.output_tokens, job.cost_micros)
    if _is_short(budget.max_tokens, used.tokens, need.tokens):
        raise _exceeded(what, *(f"{n} tokens" for n in (budget.max_tokens, *_of(used, need, 0))))
    if _is_short(budget.max_micros, used.micros, need.micros):
        raise _exceeded(what, *map(_dollars, (budget.max_micros or 0, *_of(used, need, 1))))


def _of(used: Amount, need: Amount, index: int) -> tuple[int, int]:
    return (used.micros, need.micros) if index else (used.tokens, need.tokens)


def _is_short(limit: int | None, used: int, need: int) -> bool:
    return limit is not None and (used >= limit or used + need > limit)


def _exceeded(what: str, limit: str, used: str, need: str) -> BudgetExceeded:
    return BudgetExceeded(
        f"The job's budget does not allow {what}, which may take {need}: "
        f"{used} of {limit} are used."
    )


def _dollars(amount: int) -> str:
    return f"${Decimal(amount) / MICROS:f}"


@dataclass(frozen=True, slots=True)
class Entry:
    """Columns of a job and of its attempt to be written, in one transaction with the step."""

    job: dict[str, Any]
    attempt: dict[str, Any]

    def __or__(self, other: Entry) -> Entry:
        """Both; where they name a column, `other` was reckoned last."""
        return Entry(self.job | other.job, self.attempt | other.attempt)


NO_ENTRY = Entry({}, {})


def reserve(this: Run, need: Amount, what: str) -> Entry:
    """Set `need` aside for a call. Raises `BudgetExceeded`."""
    demand(this.job, need, what)
    return _moved(this, need) if need != NOTHING else NO_ENTRY


def held(attempt: Attempt) -> Amount:
    """What is set aside and not reported."""
    return Amount(attempt.reserved_tokens, attempt.reserved_micros)


def release(this: Run, reserved: Amount) -> Entry:
    """Take back what was set aside for a call that was not made."""
    if reserved == NOTHING:
        return NO_ENTRY
    return _moved(this, Amount(-reserved.tokens, -reserved.micros))


def _moved(this: Run, by: Amount) -> Entry:
    job, attempt = this.job, this.attempt
    columns = {
        "reserved_tokens": attempt.reserved_tokens + by.tokens,
        "reserved_micros": attempt.reserved_micros + by.micros,
    }
    _set(attempt, columns)
    return Entry(
        {
            "input_tokens": job.input_tokens + by.tokens,
            "cost_micros": job.cost_micros + by.micros,
        },
        columns,
    )


def settle(this: Run, reserved: Amount, used: Reported, *, by_judge: bool = False) -> Entry:
    """Put what a call took in the place of what was set aside for it.

    What was not reported stays as it was set aside: tokens of one kind alone take the place of
    as many.
    """
    into, out, cost = used.input_tokens or 0, used.output_tokens or 0, used.cost_micros or 0
    back = Amount(
        reserved.tokens if used.has_all_tokens else min(reserved.tokens, into + out),
        0 if used.cost_micros is None else reserved.micros,
    )
    if back == NOTHING and not (into or out or cost):
        return NO_ENTRY
    job, attempt = this.job, this.attempt
    columns = {
        "input_tokens": attempt.input_tokens + into,
        "output_tokens": attempt.output_tokens + out,
        "cost_micros": attempt.cost_micros + cost,
        "reserved_tokens": attempt.reserved_tokens - back.tokens,
        "reserved_micros": attempt.reserved_micros - back.micros,
    }
    _set(attempt, columns)
    return Entry(
        {
            "input_tokens": job.input_tokens + into - back.tokens,
            "output_tokens": job.output_tokens + out,
            "cost_micros": job.cost_micros + cost - back.micros,
            "judge_cost_micros": job.judge_cost_micros + (cost if by_judge else 0),
        },
        columns,
    )


def _set(attempt: Attempt, columns: dict[str, Any]) -> None:
    for name, value in columns.items():
        setattr(attempt, name, value)


async def seconds_left(this: Run) -> float:
    """Of the time for this execution; infinite where it has no limit."""
    budget = of(this.job)
    if budget is None or budget.max_wall_seconds is None:
        return math.inf
    now = datetime.now(UTC)
    ends = (await _began(this) or now) + timedelta(seconds=budget.max_wall_seconds)
    return (ends - now).total_seconds()


async def _began(this: Run) -> datetime | None:
    if this.job.first_attempt == this.attempt.number:
        return this.attempt.started_at
    first = await statements.fetch(Attempt, job_id=this.job.id, number=this.job.first_attempt)
    return first.started_at if first else this.attempt.started_at


async def end(
    rt: Runtime, this: Run, over: BudgetExceeded, *, executed: bool, entry: Entry = NO_ENTRY
) -> None:
    """Settle an attempt whose next call is not made; or raise one of `OVERTAKEN`."""
    await attempts.settle(
        rt,
        this,
        Event.FAIL,
        StatusReason.BUDGET_EXCEEDED,
        str(over),
        error=Failure(over.code, str(over), retryable=False, may_have_executed=executed),
        attempt=entry.attempt,
        **entry.job,
    )


def over_time(this: Run) -> BudgetExceeded:
    budget = of(this.job)
    assert budget is not None  # noqa: S101 - its time is over
    return BudgetExceeded(f"The execution took all of the {budget.max_wall_seconds} s it may take.")


UNSETTLED = """SELECT "job_id" FROM "attempts" WHERE "job_id" IN ({ids})
    AND ("reserved_tokens" > 0 OR "reserved_micros" > 0)
    UNION SELECT "job_id" FROM "verdicts" WHERE "job_id" IN ({ids})
    AND "judge_json" LIKE '%"priced":false%'"""


async def are_estimates(job_ids: Sequence[UUID]) -> list[bool]:
    """Of which jobs a part of the cost is set aside, not reported, or has no known price."""
    found = {str(row[0]) for row in await statements.fetch_of(UNSETTLED, job_ids)}
    return [str(job_id) in found for job_id in job_ids]
