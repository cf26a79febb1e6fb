"""What `/metrics` says, after what really happened."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from uuid import UUID

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tortoise import connections

from models import JobStatus, QueueEntry, QueueState
from models.base import uuid7
from services import decisions
from services.decisions import CancelJob
from services.runtime import Runtime
from services.telemetry import Telemetry
from signoff.wiring import runtime
from tests.fakes import openai_server
from tests.fakes.agents import fake_agent
from tests.support.making import (
    ADMIN,
    IS_POLITE,
    NOWHERE,
    answers,
    execute,
    holds,
    in_turn,
    make_agent,
    make_job,
    says_no,
    says_ok,
    stalls,
    until,
)
from tests.support.running import settings_for

Samples = dict[str, float]


async def scrape(rt: Runtime) -> Samples:
    """Every sample by its name and labels, as in `name{label="value"}`."""
    body, content_type = await rt.telemetry.exposition(rt.events, rt.engine.running, "")
    assert content_type.startswith("text/plain; version=")
    return {
        _key(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def _key(name: str, labels: dict[str, str]) -> str:
    told = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"{name}{{{told}}}" if told else name


def under(samples: Samples, name: str) -> dict[str, float]:
    """The samples of one metric, by the value of its only label."""
    return {
        key.split('"')[1]: value for key, value in samples.items() if key.startswith(f"{name}{{")
    }


async def test_attempts_are_counted_by_their_outcome(rt: Runtime) -> None:
    before = await scrape(rt)
    assert under(before, "signoff_attempts_total") == {}
    async with fake_agent(in_turn(says_ok, says_no, says_ok)) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        for wanted in ("COMPLETED", "RESUBMISSION_REQUIRED", "COMPLETED"):
            assert (await execute(rt, await make_job(rt, agent))).status == wanted
    nobody = await make_agent(rt, NOWHERE)
    assert (await execute(rt, await make_job(rt, nobody))).status is JobStatus.ASSIGNED
    async with fake_agent(says_ok) as endpoint:
        reviewed = await make_agent(rt, endpoint.url)
        waits = await make_job(rt, reviewed, acceptance_criteria=IS_POLITE)
        assert (await execute(rt, waits)).phase == "AWAITING_REVIEW"

    async def counted() -> dict[str, float] | None:
        found = under(await scrape(rt), "signoff_attempts_total")
        return found if sum(found.values()) == 5 else None

    assert await until(counted) == {
        "VERDICT_PASSED": 2,
        "VERDICT_FAILED": 1,
        "AGENT_UNREACHABLE": 1,
        "VALIDATOR_ERROR": 1,
    }


async def test_every_attempt_of_an_execution_is_counted_by_its_own_outcome(rt: Runtime) -> None:
    async with fake_agent(in_turn(says_no, says_ok)) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        again = {"max_attempts": 2, "retry_on_verdict_fail": True, "initial_seconds": 0}
        job = await execute(rt, await make_job(rt, agent, retry_policy=again))
    assert (job.status, job.attempt_count) == (JobStatus.COMPLETED, 2)

    async def counted() -> dict[str, float] | None:
        found = under(await scrape(rt), "signoff_attempts_total")
        return found if sum(found.values()) == 2 else None

    assert await until(counted) == {"VERDICT_FAILED": 1, "VERDICT_PASSED": 1}


async def test_an_attempt_that_somebody_ends_is_overtaken(rt: Runtime) -> None:
    async with fake_agent(stalls) as endpoint:
        job = await make_job(rt, await make_agent(rt, endpoint.url))
        await execute(rt, job, wait_seconds=0)
        await holds(lambda: len(endpoint.received) == 1)
        assert (await scrape(rt))["signoff_executions_running"] == 1
        await decisions.cancel(rt, ADMIN, CancelJob(id=job.id, reason="Enough."))

        async def ended() -> Samples | None:
            found = await scrape(rt)
            return found if found["signoff_executions_running"] == 0 else None

        samples = await until(ended)
    assert under(samples, "signoff_attempts_total") == {"OVERTAKEN": 1}
    assert under(samples, "signoff_agent_call_seconds_count") == {"CANCELLED": 1}


async def test_calls_of_agents_are_timed_by_their_outcome(rt: Runtime) -> None:
    busy = answers({}, "503 Busy", "Retry-After: 0")
    refuses = answers({}, "404 Not Found")
    async with fake_agent(in_turn(busy, says_ok, refuses)) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        for _ in range(2):
            await execute(rt, await make_job(rt, agent))
    samples = await scrape(rt)
    assert under(samples, "signoff_agent_call_seconds_count") == {
        "BUSY": 1,
        "OK": 1,
        "REJECTED": 1,
    }
    took = samples['signoff_agent_call_seconds_sum{outcome="OK"}']
    assert 0 < took < 30
    assert samples['signoff_agent_call_seconds_bucket{le="+Inf",outcome="OK"}'] == 1


async def test_the_judges_calls_and_tokens_are_counted(database_url: str, tmp_path: Path) -> None:
    async with openai_server.running() as judge, fake_agent(says_ok) as endpoint:
        settings = settings_for(
            database_url, tmp_path, openai_api_key="sk-x", openai_base_url=judge.base_url
        )
        async with runtime(settings, allow_private_agents=True) as rt:
            agent = await make_agent(rt, endpoint.url)
            for _ in range(2):
                await execute(rt, await make_job(rt, agent, acceptance_criteria=IS_POLITE))
            judge.script.append(openai_server.refuses)
            await execute(rt, await make_job(rt, agent, acceptance_criteria=IS_POLITE))
            samples = await scrape(rt)
    assert under(samples, "signoff_judge_call_seconds_count") == {"OK": 2, "REFUSED": 1}
    assert under(samples, "signoff_judge_tokens_total") == {"input": 22, "output": 10}


async def test_the_queue_is_read_from_its_rows(rt: Runtime) -> None:
    async with fake_agent(stalls) as endpoint:
        agent = await make_agent(rt, endpoint.url, max_concurrency=1)
        jobs = [await make_job(rt, agent) for _ in range(3)]
        for job in jobs:
            await execute(rt, job, wait_seconds=0)
        await holds(lambda: len(endpoint.received) == 1)
        samples = await scrape(rt)
        assert under(samples, "signoff_queue_entries") == {
            "waiting": 2,
            "sleeping": 0,
            "running": 1,
            "suspect": 0,
            "awaiting": 0,
        }
        waited = samples["signoff_queue_oldest_waiting_seconds"]
        assert 0 < waited < 60
        await asyncio.sleep(0.01)
        assert (await scrape(rt))["signoff_queue_oldest_waiting_seconds"] > waited
        assert samples["signoff_database_up"] == 1
        for job in jobs:
            await decisions.cancel(rt, ADMIN, CancelJob(id=job.id, reason="Enough."))
        samples = await scrape(rt)
        assert set(under(samples, "signoff_queue_entries").values()) == {0}
        assert samples["signoff_queue_oldest_waiting_seconds"] == 0


async def test_the_lag_of_events_is_what_was_not_handed_on(rt: Runtime) -> None:
    await rt.events.stop()
    before = await rt.events.lag()
    await make_job(rt)
    assert (await scrape(rt))["signoff_events_lag"] == before + 1
    await rt.events.start()
    assert (await scrape(rt))["signoff_events_lag"] == 0


@pytest.mark.parametrize("database_kind", ["postgres"])
async def test_what_cannot_be_read_is_not_a_number(rt: Runtime, database_kind: str) -> None:
    await QueueEntry.create(
        job_id=uuid7(),
        number=1,
        agent_id=UUID(int=1),
        owner_id="x",
        priority=1,
        state=QueueState.SLEEPING,
        rank=1,
    )
    assert under(await scrape(rt), "signoff_queue_entries")["sleeping"] == 1
    await connections.get("default").execute_query('ALTER TABLE "queue_entries" RENAME TO "gone"')
    samples = await scrape(rt)
    assert samples["signoff_database_up"] == 0
    assert all(math.isnan(value) for value in under(samples, "signoff_queue_entries").values())
    assert math.isnan(samples["signoff_queue_oldest_waiting_seconds"])
    await connections.get("default").execute_query('ALTER TABLE "gone" RENAME TO "queue_entries"')


async def test_a_process_tells_its_own_memory_and_cpu(rt: Runtime) -> None:
    samples = await scrape(rt)
    assert samples["process_resident_memory_bytes"] > 1_000_000
    assert samples["process_cpu_seconds_total"] > 0


def test_two_processes_count_apart() -> None:
    first, second = Telemetry(), Telemetry()
    first.judged(3, 1)
    read = ("signoff_judge_tokens_total", {"direction": "input"})
    assert first.registry.get_sample_value(*read) == 3
    assert second.registry.get_sample_value(*read) == 0
