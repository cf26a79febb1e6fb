"""Statements that go to the database together, and are as apart as if each went alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from models import Job, JobStatus, statements
from models.statements import GuardMissed, Unavailable
from services.runtime import Runtime
from services.transactions import PATIENCE_SECONDS
from signoff import pipeline
from signoff.pipeline import MAX_TOGETHER
from signoff.wiring import runtime
from tests.fakes.agents import fake_agent
from tests.support import postgres
from tests.support.making import execute, log_types, make_agent, make_job, says_ok
from tests.support.running import settings_for

MANY = 3 * MAX_TOGETHER


async def read(job: Job | None) -> Job | None:
    missing = "00000000-0000-7000-8000-000000000000"
    return await statements.fetch(Job, id=missing if job is None else job.id)


async def test_everyone_gets_the_row_they_asked_for(rt: Runtime) -> None:
    jobs = [await make_job(rt, name=f"Job {n}") for n in range(10)]
    asked: list[Job | None] = [*jobs, None] * 10
    found = await asyncio.gather(*[read(job) for job in asked])
    assert [each and each.name for each in found] == [each and each.name for each in asked]


async def rename(job: Job, name: str, version: int) -> None:
    where = {"id": job.id, "version": version}
    changes = {"name": name, "version": version + 1}
    statement = statements.update(Job, where, changes, guarded=True)
    await statements.database().execute_batch([statement])


async def test_one_that_misses_its_guard_takes_no_other_with_it(rt: Runtime) -> None:
    jobs = [await make_job(rt) for _ in range(MANY)]
    stale = {3, MAX_TOGETHER + 3, MANY - 1}
    done = await asyncio.gather(
        *[rename(job, f"Job {n}", 7 if n in stale else 1) for n, job in enumerate(jobs)],
        return_exceptions=True,
    )
    assert {n for n, each in enumerate(done) if isinstance(each, GuardMissed)} == stale
    names = [(await Job.get(id=job.id)).name for job in jobs]
    assert names == ["A job" if n in stale else f"Job {n}" for n in range(MANY)]


async def test_of_those_who_want_one_version_one_gets_it(rt: Runtime) -> None:
    job = await make_job(rt)
    done = await asyncio.gather(
        *[rename(job, f"By {n}", 1) for n in range(MANY)], return_exceptions=True
    )
    assert [type(each) for each in done].count(type(None)) == 1
    now = await Job.get(id=job.id)
    assert (now.name, now.version) == (f"By {done.index(None)}", 2)


@pytest.fixture
async def locked(
    rt_on_postgres: Runtime, postgres_url: str
) -> AsyncIterator[tuple[Job, postgres.Connection]]:
    """A job whose row somebody else holds."""
    job = await make_job(rt_on_postgres)
    other = await postgres.connect(postgres_url.replace("postgres:", "postgresql:"))
    await other.execute("BEGIN")
    await other.execute(f"UPDATE jobs SET name = name WHERE id = '{job.id}'")  # noqa: S608
    yield job, other
    await other.close()


@pytest.fixture
async def rt_on_postgres(postgres_url: str, tmp_path: Any) -> AsyncIterator[Runtime]:
    settings = settings_for(postgres_url, tmp_path)
    async with runtime(settings, allow_private_agents=True) as running:
        yield running


async def test_what_waits_for_a_lock_does_not_hold_up_the_others(
    rt_on_postgres: Runtime, locked: tuple[Job, postgres.Connection]
) -> None:
    job, other = locked
    jobs = [await make_job(rt_on_postgres) for _ in range(MANY)]
    waiting = asyncio.create_task(rename(job, "At last", 1))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(*[rename(each, "Meanwhile", 1) for each in jobs])
    assert not waiting.done()
    await other.execute("COMMIT")
    await waiting
    assert (await Job.get(id=job.id)).name == "At last"


async def test_transactions_that_meet_in_another_order_end_all_the_same(
    rt_on_postgres: Runtime, postgres_url: str
) -> None:
    """Two at a time, as two processes would have them."""
    jobs = [await make_job(rt_on_postgres) for _ in range(4)]
    other = await postgres.connect(postgres_url.replace("postgres:", "postgresql:"))

    async def elsewhere() -> None:
        for _ in range(20):
            ids = ["'" + str(each.id) + "'" for each in reversed(jobs)]
            await other.execute("BEGIN")
            for id in ids:
                await other.execute(f"UPDATE jobs SET description = 'x' WHERE id = {id}")  # noqa: S608
            await other.execute("COMMIT")

    async def here(job: Job) -> None:
        for version in range(1, 21):
            await rename(job, f"Name {version}", version)

    try:
        await asyncio.gather(elsewhere(), *[here(job) for job in jobs])
    finally:
        await other.close()
    assert {(each.name, each.version) for each in await Job.all()} == {("Name 20", 21)}


async def test_who_asks_too_late_is_told_so(
    rt_on_postgres: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await make_job(rt_on_postgres)
    monkeypatch.setattr(pipeline, "LATE_SECONDS", -1)
    with pytest.raises(Unavailable):
        await read(job)
    monkeypatch.undo()
    assert await read(job) is not None


async def test_who_hangs_up_takes_no_other_with_them(
    rt_on_postgres: Runtime, locked: tuple[Job, postgres.Connection]
) -> None:
    job, other = locked
    others = [await make_job(rt_on_postgres) for _ in range(MAX_TOGETHER)]
    tasks = [asyncio.create_task(rename(each, "Done", 1)) for each in [job, *others]]
    await asyncio.sleep(0)
    given_up = tasks[1:-1]
    for task in given_up:
        task.cancel()
    await other.execute("COMMIT")
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert (done[0], done[-1]) == (None, None)
    assert {type(each) for each in done[1:-1]} == {asyncio.CancelledError}
    assert (await Job.get(id=others[-1].id)).name == "Done"


async def test_nothing_is_compiled(rt_on_postgres: Runtime) -> None:
    """A planner's switch that is off counts as enormous costs, which would be reason enough."""
    assert [tuple(row) for row in await statements.database().fetch("SHOW jit")] == [("off",)]


async def test_executions_at_the_same_time_are_as_they_would_be_alone(rt: Runtime) -> None:
    async with fake_agent(says_ok) as agent:
        made = await make_agent(rt, agent.url, max_concurrency=MANY)
        jobs = [await make_job(rt, made) for _ in range(MANY)]
        done = await asyncio.gather(*[execute(rt, job) for job in jobs])
    assert [each.id for each in done] == [job.id for job in jobs]
    assert {each.status for each in done} == {JobStatus.COMPLETED}
    logs = [await log_types(job) for job in jobs]
    assert logs == [logs[0]] * MANY
    assert len(agent.received) == MANY
