"""Executions against real agents: what each behaviour comes to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tortoise.models import Model

import models
from models import (
    AgentAvailability,
    Attempt,
    AttemptState,
    CompletionMode,
    Job,
    JobLogType,
    JobPhase,
    JobStatus,
    QueueEntry,
    StatusReason,
    Verdict,
    VerdictOutcome,
    jsontext,
)
from models.base import uuid7
from services import agent_http, agents, assignment, decisions, execution, jobs, judging
from services.actors import LOCAL_ADMIN
from services.assignment import AssignJob, ReassignJob
from services.decisions import CancelJob, ForceComplete, ResubmitJob, Review
from services.errors import (
    AgentUnavailable,
    IllegalTransition,
    InvalidInput,
    SchemaMismatch,
    SignoffError,
)
from services.execution import ExecuteJob
from services.jobs import UpdateJob
from services.runtime import Runtime
from services.values import public_id
from signoff.wiring import runtime
from tests.fakes import openai_server
from tests.fakes.agents import Behaviour, FakeAgent, Received, fake_agent
from tests.fakes.openai_server import FakeOpenAI
from tests.support.making import (
    ADMIN,
    IS_POLITE,
    MEMBER,
    NOWHERE,
    SAYS_OK,
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
    says_no,
    says_ok,
    snapshot,
    stalls,
    until,
)
from tests.support.running import settings_for

PASSED = [
    "STATUS_CHANGE",
    "STATUS_CHANGE",
    "AGENT_REQUEST",
    "AGENT_RESPONSE",
    "VALIDATOR_REQUEST",
    "VALIDATOR_RESPONSE",
    "VERDICT",
    "STATUS_CHANGE",
]


async def told(job: Job, type: JobLogType) -> list[Any]:
    """The payloads of all entries of a type."""
    entries = [entry for entry in await logs_of(job) if entry.type is type]
    return [jsontext.loads_or_none(entry.payload_json) for entry in entries]


# Passing and failing


async def test_good_answer_completes_the_job(rt: Runtime) -> None:
    async with fake_agent(says_ok) as fake:
        agent = await make_agent(rt, fake.url)
        job = await make_job(rt, agent, input={"q": 1})
        done = await execute(rt, job)
    assert done.status is JobStatus.COMPLETED
    assert done.status_reason is StatusReason.VERDICT_PASSED
    assert done.completion_mode is CompletionMode.VALIDATED
    assert done.phase is None
    assert jsontext.loads(done.result_json or "") == {"answer": "ok"}
    (attempt,) = await attempts_of(job)
    assert (attempt.number, attempt.state) == (1, AttemptState.SUCCEEDED)
    assert attempt.http_status == 200
    assert attempt.request_json == '{"q":1}'
    assert attempt.response_json == '{"answer":"ok"}'
    assert attempt.error_json is None
    assert attempt.started_at
    assert attempt.responded_at
    assert attempt.finished_at
    verdict = await Verdict.get(attempt_id=attempt.id)
    assert (verdict.outcome, verdict.score) == (VerdictOutcome.PASS, 1)
    (received,) = fake.received
    assert received.body == b'{"q":1}'
    assert await log_types(job) == PASSED


async def test_bad_answer_sends_the_job_back_with_reasons(rt: Runtime) -> None:
    async with fake_agent(says_no) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url))
        done = await execute(rt, job)
    assert done.status is JobStatus.RESUBMISSION_REQUIRED
    assert done.status_reason is StatusReason.VERDICT_FAILED
    assert done.result_json is None
    assert done.completion_mode is None
    assert done.status_message
    assert done.status_message.startswith("0 of 1 criteria passed. FAIL ok “The answer is ok.”:")
    (attempt,) = await attempts_of(job)
    assert attempt.state is AttemptState.FAILED
    assert attempt.response_json == '{"answer":"no"}'
    assert (await Verdict.get(attempt_id=attempt.id)).outcome is VerdictOutcome.FAIL
    assert await log_types(job) == PASSED


async def test_every_entry_of_an_execution_names_its_attempt_agent_and_actor(rt: Runtime) -> None:
    async with fake_agent(says_ok) as fake:
        agent = await make_agent(rt, fake.url)
        job = await make_job(rt, agent, input={"q": 1})
        await execute(rt, job)
    (attempt,) = await attempts_of(job)
    created, asked, *steps, passed = await logs_of(job)
    assert (created.actor_name, asked.actor_name) == ("Mia", "Mia")
    for step in steps:
        assert step.attempt_id == attempt.id
        assert step.status is JobStatus.IN_EXECUTION
    for entry in (*steps, passed):
        assert entry.actor_name == "Signoff"
        assert entry.agent_id == agent.id
        assert not entry.payload_truncated
    request, response = (jsontext.loads(entry.payload_json or "") for entry in steps[:2])
    key = public_id("attempt", attempt.id)
    assert request == {"try": 1, "idempotencyKey": key, "feedback": [], "body": {"q": 1}}
    assert response == {
        "judgedAtOnce": True,
        "httpStatus": 200,
        "latencyMs": attempt.latency_ms,
        "body": {"answer": "ok"},
    }


async def test_tries_of_an_attempt_share_a_key_and_attempts_do_not(rt: Runtime) -> None:
    busy = answers({}, "429 Too Many Requests", "retry-after: 0")
    async with fake_agent(in_turn(busy, says_no, says_ok)) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url))
        await execute(rt, job)
        assert await log_types(job) == [
            *PASSED[:2],
            "AGENT_REQUEST",
            "AGENT_RESPONSE",
            *PASSED[2:],
        ]
        assert (await execute(rt, job)).status is JobStatus.COMPLETED
    first, again, second = fake.received
    one, two = await attempts_of(job)
    assert key_of(first) == key_of(again) == public_id("attempt", one.id)
    assert key_of(second) == public_id("attempt", two.id)
    assert [r.headers["webhook-id"] for r in fake.received] == [key_of(r) for r in fake.received]
    assert [r.headers["signoff-attempt"] for r in fake.received] == ["1", "1", "2"]
    assert {r.headers["signoff-job-id"] for r in fake.received} == {public_id("job", job.id)}


async def test_requests_are_signed_with_the_agents_secret(rt: Runtime) -> None:
    secret = agent_http.new_secret()
    async with fake_agent(says_ok) as fake:
        agent = await make_agent(rt, fake.url, secret=secret, auth_header="X-Api-Key: abc")
        await execute(rt, await make_job(rt, agent, input={"q": "ü"}))
    (received,) = fake.received
    agent_http.verify(secret, received.headers, received.body, now=time.time())
    assert received.headers["x-api-key"] == "abc"
    with pytest.raises(agent_http.BadSignature):
        agent_http.verify(secret, received.headers, received.body + b" ", now=time.time())


@pytest.mark.parametrize("accepts", [True, False])
async def test_next_attempt_carries_reasons_only_to_agents_that_want_them(
    rt: Runtime, *, accepts: bool
) -> None:
    async with fake_agent(in_turn(says_no, says_ok)) as fake:
        agent = await make_agent(rt, fake.url, accepts_feedback=accepts)
        job = await make_job(rt, agent)
        await execute(rt, job)
        await execute(rt, job, feedback="Be brief.")
    first, second = (r.headers.get("signoff-feedback") for r in fake.received)
    assert first is None
    if accepts:
        hints = jsontext.loads(second or "")
        (verdict, _) = await Verdict.filter(job_id=job.id).order_by("id")
        (result,) = jsontext.loads(verdict.results_json)
        assert hints == ["Be brief.", f"ok: {result['reason']}"]
    else:
        assert second is None
    one, two = await attempts_of(job)
    assert one.feedback_json == "[]"
    assert bool(jsontext.loads(two.feedback_json)) is accepts


# Faults


async def resets(received: Received) -> None:
    received.close()


async def hangs_up_within(received: Received) -> None:
    await received.send(b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"answer":')
    received.close()


async def drips(received: Received) -> None:
    await received.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    with suppress(ConnectionError):
        while True:
            await received.send(b" ")
            await asyncio.sleep(0.05)


def says(body: bytes) -> Behaviour:
    async def behave(received: Received) -> None:
        await received.answer(body)

    return behave


def status(line: str, *headers: str) -> Behaviour:
    return answers({"error": "no"}, line, *headers)


BUSY = status("429 Too Many Requests", "retry-after: 0")
DOWN = status("503 Service Unavailable", "retry-after: 0")
RESUB = JobStatus.RESUBMISSION_REQUIRED


@dataclass(frozen=True)
class Fault:
    """What an agent does, and what its job comes to."""

    name: str
    behave: Behaviour
    reason: StatusReason
    code: str
    message: str
    requests: int = 1
    executed: bool = True
    idempotent: bool = False
    retryable: bool = False


ERROR, REJECTED = StatusReason.AGENT_ERROR, StatusReason.AGENT_REJECTED
TIMEOUT = StatusReason.AGENT_TIMEOUT
FAULTS = [
    Fault("busy", BUSY, ERROR, "BUSY", "asks to wait 0 seconds", 4, executed=False, retryable=True),
    Fault(
        "down without a word of when",
        status("503 Service Unavailable"),
        ERROR,
        "BUSY",
        "503 Service Unavailable",
        retryable=True,
    ),
    Fault(
        "500",
        status("500 Internal Server Error"),
        ERROR,
        "SERVER_ERROR",
        "The agent answered 500 Internal Server Error. Its own logs tell why.",
    ),
    Fault(
        "404",
        status("404 Not Found"),
        REJECTED,
        "REJECTED",
        "The agent answered 404 Not Found. Check the agent's endpoint URL.",
    ),
    Fault(
        "401",
        status("401 Unauthorized"),
        REJECTED,
        "REJECTED",
        "The agent answered 401 Unauthorized. Check the agent's auth header.",
    ),
    Fault(
        "redirect",
        status("302 Found", f"location: {NOWHERE}"),
        ERROR,
        "REDIRECTED",
        "302 Found. Redirects are not followed",
    ),
    Fault("garbage", says(b"hello"), ERROR, "NOT_JSON", "is not JSON"),
    Fault("empty", says(b""), ERROR, "NOT_JSON", "is empty; it must be JSON"),
    Fault("NaN", says(b'{"answer":NaN}'), ERROR, "NOT_JSON", "is not JSON"),
    Fault(
        "wrong schema",
        says(b'{"answer":1}'),
        StatusReason.OUTPUT_SCHEMA_INVALID,
        "OUTPUT_SCHEMA_INVALID",
        "does not fit the outputSchema at /answer",
        retryable=True,
    ),
    Fault(
        "too large",
        says(b'"' + b"a" * 1_048_576 + b'"'),
        ERROR,
        "TOO_LARGE",
        "has more than 1048576 bytes",
    ),
    Fault("slow body", drips, TIMEOUT, "TIMEOUT", "did not answer completely within"),
    Fault("hanging headers", stalls, TIMEOUT, "TIMEOUT", "did not answer completely within"),
    Fault(
        "reset",
        resets,
        ERROR,
        "DISCONNECTED",
        "closed the connection before its answer was complete",
        retryable=True,
    ),
    Fault(
        "reset, idempotent",
        resets,
        ERROR,
        "DISCONNECTED",
        "closed the connection",
        4,
        idempotent=True,
        retryable=True,
    ),
    Fault(
        "closed within the body",
        hangs_up_within,
        ERROR,
        "DISCONNECTED",
        "closed the connection before its answer was complete",
        retryable=True,
    ),
    Fault(
        "asks to wait past the deadline",
        status("429 Too Many Requests", "retry-after: 60"),
        ERROR,
        "BUSY",
        "asks to wait 60 seconds",
        executed=False,
        retryable=True,
    ),
]
ANSWER = {"type": "object", "properties": {"answer": {"type": "string"}}}


async def test_agent_that_fails_settles_the_job_within_its_deadline(rt: Runtime) -> None:
    await asyncio.gather(*(check_fault(rt, fault) for fault in FAULTS))
    assert await Verdict.all().count() == 0


async def check_fault(rt: Runtime, fault: Fault) -> None:
    async with fake_agent(fault.behave) as fake:
        agent = await make_agent(
            rt, fake.url, timeout_seconds=3, idempotent=fault.idempotent, output_schema=ANSWER
        )
        job = await make_job(rt, agent)
        done = await execute(rt, job)
        assert len(fake.received) == fault.requests, fault.name
    assert (done.status, done.status_reason) == (RESUB, fault.reason), fault.name
    assert done.result_json is None
    assert fault.message in (done.status_message or ""), fault.name
    (attempt,) = await attempts_of(job)
    assert attempt.state is AttemptState.FAILED, fault.name
    assert attempt.finished_at
    assert await error_of(job) == {
        "code": fault.code,
        "message": done.status_message,
        "retryable": fault.retryable,
        "mayHaveExecuted": fault.executed,
    }, fault.name
    expected = ["AGENT_REQUEST", "AGENT_RESPONSE"] * fault.requests
    assert await log_types(job) == [*PASSED[:2], *expected, "STATUS_CHANGE"], fault.name


async def test_last_failure_does_not_hide_that_an_earlier_try_may_have_done_the_work(
    rt: Runtime,
) -> None:
    async with fake_agent(in_turn(resets, BUSY)) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url, idempotent=True))
        done = await execute(rt, job)
    assert (done.status, done.status_reason) == (RESUB, StatusReason.AGENT_ERROR)
    assert len(fake.received) == 4
    error = await error_of(job)
    assert (error["code"], error["mayHaveExecuted"]) == ("BUSY", True)


async def test_agent_that_was_never_reached_leaves_the_job_assigned(rt: Runtime) -> None:
    job = await make_job(rt, await make_agent(rt, NOWHERE))
    done = await execute(rt, job)
    assert done.status is JobStatus.ASSIGNED
    assert done.status_reason is StatusReason.AGENT_UNREACHABLE
    assert done.status_message == (
        "No connection to the agent. Is its server running at its endpoint URL?"
    )
    (attempt,) = await attempts_of(job)
    assert attempt.state is AttemptState.FAILED
    assert await error_of(job) == {
        "code": "UNREACHABLE",
        "message": done.status_message,
        "retryable": True,
        "mayHaveExecuted": False,
    }
    tries = ["AGENT_REQUEST", "AGENT_RESPONSE"] * 4
    assert await log_types(job) == [*PASSED[:2], *tries, "STATUS_CHANGE"]


@pytest.mark.parametrize(
    ("first", "idempotent"),
    [(BUSY, False), (DOWN, False), (resets, True), (hangs_up_within, True)],
    ids=["429", "503", "reset", "closed within the body"],
)
async def test_passing_trouble_is_overcome_within_the_attempt(
    rt: Runtime, first: Behaviour, *, idempotent: bool
) -> None:
    async with fake_agent(in_turn(first, says_ok)) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url, idempotent=idempotent))
        done = await execute(rt, job)
    assert done.status is JobStatus.COMPLETED
    assert done.attempt_count == 1
    assert len(fake.received) == 2
    assert len({key_of(each) for each in fake.received}) == 1
    assert (await attempts_of(job))[0].error_json is None


async def asks_for_a_pause(rt: Runtime, fake: FakeAgent) -> Job:
    """A job whose agent was asked once."""
    job = await make_job(rt, await make_agent(rt, fake.url))
    await execute(rt, job, wait_seconds=0)

    async def pausing() -> bool:
        return (await Job.get(id=job.id)).phase is JobPhase.RETRY_WAIT

    await until(pausing)
    return job


def pause_of(fake: FakeAgent) -> float:
    first, second = fake.received
    return second.at - first.at


async def test_retry_waits_as_long_as_the_agent_asks(rt: Runtime) -> None:
    busy = status("503 Service Unavailable", "retry-after: 1")
    async with fake_agent(in_turn(busy, says_ok)) as fake:
        job = await asks_for_a_pause(rt, fake)
        done = await execution.outcome(rt, job, 30)
    assert done.status is JobStatus.COMPLETED
    assert pause_of(fake) >= 1


LONG_PAUSE = 4
PAUSES = status("429 Too Many Requests", f"retry-after: {LONG_PAUSE}")


async def test_pause_that_an_agent_asks_for_outlasts_its_worker(
    database_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, tmp_path, shutdown_seconds=0)
    async with fake_agent(in_turn(PAUSES, says_ok)) as fake:
        async with runtime(settings, allow_private_agents=True) as one:
            job = await asks_for_a_pause(one, fake)
        async with runtime(settings, allow_private_agents=True) as two:
            done = await execution.outcome(two, job, 30)
    assert done.status is JobStatus.COMPLETED
    assert pause_of(fake) >= LONG_PAUSE


async def test_pause_that_an_agent_asks_for_outlasts_a_take_over(rt: Runtime) -> None:
    async with fake_agent(in_turn(PAUSES, says_ok)) as fake:
        job = await asks_for_a_pause(rt, fake)
        await QueueEntry.all().update(worker_id=uuid7())
        done = await execution.outcome(rt, job, 30)
    assert done.status is JobStatus.COMPLETED
    assert (await attempts_of(job))[0].resumptions == 1
    assert pause_of(fake) >= LONG_PAUSE


async def test_pause_that_is_gone_on_with_ends_with_the_budget(rt: Runtime) -> None:
    async with fake_agent(status("429 Too Many Requests", "retry-after: 50")) as fake:
        job = await asks_for_a_pause(rt, fake)
        await Job.filter(id=job.id).update(budget_json='{"max_wall_seconds": 1}')
        await QueueEntry.all().update(worker_id=uuid7())
        done = await execution.outcome(rt, job, 30)
    assert done.status_reason is StatusReason.BUDGET_EXCEEDED
    assert len(fake.received) == 1


async def test_private_address_is_never_dialled_unless_allowed(
    database_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, tmp_path)
    async with fake_agent(says_ok) as fake:
        async with runtime(settings, allow_private_agents=True) as rt:
            job = await make_job(rt, await make_agent(rt, fake.url))
        async with runtime(settings, allow_private_agents=False) as rt:
            with pytest.raises(InvalidInput, match="SIGNOFF_ALLOW_PRIVATE_AGENTS"):
                await make_agent(rt, fake.url)
            done = await execute(rt, job)
            assert done.status is JobStatus.ASSIGNED
            assert done.status_reason is StatusReason.AGENT_UNREACHABLE
            assert "not on the public internet" in (done.status_message or "")
            assert (await error_of(job))["code"] == "UNREACHABLE"
        assert fake.connections == 0


# The log


async def test_long_payloads_are_cut_and_say_so(rt: Runtime) -> None:
    text = "ü" * 50_000
    async with fake_agent(answers({"answer": "ok", "text": text})) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url), input={"text": text})
        await execute(rt, job)
    assert jsontext.loads(fake.received[0].body) == {"text": text}
    entries = {entry.type: entry for entry in await logs_of(job)}
    for type in (JobLogType.AGENT_REQUEST, JobLogType.AGENT_RESPONSE):
        assert entries[type].payload_truncated
        payload = jsontext.loads(entries[type].payload_json or "")
        assert payload["bytes"] > 100_000
        assert len(payload["truncated"].encode()) <= 65_536
    assert not entries[JobLogType.VERDICT].payload_truncated
    (attempt,) = await attempts_of(job)
    assert jsontext.loads(attempt.response_json or "")["text"] == text


# What people decide while it runs


class Gate:
    """An agent that answers when it is told to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, received: Received) -> None:
        self.asked.set()
        await self.open.wait()
        await says_ok(received)


@dataclass
class Running:
    """A job whose agent is at work."""

    rt: Runtime
    job: Job
    fake: FakeAgent
    gate: Gate

    async def end_of_call(self) -> Any:
        """What the log has of the end of the call, which the agent saw too."""
        await self.fake.all_closed()

        async def found() -> Any:
            for entry in await logs_of(self.job):
                if entry.type is JobLogType.AGENT_RESPONSE:
                    return jsontext.loads(entry.payload_json or "")
            return None

        return await until(found)


@pytest.fixture
async def running(rt: Runtime) -> AsyncIterator[Running]:
    gate = Gate()
    async with fake_agent(gate) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url))
        await execute(rt, job, wait_seconds=0)
        await gate.asked.wait()
        yield Running(rt, job, fake, gate)


async def still(job: Job) -> dict[str, Any]:
    """Everything of the job but its log and where that ends."""
    found = await snapshot(job)
    del found["logs"], found["job"]["log_head"]
    return found


async def check_call_was_cut_off(running: Running) -> None:
    """The connection is closed, the log says so, and nothing else comes of the attempt."""
    before = await still(running.job)
    end = await running.end_of_call()
    assert end == {"error": "ABORTED", "mayHaveExecuted": True, "late": True}
    assert await still(running.job) == before
    assert "VERDICT" not in await log_types(running.job)


async def test_cancel_cuts_the_running_call_off(running: Running) -> None:
    cancel = CancelJob(id=running.job.id, reason="No need.")
    done = await decisions.cancel(running.rt, MEMBER, cancel)
    assert done.status is JobStatus.CANCELLED
    (attempt,) = await attempts_of(running.job)
    assert attempt.state is AttemptState.CANCELLED
    await check_call_was_cut_off(running)


async def test_job_can_be_forced_while_it_runs(running: Running) -> None:
    force = ForceComplete.model_validate(
        {"id": running.job.id, "result": {"by": "hand"}, "reason": "It is urgent."}
    )
    done = await decisions.force_complete(running.rt, ADMIN, force)
    assert done.status is JobStatus.COMPLETED
    assert done.completion_mode is CompletionMode.FORCED
    assert done.status_reason is StatusReason.FORCED
    assert done.status_message == "It is urgent."
    await check_call_was_cut_off(running)
    assert (await Job.get(id=done.id)).result_json == '{"by":"hand"}'


async def test_job_can_be_taken_from_a_running_agent_and_given_to_another(
    running: Running,
) -> None:
    rt, job = running.rt, running.job
    async with fake_agent(answers({"answer": "ok", "by": "other"})) as other:
        agent = await make_agent(rt, other.url)
        given: dict[str, Any] = {"id": job.id, "assign": {"agent_id": agent.id}}
        before = await snapshot(job)
        with pytest.raises(IllegalTransition):
            await assignment.reassign(rt, ADMIN, ReassignJob.model_validate(given))
        assert await snapshot(job) == before
        take = ReassignJob.model_validate(given | {"interrupt_running": True})
        taken = await assignment.reassign(rt, ADMIN, take)
        assert (taken.status, taken.agent_id) == (JobStatus.ASSIGNED, agent.id)
        await check_call_was_cut_off(running)
        done = await execute(rt, job)
    assert done.status is JobStatus.COMPLETED
    assert jsontext.loads(done.result_json or "") == {"answer": "ok", "by": "other"}
    old, new = await attempts_of(job)
    assert (old.state, old.agent_id, old.response_json) == (
        AttemptState.CANCELLED,
        before["job"]["agent_id"],
        None,
    )
    assert (new.state, new.agent_id) == (AttemptState.SUCCEEDED, agent.id)


async def test_running_job_can_be_resubmitted(running: Running) -> None:
    command = ResubmitJob(id=running.job.id, reason="Wrong input.")
    done = await decisions.resubmit(running.rt, ADMIN, command)
    assert done.status is JobStatus.RESUBMISSION_REQUIRED
    assert done.status_reason is StatusReason.RESUBMISSION_REQUESTED
    await check_call_was_cut_off(running)


async def test_second_execution_of_a_running_job_is_refused(running: Running) -> None:
    before = await snapshot(running.job)
    with pytest.raises(IllegalTransition):
        await execute(running.rt, running.job)
    assert await snapshot(running.job) == before
    running.gate.open.set()
    done = await execution.outcome(running.rt, running.job, 30)
    assert done.status is JobStatus.COMPLETED
    assert len(running.fake.received) == 1


async def test_resubmitted_job_keeps_its_old_response(rt: Runtime) -> None:
    async with fake_agent(in_turn(says_ok, answers({"answer": "ok", "v": 2}))) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url))
        await execute(rt, job)
        again = ResubmitJob(id=job.id, reason="Once more.", execute=True)
        accepted = await decisions.resubmit(rt, ADMIN, again)
        assert accepted.status is JobStatus.IN_EXECUTION
        assert accepted.result_json is None
        done = await execution.outcome(rt, job, 30)
    assert jsontext.loads(done.result_json or "") == {"answer": "ok", "v": 2}
    old, new = await attempts_of(job)
    assert (old.state, old.response_json) == (AttemptState.SUCCEEDED, '{"answer":"ok"}')
    assert (new.state, new.response_json) == (AttemptState.SUCCEEDED, '{"answer":"ok","v":2}')
    assert [each["event"] for each in await told(job, JobLogType.STATUS_CHANGE)] == [
        "CREATE",
        "EXECUTE",
        "PASS",
        "RESUBMIT",
        "EXECUTE",
        "PASS",
    ]


async def test_resubmission_that_cannot_be_executed_changes_nothing(rt: Runtime) -> None:
    async with fake_agent(says_ok) as fake:
        agent = await make_agent(rt, fake.url)
        job = await make_job(rt, agent)
        await execute(rt, job)
    await agents.set_availability(rt, LOCAL_ADMIN, agent.id, AgentAvailability.DISABLED)
    before = await snapshot(job)
    with pytest.raises(AgentUnavailable):
        await decisions.resubmit(rt, ADMIN, ResubmitJob(id=job.id, reason="Again.", execute=True))
    assert await snapshot(job) == before


# Waiting


async def test_wait_ends_when_the_job_waits_for_a_person(rt: Runtime) -> None:
    async with fake_agent(says_ok) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url), acceptance_criteria=IS_POLITE)
        began = time.monotonic()
        done = await execute(rt, job)
    assert (done.status, done.phase) == (JobStatus.IN_EXECUTION, JobPhase.AWAITING_REVIEW)
    assert time.monotonic() - began < 20


async def test_wait_ends_after_its_time(running: Running) -> None:
    began = time.monotonic()
    job = await execution.outcome(running.rt, running.job, 0.5)
    assert 0.5 <= time.monotonic() - began < 10
    assert (job.status, job.phase) == (JobStatus.IN_EXECUTION, JobPhase.CALLING_AGENT)


async def test_execution_without_a_wait_returns_at_once(rt: Runtime) -> None:
    gate = Gate()
    async with fake_agent(gate) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url))
        accepted = await execute(rt, job, wait_seconds=0)
        assert (accepted.status, accepted.phase) == (JobStatus.IN_EXECUTION, JobPhase.QUEUED)
        assert accepted.attempt_count == 1
        gate.open.set()
        await execution.outcome(rt, job, 30)


async def test_no_more_requests_at_once_than_the_agent_takes(rt: Runtime) -> None:
    at_once, most = 0, 0

    async def counts(received: Received) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.05)
        at_once -= 1
        await says_ok(received)

    async with fake_agent(counts) as fake:
        agent = await make_agent(rt, fake.url, max_concurrency=2)
        made = [await make_job(rt, agent) for _ in range(8)]
        done = await asyncio.gather(*(execute(rt, job) for job in made))
    assert {job.status for job in done} == {JobStatus.COMPLETED}
    assert len(fake.received) == 8
    assert most == 2


# Refusals before anything happens


@pytest.mark.parametrize("availability", [AgentAvailability.PAUSED, AgentAvailability.DISABLED])
async def test_agent_that_takes_no_work_is_not_asked(
    rt: Runtime, availability: AgentAvailability
) -> None:
    async with fake_agent(says_ok) as fake:
        agent = await make_agent(rt, fake.url)
        job = await make_job(rt, agent)
        pending = await make_job(rt)
        await agents.set_availability(rt, LOCAL_ADMIN, agent.id, availability)
        before = await snapshot(job), await snapshot(pending), await Job.all().count()
        with pytest.raises(AgentUnavailable) as refused:
            await execute(rt, job)
        assert refused.value.agent.id == agent.id
        with pytest.raises(AgentUnavailable):
            await make_job(rt, agent)
        assign = AssignJob.model_validate({"id": pending.id, "assign": {"agent_id": agent.id}})
        with pytest.raises(AgentUnavailable):
            await assignment.assign(rt, MEMBER, assign)
        assert (await snapshot(job), await snapshot(pending), await Job.all().count()) == before
        assert fake.received == []


TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


async def test_input_must_fit_the_agent_wherever_it_is_given_work(rt: Runtime) -> None:
    anything, picky = await make_agent(rt), await make_agent(rt, input_schema=TEXT)
    with pytest.raises(SchemaMismatch) as refused:
        await make_job(rt, picky, input={"text": 1})
    assert (refused.value.pointer, refused.value.keyword) == ("/text", "type")
    assert await Job.all().count() == 0
    mine = await make_job(rt, picky, input={"text": "a"})
    pending = await make_job(rt, input={"text": 1})
    others = await make_job(rt, anything, input={})
    before = [await snapshot(job) for job in (mine, pending, others)]
    to_picky: dict[str, Any] = {"assign": {"agent_id": picky.id}}
    with pytest.raises(SchemaMismatch):
        await jobs.update(rt, MEMBER, UpdateJob.model_validate({"id": mine.id, "input": {}}))
    assign = AssignJob.model_validate({"id": pending.id} | to_picky)
    with pytest.raises(SchemaMismatch):
        await assignment.assign(rt, MEMBER, assign)
    reassign = ReassignJob.model_validate({"id": others.id} | to_picky)
    with pytest.raises(SchemaMismatch):
        await assignment.reassign(rt, ADMIN, reassign)
    assert [await snapshot(job) for job in (mine, pending, others)] == before
    fitting = {"id": pending.id, "input": {"text": "b"}} | to_picky
    done = await assignment.assign(rt, MEMBER, AssignJob.model_validate(fitting))
    assert (done.status, done.input_json) == (JobStatus.ASSIGNED, '{"text":"b"}')


# Review


async def reviewed(rt: Runtime, job: Job, outcome: str, reason: str = "Looked at it.") -> Job:
    attempt = (await attempts_of(job))[-1]
    review = {"attempt_id": attempt.id, "outcome": outcome, "reason": reason}
    return await decisions.review(rt, ADMIN, Review.model_validate(review))


async def waiting_for_review(rt: Runtime, fake: FakeAgent, **agent: Any) -> Job:
    made = await make_agent(rt, fake.url, **agent)
    job = await make_job(rt, made, acceptance_criteria=IS_POLITE)
    done = await execute(rt, job)
    assert (done.status, done.phase) == (JobStatus.IN_EXECUTION, JobPhase.AWAITING_REVIEW)
    return done


async def test_without_a_judge_a_job_says_what_is_missing_and_waits_for_review(
    rt: Runtime,
) -> None:
    unjudged = await make_job(rt, acceptance_criteria=IS_POLITE)
    assert "set OPENAI_API_KEY" in (unjudged.status_message or "")
    assert (await make_job(rt)).status_message is None
    async with fake_agent(says_ok) as fake:
        job = await waiting_for_review(rt, fake)
        assert job.status_reason is StatusReason.VALIDATOR_ERROR
        assert "No LLM judge is configured" in (job.status_message or "")
        (attempt,) = await attempts_of(job)
        assert attempt.response_json == '{"answer":"ok"}'
        assert attempt.state is AttemptState.RUNNING
        assert (await Verdict.get(job_id=job.id)).outcome is VerdictOutcome.ERROR


async def test_approved_review_completes_the_job_with_the_kept_response(rt: Runtime) -> None:
    async with fake_agent(says_ok) as fake:
        job = await waiting_for_review(rt, fake)
    done = await reviewed(rt, job, "PASS")
    assert (done.status, done.phase) == (JobStatus.COMPLETED, None)
    assert done.completion_mode is CompletionMode.REVIEWED
    assert done.status_reason is StatusReason.REVIEW_APPROVED
    assert done.status_message == "Looked at it."
    assert done.result_json == '{"answer":"ok"}'
    assert (await attempts_of(job))[0].state is AttemptState.SUCCEEDED
    assert (await log_types(job))[-2:] == ["REVIEW", "STATUS_CHANGE"]
    assert len(fake.received) == 1


async def test_rejected_review_sends_the_job_back_and_tells_the_agent_why(rt: Runtime) -> None:
    async with fake_agent(says_ok) as fake:
        job = await waiting_for_review(rt, fake, accepts_feedback=True)
        done = await reviewed(rt, job, "FAIL", "Say please.")
        assert done.status is JobStatus.RESUBMISSION_REQUIRED
        assert done.status_reason is StatusReason.REVIEW_REJECTED
        assert done.result_json is None
        assert (await attempts_of(job))[0].state is AttemptState.FAILED
        await execute(rt, job)
    hints = jsontext.loads(fake.received[1].headers["signoff-feedback"])
    assert hints == ["Say please."]


async def test_review_that_decides_nothing_is_refused(rt: Runtime) -> None:
    async with fake_agent(in_turn(says_ok, says_ok)) as fake:
        job = await waiting_for_review(rt, fake)
        before = await snapshot(job)
        for outcome in ("INCONCLUSIVE", "ERROR", "SKIPPED"):
            with pytest.raises(InvalidInput):
                await reviewed(rt, job, outcome)
        assert await snapshot(job) == before
        await reviewed(rt, job, "FAIL")
        old = (await attempts_of(job))[0]
        await execute(rt, job)
    before = await snapshot(job)
    review = Review(attempt_id=old.id, outcome=VerdictOutcome.PASS, reason="Late.")
    with pytest.raises(InvalidInput, match="current attempt"):
        await decisions.review(rt, ADMIN, review)
    assert await snapshot(job) == before
    with pytest.raises(SignoffError):
        await decisions.review(rt, MEMBER, review)
    assert await snapshot(job) == before


async def test_job_that_does_not_wait_for_review_cannot_be_reviewed(running: Running) -> None:
    before = await snapshot(running.job)
    with pytest.raises(IllegalTransition, match="does not wait for a review"):
        await reviewed(running.rt, running.job, "PASS")
    assert await snapshot(running.job) == before


async def test_criteria_changed_later_do_not_change_what_an_attempt_was_held_against(
    rt: Runtime,
) -> None:
    no_is_fine = {**SAYS_OK["items"][0], "config": {"value": "no", "pointer": "/answer"}}
    async with fake_agent(says_no) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url))
        assert (await execute(rt, job)).status is JobStatus.RESUBMISSION_REQUIRED
        change = {"id": job.id, "acceptance_criteria": {"items": [no_is_fine]}}
        await jobs.update(rt, MEMBER, UpdateJob.model_validate(change))
        assert (await execute(rt, job)).status is JobStatus.COMPLETED
    versions = (
        await Attempt.filter(job_id=job.id).order_by("number").values_list("criteria_version")
    )
    assert versions == [(1,), (2,)]
    verdicts = await told(job, JobLogType.VERDICT)
    assert [each["criteriaVersion"] for each in verdicts] == [1, 2]


def test_command_bounds_its_wait() -> None:
    with pytest.raises(ValueError, match="less than or equal to 60"):
        ExecuteJob.model_validate({"id": Attempt().id, "wait_seconds": 61})


# The judge

KEY = "sk-judge-of-the-tests"


@dataclass
class Judged:
    """A runtime with a judge, and the server that it asks."""

    rt: Runtime
    judge: FakeOpenAI


@pytest.fixture
async def judged(database_url: str, tmp_path: Path) -> AsyncIterator[Judged]:
    async with openai_server.running() as judge:
        settings = settings_for(
            database_url,
            tmp_path,
            openai_api_key=KEY,
            openai_base_url=judge.base_url,
            judge_timeout_seconds=1,
        )
        async with runtime(settings, allow_private_agents=True) as rt:
            yield Judged(rt, judge)


async def judged_job(rt: Runtime, *texts: str, items: Sequence[Any] = ()) -> Job:
    """What becomes of a job whose agent says ok, by these criteria."""
    criteria = {"items": [*items, *({"text": text} for text in texts)]}
    async with fake_agent(says_ok) as fake:
        agent = await make_agent(rt, fake.url)
        return await execute(rt, await make_job(rt, agent, acceptance_criteria=criteria))


async def test_judge_passes_the_work_and_its_tokens_are_counted(judged: Judged) -> None:
    job = await judged_job(judged.rt, "It is polite.", "It is brief.", items=SAYS_OK["items"])
    assert (job.status, job.status_reason) == (JobStatus.COMPLETED, StatusReason.VERDICT_PASSED)
    assert job.status_message == "3 of 3 criteria passed."
    verdict = await Verdict.get(job_id=job.id)
    assert (verdict.outcome, verdict.score) == (VerdictOutcome.PASS, 1)
    assert (verdict.input_tokens, verdict.output_tokens) == (11, 5)
    results = jsontext.loads(verdict.results_json)
    assert [(each["key"], each["outcome"]) for each in results] == [
        ("ok", "PASS"),
        ("c1", "PASS"),
        ("c2", "PASS"),
    ]
    assert len(judged.judge.requests) == 1
    assert await log_types(job) == PASSED
    (request,), (response,) = (
        await told(job, JobLogType.VALIDATOR_REQUEST),
        await told(job, JobLogType.VALIDATOR_RESPONSE),
    )
    assert request["promptHash"] == jsontext.loads(verdict.judge_json)["promptHash"]
    assert "It is polite." in request["request"]["message"]
    assert "The answer is ok." not in request["request"]["message"]
    assert (response["inputTokens"], response["outputTokens"]) == (11, 5)


async def test_judge_sends_the_work_back(judged: Judged) -> None:
    job = await judged_job(judged.rt, "It is polite.", "It must fail.")
    assert job.status is JobStatus.RESUBMISSION_REQUIRED
    assert job.status_reason is StatusReason.VERDICT_FAILED
    assert job.status_message == ("1 of 2 criteria passed. FAIL c2 “It must fail.”: It is FAIL.")
    verdict = await Verdict.get(job_id=job.id)
    assert (verdict.outcome, verdict.score) == (VerdictOutcome.FAIL, 0.5)


def result(key: str, outcome: str) -> dict[str, Any]:
    return {"criterion": key, "reason": "Because.", "evidence": [], "outcome": outcome}


async def test_model_cannot_pass_the_work_while_a_criterion_fails(judged: Judged) -> None:
    claim = {"outcome": "PASS", "overall": "PASS", "passed": True, "score": 1}
    judged.judge.script.append(
        openai_server.judges(result("c1", "PASS"), result("c2", "FAIL"), **claim)
    )
    job = await judged_job(judged.rt, "It is polite.", "It is brief.")
    assert job.status is JobStatus.RESUBMISSION_REQUIRED
    assert (await Verdict.get(job_id=job.id)).outcome is VerdictOutcome.FAIL


async def test_a_pass_on_a_made_up_quote_is_left_to_review(judged: Judged) -> None:
    quote = {"pointer": "/price", "quote": "EUR 12"}
    judged.judge.script.append(openai_server.judges(result("c1", "PASS") | {"evidence": [quote]}))
    job = await judged_job(judged.rt, "It names the price.")
    assert (job.status, job.phase) == (JobStatus.IN_EXECUTION, JobPhase.AWAITING_REVIEW)
    assert job.result_json is None
    verdict = await Verdict.get(job_id=job.id)
    assert (verdict.outcome, verdict.score) == (VerdictOutcome.INCONCLUSIVE, 0)
    [judgement] = jsontext.loads(verdict.results_json)
    assert judgement == {
        "key": "c1",
        "outcome": "INCONCLUSIVE",
        "score": None,
        "reason": "The judge says PASS, but quotes nothing that is in the output. Because.",
        "evidence": [quote | {"verified": False}],
        "error": None,
    }
    assert len(judged.judge.requests) == 1


async def test_model_is_not_asked_when_a_required_check_has_failed(judged: Judged) -> None:
    wrong = {**SAYS_OK["items"][0], "config": {"value": "no", "pointer": "/answer"}}
    job = await judged_job(judged.rt, "It is polite.", items=[wrong])
    assert job.status is JobStatus.RESUBMISSION_REQUIRED
    assert judged.judge.requests == []
    results = jsontext.loads((await Verdict.get(job_id=job.id)).results_json)
    assert [each["outcome"] for each in results] == ["FAIL", "SKIPPED"]


async def test_model_is_asked_when_only_an_optional_check_has_failed(judged: Judged) -> None:
    config = {"value": "no", "pointer": "/answer"}
    optional = SAYS_OK["items"][0] | {"config": config, "required": False}
    job = await judged_job(judged.rt, "It is polite.", items=[optional])
    assert job.status is JobStatus.COMPLETED
    assert len(judged.judge.requests) == 1


BROKEN_JUDGES = [
    ("refuses", openai_server.refuses, "refus"),
    ("garbage", openai_server.says("hello"), "wrong form"),
    ("empty", openai_server.sends(b""), "not JSON"),
    ("HTML", openai_server.sends(b"<html>", "text/html"), "not JSON"),
    ("401", openai_server.fails(401), "refused the API key (HTTP 401)"),
    ("hangs", openai_server.hangs, "did not answer within 1 s"),
    ("drips", openai_server.drips, "did not answer within 1 s"),
    ("cut", openai_server.cuts, "The judge"),
    ("silent on a criterion", openai_server.judges(), "did not answer for this criterion"),
]


async def test_broken_judge_neither_passes_nor_rejects(judged: Judged) -> None:
    for name, behave, why in BROKEN_JUDGES:
        judged.judge.script.extend([behave] * 3)
        job = await judged_job(judged.rt, "It is polite.")
        judged.judge.script.clear()
        await check_awaits_review(judged.rt, job, name, why)


async def check_awaits_review(rt: Runtime, job: Job, name: str, why: str) -> None:
    assert (job.status, job.phase) == (JobStatus.IN_EXECUTION, JobPhase.AWAITING_REVIEW), name
    assert job.status_reason is StatusReason.VALIDATOR_ERROR
    assert why in (job.status_message or ""), name
    assert job.result_json is None
    (attempt,) = await attempts_of(job)
    assert (attempt.state, attempt.response_json) == (AttemptState.RUNNING, '{"answer":"ok"}')
    assert (await Verdict.get(job_id=job.id)).outcome is VerdictOutcome.ERROR, name
    assert await log_types(job) == PASSED[:-1], name
    done = await reviewed(rt, job, "PASS")
    assert (done.status, done.result_json) == (JobStatus.COMPLETED, '{"answer":"ok"}')


async def test_judge_that_cannot_tell_leaves_it_to_a_person(judged: Judged) -> None:
    job = await judged_job(judged.rt, "It is unclear.")
    assert (job.status, job.phase) == (JobStatus.IN_EXECUTION, JobPhase.AWAITING_REVIEW)
    assert (await Verdict.get(job_id=job.id)).outcome is VerdictOutcome.INCONCLUSIVE


async def test_cancel_cuts_the_judge_off(judged: Judged) -> None:
    judging, cut_off = asyncio.Event(), asyncio.Event()

    async def waits(
        fake: FakeOpenAI, request: web.Request, body: dict[str, Any]
    ) -> web.StreamResponse:
        judging.set()
        try:
            return await openai_server.hangs(fake, request, body)
        finally:
            cut_off.set()

    judged.judge.script.append(waits)
    async with fake_agent(says_ok) as fake:
        agent = await make_agent(judged.rt, fake.url)
        job = await make_job(judged.rt, agent, acceptance_criteria=IS_POLITE)
        await execute(judged.rt, job, wait_seconds=0)
        await judging.wait()
        await decisions.cancel(judged.rt, MEMBER, CancelJob(id=job.id))
        before = await still(job)
        await cut_off.wait()
        await holds(lambda: judged.rt.engine.running == 0)
    after = await still(job)
    assert (after["job"], after["attempts"]) == (before["job"], before["attempts"])
    assert await Verdict.all().count() == 0
    assert await told(job, JobLogType.VALIDATOR_RESPONSE) == [
        {"error": "ABORTED", "mayHaveExecuted": False, "late": True}
    ]


# Secrets


async def stored_text() -> str:
    """Every value of every table."""
    tables = [getattr(models, name) for name in models.__all__]
    rows = [
        row
        for table in tables
        if isinstance(table, type) and issubclass(table, Model)
        for row in await table.all().values()
    ]
    return "\n".join(str(value) for row in rows for value in row.values())


async def test_secrets_are_neither_stored_in_plain_text_nor_logged(
    judged: Judged, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")
    secret = agent_http.new_secret()

    async def echoes(received: Received) -> None:
        told = {"you sent": received.headers, "secret": secret}
        await received.answer(jsontext.dumps(told).encode(), "500 Internal Server Error")

    judged.judge.script.append(openai_server.fails(401))
    async with fake_agent(in_turn(echoes, says_ok)) as fake:
        agent = await make_agent(
            judged.rt, fake.url, secret=secret, auth_header="Authorization: Bearer t0p-s3cret"
        )
        job = await make_job(judged.rt, agent, acceptance_criteria=IS_POLITE)
        assert (await execute(judged.rt, job)).status is JobStatus.RESUBMISSION_REQUIRED
        assert (await execute(judged.rt, job)).phase is JobPhase.AWAITING_REVIEW
    assert fake.received[0].headers["authorization"] == "Bearer t0p-s3cret"
    written, printed = await stored_text(), capfd.readouterr()
    assert "you sent" in written
    assert agent.endpoint_url in written
    for text in (written, caplog.text, printed.out, printed.err):
        assert "t0p-s3cret" not in text
        assert secret.removeprefix("whsec_") not in text
        assert KEY not in text


# Reply and verdict in one step


async def responses_of(job: Job) -> list[Any]:
    """What the log tells of the agent's responses, without what they were."""
    found = [each for each in await logs_of(job) if each.type is JobLogType.AGENT_RESPONSE]
    return [jsontext.loads(each.payload_json or "{}").get("judgedAtOnce") for each in found]


async def test_reply_and_verdict_are_one_version_where_nothing_comes_between(rt: Runtime) -> None:
    async with fake_agent(says_ok) as fake:
        done = await execute(rt, await make_job(rt, await make_agent(rt, fake.url)))
    assert (done.status, done.version) == (JobStatus.COMPLETED, 4)
    assert await responses_of(done) == [True]


async def test_a_reply_is_on_record_before_another_attempt_is_looked_for(rt: Runtime) -> None:
    policy = {"max_attempts": 2, "initial_seconds": 0, "retry_on_verdict_fail": True}
    async with fake_agent(in_turn(says_no, says_ok)) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url), retry_policy=policy)
        done = await execute(rt, job)
    assert done.status is JobStatus.COMPLETED
    assert await responses_of(done) == [None, True]


async def test_a_reply_is_kept_whatever_goes_wrong_with_its_verdict(
    rt: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide, broken = judging.decide, ["at once"]

    def breaks_once(*given: Any) -> Any:
        if broken:
            raise RuntimeError(broken.pop())
        return decide(*given)

    monkeypatch.setattr(judging, "decide", breaks_once)
    async with fake_agent(says_ok) as fake:
        agent = await make_agent(rt, fake.url)
        job = await make_job(rt, agent, retry_policy={"max_attempts": 1})
        done = await execute(rt, job)
        assert len(fake.received) == 1
    assert done.status is JobStatus.COMPLETED
    assert await responses_of(done) == [None]
