"""The same key and the same request get the first answer, however they come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from models import Agent, Attempt, IdempotencyKey, Job, JobLog, JobStatus
from services import agents, assignment, decisions, execution, idempotency, jobs
from services.actors import LOCAL_ADMIN, Viewer
from services.assignment import ReassignJob
from services.decisions import ForceComplete
from services.errors import (
    AgentUnavailable,
    Forbidden,
    IdempotencyConflict,
    IllegalTransition,
    SchemaMismatch,
    VersionConflict,
)
from services.execution import ExecuteJob
from services.jobs import CreateJob
from services.runtime import Runtime
from tests.fakes.agents import fake_agent
from tests.support.making import (
    ADMIN,
    MEMBER,
    OTHER,
    SAYS_OK,
    attempts_of,
    execute,
    log_types,
    make_agent,
    make_job,
    says_ok,
    snapshot,
)

KEY = "key-1"
Ask = Callable[[], Awaitable[Job]]


async def create(rt: Runtime, viewer: Viewer = MEMBER, **given: Any) -> Job:
    wanted: dict[str, Any] = {
        "name": "A job",
        "acceptance_criteria": SAYS_OK,
        "idempotency_key": KEY,
    }
    return await jobs.create(rt, viewer, CreateJob.model_validate(wanted | given))


async def force(rt: Runtime, job: Job, **given: Any) -> Job:
    wanted: dict[str, Any] = {"id": job.id, "result": 1, "reason": "Now.", "idempotency_key": KEY}
    command = ForceComplete.model_validate(wanted | given)
    return await decisions.force_complete(rt, ADMIN, command)


async def reassign(rt: Runtime, job: Job, agent: Agent, **given: Any) -> Job:
    wanted = {"id": job.id, "assign": {"agent_id": agent.id}, "idempotency_key": KEY}
    return await assignment.reassign(rt, MEMBER, ReassignJob.model_validate(wanted | given))


async def everything() -> dict[str, int]:
    """How many rows there are of what mutations write."""
    return {
        table.__name__: await table.all().count()
        for table in (Job, Attempt, JobLog, IdempotencyKey)
    }


# The same again


async def test_repeated_creation_makes_one_job(rt: Runtime) -> None:
    first = await create(rt)
    before = await everything()
    again = await create(rt)
    assert again.id == first.id
    assert (
        await everything()
        == before
        == {"Job": 1, "Attempt": 0, "JobLog": 1} | {"IdempotencyKey": 1}
    )


async def test_repeated_execution_makes_one_attempt(rt: Runtime) -> None:
    async with fake_agent(says_ok) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url))
        assert (await execute(rt, job, idempotency_key=KEY)).status is JobStatus.COMPLETED
        before = await snapshot(job)
        again = await execute(rt, job, idempotency_key=KEY)
        assert (again.id, again.status) == (job.id, JobStatus.COMPLETED)
        # How long to wait is no part of the request.
        await execute(rt, job, idempotency_key=KEY, wait_seconds=0)
    assert await snapshot(job) == before
    assert len(await attempts_of(job)) == 1
    assert len(fake.received) == 1


async def test_repeated_reassignment_happens_once(rt: Runtime) -> None:
    one, two = await make_agent(rt), await make_agent(rt)
    job = await make_job(rt, one)
    assert (await reassign(rt, job, two, expected_version=1)).agent_id == two.id
    before = await snapshot(job)
    assert (await reassign(rt, job, two, expected_version=1)).agent_id == two.id
    assert await snapshot(job) == before
    assert await log_types(job) == ["STATUS_CHANGE", "STATUS_CHANGE"]


async def test_repeated_force_completion_happens_once(rt: Runtime) -> None:
    job = await make_job(rt)
    assert (await force(rt, job)).status is JobStatus.COMPLETED
    before = await snapshot(job)
    assert (await force(rt, job)).status is JobStatus.COMPLETED
    assert await snapshot(job) == before
    with pytest.raises(IllegalTransition):
        await force(rt, job, idempotency_key=None)
    assert await snapshot(job) == before


async def test_answer_to_a_repetition_is_the_job_as_it_is_now(rt: Runtime) -> None:
    first = await create(rt)
    await force(rt, first, idempotency_key="key-2")
    assert (await create(rt)).status is JobStatus.COMPLETED


# Another request


async def test_key_of_another_request_is_refused_and_nothing_changes(rt: Runtime) -> None:
    began = datetime.now(UTC)
    job = await create(rt)
    forced = await make_job(rt)
    await force(rt, forced, idempotency_key="key-2")
    before = await snapshot(job), await snapshot(forced), await everything()
    with pytest.raises(IdempotencyConflict) as refused:
        await create(rt, name="Another job")
    assert began <= refused.value.original_request_at <= datetime.now(UTC)
    with pytest.raises(IdempotencyConflict):
        await create(rt, tags=["a"])
    with pytest.raises(IdempotencyConflict):
        await force(rt, forced, result=2, idempotency_key="key-2")
    with pytest.raises(IdempotencyConflict):  # another mutation
        await execution.execute(rt, MEMBER, ExecuteJob(id=job.id, idempotency_key=KEY))
    assert (await snapshot(job), await snapshot(forced), await everything()) == before


async def test_another_viewers_key_is_another_key(rt: Runtime) -> None:
    mine, theirs = await create(rt), await create(rt, OTHER, name="Theirs")
    assert mine.id != theirs.id
    assert (await create(rt, OTHER, name="Theirs")).id == theirs.id
    assert await Job.all().count() == 2


async def test_requests_without_a_key_are_all_different(rt: Runtime) -> None:
    made = {(await create(rt, idempotency_key=None)).id for _ in range(2)}
    assert len(made) == await Job.all().count() == 2
    assert await IdempotencyKey.all().count() == 0


# Failures


async def test_failed_request_may_be_repeated_with_its_key(rt: Runtime) -> None:
    agent = await make_agent(rt, input_schema={"type": "object"})
    given: dict[str, Any] = {"assign": {"agent_id": agent.id}}
    with pytest.raises(SchemaMismatch):
        await create(rt, input=1, **given)
    assert (await everything())["IdempotencyKey"] == 0
    job = await create(rt, input={}, **given)
    with pytest.raises(Forbidden):
        await decisions.force_complete(
            rt,
            MEMBER,
            ForceComplete.model_validate(
                {"id": job.id, "result": 1, "reason": "Now.", "idempotency_key": "key-2"}
            ),
        )
    with pytest.raises(VersionConflict):
        await force(rt, job, expected_version=7, idempotency_key="key-2")
    assert await IdempotencyKey.all().count() == 1
    await force(rt, job, idempotency_key="key-2")
    assert await IdempotencyKey.all().count() == 2


async def test_execution_refused_for_a_paused_agent_works_once_it_is_active(rt: Runtime) -> None:
    async with fake_agent(says_ok) as fake:
        agent = await make_agent(rt, fake.url)
        job = await make_job(rt, agent)
        await agents.set_availability(rt, LOCAL_ADMIN, agent.id, type(agent.availability).PAUSED)
        with pytest.raises(AgentUnavailable):
            await execute(rt, job, idempotency_key=KEY)
        await agents.set_availability(rt, LOCAL_ADMIN, agent.id, type(agent.availability).ACTIVE)
        done = await execute(rt, job, idempotency_key=KEY)
    assert done.status is JobStatus.COMPLETED


# At once

ROUNDS, TWINS = 5, 20


async def at_once(ask: Ask, times: int = TWINS) -> list[Job]:
    """All answers, which must be none but answers."""
    return await asyncio.gather(*(ask() for _ in range(times)))


@pytest.mark.parametrize("twins", [2, TWINS])
async def test_creations_at_once_make_one_job(rt: Runtime, twins: int) -> None:
    for number in range(ROUNDS):
        key = f"key {number}"
        made = await at_once(lambda key=key: create(rt, idempotency_key=key), twins)
        assert len({job.id for job in made}) == 1
    assert await Job.all().count() == await IdempotencyKey.all().count() == ROUNDS


async def test_executions_at_once_make_one_attempt(rt: Runtime) -> None:
    async with fake_agent(says_ok) as fake:
        agent = await make_agent(rt, fake.url)
        for number in range(ROUNDS):
            job = await make_job(rt, agent)
            key = f"key {number}"
            done = await at_once(
                lambda job=job, key=key: execute(rt, job, idempotency_key=key, expected_version=1)
            )
            assert {each.id for each in done} == {job.id}
            assert {each.status for each in done} == {JobStatus.COMPLETED}
            assert len(await attempts_of(job)) == 1
        assert len(fake.received) == ROUNDS


async def test_reassignments_and_forced_completions_at_once_happen_once(rt: Runtime) -> None:
    one, two = await make_agent(rt), await make_agent(rt)
    for number in range(ROUNDS):
        job = await make_job(rt, one)
        key = f"{number} reassign"
        moved = await at_once(
            lambda job=job, key=key: reassign(rt, job, two, idempotency_key=key, expected_version=1)
        )
        assert {each.agent_id for each in moved} == {two.id}
        key = f"{number} force"
        forced = await at_once(lambda job=job, key=key: force(rt, job, idempotency_key=key))
        assert {each.status for each in forced} == {JobStatus.COMPLETED}
        assert (await Job.get(id=job.id)).version == 3
        assert await log_types(job) == ["STATUS_CHANGE"] * 3


async def test_of_different_requests_at_once_one_wins_the_key(rt: Runtime) -> None:
    outcomes = await asyncio.gather(
        *(create(rt, name=f"Job {number}") for number in range(TWINS)), return_exceptions=True
    )
    names = [type(each).__name__ for each in outcomes]
    assert sorted(names) == ["IdempotencyConflict"] * (TWINS - 1) + ["Job"]
    assert await Job.all().count() == 1


# Forgetting


async def test_keys_are_kept_for_a_day_and_longer_then_forgotten(rt: Runtime) -> None:
    job = await create(rt)
    for age, key in ((timedelta(hours=25), "old"), (timedelta(days=3), "older")):
        await create(rt, idempotency_key=key)
        then = datetime.now(UTC) - age
        await IdempotencyKey.filter(key=key).update(created_at=then)
    assert await idempotency.forget() == 1
    assert await idempotency.forget() == 0
    left = await IdempotencyKey.all().order_by("key").values_list("key", flat=True)
    assert left == [KEY, "old"]
    assert (await create(rt)).id == job.id
    assert await Job.all().count() == 3
    await create(rt, idempotency_key="older")
    assert await Job.all().count() == 4
