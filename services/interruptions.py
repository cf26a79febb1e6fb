"""What the log keeps of a run that was cut off, because it was this worker's no more."""

from __future__ import annotations

from collections.abc import Mapping

from models import JobLog, JobLogType
from services import attempts
from services.attempts import Run
from services.runtime import Runtime
from services.transactions import atomic

CALLS: Mapping[JobLogType, tuple[JobLogType, str]] = {
    JobLogType.AGENT_REQUEST: (
        JobLogType.AGENT_RESPONSE,
        "The request was cut off, because the attempt had ended; the agent may have acted.",
    ),
    JobLogType.VALIDATOR_REQUEST: (
        JobLogType.VALIDATOR_RESPONSE,
        "The question to the judge was cut off, because the attempt had ended.",
    ),
}
"""How each call that can be open is closed in the log, and what is said of it."""


@atomic
async def note(rt: Runtime, this: Run) -> None:
    """Tell of the call that was open; where none was, there is nothing to tell."""
    steps = [*CALLS, *(answer for answer, _ in CALLS.values()), JobLogType.AGENT_PROGRESS]
    logged = JobLog.filter(attempt_id=this.attempt.id, type__in=steps)
    last = await logged.order_by("-seq").first()
    if last is None or last.type not in CALLS:
        return
    if this.attempt.finished_at is None:
        message = "A worker that was taken for lost was cut off; the attempt goes on elsewhere."
        attempts.tell(this, JobLogType.NOTE, message, {"late": True})
        return
    answer, message = CALLS[last.type]
    asked_agent = last.type is JobLogType.AGENT_REQUEST
    told = {"error": "ABORTED", "mayHaveExecuted": asked_agent, "late": True}
    attempts.tell(this, answer, message, told)
