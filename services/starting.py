"""What a caller's change of a job starts at once has to fit into the queue, as an execution has."""

from __future__ import annotations

from collections.abc import Sequence

from models import Agent, Job, statements
from services import dependencies, rules
from services.dependencies import DependencyDraft
from services.rules import Event
from services.runtime import Runtime


async def admit(rt: Runtime, job: Job, depends_on: Sequence[DependencyDraft] | None = None) -> None:
    """Raise `LimitExceeded` if the job, as it is now, starts by itself at once and is one too many.

    `depends_on` are dependencies that are yet to be written. What holds the job up meanwhile is
    no start of its caller's, and is not refused.
    """
    if not job.armed or job.agent_id is None:
        return
    agent = await statements.fetch(Agent, id=job.agent_id)
    unmet = await dependencies.unmet(job, depends_on)
    if rules.refusal(job, Event.EXECUTE, agent, unmet) is None:
        await rt.bound.admit()
