"""Attempts: whose their entries are, what is given up, what the next one is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from models import (
    Attempt,
    AttemptState,
    CompletionMode,
    Job,
    JobLog,
    JobLogType,
    JobPhase,
    JobStatus,
    QueueEntry,
    QueueState,
    StatusReason,
    Verdict,
    jsontext,
)
from models.base import uuid7
from services import assignment, decisions, execution, jobs
from services.assignment import ReassignJob
from services.decisions import Review
from services.jobs import UpdateJob
from services.runtime import Options, Runtime
from services.values import parse_id
from services.workers import Orphan
from signoff import database
from signoff.wiring import runtime
from tests.fakes import openai_server
from tests.fakes.agents import FakeAgent, Received, fake_agent
from tests.fakes.openai_server import FakeOpenAI
from tests.support.graphql import beside
from tests.support.making import (
    ADMIN,
    IS_POLITE,
    MEMBER,
    SAYS_OK,
    attempts_of,
    error_of,
    execute,
    holds,
    in_turn,
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
from tests.support.server import Server, serving

# Entries


async def changes_of(job: Job) -> list[tuple[str, Any]]:
    """What each change of status was, and the attempt it belongs to."""
    return [
        (jsontext.loads(entry.payload_json or "")["event"], entry.attempt_id)
        for entry in await logs_of(job)
        if entry.type is JobLogType.STATUS_CHANGE
    ]


async def test_changes_of_status_name_the_attempt_that_they_belong_to(rt: Runtime) -> None:
    async with fake_agent(in_turn(says_no, says_ok)) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url))
        await execute(rt, job)
        await execute(rt, job)
    one, two = await attempts_of(job)
    assert await changes_of(job) == [
        ("CREATE", None),
        ("EXECUTE", one.id),
        ("FAIL", one.id),
        ("EXECUTE", two.id),
        ("PASS", two.id),
    ]


async def test_a_review_names_the_attempt_that_it_decides(rt: Runtime) -> None:
    async with fake_agent(says_ok) as fake:
        made = await make_agent(rt, fake.url)
        job = await make_job(rt, made, acceptance_criteria=IS_POLITE)
        await execute(rt, job)
    await approve(rt, job)
    (attempt,) = await attempts_of(job)
    assert await changes_of(job) == [
        ("CREATE", None),
        ("EXECUTE", attempt.id),
        ("APPROVE", attempt.id),
    ]


async def approve(rt: Runtime, job: Job) -> Job:
    attempt = (await attempts_of(job))[-1]
    review = {"attempt_id": attempt.id, "outcome": "PASS", "reason": "Looked at it."}
    return await decisions.review(rt, ADMIN, Review.model_validate(review))


async def test_a_late_answer_is_told_of_the_agent_that_gave_it(rt: Runtime) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def waits(received: Received) -> None:
        asked.set()
        await go_on.wait()
        await says_ok(received)

    async with fake_agent(waits) as slow, fake_agent(says_ok) as quick:
        old, new = await make_agent(rt, slow.url), await make_agent(rt, quick.url)
        job = await make_job(rt, old)
        await execute(rt, job, wait_seconds=0)
        await asked.wait()
        wanted = {"id": job.id, "assign": {"agent_id": new.id}, "interrupt_running": True}
        await assignment.reassign(rt, ADMIN, ReassignJob.model_validate(wanted))
        go_on.set()

        async def answered() -> JobLog | None:
            return await JobLog.get_or_none(job_id=job.id, type=JobLogType.AGENT_RESPONSE)

        late = await until(answered)
    (attempt,) = await attempts_of(job)
    assert jsontext.loads(late.payload_json or "")["late"] is True
    assert (late.agent_id, late.attempt_id) == (old.id, attempt.id)
    assert (await Job.get(id=job.id)).agent_id == new.id


# Attempts that were cut off


LOSSES = Options().max_losses


@dataclass
class CutOff:
    """A runtime that was stopped while an execution was under way."""

    rt: Runtime
    job: Job
    agent: FakeAgent
    judge: FakeOpenAI

    async def attempt(self) -> Attempt:
        (attempt,) = await attempts_of(self.job)
        return attempt

    async def now(self) -> Job:
        return await Job.get(id=self.job.id)

    async def resumed_before(self, times: int) -> None:
        await Attempt.filter(job_id=self.job.id).update(resumptions=times)

    async def taken_over(self) -> None:
        """As if a worker had ended with it, and another one found that out."""
        orphan = Orphan(self.job.id, 1, uuid7())
        entry = QueueEntry.filter(job_id=self.job.id)
        await entry.update(state=QueueState.RUNNING, worker_id=orphan.worker_id)
        await execution.take_over(self.rt, orphan)


@pytest.fixture
async def judging(database_url: str, tmp_path: Path) -> AsyncIterator[CutOff]:
    """The agent has answered; the judge has not."""
    async with AsyncExitStack() as stack:
        judge = await stack.enter_async_context(openai_server.running())
        judge.script.append(openai_server.hangs)
        settings = settings_for(
            database_url, tmp_path, openai_api_key="sk-test", openai_base_url=judge.base_url
        )
        rt = await stack.enter_async_context(runtime(settings, allow_private_agents=True))
        fake = await stack.enter_async_context(fake_agent(says_ok))
        agent = await make_agent(rt, fake.url)
        job = await make_job(rt, agent, acceptance_criteria=IS_POLITE)
        await execute(rt, job, wait_seconds=0)
        await holds(lambda: len(judge.requests) == 1)
        await rt.engine.stop(0)
        yield CutOff(rt, job, fake, judge)


@pytest.fixture
async def calling(rt: Runtime) -> AsyncIterator[CutOff]:
    """The agent has not answered; it may be asked again, and then answers."""
    async with fake_agent(in_turn(stalls, says_ok)) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url, idempotent=True))
        await execute(rt, job, wait_seconds=0)
        await holds(lambda: len(fake.received) == 1)
        await rt.engine.stop(0)
        yield CutOff(rt, job, fake, FakeOpenAI())


async def check_left_to_review(case: CutOff) -> None:
    job, attempt = await case.now(), await case.attempt()
    assert (job.status, job.phase) == (JobStatus.IN_EXECUTION, JobPhase.AWAITING_REVIEW)
    assert job.status_reason is StatusReason.VALIDATOR_ERROR
    assert (attempt.state, attempt.response_json) == (AttemptState.RUNNING, '{"answer":"ok"}')
    assert attempt.error_json is None
    done = await approve(case.rt, case.job)
    assert (done.status, done.result_json) == (JobStatus.COMPLETED, '{"answer":"ok"}')
    assert done.completion_mode is CompletionMode.REVIEWED
    assert len(case.agent.received) == 1


async def test_an_attempt_whose_judging_is_given_up_keeps_its_answer_for_a_review(
    judging: CutOff,
) -> None:
    await execution.give_up(judging.rt, judging.job.id, 1)
    await check_left_to_review(judging)
    assert len(judging.judge.requests) == 1


async def test_an_attempt_that_is_judged_too_often_is_left_to_a_review(judging: CutOff) -> None:
    await judging.resumed_before(LOSSES)
    await judging.taken_over()
    assert len(judging.judge.requests) == 1
    await check_left_to_review(judging)


async def test_an_attempt_is_judged_once_more_while_it_may(judging: CutOff) -> None:
    await judging.resumed_before(LOSSES - 1)
    await judging.taken_over()
    await execution.run(judging.rt, judging.job.id, 1)
    assert len(judging.judge.requests) == 2
    assert (await judging.attempt()).resumptions == LOSSES
    assert (await judging.now()).status is JobStatus.COMPLETED


async def test_an_attempt_without_an_answer_is_lost_when_it_is_given_up(calling: CutOff) -> None:
    await execution.give_up(calling.rt, calling.job.id, 1)
    job = await calling.now()
    assert (job.status, job.status_reason) == (
        JobStatus.RESUBMISSION_REQUIRED,
        StatusReason.WORKER_LOST,
    )
    assert (await calling.attempt()).state is AttemptState.LOST
    assert await error_of(calling.job) == {
        "code": "WORKER_LOST",
        "message": job.status_message,
        "retryable": True,
        "mayHaveExecuted": True,
    }


async def test_an_agent_is_not_asked_again_by_an_attempt_that_was_cut_off_too_often(
    calling: CutOff,
) -> None:
    await calling.resumed_before(LOSSES)
    await calling.taken_over()
    assert (await calling.now()).status_reason is StatusReason.WORKER_LOST
    assert (await calling.attempt()).resumptions == LOSSES
    assert len(calling.agent.received) == 1


async def test_each_time_that_an_attempt_is_gone_on_with_is_counted(calling: CutOff) -> None:
    assert (await calling.attempt()).resumptions == 0
    await calling.taken_over()
    await execution.run(calling.rt, calling.job.id, 1)
    assert (await calling.attempt()).resumptions == 1
    assert (await calling.now()).status is JobStatus.COMPLETED
    assert len(calling.agent.received) == 2


async def test_an_attempt_that_is_over_is_not_given_up(rt: Runtime) -> None:
    async with fake_agent(says_ok) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url))
        await execute(rt, job)
    before = await snapshot(job)
    await execution.give_up(rt, job.id, 1)
    await execution.run(rt, job.id, 1)
    assert await snapshot(job) == before


# Processes that end again and again

SAVE = "mutation($input: SaveAgentInput!) { saveAgent(input: $input) { ... on Agent { id } } }"
CREATE = "mutation($input: CreateJobInput!) { createJob(input: $input) { ... on Job { id } } }"
EXECUTE = "mutation($input: ExecuteJobInput!) { executeJob(input: $input) { ... on Job { id } } }"
JOB = """
query($id: ID!) {
  job(id: $id) { status statusReason attempts { nodes { state error { code } } } }
}"""


async def told_to_run(server: Server, agent: FakeAgent) -> str:
    given = {"name": "Deadly", "endpointUrl": agent.url, "idempotent": True}
    saved = await server.graphql(SAVE, input=given)
    job = {
        "name": "A job",
        "acceptanceCriteria": SAYS_OK,
        "assign": {"agentId": saved["saveAgent"]["id"]},
    }
    id = (await server.graphql(CREATE, input=job))["createJob"]["id"]
    await server.graphql(EXECUTE, input={"id": id})
    return id


@pytest.mark.timeout(180)
async def test_a_server_that_is_killed_again_and_again_gives_the_attempt_up(
    database_url: str, tmp_path: Path
) -> None:
    async def nearly_too_often(id: str) -> None:
        async with database.connected(database_url):
            attempts = Attempt.filter(job_id=parse_id("job", id))
            await attempts.update(resumptions=LOSSES - 1)

    async with fake_agent(stalls) as agent, serving(database_url, tmp_path) as server:
        id = await told_to_run(server, agent)
        await holds(lambda: len(agent.received) == 1)
        await server.kill()
        await beside(nearly_too_often(id))
        await server.start()
        await holds(lambda: len(agent.received) == 2)
        await server.kill()
        await server.start()

        async def settled() -> dict[str, Any] | None:
            job = (await server.graphql(JOB, id=id))["job"]
            return None if job["status"] == "IN_EXECUTION" else job

        job = await until(settled)
    assert (job["status"], job["statusReason"]) == ("RESUBMISSION_REQUIRED", "WORKER_LOST")
    assert job["attempts"]["nodes"] == [{"state": "LOST", "error": {"code": "WORKER_LOST"}}]
    assert len(agent.received) == 2


# Feedback


@pytest.mark.parametrize(
    ("changed", "hint", "expected"),
    [
        (False, None, ["of the verdict"]),
        (False, "Be brief.", ["Be brief.", "of the verdict"]),
        (True, None, []),
        (True, "Be brief.", ["Be brief."]),
    ],
)
async def test_reasons_of_criteria_that_hold_no_more_are_not_sent(
    rt: Runtime, *, changed: bool, hint: str | None, expected: list[str]
) -> None:
    async with fake_agent(in_turn(says_no, says_ok)) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url, accepts_feedback=True))
        await execute(rt, job)
        if changed:
            other = {"items": [{**SAYS_OK["items"][0], "text": "It is said."}]}
            change = {"id": job.id, "acceptance_criteria": other}
            await jobs.update(rt, MEMBER, UpdateJob.model_validate(change))
        await execute(rt, job, feedback=hint)
    verdict = await Verdict.filter(job_id=job.id).order_by("id").first()
    assert verdict
    (result,) = jsontext.loads(verdict.results_json)
    reasons = {"of the verdict": f"ok: {result['reason']}"}
    hints = [reasons.get(each, each) for each in expected]
    sent = fake.received[1].headers.get("signoff-feedback")
    assert jsontext.loads(sent or "[]") == hints
    _, second = await attempts_of(job)
    assert jsontext.loads(second.feedback_json) == hints
