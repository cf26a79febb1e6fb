"""What is sent to an agent and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from services.agent_http.usage import NOTHING, Reported


@dataclass(frozen=True, slots=True)
class AgentRequest:
    """`body` is the job's input as JSON; `idempotency_key` stays the same over all tries.

    `callback_url` is where the agent may send its answer instead; it ends with a secret.
    """

    url: str
    body: bytes = field(repr=False)
    job_id: str
    attempt_number: int
    idempotency_key: str
    signing_secret: str = field(repr=False)
    auth_header: str | None = field(repr=False)
    feedback: tuple[str, ...] = ()
    callback_url: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class AgentReply:
    """`value` is `body`, which is strict JSON, decoded.

    `status` is None for one that came by the callback URL. An integer beyond 64 bits is a float in
    `value`, as in JavaScript; `body` keeps its digits.
    """

    status: int | None
    body: bytes
    value: Any
    latency_ms: int
    usage: Reported = NOTHING


@dataclass(frozen=True, slots=True)
class Accepted:
    """The agent has taken the work and answers later: 202.

    `location` is as it was sent, `retry_after` the seconds it asks to be left alone.
    """

    location: str | None
    retry_after: float | None
