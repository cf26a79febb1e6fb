"""What the audit log tells of agents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models import Agent, jsontext
from services import audit
from services.actors import Viewer
from services.values import public_id

TOLD: Mapping[str, str] = {
    "name": "name",
    "description": "description",
    "endpoint_url": "endpointUrl",
    "input_schema_json": "inputSchema",
    "output_schema_json": "outputSchema",
    "timeout_seconds": "timeoutSeconds",
    "max_concurrency": "maxConcurrency",
    "max_wait_seconds": "maxWaitSeconds",
    "rate_per_minute": "ratePerMinute",
    "max_call_tokens": "maxCallTokens",
    "max_call_micros": "maxCallMicros",
    "idempotent": "idempotent",
    "accepts_feedback": "acceptsFeedback",
    "retry_json": "retryPolicy",
    "availability": "availability",
    "auth_header_sealed": "authHeader",
    "signing_secret_sealed": "secret",
}
"""The columns that the audit log tells of, by the names that it gives them."""


async def tell(
    viewer: Viewer, action: str, agent: Agent, given: Mapping[str, Any], *, new: bool = False
) -> None:
    """Tell, in the transaction under way, what `given` columns change in the agent as it is."""
    changes = {
        TOLD[column]: audit.change(_shown(column, old), _shown(column, value))
        for column, value in given.items()
        if (old := None if new else getattr(agent, column)) != value
    }
    await audit.record(viewer, action, public_id("agent", agent.id), changes)


def _shown(column: str, value: Any) -> Any:
    """Of secrets only that there is one."""
    if value is None:
        return None
    if column.endswith("_sealed"):
        return audit.REDACTED
    if column == "endpoint_url":
        return audit.place(value)
    return jsontext.loads(value) if column.endswith("_json") else value
