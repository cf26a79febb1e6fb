"""Opening attempts: the first of an execution, and those that follow one that failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from models import (
    Agent,
    AgentAvailability,
    AgentGate,
    Attempt,
    AttemptState,
    Job,
    JobLogType,
    JobPhase,
    JobStatus,
    StatusReason,
    Verdict,
    VerdictOutcome,
    jsontext,
    statements,
)
from services import agents, lifecycle, retries, rules, tracing
from services.actors import SYSTEM
from services.errors import InvalidInput, SchemaMismatch
from services.retries import RetryPolicy
from services.rules import Event
from services.runtime import Runtime
from services.transactions import current
from services.values import public_id, storable

TRIED_AGAIN = frozenset(
    {
        StatusReason.AGENT_ERROR,
        StatusReason.AGENT_TIMEOUT,
        StatusReason.AGENT_UNREACHABLE,
        StatusReason.AGENT_REJECTED,
        StatusReason.OUTPUT_SCHEMA_INVALID,
        StatusReason.VERDICT_FAILED,
    }
)
"""What another attempt may mend. A worker's end is none: the same attempt goes on elsewhere."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt came to nothing, and what that means for another one.

    `lasting` says that the same agent would fail again, `retry_after` are the seconds it asked
    for, and `reasons` what was wrong with an answer that was complete.
    """

    code: str
    message: str
    retryable: bool
    may_have_executed: bool
    lasting: bool = False
    retry_after: float = 0.0
    reasons: Sequence[str] | None = None

    def told(self) -> dict[str, Any]:
        """What the attempt keeps of it."""
        return {
            "code": self.code,
            "message": self.message,
            "retryable": self.retryable,
            "mayHaveExecuted": self.may_have_executed,
        }


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt that failed, and how the job ends by it if no other one follows.

    `columns` of the attempt and `changes` of the job are written either way.
    """

    job: Job
    attempt: Attempt
    agent: Agent
    event: Event
    reason: StatusReason
    failure: Failure
    columns: Mapping[str, Any]
    changes: Mapping[str, Any]

    @property
    def number(self) -> int:
        """How many attempts the execution has had."""
        return self.attempt.number - self.job.first_attempt + 1


@dataclass(frozen=True, slots=True)
class Step:
    """Who has the next attempt; `skipped` are the agents that were not fit for it, and why."""

    agent: Agent
    fallbacks_used: int
    skipped: Sequence[str] = ()


def attempt(
    job: Job,
    agent: Agent,
    feedback: Sequence[str],
    *,
    key: str | None = None,
    body: str | None = None,
) -> Attempt:
    """The job's next attempt, not written yet; it goes on with the work that `key` names.

    `body` is what the agent is sent, where that is not the job's input as it stands.
    """
    return Attempt(
        job_id=job.id,
        agent_id=agent.id,
        number=job.attempt_count + 1,
        state=AttemptState.QUEUED,
        criteria_version=job.criteria_version,
        feedback_json=jsontext.dumps(feedback),
        idempotency_key=key,
        request_json=body,
        agent_snapshot_json=jsontext.dumps(_snapshot(agent)),
        traceparent=tracing.current(),
    )


def _snapshot(agent: Agent) -> dict[str, Any]:
    """What an attempt keeps of its agent; nothing secret."""
    return {
        "name": agent.name,
        "version": agent.version,
        "timeoutSeconds": agent.timeout_seconds,
        "maxWaitSeconds": agent.max_wait_seconds,
        "maxConcurrency": agent.max_concurrency,
        "idempotent": agent.idempotent,
        "inputSchema": orjson.Fragment(agent.input_schema_json),
        "outputSchema": orjson.Fragment(agent.output_schema_json),
    }


def key_of(attempt: Attempt) -> str:
    """What the agent knows the attempt's work by."""
    return attempt.idempotency_key or public_id("attempt", attempt.id)


def error_of(attempt: Attempt) -> dict[str, Any] | None:
    """What the attempt keeps of its failure; one that was taken back keeps nothing, but tells."""
    if attempt.state is not AttemptState.CANCELLED:
        return jsontext.loads_or_none(attempt.error_json)
    asked = attempt.started_at is not None or attempt.idempotency_key is not None
    message = "It was taken back; the agent may have acted." if asked else "It was taken back."
    return Failure("CANCELLED", message, retryable=True, may_have_executed=asked).told()


async def latest_reasons(job: Job) -> list[str]:
    """What the newest verdict on the job's criteria had against its work."""
    judged = Verdict.filter(job_id=job.id, criteria_set__version=job.criteria_version)
    latest = await judged.order_by("-created_at", "-id").first()
    return reasons(latest) if latest else []


def reasons(verdict: Verdict) -> list[str]:
    """What a failed verdict had against the work, one sentence a criterion."""
    return [
        f"{result['key']}: {result['reason']}"
        for result in jsontext.loads(verdict.results_json)
        if result["outcome"] == VerdictOutcome.FAIL
    ]


async def follow(rt: Runtime, ended: Ended) -> str | None:
    """Open the next attempt where the policy wants one; else the words that say why not.

    Part of the change that ends the attempt.
    """
    policy = retries.policy_of(ended.job, ended.agent)
    why_not = _why_not(policy, ended)
    if why_not is not None:
        return why_not
    step = await _step(rt, policy, ended)
    if isinstance(step, str):
        return step
    await _open(rt, policy, ended, step)
    return None


def _why_not(policy: RetryPolicy, ended: Ended) -> str | None:
    """Empty where nobody expects another attempt."""
    if ended.reason not in TRIED_AGAIN or policy.max_attempts == 1:
        return ""
    if ended.reason is StatusReason.VERDICT_FAILED and not policy.retry_on_verdict_fail:
        return ""
    if ended.number >= policy.max_attempts:
        return f" That was attempt {ended.number} of {policy.max_attempts}."
    blind = ended.failure.may_have_executed and not _is_new_work(policy, ended)
    if blind and not ended.agent.idempotent:
        return (
            f" Not tried again: “{ended.agent.name}” may have done the work, and is not "
            "declared idempotent."
        )
    return None


def _is_new_work(policy: RetryPolicy, ended: Ended) -> bool:
    """The agent answered, and the work is to be done once more and better."""
    return policy.retry_on_verdict_fail and ended.failure.reasons is not None


async def _step(rt: Runtime, policy: RetryPolicy, ended: Ended) -> Step | str:
    """The same agent again, or the next one of the ladder; the words where nobody is left."""
    job, failure = ended.job, ended.failure
    here = Step(ended.agent, job.fallbacks_used)
    spent = policy.reassign_after is not None and job.agent_attempts >= policy.reassign_after
    if not (failure.lasting or spent):
        return here
    found, skipped = await _next_agent(rt, policy, ended)
    if found is not None:
        return found
    told = f" Nobody else could take over: {' '.join(skipped)}" if skipped else ""
    if failure.lasting:
        return f" Not tried again: “{ended.agent.name}” would fail in the same way.{told}"
    return Step(ended.agent, job.fallbacks_used, skipped)


async def _next_agent(
    rt: Runtime, policy: RetryPolicy, ended: Ended
) -> tuple[Step | None, list[str]]:
    skipped: list[str] = []
    left = policy.fallback_agent_ids[ended.job.fallbacks_used :]
    found = await agents.get_many(left)
    for used, agent in enumerate(found, ended.job.fallbacks_used + 1):
        assert agent is not None  # noqa: S101 - they were there, and agents are never deleted
        unfit = await _unfit(rt, ended, agent)
        if unfit is None:
            return Step(agent, used, skipped), skipped
        skipped.append(unfit)
    return None, skipped


async def _unfit(rt: Runtime, ended: Ended, agent: Agent) -> str | None:
    """Why an agent cannot take the job over."""
    if agent.id == ended.job.agent_id:
        return f"“{agent.name}” has it already."
    if agent.availability is not AgentAvailability.ACTIVE:
        return f"“{agent.name}” is {agent.availability.value}."
    gate = await statements.fetch(AgentGate, agent_id=agent.id)
    if gate is not None and gate.open_until is not None and gate.open_until > datetime.now(UTC):
        return f"“{agent.name}” keeps failing, so its circuit is open."
    try:
        body = ended.attempt.request_json or ended.job.input_json
        await agents.check_input(rt, agent, jsontext.loads(body))
    except SchemaMismatch as error:
        return str(error)
    except InvalidInput as error:
        return f"“{agent.name}”: {error}."
    return None


async def _open(rt: Runtime, policy: RetryPolicy, ended: Ended, step: Step) -> None:
    job, agent = ended.job, step.agent
    moves = agent.id != ended.agent.id
    again = not moves and not _is_new_work(policy, ended) and ended.failure.may_have_executed
    new = attempt(
        job,
        agent,
        await _feedback(policy, ended, agent),
        key=key_of(ended.attempt) if again else None,
        # with results of other jobs as they were when the execution began
        body=ended.attempt.request_json if job.dependency_count else None,
    )
    pause = 0.0 if moves else max(policy.pause(job.agent_attempts), ended.failure.retry_after)
    message = storable(_message(policy, ended, step, pause))
    await lifecycle.move(
        rt,
        job,
        Event.RETRY,
        SYSTEM,
        attempt={
            "state": rules.RULES[ended.event].ends,
            "error_json": jsontext.dumps(ended.failure.told()),
            **ended.columns,
        },
        attempt_count=new.number,
        agent_id=agent.id,
        agent_attempts=1 if moves else job.agent_attempts + 1,
        fallbacks_used=step.fallbacks_used,
        phase=JobPhase.RETRY_WAIT if pause else JobPhase.QUEUED,
        status_reason=StatusReason.ASSIGNED_AUTOMATICALLY if moves else ended.reason,
        status_message=message,
        **ended.changes,
    )
    current().insert(new)
    ready_at = datetime.now(UTC) + timedelta(seconds=pause) if pause else None
    current().enqueue(job, ready_at=ready_at)
    _log(ended, step, message, pause)


async def _feedback(policy: RetryPolicy, ended: Ended, agent: Agent) -> list[str]:
    """As the attempt had it, with what is newly known instead of what was known before."""
    if not agent.accepts_feedback:
        return []
    known = await latest_reasons(ended.job)
    given = [hint for hint in jsontext.loads(ended.attempt.feedback_json) if hint not in known]
    new = ended.failure.reasons if _is_new_work(policy, ended) else known
    return list(dict.fromkeys([*given, *(new or ())]))


def _message(policy: RetryPolicy, ended: Ended, step: Step, pause: float) -> str:
    next_one = f"Attempt {ended.number + 1} of {policy.max_attempts}"
    if step.agent.id != ended.agent.id:
        failed = ended.job.agent_attempts
        attempts = "an attempt" if failed == 1 else f"{failed} attempts"
        next_one += f" goes to “{step.agent.name}”, since “{ended.agent.name}” failed {attempts}."
    else:
        next_one += f" begins in {pause:.1f} s." if pause else " begins."
    passed_over = f"Not fit: {' '.join(step.skipped)}" if step.skipped else ""
    return " ".join(filter(None, (ended.failure.message, next_one, passed_over)))


def _log(ended: Ended, step: Step, message: str, pause: float) -> None:
    """The status stays, so it is a note: who waits for changes of status is not told."""
    lifecycle.log_status(
        ended.job,
        Event.RETRY,
        JobStatus.IN_EXECUTION,
        SYSTEM,
        message,
        type=JobLogType.NOTE,
        attempt_id=ended.attempt.id,
        changed={},
        more={
            "failure": {"reason": ended.reason, **ended.failure.told()},
            "failedAgentId": public_id("agent", ended.agent.id),
            "pauseSeconds": round(pause, 3),
            "skipped": list(step.skipped),
        },
    )


async def executed_before(job: Job, attempt: Attempt) -> bool:
    """Whether an earlier attempt of the same execution may have reached its agent."""
    if attempt.number <= job.first_attempt:
        return False
    earlier = Attempt.filter(
        job_id=job.id, number__gte=job.first_attempt, number__lt=attempt.number
    )
    errors: list[Any] = await earlier.values_list("error_json", flat=True)
    return any(jsontext.loads(error)["mayHaveExecuted"] for error in errors if error)
