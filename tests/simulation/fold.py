"""What a job is, from its log alone.

Entries of status and configuration tell the columns themselves. The steps of an attempt in between
move the job on too, one version each: what each kind of them does is in `STEPS`, and what an event
does beyond its rule is in `EFFECTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, cast

from models import (
    AttemptState,
    CompletionMode,
    JobLogType,
    JobPhase,
    JobPriority,
    JobStatus,
    StatusReason,
    VerdictOutcome,
    jsontext,
)
from services.lifecycle import TOLD
from services.rules import RULES, Event
from services.scheduling import HELD
from tests.simulation.snapshot import Row

CREATE = "CREATE"
UNKNOWN: Any = object()
"""A value that was too long for the log."""
MOVES = (JobLogType.STATUS_CHANGE, JobLogType.CONFIG_CHANGE, JobLogType.NOTE)
"""Entries that may tell of an event; a note does where the status stays."""
LONG = ("body", "request", "result", "response", "criteria")
"""Members of payloads that can be too long; what is told before them is kept."""


@dataclass(frozen=True)
class Entry:
    """An entry of the log as it is read back."""

    seq: int
    type: JobLogType
    status: JobStatus
    message: str | None
    payload: Any
    attempt: str | None
    actor_kind: str
    actor: str | None

    @classmethod
    def of(cls, row: Row) -> Entry:
        return cls(
            row["seq"],
            JobLogType(row["type"]),
            JobStatus(row["status"]),
            row["message"],
            _payload(row),
            row["attempt_id"],
            row["actor_kind"],
            row["actor_id"],
        )

    @property
    def event(self) -> str | None:
        """What happened to the job; None for a step within an attempt, or a remark."""
        return self.tells("event") if self.type in MOVES else None

    def tells(self, name: str) -> Any:
        payload: Any = self.payload
        return cast("Row", payload).get(name) if isinstance(payload, dict) else None


def _payload(row: Row) -> Any:
    told = jsontext.loads_or_none(row["payload_json"])
    if not row["payload_truncated"]:
        return told
    cuts = [told["truncated"].find(f',"{name}":') for name in LONG]
    ends = min((cut for cut in cuts if cut > 0), default=None)
    return {} if ends is None else jsontext.loads(told["truncated"][:ends] + "}")


@dataclass
class Told:
    """The columns of a job that its log accounts for, and the states of its attempts."""

    status: JobStatus | None = None
    phase: JobPhase | None = None
    reason: StatusReason | None = None
    message: str | None = None
    agent: str | None = None
    version: int = 0
    attempt_count: int = 0
    changes: dict[str, Any] = field(default_factory=dict[str, Any])
    """The columns that are told by name, whenever they change."""
    first_attempt: int = 1
    agent_attempts: int = 0
    completion_mode: CompletionMode | None = None
    result: Any = None
    archived: bool = False
    attempts: dict[int, AttemptState] = field(default_factory=dict[int, AttemptState])
    response: Any = None
    """Of the attempt under way."""

    def advance(self, phase: JobPhase | None) -> None:
        self.phase = phase
        self.version += 1

    def await_review(self, why: str | None) -> None:
        self.advance(JobPhase.AWAITING_REVIEW)
        self.reason, self.message = StatusReason.VALIDATOR_ERROR, why

    def complete(self, mode: CompletionMode, result: Any) -> None:
        self.completion_mode, self.result = mode, result


def fold(entries: Iterable[Entry]) -> Told:
    """What the job is after all of these."""
    told = Told()
    for entry in entries:
        _apply(told, entry)
    return finished(told)


def finished(told: Told) -> Told:
    """It, comparable to the rows."""
    return replace(told, changes=_by_name(told.changes))


def history(entries: Iterable[Entry]) -> Iterator[tuple[Told, Entry, Told]]:
    """Each entry, with the job before and after it."""
    told = Told()
    for entry in entries:
        before = deepcopy(told)
        _apply(told, entry)
        yield before, entry, told


def _apply(told: Told, entry: Entry) -> None:
    if entry.event:
        _move(told, entry)
    elif step := STEPS.get(entry.type):
        step(told, entry)


def _move(told: Told, entry: Entry) -> None:
    assert entry.event
    payload, source = entry.payload, told.status
    told.status, told.version = JobStatus(payload["to"]), payload["version"]
    told.agent, told.attempt_count = payload["agentId"], payload["attempt"]
    if entry.event == Event.HOLD:
        _hold(told, entry)
    elif entry.type is not JobLogType.CONFIG_CHANGE:
        told.phase = JobPhase(payload["phase"]) if "phase" in payload else None
        told.reason, told.message = StatusReason(payload["reason"]), entry.message
    told.changes |= payload.get("changes", {})
    if source is JobStatus.IN_EXECUTION:
        rule = RULES[Event(entry.event)]
        if rule.renews or told.status is not source:
            told.attempts[max(told.attempts)] = rule.ends
    if source in (JobStatus.COMPLETED, JobStatus.CANCELLED) and told.status is not source:
        told.archived = False
    if effect := EFFECTS.get(entry.event):
        effect(told, entry)


def _hold(told: Told, entry: Entry) -> None:
    """What holds a job is its message, unless that says what was wrong with its work."""
    if not (entry.message or "").startswith(HELD):
        told.message = None
    elif told.status is not JobStatus.RESUBMISSION_REQUIRED:
        told.message = entry.message


def _execute(told: Told, entry: Entry) -> None:
    told.attempts[told.attempt_count] = AttemptState.QUEUED
    told.response = UNKNOWN
    told.first_attempt, told.agent_attempts = told.attempt_count, 1


def _retry(told: Told, entry: Entry) -> None:
    moves = entry.tells("failedAgentId") != told.agent
    agent_attempts = 1 if moves else told.agent_attempts + 1
    first = told.first_attempt
    _execute(told, entry)
    told.first_attempt, told.agent_attempts = first, agent_attempts


def _pass(told: Told, entry: Entry) -> None:
    told.complete(CompletionMode.VALIDATED, told.response)


def _approve(told: Told, entry: Entry) -> None:
    told.complete(CompletionMode.REVIEWED, told.response)


def _force(told: Told, entry: Entry) -> None:
    told.complete(CompletionMode.FORCED, entry.payload.get("result", UNKNOWN))


def _resubmit(told: Told, entry: Entry) -> None:
    told.completion_mode = told.result = None


def _archive(told: Told, entry: Entry) -> None:
    told.archived = True


def _unarchive(told: Told, entry: Entry) -> None:
    told.archived = False


EFFECTS: Mapping[str, Callable[[Told, Entry], None]] = {
    Event.EXECUTE: _execute,
    Event.RETRY: _retry,
    Event.PASS: _pass,
    Event.APPROVE: _approve,
    Event.FORCE_COMPLETE: _force,
    Event.RESUBMIT: _resubmit,
    Event.ARCHIVE: _archive,
    Event.UNARCHIVE: _unarchive,
}


def _agent_request(told: Told, entry: Entry) -> None:
    told.advance(JobPhase.CALLING_AGENT)
    told.attempts[told.attempt_count] = AttemptState.RUNNING


def _agent_response(told: Told, entry: Entry) -> None:
    """One that came late changes nothing, and a last failure is told by the move after it."""
    if is_late(entry):
        return
    if entry.tells("error") is None:
        if not entry.tells("judgedAtOnce"):
            told.advance(JobPhase.CHECKING_OUTPUT)
        told.response = entry.payload.get("body", UNKNOWN)
    elif entry.tells("retryInSeconds") is not None:
        told.advance(JobPhase.RETRY_WAIT)


def _validator_request(told: Told, entry: Entry) -> None:
    if entry.tells("kind") == "llm":
        told.advance(JobPhase.VALIDATING)


def _validator_response(told: Told, entry: Entry) -> None:
    if entry.payload is None:
        told.await_review(entry.message)


def _verdict(told: Told, entry: Entry) -> None:
    if entry.tells("outcome") not in (VerdictOutcome.PASS, VerdictOutcome.FAIL):
        told.await_review(entry.message)


def _note(told: Told, entry: Entry) -> None:
    if entry.tells("lost") is not None:
        told.advance(told.phase)


STEPS: Mapping[JobLogType, Callable[[Told, Entry], None]] = {
    JobLogType.AGENT_REQUEST: _agent_request,
    JobLogType.AGENT_RESPONSE: _agent_response,
    JobLogType.VALIDATOR_REQUEST: _validator_request,
    JobLogType.VALIDATOR_RESPONSE: _validator_response,
    JobLogType.VERDICT: _verdict,
    JobLogType.NOTE: _note,
}


def is_late(entry: Entry) -> bool:
    """Whether it tells of what came after the attempt had ended."""
    return entry.tells("late") is True or (entry.message or "").endswith(
        "after the attempt had ended; not applied."
    )


def _by_name(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of what is told by name, as both rows and the log may have it; None where it never was."""
    found = dict.fromkeys(TOLD.values()) | dict(values)
    if isinstance(found["priority"], str):
        found["priority"] = JobPriority[found["priority"]].value
    times = {name for name in found if name.endswith("At")}
    return {name: instant(value) if name in times else value for name, value in found.items()}


def instant(value: Any) -> Any:
    """A time as a row or the log has it."""
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def columns(row: Row, attempts: Iterable[Row]) -> Told:
    """The same of the rows themselves."""
    mode, phase = row["completion_mode"], row["phase"]
    return Told(
        status=JobStatus(row["status"]),
        phase=JobPhase(phase) if phase else None,
        reason=StatusReason(row["status_reason"]),
        message=row["status_message"],
        agent=f"agent_{row['agent_id']}" if row["agent_id"] else None,
        version=row["version"],
        attempt_count=row["attempt_count"],
        changes=_by_name({name: row[column] for column, name in TOLD.items()}),
        first_attempt=row["first_attempt"],
        agent_attempts=row["agent_attempts"],
        completion_mode=CompletionMode(mode) if mode else None,
        result=jsontext.loads_or_none(row["result_json"]),
        archived=row["archived_at"] is not None,
        attempts={each["number"]: AttemptState(each["state"]) for each in attempts},
    )
