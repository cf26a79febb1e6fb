from __future__ import annotations

from typing import Self

import strawberry

import models
from models import jsontext
from services import budgets
from services.agent_http.usage import MICROS
from services.values import MAX_INT32


@strawberry.type(
    description="What it took. What is set aside for a call counts until its answer says what "
    "it took; of what does not say, for good."
)
class Usage:
    input_tokens: int = strawberry.field(description="Tokens set aside are among these.")
    output_tokens: int
    cost_usd: float = strawberry.field(description="Of agents and the judge together.")
    cost_is_estimate: bool = strawberry.field(
        description="A part of it is set aside, not reported, or the judge's price is not set."
    )
    judge_cost_usd: float
    latency_ms: int | None = strawberry.field(
        description="Of the agent's or the judge's call; null for a job."
    )

    @classmethod
    def of_job(cls, row: models.Job, *, estimate: bool) -> Self:
        return cls(
            input_tokens=min(row.input_tokens, MAX_INT32),
            output_tokens=min(row.output_tokens, MAX_INT32),
            cost_usd=row.cost_micros / MICROS,
            cost_is_estimate=estimate,
            judge_cost_usd=row.judge_cost_micros / MICROS,
            latency_ms=None,
        )

    @classmethod
    def of_attempt(cls, row: models.Attempt, verdicts: list[models.Verdict]) -> Self:
        set_aside = budgets.held(row)
        return cls(
            input_tokens=min(row.input_tokens + set_aside.tokens, MAX_INT32),
            output_tokens=min(row.output_tokens, MAX_INT32),
            cost_usd=(row.cost_micros + set_aside.micros) / MICROS,
            cost_is_estimate=set_aside != budgets.NOTHING or not all(map(_is_priced, verdicts)),
            judge_cost_usd=sum(verdict.cost_micros for verdict in verdicts) / MICROS,
            latency_ms=row.latency_ms,
        )

    @classmethod
    def of_verdict(cls, row: models.Verdict) -> Self:
        return cls(
            input_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
            cost_usd=row.cost_micros / MICROS,
            cost_is_estimate=not _is_priced(row),
            judge_cost_usd=row.cost_micros / MICROS,
            latency_ms=row.latency_ms,
        )


def _is_priced(verdict: models.Verdict) -> bool:
    return jsontext.loads(verdict.judge_json).get("priced", True)


@strawberry.type(description="What a job may take, its judge included.")
class Budget:
    max_cost_usd: float | None
    max_tokens: int | None
    max_wall_seconds: int | None = strawberry.field(
        description="From the start of an execution's first attempt."
    )

    @classmethod
    def of(cls, row: models.Job) -> Self | None:
        budget = budgets.of(row)
        if budget is None:
            return None
        return cls(
            max_cost_usd=None if budget.max_micros is None else budget.max_micros / MICROS,
            max_tokens=budget.max_tokens,
            max_wall_seconds=budget.max_wall_seconds,
        )
