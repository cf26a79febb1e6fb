"""Attempts that follow one that failed: when, after what pause, by whom, and what never does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from models import (
    Agent,
    AgentAvailability,
    AttemptState,
    CriteriaSet,
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
from services import agents, attempts, decisions, execution, openings, retries
from services.actors import LOCAL_ADMIN
from services.agents import SaveAgent
from services.attempts import OVERTAKEN, Run
from services.decisions import CancelJob, Review
from services.openings import Failure
from services.retries import RetryPolicy
from services.rules import Event
from services.runtime import Runtime
from services.values import public_id
from signoff.wiring import runtime
from tests.fakes.agents import Behaviour, FakeAgent, Received, fake_agent
from tests.support import graphql
from tests.support.graphql import Json, gql, mutate, new_job, problems, read_job
from tests.support.making import (
    ADMIN,
    IS_POLITE,
    MEMBER,
    NOWHERE,
    answers,
    attempts_of,
    error_of,
    execute,
    holds,
    in_turn,
    key_of,
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

AT_ONCE: dict[str, Any] = {"initial_seconds": 0}
THRICE = AT_ONCE | {"max_attempts": 3}
LONG = {"max_attempts": 2, "initial_seconds": 3600, "max_seconds": 3600, "jitter": 0}
"""A pause that no test waits for."""
FAILED, SUCCEEDED = AttemptState.FAILED, AttemptState.SUCCEEDED
RESUB, DONE = JobStatus.RESUBMISSION_REQUIRED, JobStatus.COMPLETED

breaks = answers({"error": "no"}, "500 Internal Server Error")
busy = answers({"error": "no"}, "503 Service Unavailable", "retry-after: 0")
refuses = answers({"error": "no"}, "401 Unauthorized")
BREAKS = "The agent answered 500 Internal Server Error. Its own logs tell why."


async def resets(received: Received) -> None:
    received.close()


async def states_of(job: Job) -> list[AttemptState]:
    return [attempt.state for attempt in await attempts_of(job)]


async def entries_of(job: Job) -> list[JobLog]:
    """What the log tells of new attempts."""
    return [
        entry
        for entry in await logs_of(job)
        if jsontext.loads(entry.payload_json or "{}").get("event") == "RETRY"
    ]


async def now(job: Job) -> Job:
    return await Job.get(id=job.id)


@pytest.fixture
async def rt(database_url: str, tmp_path: Path) -> AsyncIterator[Runtime]:
    """Agents fail here many times in a row, and are asked nevertheless."""
    settings = settings_for(database_url, tmp_path, circuit_failures=0)
    async with runtime(settings, allow_private_agents=True) as running:
        yield running


# After errors


async def test_an_error_is_followed_by_attempts_that_go_on_with_the_same_work(rt: Runtime) -> None:
    async with fake_agent(in_turn(breaks, resets, says_ok)) as fake:
        agent = await make_agent(rt, fake.url, idempotent=True)
        job = await make_job(rt, agent, retry_policy=THRICE)
        done = await execute(rt, job)
    # The reset is repeated within its attempt.
    assert (done.status, done.attempt_count) == (DONE, 2)
    one, two = await attempts_of(job)
    assert (one.state, two.state) == (FAILED, SUCCEEDED)
    assert one.finished_at
    assert jsontext.loads(one.error_json or "") == {
        "code": "SERVER_ERROR",
        "message": BREAKS,
        "retryable": False,
        "mayHaveExecuted": True,
    }
    assert (one.idempotency_key, two.idempotency_key) == (None, public_id("attempt", one.id))
    assert {key_of(each) for each in fake.received} == {public_id("attempt", one.id)}
    assert [each.headers["signoff-attempt"] for each in fake.received] == ["1", "2", "2"]
    assert (done.first_attempt, done.agent_attempts, done.fallbacks_used) == (1, 2, 0)
    assert await QueueEntry.all().count() == 0


async def test_the_log_tells_why_and_what_comes_next(rt: Runtime) -> None:
    async with fake_agent(in_turn(breaks, says_ok)) as fake:
        agent = await make_agent(rt, fake.url, idempotent=True)
        job = await make_job(rt, agent, retry_policy=THRICE)
        await execute(rt, job)
    one, _ = await attempts_of(job)
    (entry,) = await entries_of(job)
    assert (entry.type, entry.status) == (JobLogType.NOTE, JobStatus.IN_EXECUTION)
    assert (entry.attempt_id, entry.actor_name) == (one.id, "Signoff")
    assert entry.message == f"{BREAKS} Attempt 2 of 3 begins."
    told = jsontext.loads(entry.payload_json or "")
    assert told.pop("version") > 1
    assert told == {
        "event": "RETRY",
        "from": "IN_EXECUTION",
        "to": "IN_EXECUTION",
        "reason": "AGENT_ERROR",
        "attempt": 2,
        "agentId": public_id("agent", agent.id),
        "phase": "QUEUED",
        "failure": {
            "reason": "AGENT_ERROR",
            "code": "SERVER_ERROR",
            "message": BREAKS,
            "retryable": False,
            "mayHaveExecuted": True,
        },
        "failedAgentId": public_id("agent", agent.id),
        "pauseSeconds": 0.0,
        "skipped": [],
    }
    changes = [e for e in await logs_of(job) if e.type is JobLogType.STATUS_CHANGE]
    events = [jsontext.loads(e.payload_json or "")["event"] for e in changes]
    assert events == ["CREATE", "EXECUTE", "PASS"]


async def test_the_last_attempt_ends_the_execution_and_says_that_it_was_the_last(
    rt: Runtime,
) -> None:
    async with fake_agent(breaks) as fake:
        agent = await make_agent(rt, fake.url, idempotent=True)
        job = await make_job(rt, agent, retry_policy=THRICE)
        done = await execute(rt, job)
        assert len(fake.received) == 3
        assert (done.status, done.status_reason) == (RESUB, StatusReason.AGENT_ERROR)
        assert done.status_message == f"{BREAKS} That was attempt 3 of 3."
        assert await states_of(job) == [FAILED] * 3
        again = await execute(rt, job)
        assert len(fake.received) == 6
    assert (again.attempt_count, again.first_attempt, again.agent_attempts) == (6, 4, 3)
    keys = [key_of(each) for each in fake.received]
    one, _, _, four, *_ = await attempts_of(job)
    assert keys == [public_id("attempt", one.id)] * 3 + [public_id("attempt", four.id)] * 3


async def test_without_a_policy_nothing_is_tried_again(rt: Runtime) -> None:
    async with fake_agent(breaks) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url, idempotent=True))
        done = await execute(rt, job)
        assert len(fake.received) == 1
    assert (done.status, done.status_message) == (RESUB, BREAKS)
    assert await entries_of(job) == []


@pytest.mark.parametrize("fault", [breaks, resets], ids=["500", "reset"])
async def test_an_agent_that_may_have_acted_and_is_not_idempotent_is_never_asked_again(
    rt: Runtime, fault: Behaviour
) -> None:
    async with fake_agent(fault) as fake, fake_agent(says_ok) as other:
        agent, spare = await make_agent(rt, fake.url), await make_agent(rt, other.url)
        policy = THRICE | {"fallback_agent_ids": [spare.id]}
        job = await make_job(rt, agent, retry_policy=policy)
        done = await execute(rt, job)
        assert (len(fake.received), len(other.received)) == (1, 0)
    assert (done.status, done.status_reason) == (RESUB, StatusReason.AGENT_ERROR)
    assert done.agent_id == agent.id
    assert (done.status_message or "").endswith(
        f" Not tried again: “{agent.name}” may have done the work, and is not declared idempotent."
    )
    assert await states_of(job) == [FAILED]
    assert (await error_of(job))["mayHaveExecuted"] is True


async def test_what_was_certainly_not_taken_is_asked_again_of_any_agent(rt: Runtime) -> None:
    async with fake_agent(in_turn(*[busy] * 4, says_ok)) as fake:  # four tries are one attempt
        job = await make_job(rt, await make_agent(rt, fake.url), retry_policy=THRICE)
        done = await execute(rt, job)
        assert len(fake.received) == 5
    assert (done.status, done.attempt_count) == (DONE, 2)
    one, two = await attempts_of(job)
    assert jsontext.loads(one.error_json or "")["mayHaveExecuted"] is False
    assert two.idempotency_key is None
    assert key_of(fake.received[-1]) == public_id("attempt", two.id)


async def test_an_agent_that_is_never_reached_is_tried_before_the_job_is_given_back(
    rt: Runtime,
) -> None:
    job = await make_job(rt, await make_agent(rt, NOWHERE), retry_policy=THRICE)
    done = await execute(rt, job)
    assert (done.status, done.status_reason) == (
        JobStatus.ASSIGNED,
        StatusReason.AGENT_UNREACHABLE,
    )
    assert await states_of(job) == [FAILED] * 3
    assert (await error_of(job))["mayHaveExecuted"] is False


async def test_an_agent_that_refuses_is_not_asked_the_same_again(rt: Runtime) -> None:
    async with fake_agent(refuses) as fake:
        agent = await make_agent(rt, fake.url, idempotent=True)
        job = await make_job(rt, agent, retry_policy=THRICE)
        done = await execute(rt, job)
        assert len(fake.received) == 1
    assert (done.status, done.status_reason) == (RESUB, StatusReason.AGENT_REJECTED)
    assert (done.status_message or "").endswith(
        f" Not tried again: “{agent.name}” would fail in the same way."
    )


async def test_an_agent_that_ceases_to_be_idempotent_is_not_asked_to_repeat(rt: Runtime) -> None:
    policy = {"max_attempts": 2, "initial_seconds": 0, "jitter": 0}
    ceased = asyncio.Event()

    async with fake_agent(breaks) as fake:
        agent = await make_agent(rt, fake.url, idempotent=True, retry_policy=policy)

        async def breaks_after_the_change(received: Received) -> None:
            change = {"id": agent.id, "name": agent.name, "endpoint_url": fake.url}
            await agents.save(
                rt, LOCAL_ADMIN, SaveAgent.model_validate(change | {"idempotent": False})
            )
            ceased.set()
            await breaks(received)

        fake.behave = breaks_after_the_change
        job = await make_job(rt, agent)
        done = await execute(rt, job)
        assert ceased.is_set()
        assert len(fake.received) == 1
    assert (done.status, done.status_reason) == (RESUB, StatusReason.AGENT_ERROR)
    assert (done.status_message or "").startswith(
        "An attempt failed, and the agent is not declared idempotent: it may have done the work"
    )
    error = await error_of(job)
    assert (error["code"], error["mayHaveExecuted"]) == ("NOT_REPEATED", True)
    assert await states_of(job) == [FAILED, FAILED]


async def test_what_a_try_may_have_done_is_not_done_again_after_a_restart(
    database_url: str, tmp_path: Path
) -> None:
    """The agent ceases to be idempotent while its attempt pauses, and so does the server."""
    settings = settings_for(
        database_url, tmp_path, retry_initial_seconds=30, retry_max_seconds=30, shutdown_seconds=0
    )
    async with fake_agent(in_turn(resets, says_ok)) as fake:
        async with runtime(settings, allow_private_agents=True) as one:
            agent = await make_agent(one, fake.url, idempotent=True)
            job = await make_job(one, agent)
            await execute(one, job, wait_seconds=0)

            async def pauses() -> bool:
                return (await now(job)).phase is JobPhase.RETRY_WAIT

            await until(pauses)
            change = {"id": agent.id, "name": agent.name, "endpoint_url": fake.url}
            await agents.save(
                one, LOCAL_ADMIN, SaveAgent.model_validate(change | {"idempotent": False})
            )
        async with runtime(settings, allow_private_agents=True) as two:
            done = await execution.outcome(two, job, 30)
            error = await error_of(job)
        assert len(fake.received) == 1
    assert (done.status, done.status_reason) == (RESUB, StatusReason.AGENT_ERROR)
    assert (error["code"], error["mayHaveExecuted"]) == ("NOT_REPEATED", True)


async def test_what_an_earlier_attempt_may_have_done_is_not_forgotten(rt: Runtime) -> None:
    async with fake_agent(in_turn(breaks, busy)) as fake:
        agent = await make_agent(rt, fake.url, idempotent=True)
        job = await make_job(rt, agent, retry_policy=AT_ONCE | {"max_attempts": 2})
        done = await execute(rt, job)
    assert (done.status, done.status_reason) == (RESUB, StatusReason.AGENT_ERROR)
    error = await error_of(job)
    assert (error["code"], error["mayHaveExecuted"]) == ("BUSY", True)


# After answers that are not good

WRONG = answers({"answer": 1})
TEXT = {"type": "object", "properties": {"answer": {"type": "string"}}}


async def test_a_failed_verdict_asks_for_new_work_with_its_reasons(rt: Runtime) -> None:
    policy = THRICE | {"retry_on_verdict_fail": True}
    async with fake_agent(in_turn(says_no, says_no, says_ok)) as fake:
        agent = await make_agent(rt, fake.url, accepts_feedback=True)
        job = await make_job(rt, agent, retry_policy=policy)
        done = await execute(rt, job, feedback="Be brief.")
    assert (done.status, done.attempt_count) == (DONE, 3)
    made = await attempts_of(job)
    assert [each.state for each in made] == [FAILED, FAILED, SUCCEEDED]
    assert [each.idempotency_key for each in made] == [None] * 3
    assert [key_of(each) for each in fake.received] == [
        public_id("attempt", each.id) for each in made
    ]
    verdicts = await Verdict.filter(job_id=job.id).order_by("created_at", "id")
    reasons = openings.reasons(verdicts[0])
    assert len(reasons) == 1
    sent = [jsontext.loads(each.headers["signoff-feedback"]) for each in fake.received]
    assert sent == [["Be brief."], ["Be brief.", *reasons], ["Be brief.", *reasons]]
    assert [jsontext.loads(each.feedback_json) for each in made] == sent
    assert jsontext.loads(made[0].error_json or "") == {
        "code": "VERDICT_FAILED",
        "message": verdicts[0].summary,
        "retryable": True,
        "mayHaveExecuted": True,
    }


async def test_a_failed_verdict_is_not_tried_again_unless_it_is_asked_for(rt: Runtime) -> None:
    async with fake_agent(says_no) as fake:
        agent = await make_agent(rt, fake.url, idempotent=True)
        done = await execute(rt, await make_job(rt, agent, retry_policy=THRICE))
        assert len(fake.received) == 1
    assert (done.status, done.status_reason) == (RESUB, StatusReason.VERDICT_FAILED)


async def test_an_answer_of_the_wrong_form_goes_on_with_the_same_work(rt: Runtime) -> None:
    async with fake_agent(in_turn(WRONG, says_ok)) as fake:
        agent = await make_agent(rt, fake.url, idempotent=True, output_schema=TEXT)
        job = await make_job(rt, agent, retry_policy=THRICE)
        done = await execute(rt, job)
    assert (done.status, done.attempt_count) == (DONE, 2)
    assert len({key_of(each) for each in fake.received}) == 1


async def test_an_answer_of_the_wrong_form_is_new_work_where_verdicts_are(rt: Runtime) -> None:
    policy = THRICE | {"retry_on_verdict_fail": True}
    async with fake_agent(in_turn(WRONG, says_ok)) as fake:
        agent = await make_agent(rt, fake.url, accepts_feedback=True, output_schema=TEXT)
        job = await make_job(rt, agent, retry_policy=policy)
        done = await execute(rt, job)
    assert (done.status, done.attempt_count) == (DONE, 2)
    first, second = fake.received
    assert key_of(first) != key_of(second)
    (hint,) = jsontext.loads(second.headers["signoff-feedback"])
    assert hint.startswith("The response does not fit the outputSchema at /answer:")


async def test_an_answer_of_the_wrong_form_is_not_asked_for_again_of_other_agents(
    rt: Runtime,
) -> None:
    async with fake_agent(WRONG) as fake:
        agent = await make_agent(rt, fake.url, output_schema=TEXT)
        done = await execute(rt, await make_job(rt, agent, retry_policy=THRICE))
        assert len(fake.received) == 1
    assert (done.status, done.status_reason) == (RESUB, StatusReason.OUTPUT_SCHEMA_INVALID)
    assert "is not declared idempotent" in (done.status_message or "")


async def test_a_reviewers_no_is_a_failure_and_not_tried_again(rt: Runtime) -> None:
    async with fake_agent(says_ok) as fake:
        policy = THRICE | {"retry_on_verdict_fail": True}
        agent = await make_agent(rt, fake.url)
        job = await make_job(rt, agent, acceptance_criteria=IS_POLITE, retry_policy=policy)
        await execute(rt, job)
        (attempt,) = await attempts_of(job)
        given = {"attempt_id": attempt.id, "outcome": "FAIL", "reason": "Rude."}
        done = await decisions.review(rt, ADMIN, Review.model_validate(given))
        assert len(fake.received) == 1
    assert done.status is RESUB
    assert await error_of(job) == {
        "code": "REVIEW_REJECTED",
        "message": "Rude.",
        "retryable": True,
        "mayHaveExecuted": True,
    }


# The ladder


async def ladder(rt: Runtime, *fakes: FakeAgent, **given: Any) -> list[Agent]:
    return [await make_agent(rt, fake.url, idempotent=True, **given) for fake in fakes]


async def test_the_next_agent_takes_over_after_as_many_attempts(rt: Runtime) -> None:
    async with fake_agent(breaks) as a, fake_agent(breaks) as b, fake_agent(says_ok) as c:
        first, second, third = await ladder(rt, a, b, c)
        policy = AT_ONCE | {"reassign_after": 2, "fallback_agent_ids": [second.id, third.id]}
        job = await make_job(rt, first, retry_policy=policy)
        done = await execute(rt, job)
        assert [len(each.received) for each in (a, b, c)] == [2, 2, 1]
    assert (done.status, done.agent_id) == (DONE, third.id)
    assert (done.first_attempt, done.agent_attempts, done.fallbacks_used) == (1, 1, 2)
    made = await attempts_of(job)
    assert [each.agent_id for each in made] == [first.id] * 2 + [second.id] * 2 + [third.id]
    assert [jsontext.loads(each.agent_snapshot_json)["name"] for each in made] == [
        each.name for each in (first, first, second, second, third)
    ]
    assert [each.idempotency_key for each in made] == [
        None,
        public_id("attempt", made[0].id),
        None,
        public_id("attempt", made[2].id),
        None,
    ]
    again, over, again_b, over_b = await entries_of(job)
    told = [jsontext.loads(e.payload_json or "") for e in (again, over, again_b, over_b)]
    assigned = StatusReason.ASSIGNED_AUTOMATICALLY
    assert [each["reason"] for each in told] == ["AGENT_ERROR", assigned] * 2
    assert [each["agentId"] for each in told] == [
        public_id("agent", each.id) for each in (first, second, second, third)
    ]
    assert over.message == (
        f"{BREAKS} Attempt 3 of 6 goes to “{second.name}”, since “{first.name}” failed 2 attempts."
    )


async def test_agents_that_are_not_fit_are_passed_over_by_name(rt: Runtime) -> None:
    async with fake_agent(breaks) as a, fake_agent(says_ok) as c:
        first, paused, last = await ladder(rt, a, a, c)
        await agents.set_availability(rt, LOCAL_ADMIN, paused.id, AgentAvailability.PAUSED)
        picky = await make_agent(rt, c.url, input_schema={"required": ["q"], "type": "object"})
        policy = AT_ONCE | {"fallback_agent_ids": [paused.id, picky.id, last.id]}
        job = await make_job(rt, first, input={"z": 1}, retry_policy=policy)
        done = await execute(rt, job)
        assert (len(a.received), len(c.received)) == (1, 1)
    assert (done.status, done.agent_id, done.fallbacks_used) == (DONE, last.id, 3)
    (entry,) = await entries_of(job)
    skipped = jsontext.loads(entry.payload_json or "")["skipped"]
    assert skipped == [
        f"“{paused.name}” is PAUSED.",
        f'The input does not fit what “{picky.name}” takes: "q" is a required property',
    ]
    assert (entry.message or "").endswith(f"Not fit: {' '.join(skipped)}")


async def test_the_agent_stays_while_nobody_is_fit_to_take_over(rt: Runtime) -> None:
    async with fake_agent(in_turn(breaks, says_ok)) as a:
        first, paused = await ladder(rt, a, a)
        await agents.set_availability(rt, LOCAL_ADMIN, paused.id, AgentAvailability.PAUSED)
        policy = AT_ONCE | {"fallback_agent_ids": [paused.id]}
        job = await make_job(rt, first, retry_policy=policy)
        done = await execute(rt, job)
    assert (done.status, done.agent_id) == (DONE, first.id)
    assert (done.agent_attempts, done.fallbacks_used) == (2, 0)
    (entry,) = await entries_of(job)
    assert (entry.message or "").endswith(f" Not fit: “{paused.name}” is PAUSED.")


async def test_an_agent_that_would_fail_again_is_left_at_once(rt: Runtime) -> None:
    async with fake_agent(refuses) as a, fake_agent(says_ok) as b:
        first, second = await ladder(rt, a, b)
        policy = AT_ONCE | {"reassign_after": 5, "fallback_agent_ids": [second.id]}
        job = await make_job(rt, first, retry_policy=policy)
        done = await execute(rt, job)
        assert (len(a.received), len(b.received)) == (1, 1)
    assert (done.status, done.agent_id) == (DONE, second.id)
    (entry,) = await entries_of(job)
    assert (entry.message or "").endswith(
        f"Attempt 2 of 10 goes to “{second.name}”, since “{first.name}” failed an attempt."
    )


async def test_nobody_left_is_said_with_the_names(rt: Runtime) -> None:
    async with fake_agent(refuses) as a:
        first, paused = await ladder(rt, a, a)
        await agents.set_availability(rt, LOCAL_ADMIN, paused.id, AgentAvailability.DISABLED)
        policy = AT_ONCE | {"fallback_agent_ids": [paused.id]}
        done = await execute(rt, await make_job(rt, first, retry_policy=policy))
    assert done.status is RESUB
    assert (done.status_message or "").endswith(
        f"“{first.name}” would fail in the same way. "
        f"Nobody else could take over: “{paused.name}” is DISABLED."
    )


async def test_a_job_that_one_agent_may_have_done_is_not_given_back_by_another(
    rt: Runtime,
) -> None:
    async with fake_agent(breaks) as a:
        first = await make_agent(rt, a.url, idempotent=True)
        second = await make_agent(rt, NOWHERE)
        policy = AT_ONCE | {"fallback_agent_ids": [second.id]}
        job = await make_job(rt, first, retry_policy=policy)
        done = await execute(rt, job)
    assert (done.status, done.status_reason) == (RESUB, StatusReason.AGENT_UNREACHABLE)
    assert (done.agent_id, done.attempt_count) == (second.id, 2)
    assert (await error_of(job))["mayHaveExecuted"] is False


async def test_a_failed_verdict_goes_down_the_ladder_with_its_reasons(rt: Runtime) -> None:
    async with fake_agent(says_no) as a, fake_agent(says_ok) as b:
        first = await make_agent(rt, a.url)
        second = await make_agent(rt, b.url, accepts_feedback=True)
        policy = AT_ONCE | {"retry_on_verdict_fail": True, "fallback_agent_ids": [second.id]}
        job = await make_job(rt, first, retry_policy=policy)
        done = await execute(rt, job)
        assert (len(a.received), len(b.received)) == (1, 1)
    assert (done.status, done.agent_id) == (DONE, second.id)
    verdict = await Verdict.filter(job_id=job.id).order_by("created_at", "id").first()
    assert verdict
    sent = jsontext.loads(b.received[0].headers["signoff-feedback"])
    assert sent == openings.reasons(verdict)


# Pauses


async def waiting(job: Job) -> bool:
    return (await now(job)).phase is JobPhase.RETRY_WAIT


async def paused_job(rt: Runtime, fake: FakeAgent, **given: Any) -> Job:
    """A job whose second attempt waits for an hour."""
    agent = await make_agent(rt, fake.url, idempotent=True)
    job = await make_job(rt, agent, retry_policy=LONG | given)
    await execute(rt, job, wait_seconds=0)
    await until(lambda: waiting(job))
    return job


async def test_the_next_attempt_sleeps_for_the_pause(rt: Runtime) -> None:
    async with fake_agent(breaks) as fake:
        before = datetime.now(UTC)
        job = await paused_job(rt, fake)
        after = datetime.now(UTC)
    entry = await QueueEntry.get(job_id=job.id)
    assert (entry.state, entry.number) == (QueueState.SLEEPING, 2)
    assert entry.ready_at
    pause = timedelta(hours=1)
    assert before + pause <= entry.ready_at <= after + pause
    assert await states_of(job) == [FAILED, AttemptState.QUEUED]
    row = await now(job)
    assert (row.status, row.status_reason) == (JobStatus.IN_EXECUTION, StatusReason.AGENT_ERROR)
    assert row.status_message == f"{BREAKS} Attempt 2 of 2 begins in 3600.0 s."


async def test_an_agent_that_asks_for_more_time_gets_it(rt: Runtime) -> None:
    asks = answers({}, "429 Too Many Requests", "retry-after: 1800")
    async with fake_agent(asks) as fake:
        before = datetime.now(UTC)
        job = await paused_job(rt, fake, initial_seconds=1)
        after = datetime.now(UTC)
    entry = await QueueEntry.get(job_id=job.id)
    assert entry.ready_at
    pause = timedelta(minutes=30)
    assert before + pause <= entry.ready_at <= after + pause


async def test_a_job_cancelled_in_the_pause_runs_no_more(rt: Runtime) -> None:
    async with fake_agent(breaks) as fake:
        job = await paused_job(rt, fake)
        await decisions.cancel(rt, MEMBER, CancelJob(id=job.id))
        assert await QueueEntry.all().count() == 0
        before = await snapshot(job)
        await execution.run(rt, job.id, 2)
        await execution.run(rt, job.id, 1)
        assert await snapshot(job) == before
        assert len(fake.received) == 1
    assert (await now(job)).status is JobStatus.CANCELLED
    assert await states_of(job) == [FAILED, AttemptState.CANCELLED]


CANCEL = "mutation($id: ID!) { cancelJob(input: { id: $id }) { __typename } }"
EXECUTE = "mutation($id: ID!) { executeJob(input: { id: $id }) { __typename } }"
ERRORS = """query($id: ID!) { job(id: $id) { attempts { nodes {
    state error { code message retryable mayHaveExecuted } } } } }"""


async def test_what_was_taken_back_tells_whether_the_agent_may_have_acted(client: Client) -> None:
    async with graphql.agent(client, maxConcurrency=1) as (id, endpoint):
        endpoint.behave = stalls
        jobs = [await new_job(client, assign={"agentId": id}) for _ in range(2)]
        for job in jobs:
            await gql(client, EXECUTE, id=job["id"])
        await holds(lambda: len(endpoint.received) == 1)
        for job in jobs:
            await gql(client, CANCEL, id=job["id"])
    read = [(await gql(client, ERRORS, id=job["id"]))["job"]["attempts"]["nodes"] for job in jobs]
    asked = "It was taken back; the agent may have acted."
    assert [nodes[0]["state"] for nodes in read] == ["CANCELLED"] * 2
    assert sorted((each[0]["error"] for each in read), key=lambda e: e["mayHaveExecuted"]) == [
        {"code": "CANCELLED", "message": message, "retryable": True, "mayHaveExecuted": acted}
        for message, acted in (("It was taken back.", False), (asked, True))
    ]


async def test_a_server_that_stops_in_the_pause_goes_on_after_it(
    database_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, tmp_path)
    async with fake_agent(in_turn(breaks, says_ok)) as fake:
        async with runtime(settings, allow_private_agents=True) as rt:
            job = await paused_job(rt, fake)
        async with runtime(settings, allow_private_agents=True) as rt:
            entry = await QueueEntry.get(job_id=job.id)
            assert (entry.state, entry.number) == (QueueState.SLEEPING, 2)
            await QueueEntry.filter(job_id=job.id).update(ready_at=datetime.now(UTC))
            rt.engine.wake(datetime.now(UTC))
            done = await execution.outcome(rt, job, 30)
        assert len(fake.received) == 2
    assert (done.status, done.attempt_count) == (DONE, 2)


async def test_a_short_pause_ends_by_itself(rt: Runtime) -> None:
    async with fake_agent(in_turn(breaks, says_ok)) as fake:
        agent = await make_agent(rt, fake.url, idempotent=True)
        policy = {"max_attempts": 2, "initial_seconds": 0.05}
        done = await execute(rt, await make_job(rt, agent, retry_policy=policy))
    assert (done.status, done.attempt_count) == (DONE, 2)


async def test_running_an_attempt_that_was_followed_does_nothing(rt: Runtime) -> None:
    async with fake_agent(breaks) as fake:
        job = await paused_job(rt, fake)
        before = await snapshot(job)
        await execution.run(rt, job.id, 1)
        await execution.give_up(rt, job.id, 1)
        assert await snapshot(job) == before
        assert await QueueEntry.filter(job_id=job.id).count() == 1


async def under_way(job: Job) -> Run:
    """The job's first attempt, as a worker holds it that knows of nothing since."""
    (attempt,) = await attempts_of(job)
    agent = await Agent.get(id=attempt.agent_id)
    return Run(await now(job), attempt, agent, await CriteriaSet.get(job_id=job.id))


async def test_a_worker_that_was_thought_dead_opens_no_attempt(rt: Runtime) -> None:
    async with fake_agent(stalls) as fake:
        agent = await make_agent(rt, fake.url, idempotent=True)
        job = await make_job(rt, agent, retry_policy=THRICE)
        await execute(rt, job, wait_seconds=0)
        await holds(lambda: len(fake.received) == 1)
        await rt.engine.stop(0)
    alive, dead = await under_way(job), await under_way(job)
    failure = Failure("SERVER_ERROR", "It broke.", retryable=True, may_have_executed=True)
    ending = (Event.FAIL, StatusReason.AGENT_ERROR, "It broke.")
    await attempts.settle(rt, alive, *ending, error=failure)
    before = await snapshot(job)
    assert [each["number"] for each in before["attempts"]] == [1, 2]
    with pytest.raises(OVERTAKEN):
        await attempts.settle(rt, dead, *ending, error=failure)
    assert await snapshot(job) == before
    assert (await QueueEntry.get(job_id=job.id)).number == 2


def pauses(policy: RetryPolicy) -> list[float]:
    return [policy.pause(failed) for failed in range(1, 6)]


def test_pauses_grow_up_to_a_cap() -> None:
    policy = RetryPolicy(max_attempts=6, initial_seconds=2, multiplier=3, max_seconds=20, jitter=0)
    assert pauses(policy) == [2, 6, 18, 20, 20]


@pytest.mark.parametrize(("jitter", "least"), [(0.5, 5.0), (1.0, 0.0)])
def test_jitter_shortens_a_pause_by_chance(jitter: float, least: float) -> None:
    policy = RetryPolicy(max_attempts=2, initial_seconds=10, jitter=jitter)
    drawn = [policy.pause(1) for _ in range(200)]
    assert all(least <= each <= 10 for each in drawn)
    assert len(set(drawn)) > 1


# Whose policy holds

IDS = (UUID(int=1), UUID(int=2))


def resolved(job: Any, agent: Any) -> RetryPolicy:
    rows = [
        None if given is None else retries.RetryPolicyDraft.model_validate(given).stored()
        for given in (job, agent)
    ]
    return retries.policy_of(Job(retry_json=rows[0]), Agent(retry_json=rows[1]))


def test_the_jobs_own_words_come_before_its_agents_and_the_defaults_last() -> None:
    assert resolved(None, None) == RetryPolicy(max_attempts=1)
    assert resolved(None, {"max_attempts": 4, "jitter": 0}) == RetryPolicy(4, jitter=0)
    assert resolved({"jitter": 1}, {"max_attempts": 4, "jitter": 0}) == RetryPolicy(4, jitter=1)
    assert resolved({"max_attempts": 1}, {"max_attempts": 4}) == RetryPolicy(1)
    assert resolved({"retry_on_verdict_fail": False}, {"retry_on_verdict_fail": True}) == (
        RetryPolicy(1)
    )
    assert retries.policy_of(None, None) == RetryPolicy(1)


def test_a_ladder_has_room_for_all_of_its_agents_by_default() -> None:
    ids = [public_id("agent", key) for key in IDS]
    assert resolved({"fallback_agent_ids": ids}, None) == (
        RetryPolicy(3, reassign_after=1, fallback_agent_ids=IDS)
    )
    ladder = {"fallback_agent_ids": ids, "reassign_after": 4}
    assert resolved(ladder, None) == RetryPolicy(12, reassign_after=4, fallback_agent_ids=IDS)
    assert resolved({"reassign_after": 4}, None) == RetryPolicy(1)
    assert resolved(ladder | {"reassign_after": 20}, None).max_attempts == 20
    assert resolved(ladder, {"max_attempts": 2}).max_attempts == 12
    assert resolved(ladder, {"max_attempts": 15}).max_attempts == 15
    assert resolved(ladder | {"max_attempts": 2}, {"max_attempts": 15}).max_attempts == 2


# What clients see and give

POLICY = """maxAttempts initialSeconds multiplier maxSeconds jitter retryOnVerdictFail
    reassignAfter fallbackAgents { id }"""
READ = f"""query($id: ID!) {{ job(id: $id) {{
    maxAttempts retryPolicy {{ {POLICY} }} agent {{ retryPolicy {{ {POLICY} }} }} }} }}"""
DEFAULTS: Json = {
    "maxAttempts": 1,
    "initialSeconds": 1.0,
    "multiplier": 2.0,
    "maxSeconds": 300.0,
    "jitter": 0.5,
    "retryOnVerdictFail": False,
    "reassignAfter": None,
    "fallbackAgents": [],
}


async def policies(client: Client, id: str) -> Json:
    return (await gql(client, READ, id=id))["job"]


async def test_a_job_shows_the_policy_that_holds(client: Client) -> None:
    job = await new_job(client)
    shown = await policies(client, job["id"])
    assert shown == {"maxAttempts": 1, "retryPolicy": DEFAULTS, "agent": None}
    own = {"maxAttempts": 5, "maxSeconds": 60}
    async with (
        graphql.agent(client, retryPolicy=own) as (id, _),
        graphql.agent(client, name="Spare") as (spare, _),
    ):
        given = {"maxSeconds": 30.5, "fallbackAgentIds": [spare]}
        job = await new_job(client, assign={"agentId": id}, retryPolicy=given)
        assert await policies(client, job["id"]) == {
            "maxAttempts": 5,
            "retryPolicy": DEFAULTS
            | {
                "maxAttempts": 5,
                "maxSeconds": 30.5,
                "reassignAfter": 1,
                "fallbackAgents": [{"id": spare}],
            },
            "agent": {"retryPolicy": DEFAULTS | {"maxAttempts": 5, "maxSeconds": 60.0}},
        }


async def test_an_update_replaces_the_whole_policy_or_keeps_it(client: Client) -> None:
    job = await new_job(client, retryPolicy={"maxAttempts": 4, "jitter": 0})

    async def after(**given: Any) -> Json:
        changed = await mutate(client, "updateJob", input={"id": job["id"]} | given)
        assert changed["__typename"] == "Job"
        return (await policies(client, job["id"]))["retryPolicy"]

    assert await after(name="New") == DEFAULTS | {"maxAttempts": 4, "jitter": 0.0}
    assert await after(retryPolicy={"multiplier": 3}) == DEFAULTS | {"multiplier": 3.0}
    assert await after(retryPolicy=None) == DEFAULTS


@pytest.mark.parametrize(
    ("given", "path", "message"),
    [
        ({"maxAttempts": 0}, "maxAttempts", "greater than or equal to 1"),
        ({"maxAttempts": 21}, "maxAttempts", "less than or equal to 20"),
        ({"initialSeconds": -1}, "initialSeconds", "greater than or equal to 0"),
        ({"multiplier": 0.5}, "multiplier", "greater than or equal to 1"),
        ({"maxSeconds": 86401}, "maxSeconds", "less than or equal to 86400"),
        ({"jitter": 1.1}, "jitter", "less than or equal to 1"),
        ({"reassignAfter": 0}, "reassignAfter", "greater than or equal to 1"),
        ({"fallbackAgentIds": ["job_1"]}, "fallbackAgentIds.0", "is not the id of an agent"),
        (
            {"fallbackAgentIds": [f"agent_{0:032x}"] * 2},
            "fallbackAgentIds",
            "must name different agents",
        ),
        (
            {"fallbackAgentIds": [f"agent_{0:032x}"]},
            "fallbackAgentIds.0",
            "there is no such agent",
        ),
    ],
)
async def test_a_policy_that_cannot_be_is_refused(
    client: Client, given: Json, path: str, message: str
) -> None:
    job = await new_job(client)
    before = await read_job(client, job["id"])
    refused = await problems(client, "updateJob", input={"id": job["id"], "retryPolicy": given})
    (found,) = refused.items()
    assert found[0] == f"input.retryPolicy.{path}"
    assert message in found[1]
    assert await read_job(client, job["id"]) == before
    new = {"name": "New", "acceptanceCriteria": graphql.SAYS_OK, "retryPolicy": given}
    assert (await problems(client, "createJob", input=new)).keys() == {found[0]}
    assert (await gql(client, "{ jobs { totalCount } }"))["jobs"]["totalCount"] == 1


async def test_a_job_does_not_fall_back_on_its_own_agent(client: Client) -> None:
    async with graphql.agent(client) as (id, _):
        job = await new_job(client, assign={"agentId": id})
        before = await read_job(client, job["id"])
        policy = {"fallbackAgentIds": [id]}
        wanted = {"id": job["id"], "retryPolicy": policy}
        expected = {"input.retryPolicy.fallbackAgentIds.0": "is the job's own agent"}
        assert await problems(client, "updateJob", input=wanted) == expected
        assert await read_job(client, job["id"]) == before
        new = {"name": "New", "acceptanceCriteria": graphql.SAYS_OK, "assign": {"agentId": id}}
        assert await problems(client, "createJob", input=new | {"retryPolicy": policy}) == expected


async def test_a_policy_may_be_given_again_after_its_ladder_was_climbed(client: Client) -> None:
    async with (
        graphql.agent(client) as (first, _),
        graphql.agent(client, name="Second") as (second, _),
    ):
        policy = {"fallbackAgentIds": [second], "reassignAfter": 2}
        job = await new_job(client, assign={"agentId": first}, retryPolicy=policy)
        moved = {"id": job["id"], "assign": {"agentId": second}}
        await graphql.mutate(client, "reassignJob", input=moved)
        wanted = {"id": job["id"], "retryPolicy": policy | {"reassignAfter": 3}}
        await graphql.mutate(client, "updateJob", input=wanted)
        assert (await policies(client, job["id"]))["retryPolicy"]["reassignAfter"] == 3


@pytest.mark.parametrize("given", [{"reassignAfter": 2}, {"fallbackAgentIds": []}])
async def test_an_agent_has_no_ladder(client: Client, given: Json) -> None:
    wanted = {"name": "Echo", "endpointUrl": NOWHERE, "retryPolicy": given}
    refused = await problems(client, "saveAgent", input=wanted)
    assert refused == {"input.retryPolicy": "reassignAfter and fallbackAgentIds belong to a job"}
    assert (await gql(client, "{ agents { totalCount } }"))["agents"]["totalCount"] == 0
