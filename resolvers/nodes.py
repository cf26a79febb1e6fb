"""Anything by its id: the prefix says what it is."""

from __future__ import annotations

from uuid import UUID

from models import Agent, Attempt, Job, JobLog, Verdict, Webhook, WebhookDelivery
from resolvers import agents, jobs, webhooks
from resolvers.context import Info
from services import reading
from services.values import parse_id

MAX_DIGITS = 18
"""Of a position in the log: a number of so many fits its column."""

Row = Job | Agent | Attempt | Verdict | JobLog | Webhook | WebhookDelivery


async def by_id(info: Info, id: str) -> Row | None:  # noqa: PLR0911 - one for each type
    """None for what is not there, for what the viewer must not see, for what is no id."""
    viewer = info.context.viewer
    kind, _, tail = id.partition("_")
    match kind:
        case "job":
            return await jobs.by_id(info, id)
        case "agent":
            return await agents.by_id(info, id)
        case "attempt":
            attempt_id = _key(kind, id)
            return await reading.attempt(viewer, attempt_id) if attempt_id else None
        case "verdict":
            verdict_id = _key(kind, id)
            return await reading.verdict(viewer, verdict_id) if verdict_id else None
        case "log" if tail.isdecimal() and len(tail) <= MAX_DIGITS:
            return await reading.log_entry(viewer, int(tail))
        case "webhook":
            return await webhooks.by_id(info, id)
        case "delivery":
            return await webhooks.delivery_by_id(info, id)
        case _:
            return None


def _key(kind: str, id: str) -> UUID | None:
    try:
        return parse_id(kind, id)
    except ValueError:
        return None
