"""The only place a job's status changes.

Every move is one transaction: the row is swapped only if it still has the
status and version that we read, the attempt it ends is closed, and the log
entry is written beside it. The version is the fence: whoever holds an older
one — a second click, a worker that was thought dead — changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Any
from uuid import UUID

import orjson

from models import (
    Agent,
    AgentAvailability,
    Attempt,
    AttemptState,
    Job,
    JobLogType,
    JobPhase,
    JobPriority,
    JobStatus,
    StatusReason,
)
from services import log, timers
from services.actors import Actor, Viewer
from services.errors import (
    AgentUnavailable,
    DependenciesUnmet,
    Forbidden,
    IllegalTransition,
    NotFound,
    SignoffError,
    VersionConflict,
)
from services.runtime import Runtime
from services.transactions import atomic, current
from services.values import public_id, storable


class Event(StrEnum):
    UPDATE = "UPDATE"
    ASSIGN = "ASSIGN"
    UNASSIGN = "UNASSIGN"
    REASSIGN = "REASSIGN"
    INTERRUPT = "INTERRUPT"
    ARM = "ARM"
    HOLD = "HOLD"
    EXECUTE = "EXECUTE"
    ADVANCE = "ADVANCE"
    RETRY = "RETRY"
    PASS = "PASS"  # noqa: S105
    FAIL = "FAIL"
    GIVE_BACK = "GIVE_BACK"
    LOSE = "LOSE"
    APPROVE = "APPROVE"
    REJECT = "REJECT"
    RESUBMIT = "RESUBMIT"
    FORCE_COMPLETE = "FORCE_COMPLETE"
    CANCEL = "CANCEL"
    REOPEN = "REOPEN"
    ARCHIVE = "ARCHIVE"
    UNARCHIVE = "UNARCHIVE"


class Party(StrEnum):
    OWNER = "the owner"
    ADMIN = "an admin"
    SYSTEM = "the system"


class JobAction(StrEnum):
    """What a caller can ask for."""

    UPDATE = "UPDATE"
    ASSIGN = "ASSIGN"
    UNASSIGN = "UNASSIGN"
    REASSIGN = "REASSIGN"
    EXECUTE = "EXECUTE"
    CANCEL = "CANCEL"
    RESUBMIT = "RESUBMIT"
    FORCE_COMPLETE = "FORCE_COMPLETE"
    REVIEW = "REVIEW"
    REOPEN = "REOPEN"
    ARCHIVE = "ARCHIVE"
    UNARCHIVE = "UNARCHIVE"


PENDING, ASSIGNED = JobStatus.PENDING, JobStatus.ASSIGNED
IN_EXECUTION, RESUB = JobStatus.IN_EXECUTION, JobStatus.RESUBMISSION_REQUIRED
COMPLETED, CANCELLED = JobStatus.COMPLETED, JobStatus.CANCELLED

OWNER_OR_ADMIN = frozenset({Party.OWNER, Party.ADMIN})
ANYBODY = OWNER_OR_ADMIN | {Party.SYSTEM}
ADMIN = frozenset({Party.ADMIN})
SYSTEM = frozenset({Party.SYSTEM})


@dataclass(frozen=True, slots=True)
class Rule:
    """One event: from where, to where, by whom.

    `ends` is what becomes of the attempt when the job leaves IN_EXECUTION, or when the event
    `renews` the attempt; `logged_as` None leaves the entry to the caller, who has more to tell.
    """

    sources: frozenset[JobStatus]
    target: JobStatus | Callable[[Job], JobStatus]
    by: frozenset[Party]
    action: JobAction | None = None
    ends: AttemptState = AttemptState.CANCELLED
    logged_as: JobLogType | None = JobLogType.STATUS_CHANGE
    renews: bool = False

    def target_of(self, job: Job) -> JobStatus:
        return self.target if isinstance(self.target, JobStatus) else self.target(job)


def stays(job: Job) -> JobStatus:
    return job.status


def waits(job: Job) -> JobStatus:
    return ASSIGNED if job.agent_id else PENDING


def _from(*sources: JobStatus) -> frozenset[JobStatus]:
    return frozenset(sources)


RULES: Mapping[Event, Rule] = {
    Event.UPDATE: Rule(
        _from(PENDING, ASSIGNED, RESUB),
        stays,
        OWNER_OR_ADMIN,
        JobAction.UPDATE,
        logged_as=JobLogType.CONFIG_CHANGE,
    ),
    Event.ASSIGN: Rule(_from(PENDING), ASSIGNED, ANYBODY, JobAction.ASSIGN),
    Event.UNASSIGN: Rule(_from(ASSIGNED, RESUB), PENDING, OWNER_OR_ADMIN, JobAction.UNASSIGN),
    Event.REASSIGN: Rule(_from(ASSIGNED, RESUB), ASSIGNED, ANYBODY, JobAction.REASSIGN),
    Event.INTERRUPT: Rule(_from(IN_EXECUTION), ASSIGNED, ADMIN, JobAction.REASSIGN),
    Event.ARM: Rule(
        _from(ASSIGNED, RESUB), stays, OWNER_OR_ADMIN, logged_as=JobLogType.CONFIG_CHANGE
    ),
    Event.HOLD: Rule(
        _from(PENDING, ASSIGNED, RESUB), stays, SYSTEM, logged_as=JobLogType.CONFIG_CHANGE
    ),
    Event.EXECUTE: Rule(_from(ASSIGNED, RESUB), IN_EXECUTION, ANYBODY, JobAction.EXECUTE),
    Event.ADVANCE: Rule(_from(IN_EXECUTION), stays, SYSTEM, logged_as=None),
    Event.RETRY: Rule(
        _from(IN_EXECUTION),
        stays,
        SYSTEM,
        ends=AttemptState.FAILED,
        logged_as=None,
        renews=True,
    ),
    Event.PASS: Rule(_from(IN_EXECUTION), COMPLETED, SYSTEM, ends=AttemptState.SUCCEEDED),
    Event.FAIL: Rule(_from(IN_EXECUTION), RESUB, SYSTEM, ends=AttemptState.FAILED),
    Event.GIVE_BACK: Rule(_from(IN_EXECUTION), ASSIGNED, SYSTEM, ends=AttemptState.FAILED),
    Event.LOSE: Rule(_from(IN_EXECUTION), RESUB, SYSTEM, ends=AttemptState.LOST),
    Event.APPROVE: Rule(
        _from(IN_EXECUTION), COMPLETED, ADMIN, JobAction.REVIEW, ends=AttemptState.SUCCEEDED
    ),
    Event.REJECT: Rule(
        _from(IN_EXECUTION), RESUB, ADMIN, JobAction.REVIEW, ends=AttemptState.FAILED
    ),
    Event.RESUBMIT: Rule(_from(IN_EXECUTION, COMPLETED), RESUB, ADMIN, JobAction.RESUBMIT),
    Event.FORCE_COMPLETE: Rule(
        _from(PENDING, ASSIGNED, IN_EXECUTION, RESUB), COMPLETED, ADMIN, JobAction.FORCE_COMPLETE
    ),
    Event.CANCEL: Rule(
        _from(PENDING, ASSIGNED, IN_EXECUTION, RESUB), CANCELLED, ANYBODY, JobAction.CANCEL
    ),
    Event.REOPEN: Rule(_from(CANCELLED), waits, OWNER_OR_ADMIN, JobAction.REOPEN),
    Event.ARCHIVE: Rule(
        _from(COMPLETED, CANCELLED),
        stays,
        ANYBODY,
        JobAction.ARCHIVE,
        logged_as=JobLogType.CONFIG_CHANGE,
    ),
    Event.UNARCHIVE: Rule(
        _from(COMPLETED, CANCELLED),
        stays,
        ANYBODY,
        JobAction.UNARCHIVE,
        logged_as=JobLogType.CONFIG_CHANGE,
    ),
}


Refusal = str | SignoffError
"""Why not: a sentence, or the typed failure that says it better."""


def _has_agent(job: Job, agent: Agent | None, unmet: Sequence[Job]) -> Refusal | None:
    return "No agent is assigned." if job.agent_id is None else None


def _can_start(job: Job, agent: Agent | None, unmet: Sequence[Job]) -> Refusal | None:
    now = datetime.now(UTC)
    if job.agent_id is None:
        return "No agent is assigned."
    if job.expires_at is not None and job.expires_at <= now:
        return f"It expired at {job.expires_at.isoformat()}."
    if unmet:
        return DependenciesUnmet.of(unmet)
    if job.run_at is not None and job.run_at > now:
        return f"It is not to start before its runAt, {job.run_at.isoformat()}."
    if agent is None:  # not read: whoever executes reads it, others only tell what may be tried
        return None
    return None if agent.availability is AgentAvailability.ACTIVE else AgentUnavailable(agent)


def _awaits_review(job: Job, agent: Agent | None, unmet: Sequence[Job]) -> Refusal | None:
    return None if job.phase is JobPhase.AWAITING_REVIEW else "It does not wait for a review."


def _not_archived(job: Job, agent: Agent | None, unmet: Sequence[Job]) -> Refusal | None:
    return None if job.archived_at is None else "It is archived already."


def _archived(job: Job, agent: Agent | None, unmet: Sequence[Job]) -> Refusal | None:
    return "It is not archived." if job.archived_at is None else None


GUARDS: Mapping[Event, Callable[[Job, Agent | None, Sequence[Job]], Refusal | None]] = {
    Event.ARM: _has_agent,
    Event.EXECUTE: _can_start,
    Event.APPROVE: _awaits_review,
    Event.REJECT: _awaits_review,
    Event.ARCHIVE: _not_archived,
    Event.UNARCHIVE: _archived,
}


def parties(by: Actor | Viewer, job: Job) -> frozenset[Party]:
    """What the caller is to this job."""
    if isinstance(by, Actor):
        return SYSTEM
    found = {Party.OWNER} if by.owns(job) else set[Party]()
    return frozenset(found | ADMIN if by.is_admin else found)


def refusal(
    job: Job, event: Event, agent: Agent | None, unmet: Sequence[Job] = ()
) -> Refusal | None:
    """Why the job's state does not allow `event`; None if it does.

    `unmet` are the jobs that it waits for.
    """
    rule = RULES[event]
    if job.status not in rule.sources:
        return f"A job that is {job.status} does not allow {rule.action or event}."
    guard = GUARDS.get(event)
    return guard(job, agent, unmet) if guard else None


def may(job: Job, event: Event, by: Actor | Viewer) -> str | None:
    """Why the caller must not; None if they may."""
    rule = RULES[event]
    if parties(by, job) & rule.by:
        return None
    return f"Only {' or '.join(sorted(rule.by))} may {rule.action or event} this job."


@dataclass(frozen=True, slots=True)
class Availability:
    action: JobAction
    allowed: bool
    reason: str | None


def availability(
    job: Job, by: Viewer, agent: Agent | None, unmet: Sequence[Job] = ()
) -> list[Availability]:
    """Every action, whether the caller may take it now, and if not, why."""
    return [_available(job, action, by, agent, unmet) for action in JobAction]


def _available(
    job: Job, action: JobAction, by: Viewer, agent: Agent | None, unmet: Sequence[Job]
) -> Availability:
    reasons = [
        may(job, event, by) or refusal(job, event, agent, unmet)
        for event, rule in RULES.items()
        if rule.action is action
    ]
    allowed = None in reasons
    return Availability(action, allowed, None if allowed else str(reasons[0]))


def demand(
    job: Job,
    event: Event,
    by: Actor | Viewer,
    *,
    agent: Agent | None = None,
    unmet: Sequence[Job] = (),
    expected_version: int | None = None,
) -> None:
    """Raise `Forbidden`, `VersionConflict`, `IllegalTransition` or the guard's failure."""
    forbidden = may(job, event, by)
    if forbidden:
        raise Forbidden(forbidden)
    if expected_version is not None and expected_version != job.version:
        raise VersionConflict(expected_version, job)
    why = refusal(job, event, agent, unmet)
    if why:
        raise why if isinstance(why, SignoffError) else _illegal(job, event, by, agent, unmet, why)


def _illegal(
    job: Job,
    event: Event,
    by: Actor | Viewer,
    agent: Agent | None,
    unmet: Sequence[Job],
    why: str,
) -> IllegalTransition:
    action = RULES[event].action or JobAction.EXECUTE
    open_now = (
        [a.action for a in availability(job, by, agent, unmet) if a.allowed]
        if isinstance(by, Viewer)
        else []
    )
    return IllegalTransition(job.status, action, why, open_now)


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
    current().swap(
        Job,
        {"id": job.id, "status": source, "version": job.version},
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
    entry = log.entry(job, type, by, message=message, payload=told, attempt_id=attempt_id)
    log.append(entry)


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
