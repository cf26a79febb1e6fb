"""What a try of a delivery came to, for the delivery and for its webhook, in one transaction."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from http import HTTPStatus
from typing import Any

import structlog

from models import Webhook, WebhookDelivery, WebhookDeliveryState, statements
from models.statements import Statement
from services import circuits
from services.runtime import Runtime
from services.transactions import atomic, current
from services.values import public_id
from services.webhooks import schedule
from services.webhooks.claims import Claimed
from services.webhooks.client import Answer, Outcome
from services.webhooks.hooks import WELL, disabling

logger = structlog.get_logger(__name__)

NEVER = 2**31 - 1
"""Failures that open no circuit."""
GONE = "It answered 410 Gone: it wants no more events."
ONLY_FAILURES = f"It has only failed for {schedule.DISABLED_AFTER.days} days. The last time: "


class Overtaken(Exception):
    """The delivery is somebody else's by now."""


@atomic
async def record(rt: Runtime, it: Claimed, answer: Answer, began: datetime) -> None:
    """Write it down. Raises `Overtaken` if the lease was over and another worker has it."""

    async def refuse() -> None:
        raise Overtaken

    held = {"id": it.id, "state": WebhookDeliveryState.SENDING, "next_attempt_at": it.until}
    current().swap(WebhookDelivery, held, _changes(it, answer, began), refuse)
    change = _of_webhook(rt, it.hook, answer)
    if change is not None:
        current().writes.append(change)


def _changes(it: Claimed, answer: Answer, began: datetime) -> dict[str, Any]:
    """The delivery after the try."""
    changes: dict[str, Any] = {
        "state": WebhookDeliveryState.SUCCEEDED,
        "tries": it.tries + 1,
        "status_code": answer.status,
        "error": answer.error,
        "attempted_at": began,
        "next_attempt_at": None,
    }
    if answer.outcome is not Outcome.OK:
        seconds = schedule.pause(it.id, it.tries + 1)
        if seconds is None or answer.status == HTTPStatus.GONE:
            changes["state"] = WebhookDeliveryState.FAILED
        else:
            later = timedelta(seconds=max(seconds, answer.retry_after or 0))
            changes |= {"state": WebhookDeliveryState.PENDING, "next_attempt_at": began + later}
    return changes


def _of_webhook(rt: Runtime, hook: Webhook, answer: Answer) -> Statement | None:
    """What is written of the webhook; nothing while all is well with it.

    It says nothing of one that was changed meanwhile: its address may be another.
    """
    seen = {"id": hook.id, "version": hook.version}
    if answer.outcome is Outcome.OK:
        ails = hook.failures or hook.open_until or hook.failing_since
        return statements.update(Webhook, seen, WELL) if ails else None
    reason = _hopeless(hook, answer)
    if reason is not None:
        name = public_id("webhook", hook.id)
        logger.warning("webhook disabled", webhook_id=name, reason=reason)
        return disabling(seen, reason)
    return _failed(rt, hook, answer)


def _hopeless(hook: Webhook, answer: Answer) -> str | None:
    """Why it is to be sent nothing any more."""
    if answer.status == HTTPStatus.GONE:
        return GONE
    since, failures = hook.failing_since, hook.failures + 1
    long = since is not None and datetime.now(UTC) - since >= schedule.DISABLED_AFTER
    if long and failures >= schedule.ENOUGH_FAILURES:
        return ONLY_FAILURES + (answer.error or answer.outcome)
    return None


@lru_cache(maxsize=10)
def _counting(levels: int) -> str:
    """SQL that counts a failure; `$6` is until when the receiver asked to be left alone."""
    counted = circuits.counted("webhooks", levels, limit=4, now=3, until=6)
    return f"""UPDATE "webhooks" SET {counted}, "reason" = $2,
        "failing_since" = COALESCE("failing_since", $5)
        WHERE "id" = $1 AND "version" = ${levels + 6}"""  # noqa: S608 - numbers


HOLD = """UPDATE "webhooks" SET "failures" = "failures" + 1, "reason" = $2,
    "failing_since" = COALESCE("failing_since", $3),
    "open_until" = CASE WHEN "open_until" > $4 THEN "open_until" ELSE $4 END
    WHERE "id" = $1 AND "version" = $5"""


def _failed(rt: Runtime, hook: Webhook, answer: Answer) -> Statement:
    """Count it; who says when to come back is left alone until then."""
    now, reason = datetime.now(UTC), answer.error or answer.outcome
    if answer.retry_after:
        until = now + timedelta(seconds=answer.retry_after)
        return Statement(HOLD, [str(hook.id), reason, now, until, hook.version], "webhooks")
    seconds = circuits.durations(rt.options.circuit_seconds)
    times = [now + timedelta(seconds=each) for each in seconds]
    limit = rt.options.circuit_failures or NEVER
    given: list[Any] = [str(hook.id), reason, now, limit, now, *times, hook.version]
    return Statement(_counting(len(times)), given, "webhooks")
