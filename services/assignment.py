"""Who does a job.

Every change raises `NotFound`, `Forbidden`, `VersionConflict` and `IllegalTransition`, and
those that let a job start at once `LimitExceeded`.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

from pydantic import Field

from models import Job, JobStatus, StatusReason, jsontext
from services import agents, dependencies, idempotency, jobs, lifecycle, rules, starting
from services.actors import Viewer
from services.errors import InvalidInput
from services.idempotency import Keyed
from services.jobs import Assign
from services.rules import Event
from services.runtime import Runtime
from services.transactions import atomic
from services.values import Command, JobId, Json, Reason, Version


class AssignJob(Command):
    """A pending job and who shall do it."""

    id: JobId
    assign: Assign
    input: Json | None = Field(default=None, description="Replaces the job's input.")
    expected_version: Version | None = None


class ReassignJob(Keyed):
    """An assigned job and who shall do it instead."""

    id: JobId
    assign: Assign
    reason: Reason | None = None
    interrupt_running: bool = Field(
        default=False, description="Take it away from a running agent, whose result is dropped."
    )
    expected_version: Version | None = None


async def assign(rt: Runtime, viewer: Viewer, command: AssignJob) -> Job:
    """Raises `AgentUnavailable` and `SchemaMismatch` too."""
    job = await jobs.get(viewer, command.id)
    await _check(rt, viewer, job, command)
    return await _give(rt, viewer, job, command)


async def reassign(rt: Runtime, viewer: Viewer, command: ReassignJob) -> Job:
    """Raises `AgentUnavailable`, `SchemaMismatch` and `IdempotencyConflict` too."""
    job = await jobs.get(viewer, command.id)
    do = partial(_give, rt, viewer, job, command)
    check = partial(_check, rt, viewer, job, command)
    return await idempotency.once(rt, viewer, command, command.id, do, check=check)


def _event(job: Job, command: AssignJob | ReassignJob) -> Event:
    if isinstance(command, AssignJob):
        return Event.ASSIGN
    running = job.status is JobStatus.IN_EXECUTION and command.interrupt_running
    return Event.INTERRUPT if running else Event.REASSIGN


async def _check(rt: Runtime, viewer: Viewer, job: Job, command: AssignJob | ReassignJob) -> None:
    """Whether the job can be given away now, and its input fits the agent's schema."""
    rules.demand(job, _event(job, command), viewer, expected_version=command.expected_version)
    if command.assign.agent_id is None:
        raise InvalidInput.at("input", "assign", "agentId", message="must name an agent")
    given = jsontext.loads(job.input_json)
    if isinstance(command, AssignJob) and "input" in command.model_fields_set:
        given = command.input
    agent = await agents.active(viewer, command.assign.agent_id)
    await dependencies.check_input(rt, agent, given, await dependencies.aliases(job))


@atomic
async def _give(rt: Runtime, viewer: Viewer, job: Job, command: AssignJob | ReassignJob) -> Job:
    """Give away the job as it was checked: its version sees to that."""
    changes: dict[str, Any] = {"agent_id": command.assign.agent_id}
    if isinstance(command, AssignJob) and "input" in command.model_fields_set:
        changes["input_json"] = jsontext.dumps(command.input)
    await lifecycle.move(
        rt,
        job,
        _event(job, command),
        viewer,
        expected_version=command.expected_version,
        reason=StatusReason.ASSIGNED_MANUALLY,
        message=command.reason if isinstance(command, ReassignJob) else None,
        **changes,
    )
    await starting.admit(rt, job)
    return job


@atomic
async def unassign(
    rt: Runtime, viewer: Viewer, job_id: UUID, reason: str | None, expected_version: int | None
) -> Job:
    job = await jobs.get(viewer, job_id)
    return await lifecycle.move(
        rt,
        job,
        Event.UNASSIGN,
        viewer,
        expected_version=expected_version,
        reason=StatusReason.UNASSIGNED,
        message=reason,
        agent_id=None,
    )
