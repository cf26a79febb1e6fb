"""What a try of a delivery came to, for the delivery and for its webhook, in one transaction."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from models import Webhook, WebhookDelivery, WebhookDeliveryState
from models.statements import Statement
from services import circuits
from services.runtime import Runtime
from services.transactions import atomic, current
from services.webhooks import hooks, schedule
from services.webhooks.claims import Claimed
from services.webhooks.client import Answer, Outcome
from services.webhooks.hooks import WELL, Changed

NEVER = 2**31 - 1
"""Failures that open no circuit."""
GONE = "It answered 410 Gone: it wants no more events."
ONLY_FAILURES = f"It has only failed for {schedule.DISABLED_AFTER.days} days. The last time: "


class Overtaken(Exception):
    """The delivery is somebody else's by now."""


async def record(rt: Runtime, it: Claimed, answer: Answer, began: datetime) -> None:
    """Write it down. Raises `Overtaken` if the lease was over and another worker has it.

    It says nothing of a webhook that was changed meanwhile: its address may be another.
    """
    try:
        reason = await _record(rt, it, answer, began)
    except Changed:
        await _record(rt, it, answer, began, of_webhook=False)
    else:
        if reason is not None:
            hooks.complain(it.hook.id, reason)


@atomic
async def _record(
    rt: Runtime, it: Claimed, answer: Answer, began: datetime, *, of_webhook: bool = True
) -> str | None:
    """Returns why the webhook is disabled by it, if it is; raises `Changed` if it was before."""

    async def refuse() -> None:
        raise Overtaken

    held = {"id": it.id, "state": WebhookDeliveryState.SENDING, "next_attempt_at": it.until}
    current().swap(WebhookDelivery, held, _changes(it, answer, began), refuse)
    return await _of_webhook(rt, it.hook, answer) if of_webhook else None


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
        if seconds is None:
            changes["state"] = WebhookDeliveryState.FAILED
        else:
            later = timedelta(seconds=max(seconds, answer.retry_after or 0))
            changes |= {"state": WebhookDeliveryState.PENDING, "next_attempt_at": began + later}
    return changes


async def _of_webhook(rt: Runtime, hook: Webhook, answer: Answer) -> str | None:
    """Write what it says of the webhook: nothing while all is well with it."""
    seen = {"id": hook.id, "version": hook.version}
    if answer.outcome is Outcome.OK:
        if hook.failures or hook.open_until or hook.failing_since:
            current().update(Webhook, seen, WELL)
        return None
    reason = _hopeless(hook, answer)
    if reason is not None:
        await hooks.end(seen, hook.workspace_id, reason)
    else:
        current().writes.append(_failed(rt, hook, answer))
    return reason


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
