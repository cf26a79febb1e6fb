"""What is tried again, how often, after what pause, and by whom instead."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, Field

from models import Agent, Job, jsontext
from services.values import AgentId, Command

MAX_ATTEMPTS = 20
DAY = 86_400
LADDER = frozenset({"reassign_after", "fallback_agent_ids"})
"""What only a job has: it is about several agents."""


def _different(ids: list[UUID]) -> list[UUID]:
    if len(set(ids)) < len(ids):
        raise ValueError("must name different agents")
    return ids


class RetryPolicyDraft(Command):
    """What to try again; for what is left out a job follows its agent, an agent the defaults."""

    max_attempts: int | None = Field(
        default=None,
        ge=1,
        le=MAX_ATTEMPTS,
        description="Attempts that one `executeJob` may lead to, over all agents. Default 1, "
        "with fallback agents `reassignAfter` for each agent.",
    )
    initial_seconds: float | None = Field(
        default=None, ge=0, le=DAY, description="The first pause. Default 1."
    )
    multiplier: float | None = Field(
        default=None, ge=1, le=100, description="How much longer each next pause is. Default 2."
    )
    max_seconds: float | None = Field(
        default=None, ge=0, le=DAY, description="The longest pause. Default 300."
    )
    jitter: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Which share of a pause is left to chance, so that not all come back at "
        "once. Default 0.5.",
    )
    retry_on_verdict_fail: bool | None = Field(
        default=None,
        description="Ask for new work when an answer was not good, with the reasons if the agent "
        "accepts feedback. Default false: only what failed by an error is tried again.",
    )
    reassign_after: int | None = Field(
        default=None,
        ge=1,
        le=MAX_ATTEMPTS,
        description="Attempts that an agent may fail before the next one takes over. Default 1. "
        "Of jobs only.",
    )
    fallback_agent_ids: (
        Annotated[list[AgentId], Field(max_length=10), AfterValidator(_different)] | None
    ) = Field(
        default=None, description="Who takes over, in this order, if they are fit. Of jobs only."
    )

    def stored(self) -> str:
        """What was given, as JSON text."""
        return self.model_dump_json(exclude_none=True)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """What holds for a job, or for an agent's jobs that say nothing else."""

    max_attempts: int
    initial_seconds: float = 1.0
    multiplier: float = 2.0
    max_seconds: float = 300.0
    jitter: float = 0.5
    retry_on_verdict_fail: bool = False
    reassign_after: int | None = None
    fallback_agent_ids: tuple[UUID, ...] = ()

    def pause(self, failed: int) -> float:
        """Seconds before the next attempt, after `failed` ones of the same agent."""
        ceiling = min(self.initial_seconds * self.multiplier ** (failed - 1), self.max_seconds)
        return ceiling * (1 - self.jitter * random.random())  # noqa: S311


def policy_of(job: Job | None, agent: Agent | None) -> RetryPolicy:
    """The job's own over its agent's over the defaults; a ladder has room for its agents."""
    own = _given(job)
    given = _given(agent) | own
    fallbacks = tuple(UUID(text) for text in given.pop("fallback_agent_ids", ()))
    each = given.pop("reassign_after", 1) if fallbacks else 1
    room = min(each * (1 + len(fallbacks)), MAX_ATTEMPTS)
    return RetryPolicy(
        max_attempts=own.get("max_attempts") or max(given.get("max_attempts", 1), room),
        reassign_after=each if fallbacks else None,
        fallback_agent_ids=fallbacks,
        **{name: value for name, value in given.items() if name not in {*LADDER, "max_attempts"}},
    )


def _given(row: Job | Agent | None) -> dict[str, Any]:
    return jsontext.loads_or_none(row.retry_json) or {} if row else {}
