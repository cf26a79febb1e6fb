from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self
from uuid import UUID

import strawberry

from resolvers import agents
from resolvers.context import Info
from services import retries

if TYPE_CHECKING:
    from schema.types.agent import Agent


@strawberry.type(description="What is tried again, how often, after what pause, and by whom.")
class RetryPolicy:
    max_attempts: int
    initial_seconds: float
    multiplier: float
    max_seconds: float
    jitter: float
    retry_on_verdict_fail: bool
    reassign_after: int | None = strawberry.field(description="Null without fallback agents.")
    fallbacks: strawberry.Private[tuple[UUID, ...]]

    @strawberry.field(description="Who takes over, in this order.")
    async def fallback_agents(
        self, info: Info
    ) -> list[Annotated[Agent, strawberry.lazy("schema.types.agent")]]:
        from schema.types.agent import Agent

        return [Agent.of(row) for row in await agents.by_keys(info, self.fallbacks)]

    @classmethod
    def of(cls, policy: retries.RetryPolicy) -> Self:
        return cls(
            max_attempts=policy.max_attempts,
            initial_seconds=policy.initial_seconds,
            multiplier=policy.multiplier,
            max_seconds=policy.max_seconds,
            jitter=policy.jitter,
            retry_on_verdict_fail=policy.retry_on_verdict_fail,
            reassign_after=policy.reassign_after,
            fallbacks=policy.fallback_agent_ids,
        )
