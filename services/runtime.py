"""What the services are wired to: made once at start and passed to whoever needs it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from uuid import UUID

from services.agent_http import AgentClient
from services.bounds import QueueBound
from services.bus import Bus
from services.engine import Engine
from services.events import Events
from services.judges.base import LLMJudge
from services.judges.sandbox import Sandbox
from services.rates import Rates
from services.secrets import Vault
from services.telemetry import Telemetry
from services.tracing import Tracer
from services.turns import Turns


@dataclass(frozen=True, slots=True)
class Options:
    """Limits of executions, from the settings."""

    allow_private_agents: bool = False
    allow_private_webhooks: bool = False
    members_see_workspace: bool = False
    agent_tries: int = 4
    retry_initial_seconds: float = 0.5
    retry_max_seconds: float = 30.0
    max_losses: int = 5
    circuit_failures: int = 5
    circuit_seconds: float = 30.0
    public_url: str | None = None
    judge_input_usd: float | None = None
    judge_output_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Runtime:
    """`failing` are agents that this process saw fail since, and whether that opened a circuit."""

    agents: AgentClient
    bus: Bus
    engine: Engine
    events: Events
    judge: LLMJudge | None
    sandbox: Sandbox
    vault: Vault
    options: Options = field(default_factory=Options)
    bound: QueueBound = field(default_factory=QueueBound)
    rates: Rates = field(default_factory=Rates)
    failing: dict[UUID, bool] = field(default_factory=dict[UUID, bool])
    telemetry: Telemetry = field(default_factory=Telemetry)
    tracer: Tracer | None = None
    turns: Turns = field(default_factory=Turns)
    transactions: set[asyncio.Task[object]] = field(default_factory=set[asyncio.Task[object]])
