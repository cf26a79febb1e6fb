"""All or nothing, and a server that survives clients who hang up at any moment."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
from tortoise import connections

from models import (
    Agent,
    Attempt,
    CriteriaSet,
    Job,
    JobLog,
    JobLogType,
    JobStatus,
    JobTag,
    jsontext,
    statements,
)
from models.statements import Statement, Unavailable
from services import agents, decisions, execution, jobs, lifecycle, shielding
from services.actors import LOCAL_ADMIN
from services.agents import SaveAgent
from services.decisions import CancelJob
from services.errors import VersionConflict
from services.execution import ExecuteJob
from services.jobs import CreateJob
from services.rules import Event
from services.runtime import Runtime
from services.transactions import atomic
from services.values import public_id
from signoff import database
from tests.fakes.agents import fake_agent
from tests.support.making import (
    MEMBER,
    SAYS_OK,
    attempts_of,
    execute,
    holds,
    logs_of,
    make_agent,
    make_job,
    says_ok,
    snapshot,
)
from tests.support.running import Client

CANCELS, AT_ONCE = 1000, 10
SOCKET_CANCELS = 300
ANSWER_SECONDS = 15


class Boom(Exception):
    """What no code expects."""


# All or nothing


@atomic
async def rename(rt: Runtime, job: Job, name: str) -> None:
    await lifecycle.move(rt, job, Event.UPDATE, MEMBER, message="Renamed.", name=name)


async def test_changes_within_a_change_are_one(rt: Runtime) -> None:
    job = await make_job(rt)

    @atomic
    async def twice(rt: Runtime) -> None:
        await rename(rt, job, "First")
        assert (await Job.get(id=job.id)).name == "A job"
        await rename(rt, job, "Second")

    await twice(rt)
    now = await Job.get(id=job.id)
    assert (now.name, now.version) == ("Second", 3)
    assert [entry.message for entry in await logs_of(job)] == [None, "Renamed.", "Renamed."]


async def test_error_anywhere_leaves_nothing_of_the_whole_change(rt: Runtime) -> None:
    job = await make_job(rt)
    before = await snapshot(job)

    @atomic
    async def fails(rt: Runtime) -> None:
        await rename(rt, job, "Never")
        await make_job(rt, tags=["a"])
        await agents.save(
            rt, LOCAL_ADMIN, SaveAgent(name="Never", endpoint_url="http://127.0.0.1:9/")
        )
        raise Boom

    with pytest.raises(Boom):
        await fails(rt)
    assert await snapshot(job) == before
    assert await Job.all().count() == await CriteriaSet.all().count() == 1
    assert await JobTag.all().count() == await Agent.all().count() == 0


async def test_change_decided_on_an_old_row_leaves_nothing_either(rt: Runtime) -> None:
    job = await make_job(rt)
    old = await Job.get(id=job.id)
    await rename(rt, job, "Mine")
    before = await snapshot(job)

    @atomic
    async def too_late(rt: Runtime) -> None:
        await make_job(rt, tags=["a"])
        await rename(rt, old, "Never")

    with pytest.raises(VersionConflict):
        await too_late(rt)
    assert await snapshot(job) == before
    assert await Job.all().count() == await CriteriaSet.all().count() == 1
    assert await JobTag.all().count() == 0


async def test_batch_that_cannot_be_written_takes_no_other_along(rt: Runtime) -> None:
    agent = await make_agent(rt)
    sql = 'UPDATE "agents" SET "description" = $1 WHERE "id" = $2'
    given: list[Any] = ["well", 2**70]  # the second is more than a driver takes
    batches = [[Statement(sql, [each, str(agent.id)], "agents")] for each in given]
    written = await asyncio.gather(
        *(statements.database().execute_batch(batch) for batch in batches), return_exceptions=True
    )
    assert written[0] == [None]
    assert isinstance(written[1], Exception)
    assert (await Agent.get(id=agent.id)).description == "well"


async def test_lost_answer_is_no_refusal_though_others_have_gone_on(
    rt: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database commits, but its answer does not come; by the next try the job is done."""
    lost: list[Sequence[Statement]] = []
    database = statements.database()
    write = database.execute_batch

    async def loses_one(batch: Sequence[Statement]) -> list[Any]:
        written = await write(batch)
        if not lost:
            lost.append(batch)
            await execution.run(replace(rt, turns={}), job.id, 1)  # elsewhere
            raise Unavailable("its answer was lost")
        return written

    async with fake_agent(says_ok) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url))
        monkeypatch.setattr(database, "execute_batch", loses_one)
        done = await execute(rt, job)
    assert len(lost) == 1
    assert (done.status, done.attempt_count) == (JobStatus.COMPLETED, 1)
    assert len(fake.received) == 1


async def test_execution_is_queued_only_after_its_commit(rt: Runtime) -> None:
    async with fake_agent(says_ok) as fake:
        agent = await make_agent(rt, fake.url)
        job = await make_job(rt, agent)
        before = await snapshot(job)

        @atomic
        async def accepts(rt: Runtime, *, fails: bool) -> None:
            await execution.accept(rt, MEMBER, await Job.get(id=job.id), agent)
            await asyncio.sleep(0.2)  # for an engine that was told too early
            assert fake.received == []
            if fails:
                raise Boom

        with pytest.raises(Boom):
            await accepts(rt, fails=True)
        assert await snapshot(job) == before
        await accepts(rt, fails=False)
        assert (await execution.outcome(rt, job, 30)).status is JobStatus.COMPLETED
        assert len(fake.received) == 1
        (attempt,) = await attempts_of(job)
        assert attempt.number == 1


# Clients that hang up


async def committing(rt: Runtime, task: asyncio.Task[Any]) -> None:
    """Return while the task's transaction is under way."""
    while not rt.transactions and not task.done():
        await asyncio.sleep(0)
    assert rt.transactions


async def test_commit_ends_though_its_caller_hung_up(rt: Runtime) -> None:
    task = asyncio.create_task(make_job(rt, tags=["a", "b"]))
    await committing(rt, task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await shielding.drain(rt)
    job = await Job.get()
    assert await CriteriaSet.filter(job_id=job.id).count() == 1
    assert await JobTag.filter(job_id=job.id).count() == 2
    assert len(await logs_of(job)) == 1


async def test_agent_whose_maker_hung_up_gets_work_all_the_same(rt: Runtime) -> None:
    async with fake_agent(says_ok) as fake:
        task = asyncio.create_task(make_agent(rt, fake.url))
        await committing(rt, task)
        task.cancel()
        await asyncio.wait([task])
        await shielding.drain(rt)
        agent = await Agent.get()
        job = await execute(rt, await make_job(rt, agent))
    assert job.status is JobStatus.COMPLETED


async def test_thousand_mutations_cut_off_anywhere_leave_a_working_server(rt: Runtime) -> None:
    chance = random.Random(1)  # noqa: S311
    async with fake_agent(says_ok) as fake:
        agent = await make_agent(rt, fake.url, max_concurrency=20)
        ready = [await make_job(rt, agent) for _ in range(100)]
        cut = 0
        for _ in range(CANCELS // AT_ONCE):
            mutations = [mutation(rt, agent, ready, chance) for _ in range(AT_ONCE)]
            cut += sum(await asyncio.gather(*(cut_off(each, chance) for each in mutations)))
        assert cut > CANCELS / 10  # the others were done before
        async with asyncio.timeout(ANSWER_SECONDS):
            done = await execute(rt, await make_job(rt, agent))
            assert done.status is JobStatus.COMPLETED
            for job in ready:
                await execution.outcome(rt, job, ANSWER_SECONDS)
            await shielding.drain(rt)
        await holds(idle, 10)
        await check_all_or_nothing()


def mutation(
    rt: Runtime, agent: Agent, ready: list[Job], chance: random.Random
) -> Callable[[], Awaitable[object]]:
    """One of the real ones."""
    job = chance.choice(ready)
    create: dict[str, Any] = {
        "name": "A job",
        "acceptance_criteria": SAYS_OK,
        "tags": ["a", "b"],
        "idempotency_key": str(chance.random()) if chance.random() < 0.5 else None,
        "assign": {"agent_id": agent.id},
    }

    async def update() -> object:
        row = await Job.get(id=job.id)
        return await rename(rt, row, "Renamed")

    return chance.choice(
        [
            lambda: jobs.create(rt, MEMBER, CreateJob.model_validate(create)),
            lambda: execution.execute(rt, MEMBER, ExecuteJob(id=job.id, wait_seconds=1)),
            lambda: jobs.add_note(rt, MEMBER, job.id, "A note."),
            lambda: decisions.cancel(rt, MEMBER, CancelJob(id=job.id)),
            lambda: decisions.reopen(rt, MEMBER, job.id, "Again.", None),
            update,
        ]
    )


async def cut_off(mutate: Callable[[], Awaitable[object]], chance: random.Random) -> bool:
    """Whether the mutation was under way when it was cancelled."""
    task = asyncio.ensure_future(mutate())
    if chance.random() < 0.5:
        for _ in range(chance.randrange(20)):
            await asyncio.sleep(0)
    else:
        await asyncio.sleep(chance.uniform(0, 0.03))
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()


def idle() -> bool:
    """Whether nothing holds a connection of the database."""
    client: Any = connections.get("default")
    pool = cast("Any", getattr(client, "_pool", None))
    if pool is None:
        return not client._lock.locked()
    return pool.get_size() == pool.get_idle_size()


async def check_all_or_nothing() -> None:
    """Every row that stands has all that was written with it."""
    logs: dict[Any, list[JobLog]] = {}
    async for entry in JobLog.all().order_by("seq"):
        logs.setdefault(entry.job_id, []).append(entry)
    criteria = await CriteriaSet.all().values_list("job_id", flat=True)
    made = await Job.all()
    assert len(made) > 100
    assert sorted(logs) == sorted(job.id for job in made)
    assert sorted(cast("list[Any]", criteria)) == sorted(job.id for job in made)
    for job in made:
        await check_history(job, logs[job.id])


async def check_history(job: Job, entries: list[JobLog]) -> None:
    moves = [
        jsontext.loads(entry.payload_json or "")
        for entry in entries
        if entry.type in (JobLogType.STATUS_CHANGE, JobLogType.CONFIG_CHANGE)
    ]
    assert moves[0]["event"] == "CREATE"
    assert [move["from"] for move in moves[1:]] == [move["to"] for move in moves[:-1]]
    assert moves[-1]["to"] == job.status
    versions = [move["version"] for move in moves]
    assert versions == sorted(set(versions))
    executions = sum(move["event"] == "EXECUTE" for move in moves)
    assert executions == job.attempt_count == await Attempt.filter(job_id=job.id).count()


# The same over a WebSocket

CREATE = """
mutation {
  createJob(input: {name: "Cut off", tags: ["a"], acceptanceCriteria: {text: "- ok"}}) {
    ... on Job { id }
  }
}"""
NOTE = 'mutation { addJobNote(id: "%s", message: "Hm.") { ... on JobLog { id } } }'


async def test_socket_that_hangs_up_on_its_mutations_leaves_a_working_server(
    client: Client, database_url: str
) -> None:
    first = await post(client, CREATE)
    note = NOTE % first["createJob"]["id"]
    async with client.ws_connect("/graphql", protocols=["graphql-transport-ws"]) as socket:
        await socket.send_json({"type": "connection_init"})
        assert (await socket.receive_json())["type"] == "connection_ack"
        chance = random.Random(2)  # noqa: S311
        for number in range(SOCKET_CANCELS):
            query = chance.choice([CREATE, note])
            await socket.send_json(
                {"type": "subscribe", "id": str(number), "payload": {"query": query}}
            )
            for _ in range(chance.randrange(10)):
                await asyncio.sleep(0)
            await socket.send_json({"type": "complete", "id": str(number)})
        async with asyncio.timeout(ANSWER_SECONDS):
            assert (await post(client, "{ viewer { id } }"))["viewer"] == {"id": "local"}
            assert (await post(client, CREATE))["createJob"]["id"]
            await socket.send_json({"type": "ping"})
            while (await socket.receive_json())["type"] != "pong":
                pass
    async with asyncio.timeout(ANSWER_SECONDS):
        last = await post(client, CREATE)
    async with database.connected(database_url):
        created = [
            entry.job_id
            async for entry in JobLog.filter(type=JobLogType.STATUS_CHANGE).order_by("seq")
        ]
        made = await Job.all().order_by("id").values_list("id", flat=True)
        criteria = await CriteriaSet.all().values_list("job_id", flat=True)
        assert sorted(created) == made == sorted(cast("list[Any]", criteria))
        assert last["createJob"]["id"] in [public_id("job", id) for id in created]


async def post(client: Client, query: str) -> dict[str, Any]:
    async with client.post("/graphql", json={"query": query}) as response:
        answer = await response.json()
    assert "errors" not in answer, answer
    return answer["data"]
