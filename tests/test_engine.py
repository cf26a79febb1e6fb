"""Whose an execution is: what was taken over, what was not, and what waits for a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from models import Agent, Attempt, Job, JobStatus, QueueEntry, QueueState, Worker, statements
from models.base import uuid7
from services import execution, queue, workers
from services.runtime import Runtime
from services.workers import Orphan, Watch
from signoff.wiring import runtime
from tests.fakes.agents import fake_agent
from tests.support.making import (
    execute,
    holds,
    in_turn,
    make_agent,
    make_job,
    says_ok,
    snapshot,
    stalls,
)
from tests.support.running import settings_for

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
async def idle(database_url: str, tmp_path: Path) -> AsyncIterator[Runtime]:
    """Without a worker."""
    settings = settings_for(database_url, tmp_path)
    async with runtime(settings, allow_private_agents=True, work=False) as running:
        yield running


async def queued(rt: Runtime, agent: Agent, count: int = 1) -> list[Job]:
    jobs = [await make_job(rt, agent) for _ in range(count)]
    return [await execute(rt, job, wait_seconds=0) for job in jobs]


async def take(worker: UUID, slots: int = 1) -> list[UUID]:
    found = await queue.take(worker, slots, suspects=True)
    return [each.job_id for each in found.taken]


async def test_worker_that_hung_before_it_began_does_not_begin(idle: Runtime) -> None:
    async with fake_agent(stalls) as fake:
        (job,) = await queued(idle, await make_agent(idle, fake.url, idempotent=True))
        zombie, peer = uuid7(), uuid7()
        assert await take(zombie) == [job.id]
        await execution.take_over(idle, Orphan(job.id, 1, zombie))
        assert await take(peer) == [job.id]
        running = asyncio.create_task(execution.run(idle, job.id, 1, peer))
        await holds(lambda: len(fake.received) == 1)
        before = await snapshot(job)
        await execution.run(idle, job.id, 1, zombie)
        assert await snapshot(job) == before
        entry = await QueueEntry.get(job_id=job.id)
        assert (entry.state, entry.worker_id) == (QueueState.RUNNING, peer)
        assert len(fake.received) == 1
        running.cancel()
        await asyncio.wait([running])


async def test_process_that_slept_goes_on_with_what_nobody_took_over(rt: Runtime) -> None:
    async with fake_agent(stalls) as fake:
        (job,) = await queued(rt, await make_agent(rt, fake.url))
        await holds(lambda: len(fake.received) == 1)
        before = await snapshot(job)
        await Worker.all().update(seen_at=LONG_AGO)
        await rt.engine._take_over()  # pyright: ignore[reportPrivateUsage]
        assert await snapshot(job) == before


async def test_each_worker_is_judged_by_its_own_lease(idle: Runtime) -> None:
    jobs = await queued(idle, await make_agent(idle), 3)
    long, short, stranger = names = [uuid7() for _ in jobs]
    found = {worker: (await take(worker))[0] for worker in names}
    assert set(found.values()) == {job.id for job in jobs}
    for worker, lease in ((long, 60.0), (short, 5.0)):
        await workers.enter(worker, "a worker", lease, alone=False)
    await Worker.all().update(seen_at=datetime.now(UTC) - timedelta(seconds=20))
    orphans = await workers.orphans(Watch(2))
    assert {(each.worker_id, each.job_id) for each in orphans} == {
        (short, found[short]),
        (stranger, found[stranger]),
    }
    await workers.bury(Watch(2))
    assert await Worker.all().count() == 2
    await QueueEntry.all().delete()
    await workers.bury(Watch(2))
    assert [worker.id for worker in await Worker.all()] == [long]


def test_workers_that_nobody_could_see_are_not_lost_yet() -> None:
    watch = Watch(2)
    assert watch.suffices(30)
    watch.look(100)
    watch.look(103)
    assert (watch.suffices(1), watch.suffices(30)) == (True, True)
    watch.look(123)  # 20 s without the database
    assert (watch.suffices(30), watch.suffices(31)) == (False, True)
    watch.look(127)
    watch.look(132)  # and again, before it had seen for as long as it was blind
    assert (watch.suffices(43), watch.suffices(44)) == (False, True)
    for now in range(134, 162, 2):
        watch.look(now)
    assert (watch.suffices(28), watch.suffices(29)) == (True, False)
    watch.look(164)
    watch.look(169)  # it was seeing for longer than it was blind: that is over
    assert (watch.suffices(7), watch.suffices(8)) == (False, True)


async def test_lost_execution_is_found_soon_however_seldom_the_worker_beats(
    database_url: str, tmp_path: Path
) -> None:
    slow = settings_for(database_url, tmp_path, lease_seconds=3600, heartbeat_seconds=600)
    async with (
        fake_agent(in_turn(stalls, says_ok)) as fake,
        runtime(slow, allow_private_agents=True) as rt,
    ):
        (job,) = await queued(rt, await make_agent(rt, fake.url, idempotent=True))
        await holds(lambda: len(fake.received) == 1)
        await QueueEntry.all().update(worker_id=uuid7())
        done = await execution.outcome(rt, job, 30)
        assert done.status is JobStatus.COMPLETED
        assert (await Attempt.get(job_id=job.id)).resumptions == 1


async def test_lost_execution_that_cannot_be_freed_holds_up_no_other(rt: Runtime) -> None:
    async with fake_agent(in_turn(stalls, stalls, says_ok)) as fake:
        broken, well = await queued(rt, await make_agent(rt, fake.url, idempotent=True), 2)
        await holds(lambda: len(fake.received) == 2)
        sql = f"UPDATE attempts SET state = 'NONE SUCH' WHERE job_id = '{broken.id}' RETURNING 1"  # noqa: S608
        await statements.database().fetch(sql)
        await QueueEntry.all().update(worker_id=uuid7())
        await rt.engine._take_over()  # pyright: ignore[reportPrivateUsage]
        done = await execution.outcome(rt, well, 30)
    assert done.status is JobStatus.COMPLETED
    assert (await Job.get(id=broken.id)).status is JobStatus.IN_EXECUTION


async def test_suspicious_execution_does_not_wait_behind_an_endless_queue(idle: Runtime) -> None:
    agent = await make_agent(idle)
    (suspicious, *_) = await queued(idle, agent, 3)
    await QueueEntry.filter(job_id=suspicious.id).update(
        state=QueueState.SUSPECT, lost=queue.SUSPICIOUS
    )
    assert await take(uuid7()) == [suspicious.id]


async def test_what_another_worker_queued_at_its_start_and_began_stays_its_own(
    idle: Runtime,
) -> None:
    (job,) = await queued(idle, await make_agent(idle))
    await QueueEntry.all().delete()
    assert await queue.reconcile() == 1
    worker = uuid7()
    assert await take(worker) == [job.id]
    late = queue.insertion(await Job.get(id=job.id), if_there=queue.LEAVE_AS_IT_IS)
    await statements.database().execute_batch([late])
    entry = await QueueEntry.get(job_id=job.id)
    assert (entry.state, entry.worker_id) == (QueueState.RUNNING, worker)
