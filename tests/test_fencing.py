"""Workers that die, hang or are told to go: another one goes on, and nobody writes twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import openai_server
from tests.fakes.agents import FakeAgent, Received, fake_agent
from tests.support import consistency
from tests.support.commands import environment, run
from tests.support.load import Load, save_agent
from tests.support.making import answers, holds, in_turn, key_of, says_ok, stalls, until
from tests.support.server import Program, Server, serving, working
from tests.test_crash import (
    check_lost,
    check_only_judged_again,
    check_repeated_after_its_pause,
    check_repeated_with_its_key,
    execution_of,
    read,
    settled,
    types,
    waits_for_agent,
    waits_for_judge,
    waits_to_retry,
)

pytestmark = pytest.mark.timeout(120)
LEASE = 2
SOON = LEASE + 5
"""Within which a peer has finished what a lost worker was at."""
LONG = {"SIGNOFF_LEASE_SECONDS": "60"}
"""A lease that no test waits for."""
Json = dict[str, Any]


@dataclass
class Fleet:
    """A server that runs nothing, and its workers."""

    url: str
    folder: Path
    server: Server
    stack: AsyncExitStack
    settings: dict[str, str]

    async def worker(self, name: str) -> Program:
        started = working(self.url, self.folder, name, **self.settings)
        return await self.stack.enter_async_context(started)

    async def workers(self, *names: str) -> list[Program]:
        return await asyncio.gather(*(self.worker(name) for name in names))


@asynccontextmanager
async def fleet(url: str, folder: Path, **settings: str) -> AsyncGenerator[Fleet]:
    async with AsyncExitStack() as stack:
        served = serving(url, folder, "--no-worker", **settings)
        server = await stack.enter_async_context(served)
        yield Fleet(url, folder, server, stack, settings)


@pytest.fixture
async def few(postgres_url: str, tmp_path: Path) -> AsyncIterator[Fleet]:
    """Without a worker yet; the lease is short."""
    async with fleet(postgres_url, tmp_path) as started:
        yield started


async def rows_of(fleet: Fleet, id: str) -> list[list[Json]]:
    """The job, its attempts and verdicts as they are stored."""
    uuid = id.removeprefix("job_")
    return await consistency.read(
        fleet.url,
        f"SELECT * FROM jobs WHERE id = '{uuid}'",  # noqa: S608
        f"SELECT * FROM attempts WHERE job_id = '{uuid}' ORDER BY number",  # noqa: S608
        f"SELECT * FROM verdicts WHERE job_id = '{uuid}'",  # noqa: S608
    )


async def test_server_without_a_worker_runs_nothing(few: Fleet) -> None:
    async with fake_agent(says_ok) as agent:
        id = await execution_of(few.server, agent, idempotent=True)
        assert await consistency.read(few.url, "SELECT * FROM workers") == [[]]
        assert agent.received == []
        await few.worker("a")
        assert (await settled(few.server, id))["status"] == "COMPLETED"


async def test_peer_goes_on_where_a_killed_worker_was(postgres_url: str, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        judge = await stack.enter_async_context(openai_server.running())
        judge.script.append(openai_server.hangs)
        asks = {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": judge.base_url}
        few = await stack.enter_async_context(fleet(postgres_url, tmp_path, **asks))
        first = await few.worker("first")
        cut_off = await waits_for_agent(few.server, stack, idempotent=True)
        lost = await waits_for_agent(few.server, stack, idempotent=False)
        pausing = await waits_to_retry(few.server, stack, idempotent=False)
        judging = await waits_for_judge(few.server, stack, judge)
        await few.worker("peer")
        await first.kill()
        async with asyncio.timeout(SOON):
            for case in (cut_off, lost, pausing, judging):
                case.job = await settled(few.server, case.id)
        check_repeated_with_its_key(cut_off)
        check_lost(lost)
        check_repeated_after_its_pause(pausing)
        check_only_judged_again(judging)
        assert len(judge.requests) == 2
        await consistency.check(postgres_url)


async def check_it_changes_nothing(
    few: Fleet, zombie: Program, id: str, go_on: asyncio.Event
) -> None:
    """A peer ends the job while the zombie is frozen; its own answer comes after that."""
    zombie.freeze()
    await few.worker("peer")
    done = await settled(few.server, id)
    assert (done["status"], done["result"]) == ("COMPLETED", {"answer": "ok"})
    before = await rows_of(few, id)
    go_on.set()
    zombie.thaw()

    async def told() -> bool:
        return types(await read(few.server, id)).count("AGENT_RESPONSE") == 2

    await until(told)
    after = await rows_of(few, id)
    assert after[0][0].pop("log_head") != before[0][0].pop("log_head")
    assert after == before


async def test_zombie_changes_nothing(few: Fleet) -> None:
    zombie = await few.worker("zombie")
    go_on = asyncio.Event()

    async def answers_late(received: Received) -> None:
        await go_on.wait()
        await answers({"answer": "late"})(received)

    async with fake_agent(in_turn(answers_late, says_ok)) as agent, fake_agent(says_ok) as other:
        id = await execution_of(few.server, agent, idempotent=True)
        await holds(lambda: len(agent.received) == 1)
        await check_it_changes_nothing(few, zombie, id, go_on)
        assert types(await read(few.server, id))[-1] == "AGENT_RESPONSE"
        again = await execution_of(few.server, other, idempotent=True)
        assert (await settled(few.server, again))["status"] == "COMPLETED"
    await consistency.check(few.url)


async def test_peer_looks_where_a_killed_worker_looked(few: Fleet) -> None:
    """The agent has accepted the work, and is never asked for it again."""
    later = answers({}, "202 Accepted", "location: /work/7", "retry-after: 1")
    first = await few.worker("first")
    async with fake_agent(in_turn(later, stalls, says_ok)) as agent:
        id = await execution_of(few.server, agent, idempotent=False)
        await holds(lambda: len(agent.received) == 2)
        await few.worker("peer")
        await first.kill()
        async with asyncio.timeout(SOON):
            done = await settled(few.server, id)
        assert (done["status"], done["result"]) == ("COMPLETED", {"answer": "ok"})
        assert [each.start_line.split(" ")[0] for each in agent.received] == ["POST", "GET", "GET"]
    await consistency.check(few.url)


async def test_zombie_that_looked_changes_nothing(few: Fleet) -> None:
    zombie = await few.worker("zombie")
    go_on = asyncio.Event()
    accepted = answers({}, "202 Accepted", "location: /work/7", "retry-after: 1")

    async def answers_late(received: Received) -> None:
        await go_on.wait()
        await answers({"answer": "late"})(received)

    async with fake_agent(in_turn(accepted, answers_late, says_ok)) as agent:
        id = await execution_of(few.server, agent, idempotent=False)
        await holds(lambda: len(agent.received) == 2)
        await check_it_changes_nothing(few, zombie, id, go_on)
    await consistency.check(few.url)


async def worker_of(few: Fleet, id: str) -> int:
    """The process that runs a job."""
    (rows,) = await consistency.read(
        few.url,
        "SELECT name FROM workers w JOIN queue_entries q ON q.worker_id = w.id "  # noqa: S608
        f"WHERE q.job_id = '{id.removeprefix('job_')}'",
    )
    (row,) = rows
    return int(row["name"].rpartition(":")[2])


async def test_job_that_kills_its_workers_is_stopped_and_takes_no_other_along(
    postgres_url: str, tmp_path: Path
) -> None:
    limits = {
        "SIGNOFF_MAX_LOSSES": "2",
        "SIGNOFF_LEASE_SECONDS": "1",
        "SIGNOFF_HEARTBEAT_SECONDS": "0.2",
    }

    async def takes_long(received: Received) -> None:
        await asyncio.sleep(1)
        await says_ok(received)

    async with (
        fake_agent(stalls) as poison,
        fake_agent(takes_long) as long,
        fake_agent(says_ok) as short,
        fleet(postgres_url, tmp_path, **limits) as few,
    ):
        workers = {worker.pid: worker for worker in await few.workers("a", "b")}
        innocents = Load(few.server, await save_agent(few.server, long.url))
        beside = Load(few.server, await save_agent(few.server, short.url))
        await asyncio.gather(*(innocents.job() for _ in range(4)))
        bad = await execution_of(few.server, poison, idempotent=True)
        for losses in range(1, 4):
            await holds(lambda losses=losses: len(poison.received) == losses)
            await workers.pop(await worker_of(few, bad)).kill()
            fresh = await few.worker(f"fresh-{losses}")
            workers[fresh.pid] = fresh
            await asyncio.gather(*(beside.job() for _ in range(3)))
        stopped = await settled(few.server, bad)
        assert (stopped["status"], stopped["statusReason"]) == (
            "RESUBMISSION_REQUIRED",
            "WORKER_LOST",
        )
        assert "It ended 3 workers, so it was stopped." in stopped["statusMessage"]
        assert len(poison.received) == 3
        await innocents.all_completed()
        await beside.all_completed()
        await consistency.check(postgres_url, innocents.acknowledged + beside.acknowledged)


async def test_worker_is_lost_after_its_own_lease_whatever_the_peers_have(few: Fleet) -> None:
    lease = 6
    few.settings = {"SIGNOFF_LEASE_SECONDS": f"{lease}", "SIGNOFF_HEARTBEAT_SECONDS": "2"}
    patient = await few.worker("patient")
    async with fake_agent(in_turn(stalls, says_ok)) as agent:
        id = await execution_of(few.server, agent, idempotent=True)
        await holds(lambda: len(agent.received) == 1)
        few.settings = {"SIGNOFF_LEASE_SECONDS": "1", "SIGNOFF_HEARTBEAT_SECONDS": "0.2"}
        await few.worker("hasty")
        for _ in range(2):  # between the two it is silent for longer than the hasty one's lease
            await beats(few, patient)
        assert await worker_of(few, id) == patient.pid
        assert types(await read(few.server, id)).count("NOTE") == 0
        await patient.kill()
        async with asyncio.timeout(lease + 5):
            done = await settled(few.server, id)
        assert done["status"] == "COMPLETED"
        assert len(agent.received) == 2
    await consistency.check(few.url)


async def beats(few: Fleet, worker: Program) -> None:
    """Return when it gives its next sign of life."""

    async def last() -> Any:
        sql = f"SELECT seen_at FROM workers WHERE name LIKE '%:{worker.pid}'"  # noqa: S608
        ((row,),) = await consistency.read(few.url, sql)
        return row["seen_at"]

    before = await last()

    async def again() -> bool:
        return await last() != before

    await until(again)


async def test_lease_that_a_live_worker_could_lose_is_refused(tmp_path: Path) -> None:
    given = {"SIGNOFF_LEASE_SECONDS": "10", "SIGNOFF_HEARTBEAT_SECONDS": "4"}
    nowhere = "postgres://nobody@127.0.0.1:9/nothing"
    settings = environment(SIGNOFF_DATABASE_URL=nowhere, **given)
    refused = (
        "signoff: Value error, SIGNOFF_HEARTBEAT_SECONDS must be at most a third of "
        "SIGNOFF_LEASE_SECONDS: 4.0 is more than a third of 10.0\n"
    )
    for end in await asyncio.gather(
        run(tmp_path, settings, "serve"), run(tmp_path, settings, "worker")
    ):
        assert end == (1, "", refused)


async def test_workers_learn_of_agents_at_run_time(postgres_url: str, tmp_path: Path) -> None:
    """Each worker has room for one job, and an agent answers only once both are with it."""
    one = {"SIGNOFF_MAX_EXECUTIONS": "1"}

    def meeting() -> Any:
        both = asyncio.Event()

        async def meets(received: Received) -> None:
            if len(where.received) == 2:
                both.set()
            await both.wait()
            await says_ok(received)

        return meets

    async with fleet(postgres_url, tmp_path, **one) as few:
        await few.workers("a", "b")
        agent_id = None
        for _ in ("added", "changed"):
            async with fake_agent(meeting()) as where:
                named = {"name": "Moves"} | ({"id": agent_id} if agent_id else {})
                agent_id = await save_agent(few.server, where.url, **named)
                load = Load(few.server, agent_id)
                await asyncio.gather(load.job(), load.job())
                await load.all_completed()
                assert len(where.received) == 2


async def test_stopped_worker_gives_its_work_time_and_hands_back_the_rest(
    postgres_url: str, tmp_path: Path
) -> None:
    go_on = asyncio.Event()

    async def waits(received: Received) -> None:
        await go_on.wait()
        await says_ok(received)

    async with (
        fake_agent(waits) as nearly_done,
        fake_agent(in_turn(stalls, says_ok)) as stuck,
        fake_agent(says_ok) as new,
        fleet(postgres_url, tmp_path, **LONG, SIGNOFF_SHUTDOWN_SECONDS="3") as few,
    ):
        going = await few.worker("going")
        ends = await execution_of(few.server, nearly_done, idempotent=False)
        moves = await execution_of(few.server, stuck, idempotent=True)
        await holds(lambda: len(nearly_done.received) == len(stuck.received) == 1)
        stopping = asyncio.create_task(going.stop())
        await holds(lambda: "stopping" in going.log)
        waits_on = await execution_of(few.server, new, idempotent=True)
        go_on.set()
        assert (await settled(few.server, ends))["status"] == "COMPLETED"
        assert (await read(few.server, waits_on))["phase"] == "QUEUED"
        assert new.received == []
        peer = asyncio.create_task(few.worker("peer"))
        async with asyncio.timeout(20):
            assert await stopping == 0
        await peer
        for id in (moves, waits_on):
            async with asyncio.timeout(SOON):
                done = await settled(few.server, id)
            assert done["status"] == "COMPLETED"
        assert [len(each.received) for each in (nearly_done, stuck, new)] == [1, 2, 1]
        assert len({key_of(each) for each in stuck.received}) == 1
        assert types(await read(few.server, moves)).count("NOTE") == 0
        assert "Traceback" not in going.log
        await consistency.check(postgres_url)


async def test_fleet_loses_and_repeats_nothing_when_one_of_it_is_stopped(
    postgres_url: str, tmp_path: Path
) -> None:
    async def works(received: Received) -> None:
        await asyncio.sleep(0.05)
        await says_ok(received)

    limits = {"SIGNOFF_MAX_EXECUTIONS": "5", "SIGNOFF_SHUTDOWN_SECONDS": "10"} | LONG
    async with fake_agent(works) as agent, fleet(postgres_url, tmp_path, **limits) as few:
        going, _ = await few.workers("going", "staying")
        load = Load(few.server, await save_agent(few.server, agent.url))
        await asyncio.gather(*(load.job() for _ in range(150)))
        assert await going.stop() == 0
        await load.all_completed()
        assert check_asked_once(agent) == 150
        assert await consistency.check(postgres_url, load.acknowledged) == 150


def check_asked_once(agent: FakeAgent) -> int:
    """How many attempts the agent was asked for, none of them twice."""
    counted = Counter(key_of(each) for each in agent.received)
    assert set(counted.values()) == {1}
    return len(counted)
