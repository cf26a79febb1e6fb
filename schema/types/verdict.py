from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self
from uuid import UUID

import strawberry
from strawberry.scalars import JSON

import models
from models import jsontext
from resolvers.context import Info
from schema.enums import CriterionKind, VerdictOutcome
from schema.types.node import Node
from schema.types.usage import Usage
from services.values import public_id


@strawberry.type(description="One requirement of a job.")
class Criterion:
    key: str
    text: str
    kind: CriterionKind
    config: JSON
    weight: float
    required: bool

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> Self:
        kind: Any = CriterionKind(item["kind"])
        return cls(**{**item, "kind": kind})


@strawberry.type(description="One version of a job's acceptance criteria.")
class CriteriaSet:
    id: strawberry.ID
    version: int
    text: str = strawberry.field(description="As the user wrote it.")
    pass_threshold: float = strawberry.field(
        description="The weighted share of all criteria that must pass, besides every required "
        "one. 0: only the required ones decide."
    )
    items_json: strawberry.Private[str]

    @strawberry.field(description="The checklist made of the text.")
    def items(self) -> list[Criterion]:
        return [Criterion.of(item) for item in jsontext.loads(self.items_json)]

    @classmethod
    def of(cls, row: models.CriteriaSet) -> Self:
        return cls(
            id=strawberry.ID(public_id("criteria", row.id)),
            version=row.version,
            text=row.text,
            pass_threshold=row.pass_threshold,
            items_json=row.items_json,
        )


@strawberry.type(description="A place in the agent's output.")
class Evidence:
    pointer: str | None = strawberry.field(description="RFC 6901 pointer into the output.")
    quote: str | None
    verified: bool = strawberry.field(
        description="True when the quote was found verbatim at the pointer."
    )


@strawberry.type(description="What came of one criterion.")
class CriterionResult:
    criterion: Criterion
    outcome: VerdictOutcome
    score: float | None
    reason: str
    evidence: list[Evidence]
    error: str | None

    @classmethod
    def of(cls, result: Mapping[str, Any], criterion: Criterion) -> Self:
        return cls(
            criterion=criterion,
            outcome=VerdictOutcome(result["outcome"]),
            score=result["score"],
            reason=result["reason"],
            evidence=[Evidence(**each) for each in result["evidence"]],
            error=result["error"],
        )


@strawberry.type(description="Who judged.")
class Judge:
    kind: str = strawberry.field(description="`checks`, or `llm` where a model was asked too.")
    model: str | None
    prompt_hash: str | None


@strawberry.type(description="What the judge said of one attempt, criterion by criterion.")
class Verdict(Node):
    outcome: VerdictOutcome = strawberry.field(
        description="Computed from the required criteria and the threshold, never by a model."
    )
    score: float | None = strawberry.field(description="Weighted share that passed, 0 to 1.")
    summary: str
    judge: Judge
    usage: Usage
    created_at: datetime
    criteria_set_id: strawberry.Private[UUID]
    results_json: strawberry.Private[str]

    @strawberry.field(description="What it was held against.")
    async def criteria(self, info: Info) -> CriteriaSet:
        return CriteriaSet.of(await self._criteria(info))

    @strawberry.field(description="In the order of the checklist.")
    async def results(self, info: Info) -> list[CriterionResult]:
        row = await self._criteria(info)
        items = {item["key"]: Criterion.of(item) for item in jsontext.loads(row.items_json)}
        results = jsontext.loads(self.results_json)
        return [CriterionResult.of(result, items[result["key"]]) for result in results]

    async def _criteria(self, info: Info) -> models.CriteriaSet:
        row = await info.context.loaders.criteria_sets.load(self.criteria_set_id)
        assert row is not None  # noqa: S101 - a verdict's criteria are never deleted
        return row

    @classmethod
    def of(cls, row: models.Verdict) -> Self:
        judge = jsontext.loads(row.judge_json)
        return cls(
            id=strawberry.ID(public_id("verdict", row.id)),
            outcome=row.outcome,
            score=row.score,
            summary=row.summary,
            judge=Judge(
                kind=judge["kind"], model=judge.get("model"), prompt_hash=judge.get("promptHash")
            ),
            usage=Usage.of_verdict(row),
            created_at=row.created_at,
            criteria_set_id=row.criteria_set_id,
            results_json=row.results_json,
        )
