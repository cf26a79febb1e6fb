"""Every status and every event: what happens, who may, and that only one can be first."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier
from typing import Any
from uuid import UUID

import pytest

import signoff
from models import (
    Agent,
    AgentAvailability,
    Attempt,
    AttemptState,
    Job,
    JobLog,
    JobLogType,
    JobPhase,
    JobStatus,
    StatusReason,
    jsontext,
)
from services import decisions, execution, lifecycle, rules
from services.actors import SYSTEM, Actor, Viewer
from services.decisions import CancelJob, ForceComplete
from services.errors import (
    AgentUnavailable,
    Forbidden,
    IllegalTransition,
    SignoffError,
    VersionConflict,
)
from services.execution import ExecuteJob
from services.rules import Event, JobAction, Party
from services.runtime import Runtime
from services.values import public_id
from signoff.wiring import runtime
from tests.support.making import (
    ADMIN,
    MEMBER,
    OTHER,
    READER,
    attempts_of,
    logs_of,
    make_agent,
    make_job,
    snapshot,
)
from tests.support.running import settings_for

__all__ = ["signoff"]

P, A = JobStatus.PENDING, JobStatus.ASSIGNED
X, R = JobStatus.IN_EXECUTION, JobStatus.RESUBMISSION_REQUIRED
D, C = JobStatus.COMPLETED, JobStatus.CANCELLED

# The table of architecture.md, by hand: what each event makes of each status.
TARGETS: Mapping[Event, Mapping[JobStatus, JobStatus]] = {
    Event.UPDATE: {P: P, A: A, R: R},
    Event.ASSIGN: {P: A},
    Event.UNASSIGN: {A: P, R: P},
    Event.REASSIGN: {A: A, R: A},
    Event.INTERRUPT: {X: A},
    Event.ARM: {A: A, R: R},
    Event.HOLD: {P: P, A: A, R: R},
    Event.EXECUTE: {A: X, R: X},
    Event.ADVANCE: {X: X},
    Event.RETRY: {X: X},
    Event.PASS: {X: D},
    Event.FAIL: {X: R},
    Event.GIVE_BACK: {X: A},
    Event.LOSE: {X: R},
    Event.APPROVE: {X: D},
    Event.REJECT: {X: R},
    Event.RESUBMIT: {X: R, D: R},
    Event.FORCE_COMPLETE: {P: D, A: D, X: D, R: D},
    Event.CANCEL: {P: C, A: C, X: C, R: C},
    Event.REOPEN: {C: A},
    Event.ARCHIVE: {D: D, C: C},
    Event.UNARCHIVE: {D: D, C: C},
}
OWNER, ADMINS, SERVER = Party.OWNER, Party.ADMIN, Party.SYSTEM
PARTIES: Mapping[Event, set[Party]] = {
    Event.UPDATE: {OWNER, ADMINS},
    Event.ASSIGN: {OWNER, ADMINS, SERVER},
    Event.UNASSIGN: {OWNER, ADMINS},
    Event.REASSIGN: {OWNER, ADMINS, SERVER},
    Event.INTERRUPT: {ADMINS},
    Event.ARM: {OWNER, ADMINS},
    Event.HOLD: {SERVER},
    Event.EXECUTE: {OWNER, ADMINS, SERVER},
    Event.ADVANCE: {SERVER},
    Event.RETRY: {SERVER},
    Event.PASS: {SERVER},
    Event.FAIL: {SERVER},
    Event.GIVE_BACK: {SERVER},
    Event.LOSE: {SERVER},
    Event.APPROVE: {ADMINS},
    Event.REJECT: {ADMINS},
    Event.RESUBMIT: {ADMINS},
    Event.FORCE_COMPLETE: {ADMINS},
    Event.CANCEL: {OWNER, ADMINS, SERVER},
    Event.REOPEN: {OWNER, ADMINS},
    Event.ARCHIVE: {OWNER, ADMINS, SERVER},
    Event.UNARCHIVE: {OWNER, ADMINS, SERVER},
}
ENDED: Mapping[Event, AttemptState] = {
    Event.INTERRUPT: AttemptState.CANCELLED,
    Event.RETRY: AttemptState.FAILED,
    Event.PASS: AttemptState.SUCCEEDED,
    Event.FAIL: AttemptState.FAILED,
    Event.GIVE_BACK: AttemptState.FAILED,
    Event.LOSE: AttemptState.LOST,
    Event.APPROVE: AttemptState.SUCCEEDED,
    Event.REJECT: AttemptState.FAILED,
    Event.RESUBMIT: AttemptState.CANCELLED,
    Event.FORCE_COMPLETE: AttemptState.CANCELLED,
    Event.CANCEL: AttemptState.CANCELLED,
}
CONFIG = {Event.UPDATE, Event.ARM, Event.HOLD, Event.ARCHIVE, Event.UNARCHIVE}
"""They change no status, and say so by the type of their entry."""
UNTOLD = {Event.ADVANCE, Event.RETRY}
"""They change no status either; who moves the job has more to tell."""


async def job_that_is(
    status: JobStatus,
    agent: Agent | None,
    *,
    phase: JobPhase = JobPhase.CALLING_AGENT,
    archived: bool = False,
) -> Job:
    """A job of Mia's, and where it is running, its attempt."""
    job = await Job.create(
        name="A job",
        description="",
        acceptance_criteria="- ok",
        agent_id=agent.id if agent and status is not P else None,
        status=status,
        phase=phase if status is X else None,
        status_reason=StatusReason.CREATED,
        status_changed_at=datetime.now(UTC),
        archived_at=datetime.now(UTC) if archived else None,
        attempt_count=1 if status is X else 0,
        created_by_kind=MEMBER.kind,
        created_by_id=MEMBER.id,
        created_by_name=MEMBER.name,
    )
    if status is X and agent:
        await Attempt.create(
            job_id=job.id,
            agent_id=agent.id,
            number=1,
            state=AttemptState.RUNNING,
            agent_snapshot_json="{}",
            criteria_version=1,
        )
    return job


async def job_for(event: Event, status: JobStatus, agent: Agent | None) -> Job:
    """A job in `status` that no guard keeps from `event`."""
    reviewed = event in (Event.APPROVE, Event.REJECT)
    phase = JobPhase.AWAITING_REVIEW if reviewed else JobPhase.CALLING_AGENT
    return await job_that_is(status, agent, phase=phase, archived=event is Event.UNARCHIVE)


def somebody(event: Event) -> Actor | Viewer:
    """Who may."""
    return SYSTEM if SERVER in PARTIES[event] else ADMIN


async def move(
    rt: Runtime, job: Job, event: Event, by: Actor | Viewer, agent: Agent | None, **more: Any
) -> Job:
    if event in (Event.ARCHIVE, Event.UNARCHIVE):
        more["archived_at"] = datetime.now(UTC) if event is Event.ARCHIVE else None
    return await lifecycle.move(
        rt, job, event, by, agent=agent, reason=StatusReason.FORCED, message="Why.", **more
    )


def test_table_is_complete() -> None:
    assert set(TARGETS) == set(PARTIES) == set(rules.RULES) == set(Event)


@pytest.mark.parametrize("status", JobStatus)
async def test_every_event_does_what_the_table_says(rt: Runtime, status: JobStatus) -> None:
    agent = await make_agent(rt)
    for event in Event:
        job = await job_for(event, status, agent)
        assert (status in TARGETS[event]) is (status in rules.RULES[event].sources)
        if status in TARGETS[event]:
            await check_moved(rt, job, event, agent)
        else:
            await check_refused(rt, job, event, agent)


async def check_moved(rt: Runtime, job: Job, event: Event, agent: Agent) -> None:
    source, target = job.status, TARGETS[event][job.status]
    by = somebody(event)
    before = await Job.get(id=job.id)
    moved = await move(rt, job, event, by, agent)
    now = await Job.get(id=job.id)
    for told in (moved, now):
        assert (told.status, told.version) == (target, 2), event
    assert now.updated_at > before.updated_at
    entries = await logs_of(job)
    if event in UNTOLD:
        assert entries == []
    else:
        (entry,) = entries
        check_entry(entry, now, event, source, by)
    await check_attempt(now, event, source)
    if event in CONFIG | UNTOLD:
        assert now.status_reason is StatusReason.CREATED
        assert now.status_changed_at == before.status_changed_at
    else:
        assert now.status_reason is StatusReason.FORCED
        assert now.status_message == "Why."
        assert now.status_changed_at == now.updated_at
        assert now.phase is None


def check_entry(
    entry: JobLog, now: Job, event: Event, source: JobStatus, by: Actor | Viewer
) -> None:
    config = event in CONFIG
    assert entry.type is (JobLogType.CONFIG_CHANGE if config else JobLogType.STATUS_CHANGE)
    assert entry.status is now.status
    assert entry.message == "Why."
    assert (entry.actor_kind, entry.actor_id, entry.actor_name) == (by.kind, by.id, by.name)
    assert entry.agent_id == now.agent_id
    assert jsontext.loads(entry.payload_json or "") == {
        "event": event,
        "from": source,
        "to": now.status,
        "reason": now.status_reason,
        "version": 2,
        "attempt": now.attempt_count,
        "agentId": public_id("agent", now.agent_id) if now.agent_id else None,
    }


async def check_attempt(now: Job, event: Event, source: JobStatus) -> None:
    attempts = await attempts_of(now)
    if source is not X:
        assert attempts == []
        return
    (attempt,) = attempts
    if event is Event.ADVANCE:
        assert (attempt.state, attempt.finished_at) == (AttemptState.RUNNING, None)
    else:
        assert attempt.state is ENDED[event], event
        assert attempt.finished_at is not None


async def check_refused(rt: Runtime, job: Job, event: Event, agent: Agent) -> None:
    before = await snapshot(job)
    with pytest.raises(IllegalTransition) as refused:
        await move(rt, job, event, somebody(event), agent)
    action = rules.RULES[event].action
    assert str(refused.value) == f"A job that is {job.status} does not allow {action or event}."
    assert refused.value.status is job.status
    assert await snapshot(job) == before


async def test_reopened_job_waits_for_an_agent_if_it_has_none(rt: Runtime) -> None:
    job = await job_that_is(C, None)
    assert (await move(rt, job, Event.REOPEN, MEMBER, None)).status is P


async def test_move_reports_a_version_that_has_passed_and_changes_nothing(rt: Runtime) -> None:
    agent = await make_agent(rt)
    job = await job_that_is(A, agent)
    before = await snapshot(job)
    with pytest.raises(VersionConflict) as refused:
        await move(rt, job, Event.CANCEL, ADMIN, agent, expected_version=7)
    assert (refused.value.expected, refused.value.current.version) == (7, 1)
    assert await snapshot(job) == before


async def test_move_of_a_row_read_too_early_is_refused_by_what_the_job_has_become(
    rt: Runtime,
) -> None:
    agent = await make_agent(rt)
    job = await job_that_is(A, agent)
    early = await Job.get(id=job.id)
    await move(rt, job, Event.UPDATE, MEMBER, agent, name="Renamed")
    with pytest.raises(VersionConflict) as refused:
        await move(rt, early, Event.CANCEL, ADMIN, agent)
    assert refused.value.current.name == "Renamed"
    early = await Job.get(id=job.id)
    await move(rt, job, Event.CANCEL, MEMBER, agent)
    before = await snapshot(job)
    with pytest.raises(IllegalTransition, match="A job that is CANCELLED does not allow UPDATE"):
        await move(rt, early, Event.UPDATE, MEMBER, agent)
    assert await snapshot(job) == before


# Guards


@pytest.mark.parametrize("availability", [AgentAvailability.PAUSED, AgentAvailability.DISABLED])
async def test_execution_needs_an_agent_that_takes_work(
    rt: Runtime, availability: AgentAvailability
) -> None:
    agent = await make_agent(rt)
    agent.availability = availability
    for status in (A, R):
        job = await job_that_is(status, agent)
        before = await snapshot(job)
        with pytest.raises(AgentUnavailable):
            await move(rt, job, Event.EXECUTE, MEMBER, agent)
        assert await snapshot(job) == before
        nobodys = await job_that_is(status, None)
        before = await snapshot(nobodys)
        with pytest.raises(IllegalTransition, match="No agent is assigned"):
            await move(rt, nobodys, Event.EXECUTE, MEMBER, None)
        assert await snapshot(nobodys) == before


async def test_only_a_job_with_an_agent_is_armed(rt: Runtime) -> None:
    job = await job_that_is(A, None)
    before = await snapshot(job)
    with pytest.raises(IllegalTransition, match="No agent is assigned"):
        await move(rt, job, Event.ARM, MEMBER, None)
    assert await snapshot(job) == before


@pytest.mark.parametrize("event", [Event.APPROVE, Event.REJECT])
async def test_only_what_waits_for_a_review_is_reviewed(rt: Runtime, event: Event) -> None:
    agent = await make_agent(rt)
    for phase in set(JobPhase) - {JobPhase.AWAITING_REVIEW}:
        job = await job_that_is(X, agent, phase=phase)
        before = await snapshot(job)
        with pytest.raises(IllegalTransition, match="does not wait for a review"):
            await move(rt, job, event, ADMIN, agent)
        assert await snapshot(job) == before


async def test_nothing_is_archived_or_unarchived_twice(rt: Runtime) -> None:
    for status in (D, C):
        for event, archived in ((Event.ARCHIVE, True), (Event.UNARCHIVE, False)):
            job = await job_that_is(status, None, archived=archived)
            before = await snapshot(job)
            with pytest.raises(IllegalTransition, match="archived"):
                await move(rt, job, event, MEMBER, None)
            assert await snapshot(job) == before


# Who may

CALLERS: list[tuple[str, Actor | Viewer, set[Party]]] = [
    ("the owner", MEMBER, {OWNER}),
    ("another member", OTHER, set()),
    ("a viewer", READER, set()),
    ("an admin", ADMIN, {ADMINS}),
    ("the system", SYSTEM, {SERVER}),
]


@pytest.mark.parametrize(
    ("by", "is_"), [each[1:] for each in CALLERS], ids=[each[0] for each in CALLERS]
)
async def test_caller_may_what_their_party_may_and_nothing_else(
    rt: Runtime, by: Actor | Viewer, is_: set[Party]
) -> None:
    agent = await make_agent(rt)
    for event, targets in TARGETS.items():
        job = await job_for(event, next(iter(targets)), agent)
        if is_ & PARTIES[event]:
            assert (await move(rt, job, event, by, agent)).version == 2, event
            continue
        before = await snapshot(job)
        with pytest.raises(Forbidden):
            await move(rt, job, event, by, agent)
        assert await snapshot(job) == before


async def test_reader_owns_nothing_not_even_a_job_made_as_a_member(rt: Runtime) -> None:
    job = await job_that_is(P, None)
    demoted = Viewer(MEMBER.kind, MEMBER.id, MEMBER.name, READER.role)
    before = await snapshot(job)
    with pytest.raises(Forbidden):
        await move(rt, job, Event.CANCEL, demoted, None)
    assert await snapshot(job) == before


# What callers are told they may

ACTIONS: Mapping[JobAction, list[Event]] = {
    JobAction.UPDATE: [Event.UPDATE],
    JobAction.ASSIGN: [Event.ASSIGN],
    JobAction.UNASSIGN: [Event.UNASSIGN],
    JobAction.REASSIGN: [Event.REASSIGN, Event.INTERRUPT],
    JobAction.EXECUTE: [Event.EXECUTE],
    JobAction.CANCEL: [Event.CANCEL],
    JobAction.RESUBMIT: [Event.RESUBMIT],
    JobAction.FORCE_COMPLETE: [Event.FORCE_COMPLETE],
    JobAction.REVIEW: [Event.APPROVE, Event.REJECT],
    JobAction.REOPEN: [Event.REOPEN],
    JobAction.ARCHIVE: [Event.ARCHIVE],
    JobAction.UNARCHIVE: [Event.UNARCHIVE],
}


@pytest.mark.parametrize("viewer", [MEMBER, OTHER, READER, ADMIN], ids=lambda v: v.name)
async def test_available_actions_are_those_that_succeed(rt: Runtime, viewer: Viewer) -> None:
    agent = await make_agent(rt)
    for status in JobStatus:
        for waiting in (False, True):
            kind: dict[str, Any] = {
                "phase": JobPhase.AWAITING_REVIEW if waiting else JobPhase.VALIDATING,
                "archived": waiting and status in (D, C),
            }
            job = await job_that_is(status, agent, **kind)
            told = rules.availability(job, viewer, agent if job.agent_id else None)
            assert [each.action for each in told] == list(JobAction)
            for each in told:
                errors = [
                    await outcome(rt, await job_that_is(status, agent, **kind), event, viewer)
                    for event in ACTIONS[each.action]
                ]
                assert each.allowed is (None in errors), (status, each)
                assert (each.reason is None) is each.allowed
                assert each.allowed or each.reason in [str(error) for error in errors]


async def outcome(rt: Runtime, job: Job, event: Event, by: Viewer) -> SignoffError | None:
    agent = await Agent.get(id=job.agent_id) if job.agent_id else None
    try:
        await move(rt, job, event, by, agent)
    except SignoffError as error:
        return error
    return None


async def test_refused_caller_is_told_what_is_allowed(rt: Runtime) -> None:
    job = await job_that_is(D, None)
    with pytest.raises(IllegalTransition) as refused:
        await move(rt, job, Event.CANCEL, ADMIN, None)
    assert refused.value.allowed_actions == ("RESUBMIT", "ARCHIVE")
    assert (refused.value.status, refused.value.action) == (D, "CANCEL")


# Many at once


@pytest.mark.parametrize(
    ("event", "status", "target"),
    [(Event.EXECUTE, A, X), (Event.CANCEL, X, C), (Event.FORCE_COMPLETE, R, D)],
    ids=str,
)
async def test_of_twenty_movers_at_once_one_wins(
    rt: Runtime, event: Event, status: JobStatus, target: JobStatus
) -> None:
    agent = await make_agent(rt)
    job = await job_that_is(status, agent)
    rows = [await Job.get(id=job.id) for _ in range(20)]
    outcomes = await asyncio.gather(
        *(move(rt, row, event, ADMIN, agent) for row in rows), return_exceptions=True
    )
    check_one_won([type(each).__name__ for each in outcomes])
    now = await Job.get(id=job.id)
    assert (now.status, now.version) == (target, 2)
    assert len(await logs_of(job)) == 1


def check_one_won(outcomes: list[str]) -> None:
    assert sorted(outcomes) == ["IllegalTransition"] * 19 + ["Job"]


@pytest.mark.parametrize("event", [Event.EXECUTE, Event.CANCEL, Event.FORCE_COMPLETE], ids=str)
async def test_of_twenty_clicks_at_once_one_counts(rt: Runtime, event: Event) -> None:
    job = await make_job(rt, await make_agent(rt))
    outcomes = await asyncio.gather(
        *(click(rt, job.id, event) for _ in range(20)), return_exceptions=True
    )
    check_one_won([type(each).__name__ for each in outcomes])
    moved = [e for e in await logs_of(job) if e.type is JobLogType.STATUS_CHANGE][1:]
    assert jsontext.loads(moved[0].payload_json or "")["event"] == event
    assert len(await attempts_of(job)) == (event is Event.EXECUTE)


async def click(rt: Runtime, job_id: UUID, event: Event) -> Job:
    if event is Event.EXECUTE:
        return await execution.execute(rt, ADMIN, ExecuteJob(id=job_id))
    if event is Event.CANCEL:
        return await decisions.cancel(rt, ADMIN, CancelJob(id=job_id))
    force = {"id": job_id, "result": None, "reason": "Now."}
    return await decisions.force_complete(rt, ADMIN, ForceComplete.model_validate(force))


PROCESSES, CLICKS = 4, 5
_barrier: list[Barrier] = []


def remember(barrier: Barrier) -> None:
    _barrier.append(barrier)


def compete(database_url: str, folder: Path, job_id: UUID) -> list[str]:
    """In a process of its own: what comes of each of five clicks."""

    async def work() -> list[str]:
        settings = settings_for(database_url, folder)
        async with runtime(settings, allow_private_agents=True, work=False) as rt:
            await asyncio.to_thread(_barrier[0].wait, 60)
            clicks = [click(rt, job_id, Event.EXECUTE) for _ in range(CLICKS)]
            outcomes = await asyncio.gather(*clicks, return_exceptions=True)
            return [type(each).__name__ for each in outcomes]

    return asyncio.run(work())


async def test_of_twenty_clicks_in_four_processes_one_counts(
    database_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, tmp_path)
    async with runtime(settings, allow_private_agents=True, work=False) as rt:
        job = await make_job(rt, await make_agent(rt))
        processes = multiprocessing.get_context("spawn")
        barrier = processes.Barrier(PROCESSES)
        pool = ProcessPoolExecutor(PROCESSES, processes, remember, (barrier,))
        loop = asyncio.get_running_loop()
        with pool:
            outcomes = await asyncio.gather(
                *(
                    loop.run_in_executor(pool, compete, database_url, tmp_path, job.id)
                    for _ in range(PROCESSES)
                )
            )
        check_one_won([each for outcome in outcomes for each in outcome])
        now = await Job.get(id=job.id)
        assert (now.status, now.version, now.attempt_count) == (X, 2, 1)
        assert len(await logs_of(job)) == 2
        assert len(await attempts_of(job)) == 1
