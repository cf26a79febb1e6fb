"""The only place a job's status changes.

Every move is one transaction: the row is swapped only if it still has the
status and version that we read, the attempt it ends is closed, and the log
entry is written beside it. The version is the fence: whoever holds an older
one — a second click, a worker that was thought dead — changes nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

import orjson

from models import (
    Agent,
    Attempt,
    Job,
    JobLogType,
    JobPhase,
    JobPriority,
    JobStatus,
    StatusReason,
)
from services import log, timers
from services.actors import Actor, Viewer
from services.errors import NotFound, VersionConflict
from services.rules import CANCELLED, COMPLETED, IN_EXECUTION, RULES, Event, demand
from services.runtime import Runtime
from services.transactions import atomic, current
from services.values import public_id, storable


@atomic
async def move(
    rt: Runtime,
    job: Job,
    event: Event,
    by: Actor | Viewer,
    *,
    reason: StatusReason | None = None,
    message: str | None = None,
    agent: Agent | None = None,
    expected_version: int | None = None,
    attempt: Mapping[str, Any] | None = None,
    attempt_id: UUID | None = None,
    **changes: Any,
) -> Job:
    """Move `job`, which is updated in place, and log it.

    `changes` are further columns of the job, `attempt` columns of its current attempt, and
    `attempt_id` is the one that the entry belongs to.
    Raises what `demand` raises; when somebody else was first, at the transaction's end.
    """
    demand(job, event, by, agent=agent, expected_version=expected_version)
    rule = RULES[event]
    source, target = job.status, rule.target_of(job)
    was_watched = timers.is_watched(job)
    now = datetime.now(UTC)
    changes |= {"status": target, "updated_at": now}
    if rule.logged_as is JobLogType.STATUS_CHANGE:
        changes |= {
            "status_reason": reason,
            "status_message": None if message is None else storable(message),
            "status_changed_at": now,
            "phase": changes.get("phase") if target is IN_EXECUTION else None,
        }
    if source in (COMPLETED, CANCELLED) and target is not source:
        changes["archived_at"] = None  # what is worked on again belongs into lists
        if job.expires_at is not None and job.expires_at <= now:
            changes["expires_at"] = None  # else it were given up again at once
    armed = _armed(job, event, target)
    if armed is not job.armed:
        changes.setdefault("armed", armed)
    changes["version"] = job.version + 1
    current().move(
        job,
        changes,
        partial(_refuse_late, job.id, job.version, event, by, agent),
    )
    ended = source is IN_EXECUTION and (rule.renews or target is not IN_EXECUTION)
    closing = {"state": rule.ends, "finished_at": now} if ended else {}
    if ended or attempt:
        where = {"job_id": job.id, "number": job.attempt_count}
        current().update(Attempt, where, closing | dict(attempt or {}))
    if ended or changes.get("phase") is JobPhase.AWAITING_REVIEW:
        current().dequeue(job)
    vars(job).update(changes)
    if event is not Event.HOLD:
        expiry_changed = "expires_at" in changes
        timers.follow(job, source, was_watched=was_watched, expiry_changed=expiry_changed)
    if rule.logged_as:
        log_status(
            job,
            event,
            source,
            by,
            message,
            type=rule.logged_as,
            attempt_id=attempt_id,
            changed=changes,
        )
    return job


def _armed(job: Job, event: Event, target: JobStatus) -> bool:
    """Whether it starts by itself afterwards; `autoExecute` arms what is taken up anew."""
    if target in (IN_EXECUTION, COMPLETED, CANCELLED):
        return False
    return job.auto_execute if event in (Event.UNASSIGN, Event.REOPEN) else job.armed


TOLD: Mapping[str, str] = {
    "name": "name",
    "priority": "priority",
    "criteria_version": "criteriaVersion",
    "run_at": "runAt",
    "due_at": "dueAt",
    "expires_at": "expiresAt",
    "auto_execute": "autoExecute",
    "armed": "armed",
}
"""Columns whose new values an entry tells, by the names that it gives them."""
MAX_RESULT_BYTES = log.MAX_PAYLOAD_BYTES - 4096


PERSISTENCE = 5


async def at_any_version(do: Callable[[], Awaitable[Job]], expected_version: int | None) -> Job:
    """What `do` makes of a job as it is, for a caller who expects no certain version.

    A job that runs moves on every few milliseconds: who only wants it ended is not to be told
    that it did so once more.
    """
    for _ in range(PERSISTENCE if expected_version is None else 0):
        with suppress(VersionConflict):
            return await do()
    return await do()


def log_status(
    job: Job,
    event: Event | None,
    source: JobStatus | None,
    by: Actor | Viewer,
    message: str | None,
    *,
    type: JobLogType = JobLogType.STATUS_CHANGE,
    attempt_id: UUID | None = None,
    changed: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """The entry of a move; `event` None is the making of the job, `changed` are its columns."""
    told: dict[str, Any] = {
        "event": event or "CREATE",
        "from": source,
        "to": job.status,
        "reason": job.status_reason,
        "version": job.version,
        "attempt": job.attempt_count,
        "agentId": public_id("agent", job.agent_id) if job.agent_id else None,
    }
    if job.phase:
        told["phase"] = job.phase
    if changes := _changes(job, changed):
        told["changes"] = changes
    if event is Event.FORCE_COMPLETE and changed and "result_json" in changed:
        told |= _result(changed["result_json"])
    told |= more or {}
    log.append(job, type, by, message=message, payload=told, attempt_id=attempt_id)


def _changes(job: Job, changed: Mapping[str, Any] | None) -> dict[str, Any]:
    """The columns to tell of; of a new job those that have a value."""
    if changed is None:
        given = {column: value for column, value in vars(job).items() if value is not None}
    else:
        given = changed
    found = {name: given[column] for column, name in TOLD.items() if column in given}
    if "priority" in found:
        found["priority"] = JobPriority(found["priority"]).name
    return found


def _result(text: str) -> dict[str, Any]:
    """A result that no attempt has, so that it is known when the job has another one.

    Of one that is too long only how long it is: its entry must stay whole.
    """
    size = len(text.encode())
    return {"result": orjson.Fragment(text)} if size <= MAX_RESULT_BYTES else {"resultBytes": size}


async def _refuse_late(
    job_id: UUID, seen: int, event: Event, by: Actor | Viewer, agent: Agent | None
) -> None:
    """Somebody was first: raise what the job has become."""
    now = await Job.get_or_none(id=job_id)
    if now is None:
        raise NotFound(public_id("job", job_id))
    demand(now, event, by, agent=agent)
    raise VersionConflict(seen, now)
