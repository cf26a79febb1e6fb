"""Who goes first when many wait: by priority, everybody in turn, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

import pytest

from models import Agent, AgentGate, Job, JobPriority, QueueEntry, QueueState, statements
from models.base import now, uuid7
from services import lanes, queue, workers, workspaces
from services.actors import Viewer
from services.queue import Taken
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
)

LOW, NORMAL, HIGH, URGENT = JobPriority
MINUTE = timedelta(minutes=1)


@dataclass
class Waiting:
    """Who waits for agents; one is taken and done at a time, and no clock has a say."""

    worker: UUID = field(default_factory=uuid7)
    names: dict[UUID, str] = field(default_factory=dict[UUID, str])

    async def joins(
        self, agent: Agent, owner: str, priority: JobPriority = NORMAL, count: int = 1
    ) -> None:
        jobs = [
            Job(
                id=uuid7(),
                agent_id=agent.id,
                created_by_id=owner,
                priority=priority,
                attempt_count=1,
            )
            for _ in range(count)
        ]
        self.names |= {job.id: owner for job in jobs}
        write = statements.database().execute_batch
        await asyncio.gather(*(write([queue.insertion(job)]) for job in jobs))

    async def begins(self, places: int = 1) -> list[Taken]:
        return (await queue.take(self.worker, places, suspects=False)).taken

    async def ends(self, it: Taken) -> str:
        await queue.forget(*it.key)
        return self.names[it.job_id]

    async def goes(self) -> str:
        """Whose job is the next."""
        (it,) = await self.begins()
        return await self.ends(it)

    async def go(self, count: int) -> list[str]:
        return [await self.goes() for _ in range(count)]


@pytest.fixture
def waiting(idle: Runtime) -> Waiting:
    assert idle
    return Waiting()


@pytest.fixture
async def slow(idle: Runtime) -> Agent:
    """It does one at a time."""
    return await make_agent(idle, max_concurrency=1)


# Owners


async def test_ten_thousand_jobs_do_not_hold_up_anothers_first(
    waiting: Waiting, slow: Agent
) -> None:
    await waiting.joins(slow, "mia", count=10_000)
    assert set(await waiting.go(300)) == {"mia"}
    await waiting.joins(slow, "olaf")
    assert await waiting.go(3) == ["mia", "olaf", "mia"]


async def test_owners_with_many_jobs_alternate(waiting: Waiting, slow: Agent) -> None:
    await waiting.joins(slow, "mia", count=30)
    assert set(await waiting.go(10)) == {"mia"}
    await waiting.joins(slow, "olaf", count=10)
    assert await waiting.go(20) == ["mia", "olaf"] * 10


async def test_who_sends_one_at_a_time_alternates_with_who_has_many(
    waiting: Waiting, slow: Agent
) -> None:
    await waiting.joins(slow, "mia", count=30)
    order: list[str] = []
    for _ in range(10):
        await waiting.joins(slow, "olaf")
        order += await waiting.go(2)
    assert order == ["mia", "olaf"] * 10


async def test_new_owners_without_end_do_not_hold_up_a_second_job(
    waiting: Waiting, slow: Agent
) -> None:
    await waiting.joins(slow, "mia", count=3)
    order: list[str] = []
    for number in range(8):
        await waiting.joins(slow, f"new {number}")
        order.append(await waiting.goes())
    assert order == ["mia", "new 0", "mia", "new 1", "new 2", "mia", "new 3", "new 4"]


async def test_a_lane_that_was_empty_puts_nobody_back(waiting: Waiting, slow: Agent) -> None:
    """Its round stands, since nobody waited; who had many before has no less of the next."""
    await waiting.joins(slow, "mia", count=20)
    assert set(await waiting.go(20)) == {"mia"}
    for _ in range(2):
        await waiting.joins(slow, "mia", count=2)
        await waiting.joins(slow, "olaf", count=2)
        assert await waiting.go(4) == ["mia", "olaf"] * 2


async def test_who_waits_for_nothing_costs_no_write(idle: Runtime, waiting: Waiting) -> None:
    agent = await make_agent(idle, max_concurrency=10)
    for _ in range(3):
        await waiting.joins(agent, "mia", URGENT, count=3)
        assert len([await waiting.ends(it) for it in await waiting.begins(100)]) == 3
    assert await AgentGate.all().count() == 0


async def test_several_at_once_are_of_all_owners(idle: Runtime, waiting: Waiting) -> None:
    agent = await make_agent(idle, max_concurrency=6)
    await waiting.joins(agent, "mia", count=100)
    for _ in range(5):
        [await waiting.ends(it) for it in await waiting.begins(6)]
    await waiting.joins(agent, "olaf", count=100)
    for _ in range(5):
        taken = Counter([await waiting.ends(it) for it in await waiting.begins(6)])
        assert taken == {"mia": 3, "olaf": 3}


# Priorities


async def test_priorities_go_first_and_equal_ones_in_their_order(
    waiting: Waiting, slow: Agent
) -> None:
    for number in (1, 2):
        for priority in JobPriority:
            await waiting.joins(slow, f"{priority.name} {number}", priority)
    assert await waiting.go(8) == [
        f"{priority.name} {number}" for priority in reversed(JobPriority) for number in (1, 2)
    ]


@pytest.mark.parametrize(
    ("patient", "pushing", "rounds"), [(LOW, NORMAL, 10), (NORMAL, HIGH, 10), (NORMAL, URGENT, 60)]
)
async def test_a_head_start_is_one_of_rounds(
    waiting: Waiting, slow: Agent, patient: JobPriority, pushing: JobPriority, rounds: int
) -> None:
    """What has it comes one at a time, and never ends."""
    await waiting.joins(slow, "mia", patient, count=3)
    order: list[str] = []
    for _ in range(rounds + 6):
        await waiting.joins(slow, "olaf", pushing)
        order.append(await waiting.goes())
    assert order == ["olaf"] * rounds + ["mia", "olaf"] * 3


async def test_low_work_waits_ten_rounds_of_several_owners(waiting: Waiting, slow: Agent) -> None:
    await waiting.joins(slow, "mia", LOW)
    for owner in ("olaf", "vera"):
        await waiting.joins(slow, owner, count=50)
    order = await waiting.go(21)
    assert order == ["olaf", "vera"] * 10 + ["mia"]


async def test_a_head_start_comes_back_while_others_go(waiting: Waiting, slow: Agent) -> None:
    await waiting.joins(slow, "mia", count=100)
    await waiting.joins(slow, "olaf", HIGH, count=12)
    assert await waiting.go(14) == ["olaf"] * 10 + ["mia", "olaf"] * 2
    assert set(await waiting.go(4)) == {"mia"}
    await waiting.joins(slow, "olaf", HIGH, count=8)
    assert await waiting.go(8) == ["olaf"] * 4 + ["mia", "olaf"] * 2


async def test_what_goes_by_a_head_start_lets_nobody_else_past(
    waiting: Waiting, slow: Agent
) -> None:
    await waiting.joins(slow, "mia", count=50)
    assert set(await waiting.go(20)) == {"mia"}
    await waiting.joins(slow, "olaf", URGENT)
    assert await waiting.go(1) == ["olaf"]
    await waiting.joins(slow, "vera")
    assert await waiting.go(2) == ["mia", "vera"]


async def test_endless_urgent_work_puts_no_newcomer_behind_a_long_queue(
    waiting: Waiting, slow: Agent
) -> None:
    """What goes by a head start is ahead of the round under way; it does not move that on."""
    await waiting.joins(slow, "olaf", count=1000)
    for _ in range(100):
        await waiting.joins(slow, "mia", URGENT)
        await waiting.goes()
    await waiting.joins(slow, "vera")
    assert await waiting.go(4) == ["olaf", "mia", "vera", "olaf"]


# Agents


async def test_places_that_are_few_go_to_who_has_fewest_under_way(
    idle: Runtime, waiting: Waiting
) -> None:
    agents = [await make_agent(idle, max_concurrency=1) for _ in range(12)]
    for agent in agents[:10]:
        await waiting.joins(agent, "mia", count=3)
    first = await waiting.begins(4)
    assert [waiting.names[it.job_id] for it in first] == ["mia"] * 4
    for agent in agents[10:]:
        await waiting.joins(agent, "olaf", count=3)
    order: list[str] = []
    for it in first:
        await waiting.ends(it)
        order += [waiting.names[each.job_id] for each in await waiting.begins(1)]
    assert order == ["olaf", "olaf", "mia", "mia"]


async def test_places_that_are_given_count_for_the_next_one(
    idle: Runtime, waiting: Waiting
) -> None:
    """Those of all workers count, and within one turn each place that was given."""
    other = Waiting(names=waiting.names)
    agents = [await make_agent(idle, max_concurrency=1) for _ in range(10)]
    await waiting.joins(agents[0], "mia")
    assert len(await other.begins()) == 1
    for agent in agents[1:6]:
        await waiting.joins(agent, "mia")
    for agent in agents[6:]:
        await waiting.joins(agent, "olaf")
    begun = Counter(waiting.names[it.job_id] for it in await waiting.begins(3))
    assert begun == {"olaf": 2, "mia": 1}


async def test_with_one_place_who_has_waited_longest_goes_first(
    idle: Runtime, waiting: Waiting
) -> None:
    agents = [await make_agent(idle) for _ in range(5)]
    for owner, agent in zip(("mia", "mia", "olaf", "mia"), agents, strict=False):
        await waiting.joins(agent, owner)
    assert await waiting.go(3) == ["mia", "mia", "olaf"]
    await waiting.joins(agents[4], "olaf", HIGH)
    assert await waiting.go(2) == ["olaf", "mia"]


async def test_a_head_start_beside_other_agents_is_one_of_minutes(
    idle: Runtime, waiting: Waiting
) -> None:
    agents = {priority: await make_agent(idle) for priority in JobPriority}
    before = now()
    for priority, agent in agents.items():
        await waiting.joins(agent, priority.name, priority)
    ages = {URGENT: 0, HIGH: 51, NORMAL: 62, LOW: 71}  # minutes; of normal ones 60, 61, 62, 61
    for priority, minutes in ages.items():
        entries = QueueEntry.filter(priority=priority)
        await entries.update(queued_at=before - minutes * MINUTE)
    order = await waiting.go(2)
    assert order[0] == "NORMAL"
    assert order[1] in {"HIGH", "LOW"}
    assert (await waiting.go(2))[1] == "URGENT"


async def test_owners_of_one_name_in_two_workspaces_are_two(
    idle: Runtime, waiting: Waiting
) -> None:
    second = (await workspaces.create("second")).id
    agents = [await make_agent(idle, max_concurrency=1) for _ in range(4)]
    await Agent.filter(id=agents[3].id).update(workspace_id=second)
    await waiting.joins(agents[0], "mia")
    await waiting.begins()
    for agent in agents[1:]:
        await waiting.joins(agent, "mia")
    (it,) = await waiting.begins()
    assert (await QueueEntry.get(job_id=it.job_id)).agent_id == agents[3].id


# Given back, and woken


async def test_what_is_given_back_keeps_its_place(waiting: Waiting, slow: Agent) -> None:
    await waiting.joins(slow, "mia", count=5)
    await waiting.joins(slow, "olaf", count=5)
    (first,) = await waiting.begins()
    await queue.release(waiting.worker, first, failures=0, ready_at=None)
    (again,) = await waiting.begins()
    assert again == first
    await workers.leave(waiting.worker)
    (once_more,) = await waiting.begins()
    assert once_more == first
    assert await waiting.ends(once_more) == "mia"
    assert await waiting.go(4) == ["olaf", "mia", "olaf", "mia"]


async def test_those_that_wake_have_places_as_if_they_came_now(
    waiting: Waiting, slow: Agent
) -> None:
    for owner in ("mia", "olaf"):
        await waiting.joins(slow, owner, count=3)
    asleep = QueueEntry.filter(state=QueueState.WAITING)
    await asleep.update(state=QueueState.SLEEPING, ready_at=now())
    await waiting.joins(slow, "vera", count=20)
    assert set(await waiting.go(5)) == {"vera"}
    await waiting.joins(slow, "mia")
    before = now()
    assert await queue.wake(now()) is None
    woken = QueueEntry.filter(state=QueueState.WAITING, queued_at__gte=before)
    assert await woken.order_by("owner_id", "rank").values_list("owner_id", "rank") == [
        *[("mia", rank) for rank in (7, 8, 9)],
        *[("olaf", rank) for rank in (6, 7, 8)],
    ]
    assert await waiting.go(4) == ["vera", "mia", "olaf", "vera"]


async def test_those_that_wake_keep_what_their_priority_gives_them(
    waiting: Waiting, slow: Agent
) -> None:
    for priority in (LOW, URGENT, NORMAL, HIGH):
        await waiting.joins(slow, priority.name, priority)
    await QueueEntry.all().update(state=QueueState.SLEEPING, ready_at=now())
    await queue.wake(now())
    assert await waiting.go(4) == ["URGENT", "HIGH", "NORMAL", "LOW"]


async def test_those_that_wake_do_not_have_a_head_start_anew(waiting: Waiting, slow: Agent) -> None:
    await waiting.joins(slow, "mia", count=3)
    await waiting.joins(slow, "olaf", URGENT, count=60)
    assert set(await waiting.go(60)) == {"olaf"}
    await waiting.joins(slow, "olaf", URGENT)
    await QueueEntry.filter(owner_id="olaf").update(state=QueueState.SLEEPING, ready_at=now())
    await queue.wake(now())
    assert await waiting.go(3) == ["mia", "olaf", "mia"]


# How it is looked up


async def plan(sql: str, *values: object) -> str:
    """How the database does it within a turn."""
    explain = "EXPLAIN QUERY PLAN " if statements.is_sqlite() else "EXPLAIN "
    async with statements.database().exclusive(queue.TAKING) as connection:
        rows = await connection.fetch(explain + sql, *values)
    return "\n".join(str(row[-1]) for row in rows)


async def test_turns_go_by_the_index(waiting: Waiting, slow: Agent) -> None:
    """However long the queue is: nothing reads or sorts all that waits."""
    await waiting.joins(slow, "mia", count=2000)
    for sql, values in {
        queue.TAKE: (str(waiting.worker), str(slow.id), 1),
        queue.ANY_WAITING: (),
        lanes.LANES: (),
        lanes.HEADS: (),
    }.items():
        found = await plan(sql, *values)
        assert "ix_queue_entries_lane" in found
        read_through = ("SCAN queue_entries", "SCAN q", "TEMP B-TREE", "Seq Scan on queue", "Sort")
        assert not [each for each in read_through if each in found], found


# With a worker and an agent


@dataclass
class Line:
    """An agent that does one job at a time, none before it may go on, and who waits for it."""

    rt: Runtime
    agent: Agent
    may_go_on: asyncio.Event
    arrived: list[str] = field(default_factory=list[str])
    names: dict[str, str] = field(default_factory=dict[str, str])

    async def joins(self, name: str, priority: JobPriority, viewer: Viewer = MEMBER) -> None:
        job = await make_job(self.rt, self.agent, viewer, name=name, priority=priority)
        self.names[public_id("job", job.id)] = name
        await execute(self.rt, job, viewer, wait_seconds=0)

    async def order(self, count: int) -> list[str]:
        """The names of the first `count` that came after the one that held all up."""
        self.may_go_on.set()
        await holds(lambda: len(self.arrived) > count)
        return [self.names[id] for id in self.arrived[1 : count + 1]]


@asynccontextmanager
async def line(rt: Runtime) -> AsyncGenerator[Line]:
    """The agent is busy with a first job already."""
    go_on = asyncio.Event()

    async def behave(received: Received) -> None:
        here.arrived.append(received.headers["signoff-job-id"])
        await go_on.wait()
        await says_ok(received)

    async with fake_agent(behave) as endpoint:
        agent = await make_agent(rt, endpoint.url, max_concurrency=1, timeout_seconds=600)
        here = Line(rt, agent, go_on)
        await here.joins("first", NORMAL)
        await holds(lambda: len(here.arrived) == 1)
        yield here


async def test_the_worker_calls_the_agent_in_this_order(rt: Runtime) -> None:
    """The example of docs/reference/queue.md."""
    async with line(rt) as here:
        for number in (2, 3, 4):
            await here.joins(f"mia {number}", NORMAL)
        await here.joins("olaf", NORMAL, OTHER)
        await here.joins("olaf, low", LOW, OTHER)
        await here.joins("mia, urgent", URGENT)
        order = ["mia, urgent", "mia 2", "olaf", "mia 3", "mia 4", "olaf, low"]
        assert await here.order(6) == order
