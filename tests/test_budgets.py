"""What a job may take: set aside before a call, replaced by what was taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from models import (
    AgentGate,
    Attempt,
    Job,
    JobLogType,
    JobPhase,
    JobStatus,
    StatusReason,
    Verdict,
    jsontext,
)
from services import agents, budgets, decisions, execution, jobs
from services.actors import LOCAL_ADMIN
from services.agent_http import usage
from services.agents import SaveAgent
from services.budgets import BudgetDraft
from services.decisions import CancelJob
from services.errors import BudgetExceeded
from services.jobs import UpdateJob
from services.runtime import Options, Runtime
from signoff.wiring import runtime
from tests.fakes import openai_server
from tests.fakes.agents import Behaviour, Received, fake_agent
from tests.fakes.openai_server import FakeOpenAI
from tests.support.graphql import agent as saved_agent
from tests.support.graphql import finished_job, gql, mutate, new_job
from tests.support.making import (
    IS_POLITE,
    MEMBER,
    answers,
    attempts_of,
    error_of,
    execute,
    holds,
    in_turn,
    log_types,
    logs_of,
    make_agent,
    make_job,
    says_no,
    snapshot,
    stalls,
)
from tests.support.running import Client, settings_for

TOOK = ("signoff-input-tokens: 30", "signoff-output-tokens: 12", "signoff-cost-usd: 0.0015")
MUCH = ("signoff-input-tokens: 900", "signoff-cost-usd: 2")

took = answers({"answer": "ok"}, "200 OK", *TOOK)
took_for_nothing = answers({"answer": "no"}, "200 OK", *TOOK)
took_much = answers({"answer": "no"}, "200 OK", *MUCH)

DECLARED: dict[str, Any] = {"max_call_tokens": 100, "max_call_cost_usd": 0.01}


@pytest.fixture
async def idle(database_url: str, tmp_path: Path) -> AsyncIterator[Runtime]:
    """Without a worker: the test runs what is queued."""
    settings = settings_for(database_url, tmp_path)
    async with runtime(settings, allow_private_agents=True, work=False) as running:
        yield running


@pytest.fixture
async def openai() -> AsyncIterator[FakeOpenAI]:
    async with openai_server.running() as fake:
        yield fake


@pytest.fixture
async def judged(database_url: str, tmp_path: Path, openai: FakeOpenAI) -> AsyncIterator[Runtime]:
    """With a judge of $1 a million tokens in and $10 out, who writes 1,000 at most."""
    settings = settings_for(
        database_url,
        tmp_path,
        openai_api_key="sk-test",
        openai_base_url=openai.base_url,
        judge_max_output_tokens=1000,
        judge_input_usd_per_million=1,
        judge_output_usd_per_million=10,
    )
    async with runtime(settings, allow_private_agents=True) as running:
        yield running


async def sums(job: Job) -> dict[str, int]:
    """What the job counts."""
    row = await Job.get(id=job.id)
    return {
        "in": row.input_tokens,
        "out": row.output_tokens,
        "micros": row.cost_micros,
        "judge": row.judge_cost_micros,
    }


def counted(into: int = 0, out: int = 0, micros: int = 0, judge: int = 0) -> dict[str, int]:
    return {"in": into, "out": out, "micros": micros, "judge": judge}


async def held(job: Job) -> tuple[int, int]:
    (*_, attempt) = await attempts_of(job)
    return attempt.reserved_tokens, attempt.reserved_micros


async def is_estimate(job: Job) -> bool:
    (found,) = await budgets.are_estimates([job.id])
    return found


async def exceeded(job: Job) -> dict[str, Any]:
    """The error of a job that its budget ended."""
    now = await Job.get(id=job.id)
    assert (now.status, now.status_reason) == (
        JobStatus.RESUBMISSION_REQUIRED,
        StatusReason.BUDGET_EXCEEDED,
    )
    error = await error_of(job)
    assert error["message"] == now.status_message
    return error


# What agents report


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, (None, None, None, ())),
        ({"signoff-input-tokens": "7"}, (7, None, None, ())),
        ({"signoff-output-tokens": " 0 "}, (None, 0, None, ())),
        ({"signoff-cost-usd": "0.0000001"}, (None, None, 1, ())),
        ({"signoff-cost-usd": "1e-05"}, (None, None, 10, ())),
        ({"signoff-cost-usd": "1000000"}, (None, None, 10**12, ())),
        ({"signoff-input-tokens": "1000000000"}, (10**9, None, None, ())),
    ],
)
def test_reports_are_read(headers: dict[str, str], expected: tuple[Any, ...]) -> None:
    found = usage.read(headers)
    assert (found.input_tokens, found.output_tokens, found.cost_micros, found.ignored) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *[("signoff-input-tokens", text) for text in ("-1", "1.5", "", "x", "1" * 11, "٣")],
        ("signoff-input-tokens", "1000000001"),
        ("signoff-output-tokens", "NaN"),
        *[("signoff-cost-usd", text) for text in ("-0.1", "NaN", "inf", "1e99", "1000000.1", "$1")],
        ("signoff-cost-usd", "0." + "1" * 1000),
    ],
)
def test_nonsense_is_ignored_and_named(name: str, text: str) -> None:
    assert usage.read({name: text}) == usage.Reported(ignored=(name,))


async def test_what_an_agent_reports_is_counted_and_logged(rt: Runtime) -> None:
    async with fake_agent(in_turn(took_for_nothing, took)) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url))
        await execute(rt, job)
        assert await sums(job) == counted(30, 12, 1500)
        await execute(rt, job)
    assert await sums(job) == counted(60, 24, 3000)
    attempts = await attempts_of(job)
    assert [(a.input_tokens, a.output_tokens, a.cost_micros) for a in attempts] == [
        (30, 12, 1500)
    ] * 2
    assert not await is_estimate(job)
    (first, _) = [e for e in await logs_of(job) if e.type is JobLogType.AGENT_RESPONSE]
    assert jsontext.loads(first.payload_json or "")["usage"] == {
        "inputTokens": 30,
        "outputTokens": 12,
        "costUsd": 0.0015,
    }


async def test_nonsense_in_a_report_counts_nothing_and_is_noted(rt: Runtime) -> None:
    strange = answers({"answer": "ok"}, "200 OK", "signoff-cost-usd: -5")
    async with fake_agent(strange) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url))
        assert (await execute(rt, job)).status is JobStatus.COMPLETED
    assert await sums(job) == counted()
    (entry,) = [e for e in await logs_of(job) if e.type is JobLogType.AGENT_RESPONSE]
    assert jsontext.loads(entry.payload_json or "")["usage"] == {"ignored": ["signoff-cost-usd"]}


# Setting aside


async def test_a_call_is_set_aside_for_and_the_answer_takes_its_place(rt: Runtime) -> None:
    go_on = asyncio.Event()

    async def later(received: Received) -> None:
        await go_on.wait()
        await took(received)

    async with fake_agent(later) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url, **DECLARED))
        await execute(rt, job, wait_seconds=0)
        await holds(lambda: len(fake.received) == 1)
        assert await sums(job) == counted(100, 0, 10_000)
        assert await held(job) == (100, 10_000)
        assert await is_estimate(job)
        go_on.set()
        await execution.outcome(rt, job, 30)
    assert await sums(job) == counted(30, 12, 1500)
    assert await held(job) == (0, 0)
    assert not await is_estimate(job)


async def test_what_is_not_reported_counts_as_it_was_set_aside(rt: Runtime) -> None:
    half = answers({"answer": "ok"}, "200 OK", "signoff-input-tokens: 30")
    async with fake_agent(half) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url, **DECLARED))
        await execute(rt, job)
    assert await sums(job) == counted(100, 0, 10_000)
    assert await held(job) == (70, 10_000)
    assert await is_estimate(job)


async def test_tokens_of_one_kind_count_in_full_where_they_are_more_than_was_set_aside(
    rt: Runtime,
) -> None:
    half = answers({"answer": "ok"}, "200 OK", "signoff-output-tokens: 300")
    async with fake_agent(half) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url, **DECLARED))
        await execute(rt, job)
    assert await sums(job) == counted(0, 300, 10_000)
    assert await held(job) == (0, 10_000)


async def test_a_call_that_nobody_took_costs_nothing(rt: Runtime) -> None:
    job = await make_job(rt, await make_agent(rt, **DECLARED))
    assert (await execute(rt, job)).status_reason is StatusReason.AGENT_UNREACHABLE
    assert (await log_types(job)).count("AGENT_REQUEST") == 4
    assert await sums(job) == counted()
    assert await held(job) == (0, 0)


async def test_a_call_that_may_have_been_taken_stays_counted(rt: Runtime) -> None:
    async with fake_agent(answers({}, "500 Oh")) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url, **DECLARED))
        await execute(rt, job)
        assert await sums(job) == counted(100, 0, 10_000)
        await execute(rt, job)
    assert await sums(job) == counted(200, 0, 20_000)
    assert [(a.reserved_tokens, a.reserved_micros) for a in await attempts_of(job)] == [
        (100, 10_000)
    ] * 2


async def not_json(received: Received) -> None:
    await received.answer(b"Done.", "200 OK", *TOOK)


@pytest.mark.parametrize("behave", [answers({}, "500 Oh", *TOOK), not_json])
async def test_an_answer_that_is_no_good_counts_what_it_reports(
    rt: Runtime, behave: Behaviour
) -> None:
    async with fake_agent(behave) as fake:
        agent = await make_agent(rt, fake.url)
        job = await make_job(rt, agent, budget={"max_cost_usd": 0.002})
        for times in (1, 2):
            await execute(rt, job)
            assert await sums(job) == counted(30 * times, 12 * times, 1500 * times)
        assert await held(job) == (0, 0)
        with pytest.raises(BudgetExceeded):
            await execute(rt, job)
        assert len(fake.received) == 2
    entry = [e for e in await logs_of(job) if e.type is JobLogType.AGENT_RESPONSE][-1]
    assert jsontext.loads(entry.payload_json or "")["usage"] == {
        "inputTokens": 30,
        "outputTokens": 12,
        "costUsd": 0.0015,
    }


async def test_each_try_counts_what_it_reports(rt: Runtime) -> None:
    unavailable = answers({}, "503 Busy", *TOOK)
    async with fake_agent(in_turn(unavailable, took)) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url, idempotent=True, **DECLARED))
        await execute(rt, job)
        assert len(fake.received) == 2
    assert await sums(job) == counted(60, 24, 3000)
    assert await held(job) == (0, 0)


async def test_tries_of_the_same_work_are_set_aside_for_once(rt: Runtime) -> None:
    async def hangs_up(received: Received) -> None:
        received.close()

    async with fake_agent(in_turn(hangs_up, hangs_up, took)) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url, idempotent=True, **DECLARED))
        await execute(rt, job)
        assert len(fake.received) == 3
    assert await sums(job) == counted(30, 12, 1500)
    assert await held(job) == (0, 0)


async def test_a_call_that_is_cut_off_stays_counted(rt: Runtime) -> None:
    async with fake_agent(stalls) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url, **DECLARED))
        await execute(rt, job, wait_seconds=0)
        await holds(lambda: len(fake.received) == 1)
        await decisions.cancel(rt, MEMBER, CancelJob.model_validate({"id": job.id}))
        await fake.all_closed()
    assert await sums(job) == counted(100, 0, 10_000)
    assert await is_estimate(job)


async def run_and_crash(rt: Runtime, job: Job, called: Callable[[], bool]) -> None:
    """Run the job's attempt and end in the midst of the call."""
    run = asyncio.create_task(execution.run(rt, job.id, 1))
    await holds(called)
    run.cancel()
    with suppress(asyncio.CancelledError):
        await run


async def test_a_crash_leaves_it_counted_and_going_on_does_not_count_twice(idle: Runtime) -> None:
    async with fake_agent(in_turn(stalls, took)) as fake:
        agent = await make_agent(idle, fake.url, idempotent=True, **DECLARED)
        job = await make_job(idle, agent, budget={"max_tokens": 100})
        await execute(idle, job, wait_seconds=0)
        await run_and_crash(idle, job, lambda: len(fake.received) == 1)
        assert await sums(job) == counted(100, 0, 10_000)
        await execution.run(idle, job.id, 1)
        assert len(fake.received) == 2
    assert (await Job.get(id=job.id)).status is JobStatus.COMPLETED
    assert await sums(job) == counted(30, 12, 1500)


async def test_what_a_lost_call_may_have_taken_is_never_forgotten(idle: Runtime) -> None:
    async with fake_agent(stalls) as fake:
        agent = await make_agent(idle, fake.url, **DECLARED)
        job = await make_job(idle, agent, budget={"max_tokens": 150})
        await execute(idle, job, wait_seconds=0)
        await run_and_crash(idle, job, lambda: len(fake.received) == 1)
        await execution.run(idle, job.id, 1)
    lost = await Job.get(id=job.id)
    assert lost.status_reason is StatusReason.WORKER_LOST
    assert await sums(job) == counted(100, 0, 10_000)
    before = await snapshot(job)
    with pytest.raises(BudgetExceeded) as refused:
        await execute(idle, job, wait_seconds=0)
    assert str(refused.value) == (
        f"The job's budget does not allow another call of “{agent.name}”, which may take "
        "100 tokens: 100 tokens of 150 tokens are used."
    )
    assert await snapshot(job) == before


# Refusing


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"max_tokens": 99}, "100 tokens: 0 tokens of 99 tokens are used."),
        ({"max_cost_usd": 0.009}, "$0.01: $0 of $0.009 are used."),
    ],
)
async def test_an_execution_that_its_budget_cannot_pay_is_refused(
    rt: Runtime, budget: dict[str, Any], said: str
) -> None:
    agent = await make_agent(rt, **DECLARED)
    job = await make_job(rt, agent, budget=budget)
    before = await snapshot(job)
    with pytest.raises(BudgetExceeded) as refused:
        await execute(rt, job)
    assert str(refused.value) == (
        f"The job's budget does not allow another call of “{agent.name}”, which may take {said}"
    )
    assert await snapshot(job) == before


async def test_a_call_that_became_too_dear_is_not_made(idle: Runtime) -> None:
    async with fake_agent(took) as fake:
        agent = await make_agent(idle, fake.url)
        job = await make_job(idle, agent, budget={"max_cost_usd": 1})
        await execute(idle, job, wait_seconds=0)
        change = {"id": agent.id, "name": agent.name, "endpoint_url": agent.endpoint_url}
        command = SaveAgent.model_validate(change | {"max_call_cost_usd": 1.5})
        await agents.save(idle, LOCAL_ADMIN, command)
        await execution.run(idle, job.id, 1)
        assert fake.received == []
    assert await exceeded(job) == {
        "code": "BUDGET_EXCEEDED",
        "message": f"The job's budget does not allow a call of “{agent.name}”, which may take "
        "$1.5: $0 of $1 are used.",
        "retryable": False,
        "mayHaveExecuted": False,
    }
    assert await sums(job) == counted()
    assert "AGENT_REQUEST" not in await log_types(job)


async def test_an_agent_that_takes_more_than_it_said_is_counted_and_not_asked_again(
    rt: Runtime,
) -> None:
    async with fake_agent(took_much) as fake:
        agent = await make_agent(rt, fake.url, **DECLARED)
        policy = {"max_attempts": 3, "initial_seconds": 0, "retry_on_verdict_fail": True}
        job = await make_job(rt, agent, budget={"max_tokens": 500}, retry_policy=policy)
        await execute(rt, job)
        assert len(fake.received) == 1
    assert await sums(job) == counted(900, 0, 2_000_000)
    assert (await exceeded(job))["mayHaveExecuted"] is False
    assert len(await attempts_of(job)) == 2
    with pytest.raises(BudgetExceeded):
        await execute(rt, job)


async def test_a_bigger_budget_lets_it_go_on(rt: Runtime) -> None:
    async with fake_agent(in_turn(took_much, took)) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url), budget={"max_tokens": 900})
        await execute(rt, job)
        with pytest.raises(BudgetExceeded):
            await execute(rt, job)
        await jobs.update(
            rt, MEMBER, UpdateJob.model_validate({"id": job.id, "budget": {"max_tokens": 901}})
        )
        assert (await execute(rt, job)).status is JobStatus.COMPLETED


# The judge


async def test_the_judge_is_counted_with_the_job(judged: Runtime) -> None:
    async with fake_agent(took) as fake:
        job = await make_job(
            judged, await make_agent(judged, fake.url), acceptance_criteria=IS_POLITE
        )
        assert (await execute(judged, job)).status is JobStatus.COMPLETED
    # 11 tokens in for $1 a million, 5 out for $10
    assert await sums(job) == counted(30 + 11, 12 + 5, 1500 + 61, 61)
    verdict = await Verdict.get(job_id=job.id)
    assert (verdict.input_tokens, verdict.output_tokens, verdict.cost_micros) == (11, 5, 61)
    assert await held(job) == (0, 0)
    assert not await is_estimate(job)


async def test_a_judge_without_prices_counts_tokens_and_is_an_estimate(
    database_url: str, tmp_path: Path, openai: FakeOpenAI
) -> None:
    settings = settings_for(
        database_url, tmp_path, openai_api_key="sk-test", openai_base_url=openai.base_url
    )
    async with runtime(settings, allow_private_agents=True) as rt, fake_agent(took) as fake:
        agent = await make_agent(rt, fake.url)
        job = await make_job(rt, agent, acceptance_criteria=IS_POLITE)
        await execute(rt, job)
        assert await sums(job) == counted(41, 17, 1500)
        assert await is_estimate(job)


async def test_a_judge_that_cannot_be_paid_is_not_asked_and_the_response_is_kept(
    judged: Runtime, openai: FakeOpenAI
) -> None:
    async with fake_agent(took) as fake:
        job = await make_job(
            judged,
            await make_agent(judged, fake.url),
            acceptance_criteria=IS_POLITE,
            budget={"max_tokens": 1000},
        )
        await execute(judged, job)
    error = await exceeded(job)
    assert error["mayHaveExecuted"] is True
    assert "to ask the judge" in error["message"]
    assert "42 tokens of 1000 tokens are used" in error["message"]
    assert openai.requests == []
    (attempt,) = await attempts_of(job)
    assert attempt.response_json == '{"answer":"ok"}'
    assert await sums(job) == counted(30, 12, 1500)
    assert await Verdict.all().count() == 0


async def test_checks_alone_need_no_budget(judged: Runtime) -> None:
    async with fake_agent(took) as fake:
        agent = await make_agent(judged, fake.url)
        job = await make_job(judged, agent, budget={"max_tokens": 42})
        assert (await execute(judged, job)).status is JobStatus.COMPLETED


@pytest.mark.parametrize(
    ("behave", "tokens"),
    [
        (openai_server.fails(401), 0),
        (openai_server.sends(b"<html>"), None),
        (openai_server.stops("max_output_tokens"), 16),
    ],
    ids=["refused", "unreadable", "cut short"],
)
async def test_a_failed_question_counts_what_it_may_have_taken(
    judged: Runtime, openai: FakeOpenAI, behave: openai_server.Behaviour, tokens: int | None
) -> None:
    openai.script.append(behave)
    async with fake_agent(took) as fake:
        agent = await make_agent(judged, fake.url)
        job = await make_job(judged, agent, acceptance_criteria=IS_POLITE)
        assert (await execute(judged, job)).phase is JobPhase.AWAITING_REVIEW
    found = await sums(job)
    set_aside, _ = await held(job)
    if tokens is None:
        assert set_aside > 1000
        assert found["in"] + found["out"] == 42 + set_aside
        assert await is_estimate(job)
    else:
        assert set_aside == 0
        assert found["in"] + found["out"] == 42 + tokens


async def test_a_question_is_set_aside_for_while_it_is_asked(
    judged: Runtime, openai: FakeOpenAI
) -> None:
    openai.script.append(openai_server.hangs)
    async with fake_agent(took) as fake:
        agent = await make_agent(judged, fake.url)
        job = await make_job(judged, agent, acceptance_criteria=IS_POLITE)
        await execute(judged, job, wait_seconds=0)
        await holds(lambda: len(openai.requests) == 1)
    tokens, micros = await held(job)
    asked = tokens - 1000
    assert asked > 300
    assert micros == asked + 10_000
    assert await sums(job) == counted(30 + tokens, 12, 1500 + micros)


def test_a_price_is_that_of_both_kinds_of_tokens_rounded_up() -> None:
    options = Options(judge_input_usd=0.25, judge_output_usd=2)
    assert budgets.price(options, 1_000_000, 1_000_000) == 2_250_000
    assert budgets.price(options, 1, 0) == 1
    assert budgets.price(options, 0, 0) == 0
    assert budgets.price(Options(judge_input_usd=1), 5, 5) is None


# Time


async def test_an_execution_that_takes_too_long_is_cut_off(rt: Runtime) -> None:
    async with fake_agent(stalls) as fake:
        agent = await make_agent(rt, fake.url, timeout_seconds=60)
        job = await make_job(rt, agent, budget={"max_wall_seconds": 2})
        await execute(rt, job)
        await fake.all_closed()
    assert await exceeded(job) == {
        "code": "BUDGET_EXCEEDED",
        "message": "The execution took all of the 2 s it may take.",
        "retryable": False,
        "mayHaveExecuted": True,
    }
    assert await AgentGate.all().count() == 0  # it was we who did not wait


async def test_the_time_begins_with_the_first_attempt(idle: Runtime) -> None:
    async with fake_agent(in_turn(says_no, took)) as fake:
        agent = await make_agent(idle, fake.url)
        policy = {"max_attempts": 2, "initial_seconds": 0, "retry_on_verdict_fail": True}
        job = await make_job(idle, agent, budget={"max_wall_seconds": 3600}, retry_policy=policy)
        await execute(idle, job, wait_seconds=0)
        await execution.run(idle, job.id, 1)
        long_ago = datetime.now(UTC) - timedelta(hours=2)
        await Attempt.filter(job_id=job.id, number=1).update(started_at=long_ago)
        await execution.run(idle, job.id, 2)
        assert len(fake.received) == 1
        assert (await exceeded(job))["mayHaveExecuted"] is False
        # another execution has its own time
        await execute(idle, job, wait_seconds=0)
        await execution.run(idle, job.id, 3)
    assert (await Job.get(id=job.id)).status is JobStatus.COMPLETED


# As clients see it


def test_a_budget_without_limits_is_none() -> None:
    assert BudgetDraft().stored() is None
    stored = BudgetDraft(max_cost_usd=0.1, max_tokens=5).stored()
    assert stored == '{"max_tokens":5,"max_micros":100000}'


BUDGET = """query($id: ID!) { job(id: $id) {
    budget { maxCostUsd maxTokens maxWallSeconds }
    usage { inputTokens outputTokens costUsd costIsEstimate judgeCostUsd latencyMs }
    attempts { nodes { usage { inputTokens costUsd costIsEstimate judgeCostUsd } } }
    latestVerdict { usage { inputTokens costUsd costIsEstimate judgeCostUsd } }
} }"""


async def test_clients_set_and_see_budgets(client: Client) -> None:
    given = {"maxCostUsd": 0.5, "maxTokens": 1000}
    async with saved_agent(client, maxCallTokens=70, maxCallCostUsd=0.07) as (agent_id, _):
        job = await finished_job(client, agent_id, budget=given)
        assert job["status"] == "COMPLETED"
        nothing = {"inputTokens": 0, "costUsd": 0, "costIsEstimate": False, "judgeCostUsd": 0}
        taken = {"inputTokens": 70, "costUsd": 0.07, "costIsEstimate": True, "judgeCostUsd": 0}
        assert (await gql(client, BUDGET, id=job["id"]))["job"] == {
            "budget": given | {"maxWallSeconds": None},
            "usage": taken | {"outputTokens": 0, "latencyMs": None},
            "attempts": {"nodes": [{"usage": taken}]},
            "latestVerdict": {"usage": nothing},
        }
        other = await new_job(client, assign={"agentId": agent_id}, budget={"maxTokens": 69})
        refused = await mutate(client, "executeJob", input={"id": other["id"]})
        assert (refused["__typename"], refused["code"]) == ("BudgetExceeded", "BUDGET_EXCEEDED")
        await mutate(client, "updateJob", input={"id": other["id"], "name": "New"})
        read = await gql(client, BUDGET, id=other["id"])
        assert read["job"]["budget"]["maxTokens"] == 69
        await mutate(client, "updateJob", input={"id": other["id"], "budget": None})
        assert (await gql(client, BUDGET, id=other["id"]))["job"]["budget"] is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"maxCostUsd": 0},
        {"maxCostUsd": -1},
        {"maxTokens": 0},
        {"maxWallSeconds": 0},
        {"maxWallSeconds": 31_536_001},
    ],
    ids=str,
)
async def test_a_budget_that_cannot_be_is_refused(client: Client, wrong: dict[str, Any]) -> None:
    given = {"name": "x", "acceptanceCriteria": {"text": "Is polite"}, "budget": wrong}
    refused = await mutate(client, "createJob", input=given)
    assert refused["__typename"] == "InvalidInput"
    assert [each["path"] for each in refused["fields"]] == [["input", "budget", *wrong]]
    assert (await gql(client, "{ jobs { nodes { id } } }"))["jobs"]["nodes"] == []
