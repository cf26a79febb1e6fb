"""What the services are wired to: made once at start and passed to whoever needs it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from services.agent_http import AgentClient
from services.engine import Engine
from services.events import Events
from services.judges.base import LLMJudge
from services.judges.sandbox import Sandbox
from services.secrets import Vault


@dataclass(frozen=True, slots=True)
class Options:
    """Limits of executions, from the settings."""

    allow_private_agents: bool = False
    agent_tries: int = 4
    retry_initial_seconds: float = 0.5
    retry_max_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Runtime:
    agents: AgentClient
    engine: Engine
    events: Events
    judge: LLMJudge | None
    sandbox: Sandbox
    vault: Vault
    options: Options = field(default_factory=Options)
    transactions: set[asyncio.Task[object]] = field(default_factory=set[asyncio.Task[object]])
