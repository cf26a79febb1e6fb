"""Writing the audit log: append-only, in the transaction of the change it tells of."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from models import Job, JobLogType, jsontext
from services.actors import Actor, Viewer
from services.chain import Entry
from services.transactions import current
from services.values import storable

MAX_PAYLOAD_BYTES = 65_536


def append(
    job: Job,
    type: JobLogType,
    by: Actor | Viewer,
    *,
    message: str | None = None,
    payload: Any = None,
    attempt_id: UUID | None = None,
    agent_id: UUID | None = None,
) -> Entry:
    """Write an entry in the transaction under way; `agent_id` where it is not the job's agent.

    A payload over 64 KiB of JSON is cut to its beginning and says so.
    """
    payload_json, truncated = bounded(payload)
    entry = {
        "job_id": job.id,
        "type": type,
        "status": job.status,
        "message": None if message is None else storable(message),
        "payload_json": payload_json,
        "payload_truncated": truncated,
        "attempt_id": attempt_id,
        "agent_id": agent_id or job.agent_id,
        "workspace_id": job.workspace_id,
        "actor_kind": by.kind,
        "actor_id": by.id,
        "actor_name": by.name,
        "created_at": datetime.now(UTC),
        "hash": "",
    }
    current().log(job, entry)
    return entry


def bounded(payload: Any) -> tuple[str | None, bool]:
    """Its JSON, cut to its beginning if it is too long, and whether it was."""
    if payload is None:
        return None, False
    text = jsontext.dumps(payload)
    encoded = text.encode()
    if len(encoded) <= MAX_PAYLOAD_BYTES:
        return text, False
    head = encoded[:MAX_PAYLOAD_BYTES].decode(errors="ignore")
    return jsontext.dumps({"truncated": head, "bytes": len(encoded)}), True
