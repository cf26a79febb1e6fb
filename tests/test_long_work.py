"""Agents that answer 202 and then later, where they are asked or by their callback URL."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from models import (
    AgentGate,
    AttemptState,
    Job,
    JobLogType,
    JobPhase,
    JobStatus,
    LongCall,
    QueueEntry,
    QueueState,
    Role,
    StatusReason,
    jsontext,
)
from models.base import uuid7
from services import agents, assignment, awaiting, decisions, execution, queue
from services.agent_http import locations, verify
from services.assignment import ReassignJob
from services.decisions import CancelJob, ForceComplete, ResubmitJob
from services.execution import ExecuteJob
from services.runtime import Runtime
from services.values import public_id
from services.waiting import running_counts
from services.workers import Orphan
from signoff.app import RUNTIME
from signoff.wiring import runtime
from tests.fakes.agents import Behaviour, Received, fake_agent
from tests.support import consistency
from tests.support.graphql import gql, make_key
from tests.support.making import (
    ADMIN,
    MEMBER,
    answers,
    attempts_of,
    error_of,
    execute,
    holds,
    in_turn,
    key_of,
    log_types,
    logs_of,
    make_agent,
    make_job,
    says_ok,
    snapshot,
    stalls,
    until,
)
from tests.support.running import Client, settings_for

PUBLIC = "http://signoff.test/base"
FOREVER = 3600
OK = {"answer": "ok"}


def later(location: str | None = "/work/7?ticket=s3cret", *headers: str) -> Behaviour:
    """202, with where to look."""
    told = () if location is None else (f"location: {location}",)
    return answers({}, "202 Accepted", *told, *headers)


still_at_work = answers({}, "202 Accepted")
patient = later("/work/7", "retry-after: 3600")
"""Is not to be asked before the test is over."""


def path_of(received: Received) -> str:
    return received.start_line.split(" ")[1]


def methods(received: list[Received]) -> list[str]:
    return [each.start_line.split(" ")[0] for each in received]


async def in_phase(job: Job, phase: JobPhase) -> Job:
    async def found() -> Job | None:
        now = await Job.get(id=job.id)
        return now if now.phase is phase else None

    return await until(found)


async def ended(job: Job) -> Job:
    async def found() -> Job | None:
        now = await Job.get(id=job.id)
        return now if now.status is not JobStatus.IN_EXECUTION else None

    return await until(found)


async def awaited(rt: Runtime, url: str, **given: Any) -> Job:
    """A job whose agent has accepted it."""
    job = await make_job(rt, await make_agent(rt, url, **given))
    await execute(rt, job, wait_seconds=0)
    return await in_phase(job, JobPhase.AWAITING_AGENT)


async def payloads(job: Job, type: JobLogType) -> list[Any]:
    entries = [entry for entry in await logs_of(job) if entry.type is type]
    return [jsontext.loads_or_none(entry.payload_json) for entry in entries]


# Asked how far it is


async def test_agent_is_asked_where_it_said_until_it_answers(rt: Runtime) -> None:
    behave = in_turn(later(), still_at_work, still_at_work, answers(OK))
    async with fake_agent(behave) as fake:
        agent = await make_agent(rt, fake.url, auth_header="Authorization: Bearer of-the-agent")
        job = await make_job(rt, agent)
        done = await execute(rt, job)
    assert (done.status, done.status_reason) == (JobStatus.COMPLETED, StatusReason.VERDICT_PASSED)
    assert jsontext.loads(done.result_json or "") == OK
    assert methods(fake.received) == ["POST", "GET", "GET", "GET"]
    assert {path_of(each) for each in fake.received[1:]} == {"/work/7?ticket=s3cret"}
    assert len({key_of(each) for each in fake.received}) == 1
    secret = rt.vault.open(agent.signing_secret_sealed)
    for each in fake.received[1:]:
        verify(secret, each.headers, b"", now=datetime.now(UTC).timestamp())
        assert each.headers["authorization"] == "Bearer of-the-agent"
        assert each.headers["signoff-job-id"] == fake.received[0].headers["signoff-job-id"]
        assert not {"content-type", "signoff-callback-url"} & each.headers.keys()
    (attempt,) = await attempts_of(job)
    assert (attempt.state, attempt.http_status) == (AttemptState.SUCCEEDED, 200)
    (accepted,) = await payloads(job, JobLogType.AGENT_PROGRESS)
    assert accepted.keys() == {"httpStatus", "endsAt"}
    assert await log_types(job) == [
        *("STATUS_CHANGE", "STATUS_CHANGE", "AGENT_REQUEST", "AGENT_PROGRESS", "AGENT_RESPONSE"),
        *("VALIDATOR_REQUEST", "VALIDATOR_RESPONSE", "VERDICT", "STATUS_CHANGE"),
    ]
    assert (await LongCall.get(attempt_id=attempt.id)).polls == 2


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/work/7", "/work/7"),
        ("work/7", "/work/7"),
        ("?id=7", "/run?id=7"),
        ("http://127.0.0.1:{port}/a//b?c=d%2Fe#part", "/a//b?c=d%2Fe"),
    ],
)
async def test_location_is_relative_or_absolute(rt: Runtime, location: str, path: str) -> None:
    async def behave(received: Received) -> None:
        if received.start_line.startswith("POST"):
            await later(location.format(port=fake.port))(received)
        else:
            await says_ok(received)

    async with fake_agent(behave) as fake:
        done = await execute(rt, await make_job(rt, await make_agent(rt, fake.url)))
    assert done.status is JobStatus.COMPLETED
    assert [path_of(each) for each in fake.received] == ["/run", path]


REFUSED = {
    "http://127.0.0.1:1/work": "it is not on the endpoint's own scheme, host and port",
    "//elsewhere.test/work": "it is not on the endpoint's own scheme, host and port",
    "https://127.0.0.1:{port}/work": "it is not on the endpoint's own scheme, host and port",
    "http://localhost:{port}/work": "it is not on the endpoint's own scheme, host and port",
    "http://a:b@127.0.0.1:{port}/work": "it has a user or password",
    "file:///etc/passwd": "it is not a URL",
    "/\\elsewhere.test": "it has a backslash",
    "http://[": "it is not a URL",
    "/a b": "it is not a URL",
    f"/{'x' * 2000}": "it has more than 2000 characters",
}


async def test_location_elsewhere_is_refused_and_nothing_is_sent_there(rt: Runtime) -> None:
    async with fake_agent(stalls) as fake:
        for location, why in REFUSED.items():
            fake.behave = later(location.format(port=fake.port))
            job = await make_job(rt, await make_agent(rt, fake.url))
            done = await execute(rt, job)
            assert done.status is JobStatus.RESUBMISSION_REQUIRED
            assert done.status_reason is StatusReason.AGENT_ERROR
            message = f"The Location of the agent's 202 Accepted cannot be used: {why}."
            assert await error_of(job) == {
                "code": "NOT_AWAITABLE",
                "message": message,
                "retryable": False,
                "mayHaveExecuted": True,
            }
    assert set(methods(fake.received)) == {"POST"}
    assert len(fake.received) == len(REFUSED)


def test_url_of_a_path_never_leaves_the_agent() -> None:
    for path in ("//elsewhere.test/x", "/@elsewhere.test", "/..//x"):
        assert locations.url_at(path, "http://agent.test:81/run").host == "agent.test"


@pytest.mark.parametrize(
    ("location", "endpoint"),
    [
        ("https://agent.test:443/w?x=%2F", "https://agent.test/run"),
        ("http://agent.test/w?x=%2F", "http://agent.test:80/run"),
        ("HTTPS://Agent.Test/w?x=%2F", "https://agent.test/run"),
        ("https://xn--mnchen-3ya.test/w?x=%2F", "https://münchen.test/run"),
    ],
)
def test_an_origin_is_the_same_in_each_of_its_spellings(location: str, endpoint: str) -> None:
    assert locations.path_of(location, endpoint) == "/w?x=%2F"


async def test_202_without_any_way_back_is_an_error(rt: Runtime) -> None:
    async with fake_agent(later(None)) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url))
        done = await execute(rt, job)
    assert (done.status, done.status_reason) == (
        JobStatus.RESUBMISSION_REQUIRED,
        StatusReason.AGENT_ERROR,
    )
    error = await error_of(job)
    assert (error["code"], error["mayHaveExecuted"]) == ("NOT_AWAITABLE", True)
    assert "SIGNOFF_PUBLIC_URL is not set" in error["message"]
    assert len(fake.received) == 1


async def test_trouble_with_asking_is_waited_out_and_the_agent_never_called_again(
    rt: Runtime,
) -> None:
    async def hangs_up(received: Received) -> None:
        received.close()

    behave = in_turn(
        later(),
        answers({}, "500 Internal Server Error"),
        answers({}, "503 Service Unavailable"),
        hangs_up,
        answers({}, "429 Too Many Requests", "retry-after: 0"),
        still_at_work,
        answers(OK),
    )
    async with fake_agent(behave) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url))
        done = await execute(rt, job)
    assert done.status is JobStatus.COMPLETED
    assert methods(fake.received) == ["POST", *["GET"] * 6]
    _, trouble = await payloads(job, JobLogType.AGENT_PROGRESS)
    assert trouble == {"error": "SERVER_ERROR", "httpStatus": 500}
    assert await AgentGate.filter(failures__gt=0).count() == 0


@pytest.mark.parametrize(
    ("status", "code", "reason", "retryable"),
    [
        ("404 Not Found", "GONE", StatusReason.AGENT_ERROR, True),
        ("410 Gone", "GONE", StatusReason.AGENT_ERROR, True),
        ("422 Unprocessable Content", "REJECTED", StatusReason.AGENT_REJECTED, False),
        ("303 See Other", "REDIRECTED", StatusReason.AGENT_ERROR, False),
        ("204 No Content", "NOT_JSON", StatusReason.AGENT_ERROR, False),
    ],
)
async def test_answers_that_end_the_waiting(
    rt: Runtime, status: str, code: str, reason: StatusReason, *, retryable: bool
) -> None:
    async with fake_agent(in_turn(later(), answers({}, status, "location: /done"))) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url))
        done = await execute(rt, job)
    assert (done.status, done.status_reason) == (JobStatus.RESUBMISSION_REQUIRED, reason)
    error = await error_of(job)
    assert (error["code"], error["retryable"]) == (code, retryable)
    assert error["mayHaveExecuted"] is True
    assert methods(fake.received) == ["POST", "GET"]


async def test_agent_that_moved_is_asked_where_it_is_now(rt: Runtime) -> None:
    async with fake_agent(later("/work/7", "retry-after: 1")) as old, fake_agent(says_ok) as new:
        job = await awaited(rt, old.url)
        agent = await agents.get(ADMIN, job.agent_id or job.id)
        await agents.save(
            rt,
            ADMIN,
            agents.SaveAgent.model_validate(
                {"id": agent.id, "name": agent.name, "endpoint_url": new.url}
            ),
        )
        done = await ended(job)
    assert done.status is JobStatus.COMPLETED
    assert (methods(old.received), methods(new.received)) == (["POST"], ["GET"])


async def test_usage_counts_from_the_answer_that_ends_it(rt: Runtime) -> None:
    used = ("signoff-input-tokens: 3", "signoff-output-tokens: 4", "signoff-cost-usd: 0.5")
    behave = in_turn(later("/w", *used), answers(OK, "200 OK", *used))
    async with fake_agent(behave) as fake:
        agent = await make_agent(rt, fake.url, max_call_tokens=50, max_call_cost_usd=2)
        job = await make_job(rt, agent)
        done = await execute(rt, job)
    assert (done.input_tokens, done.output_tokens, done.cost_micros) == (3, 4, 500_000)


# Deadlines, ladders, budgets


async def test_agent_that_never_answers_is_given_up_at_its_own_limit(rt: Runtime) -> None:
    behave = in_turn(later("/w"), still_at_work)
    async with fake_agent(behave) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url, max_wait_seconds=1))
        done = await execute(rt, job)
    assert (done.status, done.status_reason) == (
        JobStatus.RESUBMISSION_REQUIRED,
        StatusReason.AGENT_TIMEOUT,
    )
    assert await error_of(job) == {
        "code": "TIMEOUT",
        "message": "The agent accepted the work and did not answer within 1 seconds.",
        "retryable": False,
        "mayHaveExecuted": True,
    }
    assert methods(fake.received)[:2] == ["POST", "GET"]
    assert methods(fake.received).count("POST") == 1


async def test_it_is_asked_once_more_when_the_time_is_over(rt: Runtime) -> None:
    async with fake_agent(in_turn(patient, says_ok)) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url, max_wait_seconds=1))
        done = await execute(rt, job)
    assert done.status is JobStatus.COMPLETED
    assert methods(fake.received) == ["POST", "GET"]


async def test_an_idempotent_agent_gets_the_next_attempt_with_the_same_key(rt: Runtime) -> None:
    gone = answers({}, "410 Gone")
    async with fake_agent(in_turn(later(), gone, says_ok)) as fake:
        policy = {"max_attempts": 2, "initial_seconds": 0}
        agent = await make_agent(rt, fake.url, idempotent=True, retry_policy=policy)
        job = await make_job(rt, agent)
        done = await execute(rt, job)
    assert done.status is JobStatus.COMPLETED
    assert methods(fake.received) == ["POST", "GET", "POST"]
    first, _, second = fake.received
    assert key_of(first) == key_of(second)
    states = [each.state for each in await attempts_of(job)]
    assert states == [AttemptState.FAILED, AttemptState.SUCCEEDED]


async def test_the_time_of_the_budget_goes_on_while_it_waits(rt: Runtime) -> None:
    async with fake_agent(patient) as fake:
        agent = await make_agent(rt, fake.url)
        job = await make_job(rt, agent, budget={"max_wall_seconds": 1})
        done = await execute(rt, job)
    assert (done.status, done.status_reason) == (
        JobStatus.RESUBMISSION_REQUIRED,
        StatusReason.BUDGET_EXCEEDED,
    )
    assert (await error_of(job))["mayHaveExecuted"] is True
    assert await QueueEntry.all().count() == 0


async def test_a_job_that_expires_while_it_waits_is_cancelled(rt: Runtime) -> None:
    async with fake_agent(patient) as fake:
        soon = datetime.now(UTC) + timedelta(seconds=2)
        job = await make_job(rt, await make_agent(rt, fake.url), expires_at=soon)
        done = await execute(rt, job)
    assert (done.status, done.status_reason) == (JobStatus.CANCELLED, StatusReason.EXPIRED)
    assert await QueueEntry.all().count() == 0


# Places


async def test_a_thousand_jobs_that_wait_hold_no_worker(rt: Runtime, database_url: str) -> None:
    count = 1000
    async with fake_agent(patient) as fake, fake_agent(says_ok) as other:
        agent = await make_agent(rt, fake.url, max_concurrency=count)
        jobs = [await make_job(rt, agent) for _ in range(count + 1)]
        for job in jobs:
            await execute(rt, job, wait_seconds=0)

        async def all_wait() -> bool:
            return await QueueEntry.filter(state=QueueState.AWAITING).count() == count

        await until(all_wait, 60)
        await holds(lambda: rt.engine.running == 0)
        assert await running_counts([agent.id]) == [count]
        # Its maxConcurrency is used up, so the last one waits; another agent's job does not.
        assert await QueueEntry.filter(state=QueueState.WAITING).count() == 1
        done = await execute(rt, await make_job(rt, await make_agent(rt, other.url)))
        assert done.status is JobStatus.COMPLETED
        (waiting,) = await QueueEntry.filter(state=QueueState.WAITING)
        freed = next(job for job in jobs if job.id != waiting.job_id)
        await decisions.cancel(rt, ADMIN, CancelJob(id=freed.id))
        await in_phase(await Job.get(id=waiting.job_id), JobPhase.AWAITING_AGENT)
        assert await QueueEntry.filter(state=QueueState.WAITING).count() == 0
    await consistency.check(database_url)


async def test_a_worker_takes_no_more_looks_than_it_has_places_for(
    database_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, tmp_path)
    async with runtime(settings, allow_private_agents=True, work=False) as rt:
        agent = await make_agent(rt)
        for _ in range(5):
            await execute(rt, await make_job(rt, agent), wait_seconds=0)
        now = datetime.now(UTC)
        await QueueEntry.all().update(state=QueueState.AWAITING, ready_at=now)
        for rest in (2, 2, 1, 0):
            assert len((await queue.resume(uuid7(), 2, now)).taken) == rest


async def test_looks_that_hang_leave_places_to_other_work(
    database_url: str, tmp_path: Path
) -> None:
    async def hangs_when_asked(received: Received) -> None:
        await (patient if received.start_line.startswith("POST") else stalls)(received)

    settings = settings_for(database_url, tmp_path, max_executions=4)
    async with (
        fake_agent(hangs_when_asked) as fake,
        fake_agent(says_ok) as other,
        runtime(settings, allow_private_agents=True) as rt,
    ):
        for _ in range(4):
            await awaited(rt, fake.url)
        now = datetime.now(UTC)
        await QueueEntry.all().update(ready_at=now)
        rt.engine.wake(now)
        await holds(lambda: methods(fake.received).count("GET") >= 2)
        done = await execute(rt, await make_job(rt, await make_agent(rt, other.url)))
        assert done.status is JobStatus.COMPLETED
        assert methods(fake.received).count("GET") == 2
        assert await QueueEntry.filter(state=QueueState.AWAITING).count() == 2


async def test_a_look_that_hangs_ends_long_before_the_time_of_an_attempt(
    rt: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(awaiting, "LOOK_SECONDS", 0.1)
    async with fake_agent(in_turn(later(), stalls, says_ok)) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url, timeout_seconds=3600))
        assert (await execute(rt, job)).status is JobStatus.COMPLETED
    assert methods(fake.received) == ["POST", "GET", "GET"]
    assert [told.get("error") for told in await payloads(job, JobLogType.AGENT_PROGRESS)] == [
        None,
        "TIMEOUT",
    ]


async def test_a_look_that_was_survived_forgives_the_workers_that_were_lost_before(
    rt: Runtime,
) -> None:
    """However many are lost over the days, it is no poison as long as looks come to an end."""
    laps, losses = rt.options.max_losses, 2
    async with fake_agent(patient) as fake:
        job = await awaited(rt, fake.url)
        for lap in range(laps):
            for times in range(losses):
                await lose_its_worker(rt, job)
                (attempt,) = await attempts_of(job)
                assert attempt.resumptions == times + 1
            await look_now(rt, job)

            async def looked_at(polls: int = lap + 1) -> bool:
                return await LongCall.filter(polls=polls).exists()

            await until(looked_at)
            (attempt,) = await attempts_of(job)
            assert (attempt.resumptions, (await QueueEntry.get(job_id=job.id)).lost) == (0, 0)
        fake.behave = says_ok
        await look_now(rt, job)
        assert (await ended(job)).status is JobStatus.COMPLETED
    assert methods(fake.received) == ["POST", *["GET"] * (laps + 1)]


async def lose_its_worker(rt: Runtime, job: Job) -> None:
    """As if one had ended while it looked how far the agent is, and another one found that out."""
    orphan = Orphan(job.id, 1, uuid7())
    entry = QueueEntry.filter(job_id=job.id)
    await entry.update(state=QueueState.RUNNING, worker_id=orphan.worker_id)
    await execution.take_over(rt, orphan)


async def look_now(rt: Runtime, job: Job) -> None:
    now = datetime.now(UTC)
    await QueueEntry.filter(job_id=job.id).update(ready_at=now)
    rt.engine.wake(now)


async def test_paused_agents_and_open_circuits_hold_up_no_answer(rt: Runtime) -> None:
    async with fake_agent(in_turn(later("/w", "retry-after: 1"), says_ok)) as fake:
        agent = await make_agent(rt, fake.url, rate_per_minute=1)
        job = await make_job(rt, agent)
        await execute(rt, job, wait_seconds=0)
        await in_phase(job, JobPhase.AWAITING_AGENT)
        await agents.set_availability(rt, ADMIN, agent.id, agents.AgentAvailability.PAUSED)
        far = datetime.now(UTC) + timedelta(hours=1)
        await AgentGate.filter(agent_id=agent.id).update(open_until=far, failures=5)
        assert (await ended(job)).status is JobStatus.COMPLETED


# Ended by somebody else


async def cancel(rt: Runtime, job: Job, _: Any) -> Job:
    return await decisions.cancel(rt, ADMIN, CancelJob(id=job.id))


async def force(rt: Runtime, job: Job, _: Any) -> Job:
    command = ForceComplete.model_validate({"id": job.id, "result": 1, "reason": "It hurries."})
    return await decisions.force_complete(rt, ADMIN, command)


async def resubmit(rt: Runtime, job: Job, _: Any) -> Job:
    return await decisions.resubmit(rt, ADMIN, ResubmitJob(id=job.id, reason="Wrong."))


async def interrupt(rt: Runtime, job: Job, to: Any) -> Job:
    given = {"id": job.id, "assign": {"agent_id": to}, "interrupt_running": True}
    return await assignment.reassign(rt, ADMIN, ReassignJob.model_validate(given))


@pytest.mark.parametrize("end", [cancel, force, resubmit, interrupt])
async def test_what_is_ended_while_it_waits_is_not_asked_for_again(
    rt: Runtime, database_url: str, end: Any
) -> None:
    async with fake_agent(later("/w", "retry-after: 1")) as fake, fake_agent(says_ok) as other:
        job = await awaited(rt, fake.url)
        to = await make_agent(rt, other.url)
        after = await end(rt, job, to.id)
        assert after.status is not JobStatus.IN_EXECUTION
        assert await QueueEntry.all().count() == 0
        before = await snapshot(job)
        # Another one that was to be asked at the same time is.
        fake.behave = in_turn(later("/w", "retry-after: 1"), says_ok)
        assert (await execute(rt, await make_job(rt, await make_agent(rt, fake.url)))).result_json
        assert await snapshot(job) == before
        assert methods(fake.received) == ["POST", "POST", "GET"]
    (attempt,) = await attempts_of(job)
    assert attempt.state is AttemptState.CANCELLED
    await consistency.check(database_url)


async def test_a_request_how_far_it_is_is_cut_off_by_a_cancel(rt: Runtime) -> None:
    async with fake_agent(in_turn(later(), stalls)) as fake:
        job = await awaited(rt, fake.url)
        await holds(lambda: len(fake.received) == 2)
        await cancel(rt, job, None)
        async with asyncio.timeout(5):
            await fake.all_closed()
        await holds(lambda: rt.engine.running == 0)
    assert (await Job.get(id=job.id)).status is JobStatus.CANCELLED


async def test_who_waits_for_the_outcome_gets_the_job_as_it_is_or_its_end(rt: Runtime) -> None:
    async with fake_agent(in_turn(patient, says_ok)) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url, max_wait_seconds=3))
        command = ExecuteJob(id=job.id, wait_seconds=1)
        now = await execution.execute(rt, MEMBER, command)
        assert (now.status, now.phase) == (JobStatus.IN_EXECUTION, JobPhase.AWAITING_AGENT)
        done = await execution.outcome(rt, job, 30)
    assert done.status is JobStatus.COMPLETED


LONG_CALL = """query($id: ID!) { job(id: $id) { phase waitingFor
    agent { runningCount maxWaitSeconds }
    logs { nodes { message payload } }
    currentAttempt { longCall { location polls trouble endsAt } } } }"""


async def test_where_an_agent_is_asked_is_told_to_admins_and_without_its_query(
    database_url: str, client: Client
) -> None:
    rt = client.app[RUNTIME]
    async with fake_agent(later("/work/7?ticket=s3cret", "retry-after: 3600")) as fake:
        job = await awaited(rt, fake.url, max_wait_seconds=600)
        id = public_id("job", job.id)
        seen: dict[str, Any] = {}
        for role in (Role.ADMIN, Role.MEMBER, Role.VIEWER):
            key = await make_key(database_url, MEMBER.id, role)
            found = await gql(client, LONG_CALL, key, id=id)
            seen[role] = found["job"]
    call = await LongCall.get(attempt_id=(await attempts_of(job))[0].id)
    for role, found in seen.items():
        told = found["currentAttempt"].pop("longCall")
        assert datetime.fromisoformat(told.pop("endsAt")) == call.ends_at
        assert "work/7" not in repr(found.pop("logs"))
        location = "/work/7" if role is Role.ADMIN else None
        assert told == {"location": location, "polls": 0, "trouble": None}
        assert found["agent"] == {"runningCount": 1, "maxWaitSeconds": 600}
        assert (found["phase"], found["waitingFor"]) == ("AWAITING_AGENT", None)


async def test_attempts_that_are_answered_at_once_have_no_long_call(client: Client) -> None:
    rt = client.app[RUNTIME]
    async with fake_agent(says_ok) as fake:
        job = await execute(rt, await make_job(rt, await make_agent(rt, fake.url)))
    found = await gql(client, LONG_CALL, id=public_id("job", job.id))
    assert found["job"]["currentAttempt"] == {"longCall": None}
    assert await LongCall.all().count() == 0


async def test_a_test_call_says_that_the_answer_comes_later(rt: Runtime) -> None:
    async with fake_agent(later()) as fake:
        trial = await agents.test(rt, ADMIN, (await make_agent(rt, fake.url)).id, 1)
    assert (trial.ok, trial.problem) == (False, agents.LATER)
    assert methods(fake.received) == ["POST"]
