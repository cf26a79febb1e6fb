"""Who goes first when many wait for one agent: by priority, by age, and everybody in turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from tortoise.expressions import F

from models import Agent, Job, JobPriority, JobStatus, QueueEntry, QueueState
from models.base import now
from services import queue
from services.actors import Viewer
from services.queue import AHEAD, SECOND, SHARE
from services.runtime import Runtime
from services.values import public_id
from tests.fakes.agents import Received, fake_agent
from tests.support.making import (
    MEMBER,
    OTHER,
    execute,
    holds,
    make_agent,
    make_job,
    says_ok,
    until,
)

LONG = timedelta(minutes=5).total_seconds()


@dataclass
class Line:
    """An agent that does one job at a time, none before it may go on, and who waits for it."""

    rt: Runtime
    agent: Agent
    may_go_on: asyncio.Event
    arrived: list[str] = field(default_factory=list[str])
    names: dict[str, str] = field(default_factory=dict[str, str])

    async def joins(
        self, name: str, priority: JobPriority = JobPriority.NORMAL, viewer: Viewer = MEMBER
    ) -> Job:
        job = await make_job(self.rt, self.agent, viewer, name=name, priority=priority)
        self.names[public_id("job", job.id)] = name
        return await execute(self.rt, job, viewer, wait_seconds=0)

    async def order(self, count: int) -> list[str]:
        """The names of the first `count` that came after the one that held all up."""
        self.may_go_on.set()
        await holds(lambda: len(self.arrived) > count, LONG)
        return [self.names[id] for id in self.arrived[1 : count + 1]]


@asynccontextmanager
async def line(rt: Runtime) -> AsyncGenerator[Line]:
    """The agent is busy with a first job already."""
    waiting = asyncio.Event()

    async def behave(received: Received) -> None:
        here.arrived.append(received.headers["signoff-job-id"])
        await waiting.wait()
        await says_ok(received)

    async with fake_agent(behave) as endpoint:
        agent = await make_agent(rt, endpoint.url, max_concurrency=1, timeout_seconds=600)
        here = Line(rt, agent, waiting)
        await here.joins("first")
        await holds(lambda: len(here.arrived) == 1)
        yield here


async def age(job: Job, seconds: float) -> None:
    """Let it have been queued that much earlier."""
    entry = await QueueEntry.get(job_id=job.id)
    await QueueEntry.filter(job_id=job.id).update(rank=entry.rank - int(seconds * SECOND))


async def test_higher_priority_goes_first_and_equal_ones_in_their_order(rt: Runtime) -> None:
    async with line(rt) as here:
        for number in (1, 2):
            for priority in JobPriority:
                await here.joins(f"{priority.name} {number}", priority)
        assert await here.order(8) == [
            f"{priority.name} {number}" for priority in reversed(JobPriority) for number in (1, 2)
        ]


async def test_old_job_goes_before_a_new_one_of_higher_priority(rt: Runtime) -> None:
    head_start = (AHEAD[JobPriority.URGENT] - AHEAD[JobPriority.LOW]) / SECOND
    async with line(rt) as here:
        younger = await here.joins("too young", JobPriority.LOW)
        older = await here.joins("old enough", JobPriority.LOW)
        await age(younger, head_start - 60)
        await age(older, head_start + 60)
        await here.joins("urgent", JobPriority.URGENT)
        await here.joins("normal")
        assert await here.order(4) == ["old enough", "urgent", "too young", "normal"]


async def test_endless_urgent_work_starves_nobody(rt: Runtime) -> None:
    async with line(rt) as here:
        low = await here.joins("low", JobPriority.LOW)
        urgent = [await here.joins(f"urgent {n}", JobPriority.URGENT) for n in range(5)]
        for n, job in enumerate(urgent):  # one an hour, of which the first came long ago
            await age(job, -3600 * n)
        await age(low, 600)
        assert await here.order(6) == [
            "urgent 0",
            "low",
            *[f"urgent {n}" for n in range(1, 5)],
        ]


async def test_owner_with_many_jobs_does_not_delay_anothers_first(rt: Runtime) -> None:
    async with line(rt) as here:
        many = [await here.joins(f"mia {n}") for n in range(200)]
        other = await here.joins("olaf", viewer=OTHER)
        first = (await QueueEntry.get(job_id=many[0].id)).rank
        place = (await QueueEntry.get(job_id=other.id)).rank
        # As if all of them had come half a second before the other's.
        waiting = QueueEntry.filter(owner_id=MEMBER.id, state=QueueState.WAITING)
        await waiting.update(rank=F("rank") + (place - first - SHARE // 2))
        assert await here.order(4) == ["mia 0", "olaf", "mia 1", "mia 2"]


async def test_each_job_of_an_owner_counts_as_a_second_later(rt: Runtime) -> None:
    async with line(rt) as here:
        jobs = [await here.joins(f"mia {n}") for n in range(5)]
        theirs = await here.joins("olaf", viewer=OTHER)
        urgent = await here.joins("urgent", JobPriority.URGENT)
        place = 0
        for job in jobs:
            entry = await QueueEntry.get(job_id=job.id)
            place = max(place + SHARE, queue.micros(entry.queued_at))
            assert entry.rank == place
        entry = await QueueEntry.get(job_id=theirs.id)
        assert entry.rank == queue.micros(entry.queued_at)
        entry = await QueueEntry.get(job_id=urgent.id)
        assert entry.rank == queue.micros(entry.queued_at) - AHEAD[JobPriority.URGENT]
        here.may_go_on.set()

        async def all_done() -> bool:
            done = await Job.filter(status=JobStatus.COMPLETED).count()
            return done == len(jobs) + 3

        await until(all_done, LONG)


async def test_those_that_wake_together_do_not_stand_before_who_came_meanwhile(
    rt: Runtime,
) -> None:
    async with line(rt) as waiting:
        for name in ("one", "two", "three"):
            await waiting.joins(name)
        early = queue.micros(now()) - 60 * SECOND
        entries = QueueEntry.filter(state=QueueState.WAITING)
        await entries.update(state=QueueState.SLEEPING, ready_at=now(), rank=early)
        await waiting.joins("another's first", viewer=OTHER)
        assert await queue.wake(now()) is None
        assert await QueueEntry.filter(state=QueueState.SLEEPING).count() == 0
        order = await waiting.order(4)
    assert order[0] == "another's first"
    assert sorted(order[1:]) == ["one", "three", "two"]


async def test_those_that_wake_keep_what_their_priority_gives_them(rt: Runtime) -> None:
    async with line(rt) as waiting:
        await waiting.joins("low", JobPriority.LOW)
        await waiting.joins("urgent", JobPriority.URGENT)
        await waiting.joins("normal")
        entries = QueueEntry.filter(state=QueueState.WAITING)
        await entries.update(state=QueueState.SLEEPING, ready_at=now())
        await queue.wake(now())
        assert await waiting.order(3) == ["urgent", "normal", "low"]
