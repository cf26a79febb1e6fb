"""When jobs start, and when they are given up, by the clock and by themselves."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from models import (
    AgentAvailability,
    AttemptState,
    Job,
    JobLogType,
    JobStatus,
    StatusReason,
    Timer,
    TimerKind,
    jsontext,
)
from services import agents, assignment, decisions, jobs, scheduling, timers
from services.actors import LOCAL_ADMIN
from services.assignment import AssignJob, ReassignJob
from services.decisions import CancelJob, ForceComplete, ResubmitJob
from services.errors import AgentUnavailable, IllegalTransition, InvalidInput
from services.jobs import UpdateJob
from services.runtime import Runtime
from services.timers import Moved
from services.transactions import atomic
from signoff.wiring import runtime
from tests.fakes.agents import fake_agent
from tests.support.graphql import Json, agent, gql, mutate, new_job, problems
from tests.support.making import (
    ADMIN,
    MEMBER,
    attempts_of,
    execute,
    holds,
    logs_of,
    make_agent,
    make_job,
    says_no,
    says_ok,
    snapshot,
    stalls,
    until,
)
from tests.support.running import Client, settings_for

SOON = timedelta(milliseconds=400)
FAR = timedelta(days=1)


def now() -> datetime:
    return datetime.now(UTC)


async def becomes(job: Job, status: JobStatus) -> Job:
    """The job when it has that status."""

    async def found() -> Job | None:
        row = await Job.get(id=job.id)
        return row if row.status is status else None

    return await until(found)


async def arm(rt: Runtime, job: Job) -> Job:
    return await execute(rt, job, when_ready=True, wait_seconds=0)


async def update(rt: Runtime, job: Job, **changes: Any) -> Job:
    return await jobs.update(rt, MEMBER, UpdateJob.model_validate({"id": job.id} | changes))


async def timers_of(job: Job) -> dict[TimerKind, datetime]:
    return {timer.kind: timer.at async for timer in Timer.filter(job_id=job.id)}


async def parked(job: Job) -> None:
    """Return when it was looked at, and nothing but a change can start it soon."""

    async def found() -> bool:
        at = (await timers_of(job)).get(TimerKind.START)
        return at is not None and at > now() + timedelta(seconds=30)

    await until(found)


async def held(job: Job, why: str) -> Job:
    """The job when it says so."""

    async def found() -> Job | None:
        row = await Job.get(id=job.id)
        return row if row.status_message == f"Held: {why}" else None

    return await until(found)


# By themselves


async def test_auto_execute_starts_an_assigned_job_at_once(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        job = await make_job(rt, agent, auto_execute=True)
        done = await becomes(job, JobStatus.COMPLETED)
        assert (done.armed, done.auto_execute, done.attempt_count) == (False, True, 1)
        assert (done.created_by_id, done.status_reason) == (MEMBER.id, StatusReason.VERDICT_PASSED)
        assert len(endpoint.received) == 1
        started = (await logs_of(job))[1]
        assert (started.actor_name, started.status) == ("Signoff", JobStatus.IN_EXECUTION)
        assert await timers_of(job) == {}


async def test_auto_execute_waits_for_an_agent(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        job = await make_job(rt, auto_execute=True)
        await parked(job)
        assert endpoint.received == []
        given = AssignJob.model_validate({"id": job.id, "assign": {"agent_id": agent.id}})
        await assignment.assign(rt, MEMBER, given)
        await becomes(job, JobStatus.COMPLETED)


async def test_auto_execute_starts_a_job_once(rt: Runtime) -> None:
    async with fake_agent(says_no) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        job = await make_job(rt, agent, auto_execute=True)
        sent_back = await becomes(job, JobStatus.RESUBMISSION_REQUIRED)
        assert sent_back.armed is False
        moved = ReassignJob.model_validate({"id": job.id, "assign": {"agent_id": agent.id}})
        await assignment.reassign(rt, MEMBER, moved)
        await scheduling.due(rt, now())
        assert (await Job.get(id=job.id)).status is JobStatus.ASSIGNED
        assert len(endpoint.received) == 1


async def test_auto_execute_can_be_switched_on_and_off(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        job = await make_job(rt, agent, auto_execute=True, run_at=now() + FAR)
        off = await update(rt, job, auto_execute=False)
        assert (off.armed, await timers_of(job)) == (False, {})
        await update(rt, job, run_at=None)
        await scheduling.due(rt, now())
        assert endpoint.received == []
        on = await update(rt, job, auto_execute=True)
        assert on.armed
        await becomes(job, JobStatus.COMPLETED)


# runAt


async def test_armed_job_starts_at_its_run_at(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        run_at = now() + SOON
        job = await make_job(rt, agent, auto_execute=True, run_at=run_at)
        assert (job.status, job.armed) == (JobStatus.ASSIGNED, True)
        assert await timers_of(job) == {TimerKind.START: run_at}
        await becomes(job, JobStatus.COMPLETED)
        started = (await logs_of(job))[1]
        assert started.created_at >= run_at


async def test_execution_before_run_at_is_refused_and_says_when(rt: Runtime) -> None:
    run_at = datetime(2100, 1, 1, tzinfo=UTC)
    job = await make_job(rt, await make_agent(rt), run_at=run_at)
    before = await snapshot(job)
    with pytest.raises(IllegalTransition, match=r"before its runAt, 2100-01-01T00:00:00\+00:00"):
        await execute(rt, job)
    assert await snapshot(job) == before


async def test_job_armed_for_later_starts_when_run_at_is_moved_to_now(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        job = await make_job(rt, agent, run_at=now() + FAR)
        armed = await arm(rt, job)
        assert (armed.status, armed.armed) == (JobStatus.ASSIGNED, True)
        entry = (await logs_of(job))[-1]
        assert entry.type is JobLogType.CONFIG_CHANGE
        assert entry.actor_id == MEMBER.id
        assert jsontext.loads(entry.payload_json or "")["event"] == "ARM"
        assert await timers_of(job) == {TimerKind.START: job.run_at}
        later = now() + 2 * FAR
        await update(rt, job, run_at=later)
        assert await timers_of(job) == {TimerKind.START: later}
        await update(rt, job, run_at=now())
        await becomes(job, JobStatus.COMPLETED)


async def test_time_without_a_zone_is_utc(rt: Runtime) -> None:
    job = await make_job(rt, due_at=datetime(2100, 1, 1, 12), run_at="2100-01-01T12:00:00+02:00")  # noqa: DTZ001
    row = await Job.get(id=job.id)
    assert row.due_at == datetime(2100, 1, 1, 12, tzinfo=UTC)
    assert row.run_at == datetime(2100, 1, 1, 10, tzinfo=UTC)


async def test_callers_are_told_what_is_planned(client: Client) -> None:
    async with agent(client) as (agent_id, _):
        run_at = now() + FAR
        east = run_at.astimezone(timezone(timedelta(hours=1)))
        times = {"runAt": east.isoformat(), "dueAt": "2100-01-02T00:00:00Z"}
        plan: Json = times | {"ttlSeconds": 300_000_000, "autoExecute": True}
        before = now()
        made = await new_job(client, assign={"agentId": agent_id}, **plan)
        after = now()
        found = (await gql(client, PLANNED, id=made["id"]))["job"]
        actions = {each["action"]: each["reason"] for each in found.pop("availableActions")}
        why = f"It is not to start before its runAt, {run_at.isoformat()}."
        assert actions["EXECUTE"] == why
        expires_at = datetime.fromisoformat(found.pop("expiresAt"))
        assert before <= expires_at - timedelta(seconds=300_000_000) <= after
        assert found == {
            "runAt": run_at.isoformat(),
            "dueAt": "2100-01-02T00:00:00+00:00",
            "autoExecute": True,
            "armed": True,
        }
        refused = await mutate(client, "executeJob", input={"id": made["id"]})
        assert (refused["__typename"], refused["message"]) == ("IllegalTransition", why)
        cleared = dict.fromkeys(("runAt", "dueAt", "expiresAt")) | {"autoExecute": False}
        await mutate(client, "updateJob", input={"id": made["id"]} | cleared)
        found = (await gql(client, PLANNED, id=made["id"]))["job"]
        assert [found[name] for name in cleared] == [None, None, None, False]
        assert found["armed"] is False
        for name in ("runAt", "dueAt", "expiresAt"):
            told = await problems(
                client, "updateJob", input={"id": made["id"], name: "9999-12-31T00:00:00Z"}
            )
            assert list(told) == [f"input.{name}"]


PLANNED = """
query($id: ID!) { job(id: $id) {
  runAt dueAt expiresAt autoExecute armed availableActions { action reason }
} }"""


# whenReady


async def test_when_ready_starts_at_once_what_is_ready(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        job = await make_job(rt, await make_agent(rt, endpoint.url))
        done = await execute(rt, job, when_ready=True)
        assert (done.status, done.armed) == (JobStatus.COMPLETED, False)


async def test_when_ready_waits_for_a_paused_agent(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        job = await make_job(rt, agent)
        await agents.set_availability(rt, LOCAL_ADMIN, agent.id, AgentAvailability.PAUSED)
        with pytest.raises(AgentUnavailable):
            await execute(rt, job)
        armed = await arm(rt, job)
        assert (armed.status, armed.armed) == (JobStatus.ASSIGNED, True)
        why = f"The agent “{agent.name}” is PAUSED; choose an ACTIVE one or set its availability."
        await held(job, why)
        await parked(job)
        await agents.set_availability(rt, LOCAL_ADMIN, agent.id, AgentAvailability.ACTIVE)
        done = await becomes(job, JobStatus.COMPLETED)
        assert len(endpoint.received) == 1
        assert done.status_message != f"Held: {why}"


async def test_held_job_starts_at_another_agent(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        paused, other = await make_agent(rt), await make_agent(rt, endpoint.url)
        job = await make_job(rt, paused, auto_execute=True, run_at=now() + FAR)
        await agents.set_availability(rt, LOCAL_ADMIN, paused.id, AgentAvailability.PAUSED)
        await update(rt, job, run_at=None)
        await parked(job)
        told = [e.message for e in await logs_of(job)]
        assert [str(message).startswith("Held: The agent") for message in told][-1]
        moved = ReassignJob.model_validate({"id": job.id, "assign": {"agent_id": other.id}})
        await assignment.reassign(rt, MEMBER, moved)
        await becomes(job, JobStatus.COMPLETED)


async def test_what_holds_a_job_is_said_once_and_hides_no_reason(rt: Runtime) -> None:
    async with fake_agent(says_no) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        job = await execute(rt, await make_job(rt, agent))
        assert job.status is JobStatus.RESUBMISSION_REQUIRED
        await agents.set_availability(rt, LOCAL_ADMIN, agent.id, AgentAvailability.PAUSED)
        await arm(rt, job)
        await parked(job)
        for _ in range(3):
            await agents.set_availability(rt, LOCAL_ADMIN, agent.id, AgentAvailability.DISABLED)
            await parked(job)
        row = await Job.get(id=job.id)
        assert row.status_message == job.status_message
        said = [e.message for e in await logs_of(job) if (e.message or "").startswith("Held: ")]
        assert [("PAUSED" in str(m), "DISABLED" in str(m)) for m in said] == [
            (True, False),
            (False, True),
        ]


async def test_feedback_cannot_wait(rt: Runtime) -> None:
    job = await make_job(rt, await make_agent(rt), run_at=now() + FAR)
    before = await snapshot(job)
    with pytest.raises(InvalidInput, match=r"input\.feedback: cannot be kept until the job starts"):
        await execute(rt, job, when_ready=True, feedback="Be brief.")
    assert await snapshot(job) == before


async def test_when_ready_needs_an_agent_and_a_job_that_can_start(rt: Runtime) -> None:
    for job, why in (
        (await make_job(rt, run_at=now() + FAR), "PENDING does not allow EXECUTE"),
        (await cancelled(rt, await make_job(rt)), "CANCELLED does not allow EXECUTE"),
    ):
        before = await snapshot(job)
        with pytest.raises(IllegalTransition, match=why):
            await arm(rt, job)
        assert await snapshot(job) == before


async def cancelled(rt: Runtime, job: Job) -> Job:
    return await decisions.cancel(rt, MEMBER, CancelJob(id=job.id))


# Disarmed


async def test_cancelled_and_forced_jobs_never_start(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        jobs_armed = [
            await arm(rt, await make_job(rt, agent, run_at=now() + SOON)) for _ in range(2)
        ]
        await cancelled(rt, jobs_armed[0])
        force = {"id": jobs_armed[1].id, "result": 1, "reason": "r"}
        await decisions.force_complete(rt, ADMIN, ForceComplete.model_validate(force))
        marker = await make_job(rt, agent, auto_execute=True, run_at=now() + SOON + SOON)
        await becomes(marker, JobStatus.COMPLETED)
        assert len(endpoint.received) == 1
        for job in jobs_armed:
            row = await Job.get(id=job.id)
            assert (row.armed, row.attempt_count, await timers_of(row)) == (False, 0, {})


async def test_unassigned_job_is_disarmed_unless_it_executes_by_itself(rt: Runtime) -> None:
    agent = await make_agent(rt)
    for auto in (False, True):
        job = await make_job(rt, agent, run_at=now() + FAR, auto_execute=auto)
        await arm(rt, job)
        row = await assignment.unassign(rt, MEMBER, job.id, None, None)
        assert row.armed is auto
        assert (await timers_of(job)).keys() == ({TimerKind.START} if auto else set())


async def test_reopened_job_executes_by_itself_again(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        job = await make_job(rt, agent, run_at=now() + FAR, auto_execute=True)
        row = await cancelled(rt, job)
        assert (row.armed, await timers_of(job)) == (False, {})
        row = await decisions.reopen(rt, MEMBER, job.id, "Again.", None)
        assert (row.armed, await timers_of(job)) == (True, {TimerKind.START: job.run_at})


# expiresAt


async def test_job_that_is_not_done_in_time_is_cancelled(rt: Runtime) -> None:
    agent = await make_agent(rt)
    for wanted in (None, agent):
        expires_at = now() + SOON
        job = await make_job(rt, wanted, expires_at=expires_at)
        assert await timers_of(job) == {TimerKind.EXPIRE: expires_at}
        gone = await becomes(job, JobStatus.CANCELLED)
        assert gone.status_reason is StatusReason.EXPIRED
        assert gone.status_message == f"It was not done by {expires_at.isoformat()}."
        entry = (await logs_of(job))[-1]
        assert (entry.type, entry.actor_name) == (JobLogType.STATUS_CHANGE, "Signoff")
        assert entry.created_at >= expires_at
        assert await timers_of(job) == {}


async def test_running_job_that_expires_is_cut_off(rt: Runtime) -> None:
    async with fake_agent(stalls) as endpoint:
        job = await make_job(rt, await make_agent(rt, endpoint.url), ttl_seconds=1)
        await execute(rt, job, wait_seconds=0)
        await holds(lambda: len(endpoint.received) == 1)
        gone = await becomes(job, JobStatus.CANCELLED)
        assert gone.status_reason is StatusReason.EXPIRED
        (attempt,) = await attempts_of(job)
        assert attempt.state is AttemptState.CANCELLED
        await asyncio.wait_for(endpoint.all_closed(), 30)


async def test_finished_job_does_not_expire(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        job = await execute(rt, await make_job(rt, agent, expires_at=now() + FAR))
        assert (job.status, await timers_of(job)) == (JobStatus.COMPLETED, {})


async def test_sent_back_job_expires_when_it_said(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        expires_at = now() + FAR
        job = await execute(rt, await make_job(rt, agent, expires_at=expires_at))
        await decisions.resubmit(rt, ADMIN, ResubmitJob(id=job.id, reason="No."))
        assert await timers_of(job) == {TimerKind.EXPIRE: expires_at}


async def test_reopened_job_has_left_its_expiry_behind(rt: Runtime) -> None:
    job = await make_job(rt, expires_at=now() + SOON)
    await becomes(job, JobStatus.CANCELLED)
    row = await decisions.reopen(rt, MEMBER, job.id, "After all.", None)
    assert (row.status, row.expires_at, await timers_of(job)) == (JobStatus.PENDING, None, {})


async def test_expiry_can_be_moved_and_taken_away(rt: Runtime) -> None:
    job = await make_job(rt)
    at = now() + FAR
    await update(rt, job, expires_at=at)
    assert await timers_of(job) == {TimerKind.EXPIRE: at}
    await update(rt, job, expires_at=at + FAR)
    assert await timers_of(job) == {TimerKind.EXPIRE: at + FAR}
    row = await update(rt, job, expires_at=None, due_at=at)
    assert (row.expires_at, row.due_at, await timers_of(job)) == (None, at, {})


async def test_expired_job_cannot_be_started_before_its_timer(
    database_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, tmp_path)
    async with runtime(settings, allow_private_agents=True, work=False) as rt:
        job = await make_job(rt, await make_agent(rt), expires_at=now() + FAR)
        past = now() - SOON
        await Job.filter(id=job.id).update(expires_at=past)
        with pytest.raises(IllegalTransition, match="It expired at"):
            await execute(rt, job)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"expires_at": timedelta(seconds=-1)}, "input.expiresAt: must be in the future"),
        ({"expires_at": FAR, "ttl_seconds": 5}, "input.ttlSeconds: cannot go with expiresAt"),
        ({"expires_at": FAR, "run_at": FAR}, "input.runAt: must be before it expires"),
        ({"ttl_seconds": 5, "run_at": FAR}, "input.runAt: must be before it expires"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
async def test_times_at_which_nothing_could_come_of_a_job_are_refused(
    rt: Runtime, given: dict[str, Any], path: str
) -> None:
    base = now()
    wanted: dict[str, Any] = {
        k: base + v if isinstance(v, timedelta) else v for k, v in given.items()
    }
    with pytest.raises(InvalidInput) as refused:
        await make_job(rt, **wanted)
    assert str(refused.value) == path
    assert await Job.all().count() == 0
    if "ttl_seconds" not in given:
        job = await make_job(rt)
        before = await snapshot(job)
        with pytest.raises(InvalidInput) as refused:
            await update(rt, job, **wanted)
        assert str(refused.value) == path
        assert await snapshot(job) == before


async def test_run_at_is_held_against_the_expiry_that_the_job_has(rt: Runtime) -> None:
    job = await make_job(rt, expires_at=now() + FAR)
    with pytest.raises(InvalidInput, match=r"input\.runAt: must be before it expires"):
        await update(rt, job, run_at=now() + 2 * FAR)
    await update(rt, job, run_at=now() + 2 * FAR, expires_at=None)


# Many at once


async def test_timers_that_many_claim_do_their_work_once(database_url: str, tmp_path: Path) -> None:
    settings = settings_for(database_url, tmp_path)
    async with runtime(settings, allow_private_agents=True, work=False) as rt:
        agent = await make_agent(rt)
        starting = [await make_job(rt, agent, auto_execute=True) for _ in range(10)]
        expiring = [await make_job(rt, agent, expires_at=now() + SOON) for _ in range(10)]
        await holds(lambda: all(now() >= job.expires_at for job in expiring if job.expires_at))
        await asyncio.gather(*(scheduling.due(rt, now()) for _ in range(8)))
        for job in starting:
            row = await Job.get(id=job.id)
            assert (row.status, row.attempt_count) == (JobStatus.IN_EXECUTION, 1)
            assert len(await attempts_of(job)) == 1
        for job in expiring:
            assert (await Job.get(id=job.id)).status is JobStatus.CANCELLED
            assert len(await logs_of(job)) == 2
        assert await Timer.all().count() == 0


async def test_timer_that_nobody_dealt_with_goes_off_again(
    database_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, tmp_path)
    async with runtime(settings, allow_private_agents=True, work=False) as rt:
        job = await make_job(rt, await make_agent(rt), auto_execute=True)
        (claimed,) = await timers.claim(now())
        assert (claimed.job_id, claimed.kind) == (job.id, TimerKind.START)
        assert await timers.claim(now()) == []
        later = claimed.until + timedelta(milliseconds=1)
        await scheduling.due(rt, later)
        assert (await Job.get(id=job.id)).status is JobStatus.IN_EXECUTION


async def test_change_while_a_timer_is_dealt_with_is_not_lost(
    database_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, tmp_path)
    async with runtime(settings, allow_private_agents=True, work=False) as rt:
        agent = await make_agent(rt)
        job = await make_job(rt, agent, auto_execute=True, run_at=now() + FAR)
        await Timer.filter(job_id=job.id).update(at=now())
        (claimed,) = await timers.claim(now())
        seen = await Job.get(id=job.id)
        await update(rt, job, run_at=None)

        @atomic
        async def park(rt: Runtime) -> None:
            timers.park(claimed, seen)

        with pytest.raises(Moved):
            await park(rt)
        await scheduling.due(rt, now())
        assert (await Job.get(id=job.id)).status is JobStatus.IN_EXECUTION
