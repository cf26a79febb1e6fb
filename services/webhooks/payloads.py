"""What a receiver is told: little, in a fixed order, and the same at every try."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from models import JobLog, JobLogType, jsontext
from services.paging import encode_position
from services.values import public_id

TEST = "webhook.test"
TYPES: Mapping[JobLogType, str] = {
    JobLogType.STATUS_CHANGE: "job.status_changed",
    JobLogType.AGENT_REQUEST: "job.agent_asked",
    JobLogType.AGENT_RESPONSE: "job.agent_answered",
    JobLogType.VALIDATOR_REQUEST: "job.validator_asked",
    JobLogType.VALIDATOR_RESPONSE: "job.validator_answered",
    JobLogType.VERDICT: "job.judged",
    JobLogType.REVIEW: "job.reviewed",
    JobLogType.NOTE: "job.noted",
    JobLogType.CONFIG_CHANGE: "job.changed",
}
"""The type of an event, by the type of its entry."""


def of_entry(entry: JobLog, name: str) -> str:
    """The body for an entry of the log; `name` is its job's."""
    payload = jsontext.loads_or_none(entry.payload_json)
    move = cast("dict[str, Any]", payload) if _is_move(payload) else {}
    data = {
        "cursor": encode_position(entry.seq),
        "logId": public_id("log", entry.seq),
        "jobId": public_id("job", entry.job_id),
        "name": name,
        "status": entry.status.value,
        "from": move.get("from"),
        "reason": move.get("reason"),
        "version": move.get("version"),
        "attempt": move.get("attempt"),
    }
    return _body(TYPES[entry.type], entry.created_at, data)


def _is_move(payload: object) -> bool:
    return isinstance(payload, dict) and "event" in payload


def of_test(webhook_id: UUID, now: datetime) -> str:
    """The body of a test, which tells of nothing."""
    return _body(TEST, now, {"webhookId": public_id("webhook", webhook_id)})


def _body(type: str, at: datetime, data: Mapping[str, Any]) -> str:
    return jsontext.dumps({"type": type, "timestamp": _instant(at), "data": data})


def _instant(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")
