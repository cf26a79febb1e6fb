"""Who does a job."""

from __future__ import annotations

from functools import partial
from uuid import UUID

from pydantic import Field

from models import Job, JobStatus, StatusReason, jsontext
from services import agents, idempotency, jobs, lifecycle
from services.actors import Viewer
from services.errors import InvalidInput
from services.jobs import Assign
from services.lifecycle import Event
from services.runtime import Runtime
from services.transactions import atomic
from services.values import Command, JobId, Json, Key, Reason, Version


class AssignJob(Command):
    id: JobId
    assign: Assign
    input: Json | None = Field(default=None, description="Replaces the job's input.")
    expected_version: Version | None = None


class ReassignJob(Command):
    id: JobId
    assign: Assign
    reason: Reason | None = None
    interrupt_running: bool = Field(
        default=False, description="Take it away from a running agent, whose result is dropped."
    )
    expected_version: Version | None = None
    idempotency_key: Key | None = None


@atomic
async def assign(rt: Runtime, viewer: Viewer, command: AssignJob) -> Job:
    """Raises `NotFound`, `Forbidden`, `VersionConflict`, `IllegalTransition`, `SchemaMismatch`
    and `AgentUnavailable`."""
    job = await jobs.get(viewer, command.id)
    changes: dict[str, str] = {}
    if "input" in command.model_fields_set:
        changes["input_json"] = jsontext.dumps(command.input)
    return await _give(
        rt, viewer, job, Event.ASSIGN, command.assign, command.expected_version, None, changes
    )


async def reassign(rt: Runtime, viewer: Viewer, command: ReassignJob) -> Job:
    """Raises what `assign` raises, and `IdempotencyConflict`."""
    do = partial(_reassign, rt, viewer, command)
    return await idempotency.once(rt, viewer, command.idempotency_key, command, command.id, do)


@atomic
async def _reassign(rt: Runtime, viewer: Viewer, command: ReassignJob) -> Job:
    job = await jobs.get(viewer, command.id)
    running = job.status is JobStatus.IN_EXECUTION and command.interrupt_running
    event = Event.INTERRUPT if running else Event.REASSIGN
    return await _give(
        rt, viewer, job, event, command.assign, command.expected_version, command.reason, {}
    )


async def _give(  # noqa: PLR0913
    rt: Runtime,
    viewer: Viewer,
    job: Job,
    event: Event,
    to: Assign,
    expected_version: int | None,
    message: str | None,
    changes: dict[str, str],
) -> Job:
    lifecycle.demand(job, event, viewer, expected_version=expected_version)
    if to.agent_id is None:
        raise InvalidInput.at("input", "assign", "agentId", message="must name an agent")
    agent = await agents.active(to.agent_id)
    agents.check_input(agent, changes.get("input_json", job.input_json))
    return await lifecycle.move(
        rt,
        job,
        event,
        viewer,
        reason=StatusReason.ASSIGNED_MANUALLY,
        message=message,
        agent_id=agent.id,
        **changes,
    )


@atomic
async def unassign(
    rt: Runtime, viewer: Viewer, job_id: UUID, reason: str | None, expected_version: int | None
) -> Job:
    """Raises `NotFound`, `Forbidden`, `VersionConflict` and `IllegalTransition`."""
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
