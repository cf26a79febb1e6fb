"""What may become of a job, as data: from where, to where, by whom, and under what condition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from models import (
    Agent,
    AgentAvailability,
    AttemptState,
    Job,
    JobLogType,
    JobPhase,
    JobStatus,
)
from services import retries
from services.actors import Actor, Viewer
from services.errors import (
    AgentUnavailable,
    DependenciesUnmet,
    Forbidden,
    IllegalTransition,
    SignoffError,
    VersionConflict,
)


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
    return frozenset(found | ADMIN if by.is_admin and by.sees(job) else found)


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
        return out_of_scope(job, by)
    return f"Only {' or '.join(sorted(rule.by))} may {rule.action or event} this job."


def out_of_scope(job: Job, by: Actor | Viewer) -> str | None:
    """A key for some agents acts on their jobs and on those of none, with all who may take over."""
    if isinstance(by, Actor) or by.agents is None:
        return None
    agents = {job.agent_id, *retries.policy_of(job, None).fallback_agent_ids} - {None}
    return None if agents <= by.agents else "Your key is not for an agent of this job."


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
