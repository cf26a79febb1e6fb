"""What a judge is given and what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from models import VerdictOutcome, jsontext
from services.criteria import Criterion

BYTES_PER_TOKEN = 3
SCORES = {VerdictOutcome.PASS: 1.0, VerdictOutcome.FAIL: 0.0}


@dataclass(frozen=True, slots=True)
class Subject:
    """What is judged: the output, and what is needed to understand it."""

    input: Any
    output: Any
    job: dict[str, Any]
    latency_ms: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """A place in the output; `verified` when the quote was found there verbatim."""

    pointer: str | None
    quote: str | None
    verified: bool

    def to_json(self) -> dict[str, Any]:
        return {"pointer": self.pointer, "quote": self.quote, "verified": self.verified}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(data["pointer"], data["quote"], data["verified"])


@dataclass(frozen=True, slots=True)
class CriterionResult:
    """What came of one criterion; `error` is set when nothing was found out."""

    key: str
    outcome: VerdictOutcome
    score: float | None
    reason: str
    evidence: tuple[Evidence, ...] = ()
    error: str | None = None

    @classmethod
    def of(
        cls, key: str, outcome: VerdictOutcome, reason: str, *evidence: Evidence
    ) -> CriterionResult:
        return cls(key, outcome, SCORES.get(outcome), reason, evidence)

    @classmethod
    def errored(cls, key: str, reason: str) -> CriterionResult:
        return cls(key, VerdictOutcome.ERROR, None, reason, (), reason)

    def to_json(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "outcome": self.outcome.value,
            "score": self.score,
            "reason": self.reason,
            "evidence": [evidence.to_json() for evidence in self.evidence],
            "error": self.error,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CriterionResult:
        return cls(
            key=data["key"],
            outcome=VerdictOutcome(data["outcome"]),
            score=data["score"],
            reason=data["reason"],
            evidence=tuple(Evidence.from_json(item) for item in data["evidence"]),
            error=data["error"],
        )


@dataclass(frozen=True, slots=True)
class LLMRequest:
    """What a model is asked, fit for the audit log: no credential is in it.

    `prompt_hash` names the judge's own wording: the same for every job until that changes.
    """

    instructions: str
    message: str
    answer_schema: dict[str, Any]
    prompt_hash: str
    criteria: tuple[Criterion, ...]
    output: Any
    truncated: bool
    max_output_tokens: int

    @property
    def estimated_tokens(self) -> int:
        """About how many tokens the question has, rather too many than too few."""
        parts = (self.instructions, self.message, jsontext.dumps(self.answer_schema))
        return -(-sum(len(part.encode()) for part in parts) // BYTES_PER_TOKEN)

    def to_json(self) -> dict[str, Any]:
        return {
            "instructions": self.instructions,
            "message": self.message,
            "answerSchema": self.answer_schema,
            "promptHash": self.prompt_hash,
            "truncated": self.truncated,
        }


@dataclass(frozen=True, slots=True)
class LLMAnswer:
    """A result for every criterion asked about; `raw` is the server's answer as it came.

    No tokens at all: the server does not count them.
    """

    results: list[CriterionResult]
    model: str
    input_tokens: int
    output_tokens: int
    latency_ms: int
    raw: Any


class JudgeFailed(Exception):
    """No judgement came of it: never a reason to pass or to fail an output.

    `tokens` are those that went in and out: none where no model was asked, None where nobody
    knows.
    """

    def __init__(
        self, code: str, message: str, raw: Any = None, *, tokens: tuple[int, int] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.raw = raw
        self.tokens = tokens


class LLMJudge(Protocol):
    """Asks a model about criteria that no code can check."""

    @property
    def model(self) -> str: ...

    def prepare(self, subject: Subject, criteria: Sequence[Criterion]) -> LLMRequest:
        """The question, only about criteria of kind LLM; the caller logs it before asking."""
        ...

    async def ask(self, request: LLMRequest) -> LLMAnswer:
        """Raises `JudgeFailed` for whatever is not a complete, well-formed judgement."""
        ...

    async def close(self) -> None: ...


def errored(criteria: Sequence[Criterion], reason: str) -> list[CriterionResult]:
    """What the criteria come to when their judge failed."""
    return [CriterionResult.errored(criterion.key, reason) for criterion in criteria]
