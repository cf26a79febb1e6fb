"""A full queue refuses whatever a caller's change would start at once, not only executions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from models import (
    Agent,
    AgentAvailability,
    AgentGate,
    CriteriaSet,
    IdempotencyKey,
    Job,
    JobDependency,
    JobLog,
    JobStatus,
    JobTag,
    QueueEntry,
    Timer,
)
from services import agents, assignment, decisions, jobs
from services.assignment import AssignJob, ReassignJob
from services.decisions import CancelJob, ForceComplete
from services.errors import LimitExceeded
from services.jobs import UpdateJob
from services.runtime import Runtime
from services.values import parse_id
from signoff.app import create_app
from signoff.wiring import runtime
from tests.fakes.agents import fake_agent
from tests.support.graphql import SAYS_OK, mutate, new_job
from tests.support.graphql import agent as saved_agent
from tests.support.making import (
    ADMIN,
    MEMBER,
    execute,
    make_agent,
    make_job,
    says_ok,
    until,
)
from tests.support.running import AiohttpClient, settings_for

FAR = datetime(2100, 1, 1, tzinfo=UTC)
TABLES = {
    Job: "id",
    CriteriaSet: "id",
    IdempotencyKey: "id",
    JobDependency: "id",
    JobLog: "seq",
    JobTag: "id",
    QueueEntry: "job_id",
    Timer: "id",
}
"""Whatever a refused change could have written, and its key."""

Change = Callable[[], Awaitable[Job]]


async def everything() -> list[Any]:
    return [await table.all().order_by(key).values() for table, key in TABLES.items()]


async def is_refused(change: Change) -> None:
    before = await everything()
    with pytest.raises(LimitExceeded) as refused:
        await change()
    assert refused.value.limit == 1
    assert await everything() == before


async def fill(rt: Runtime, agent: Agent) -> None:
    """From now on there is no room."""
    rt.bound.limit = 1
    rt.bound.fresh_seconds = 0
    await execute(rt, await make_job(rt, agent), wait_seconds=0)


def updating(rt: Runtime, job: Job, **given: Any) -> Change:
    return partial(jobs.update, rt, MEMBER, UpdateJob.model_validate({"id": job.id, **given}))


def giving(rt: Runtime, job: Job, agent: Agent) -> Change:
    """To an agent, that has it now."""
    given = {"id": job.id, "assign": {"agent_id": agent.id}}
    if job.agent_id is None:
        return partial(assignment.assign, rt, MEMBER, AssignJob.model_validate(given))
    return partial(assignment.reassign, rt, MEMBER, ReassignJob.model_validate(given))


async def test_a_job_that_starts_at_once_is_not_made(idle: Runtime) -> None:
    agent = await make_agent(idle)
    done = await make_job(idle, agent)
    force = ForceComplete.model_validate({"id": done.id, "result": 1, "reason": "Done."})
    await decisions.force_complete(idle, ADMIN, force)
    await fill(idle, agent)
    past = datetime.now(UTC) - timedelta(seconds=1)
    make = partial(make_job, idle, agent, auto_execute=True)
    for given in (
        {},
        {"run_at": past},
        {"depends_on": [{"job_id": done.id}]},
        {"tags": ["a"], "idempotency_key": "k"},
    ):
        await is_refused(partial(make, **given))
    await QueueEntry.all().delete()
    assert (await make(tags=["a"], idempotency_key="k")).armed


async def test_a_job_that_starts_later_is_made(idle: Runtime) -> None:
    agent = await make_agent(idle)
    waited_for = await make_job(idle, agent)
    await fill(idle, agent)
    make = partial(make_job, idle, auto_execute=True)
    assert (await make(agent, run_at=FAR)).armed
    assert (await make(agent, depends_on=[{"job_id": waited_for.id}])).armed
    assert (await make(None)).armed
    assert not (await make(agent, auto_execute=False)).armed


async def test_an_update_that_starts_a_job_is_refused(idle: Runtime) -> None:
    agent = await make_agent(idle)
    waited_for = await make_job(idle, agent)
    ready = await make_job(idle, agent)
    later = await make_job(idle, agent, auto_execute=True, run_at=FAR)
    blocked = await make_job(idle, agent, auto_execute=True, depends_on=[{"job_id": waited_for.id}])
    await fill(idle, agent)
    await is_refused(updating(idle, ready, auto_execute=True, tags=["new"]))
    await is_refused(updating(idle, later, run_at=None))
    await is_refused(updating(idle, blocked, depends_on=[]))
    assert (await updating(idle, ready, name="New")()).name == "New"
    assert (await updating(idle, later, name="New")()).name == "New"
    off = await updating(idle, blocked, auto_execute=False, depends_on=[])()
    assert (off.armed, off.dependency_count) == (False, 0)


async def test_giving_a_job_to_an_agent_that_begins_is_refused(idle: Runtime) -> None:
    agent, paused = await make_agent(idle), await make_agent(idle)
    free = await make_job(idle, None, auto_execute=True)
    held = await make_job(idle, paused, auto_execute=True)
    plain = await make_job(idle, None)
    await agents.set_availability(idle, ADMIN, paused.id, AgentAvailability.PAUSED)
    await fill(idle, agent)
    await is_refused(giving(idle, free, agent))
    await is_refused(giving(idle, held, agent))
    assert (await giving(idle, plain, agent)()).status is JobStatus.ASSIGNED
    assert (await updating(idle, held, name="New")()).name == "New"  # its agent holds it


async def test_reopening_a_job_that_starts_by_itself_is_refused(idle: Runtime) -> None:
    agent = await make_agent(idle)
    made = [await make_job(idle, agent, auto_execute=armed) for armed in (True, False)]
    for job in made:
        await decisions.cancel(idle, MEMBER, CancelJob(id=job.id))
    await fill(idle, agent)
    starts, stays = (
        partial(decisions.reopen, idle, MEMBER, job.id, "Again.", None) for job in made
    )
    await is_refused(starts)
    assert (await stays()).status is JobStatus.ASSIGNED


async def test_what_starts_later_is_not_refused_then(database_url: str, tmp_path: Path) -> None:
    settings = settings_for(database_url, tmp_path)
    async with (
        runtime(settings, allow_private_agents=True) as rt,
        fake_agent(says_ok) as fake,
    ):
        agent, down = await make_agent(rt, fake.url), await make_agent(rt)
        await AgentGate.create(agent_id=down.id, open_until=FAR, reason="It is down.")
        first = await make_job(rt, agent)
        soon = datetime.now(UTC) + timedelta(milliseconds=500)
        waiting = [
            await make_job(rt, agent, auto_execute=True, depends_on=[{"job_id": first.id}]),
            await make_job(rt, agent, auto_execute=True, run_at=soon),
        ]
        await fill(rt, down)
        force = ForceComplete.model_validate({"id": first.id, "result": 1, "reason": "Done."})
        await decisions.force_complete(rt, ADMIN, force)

        async def all_done() -> bool:
            ids = [job.id for job in waiting]
            return await Job.filter(id__in=ids, status=JobStatus.COMPLETED).count() == 2

        await until(all_done)
        assert await QueueEntry.all().count() == 1


async def test_clients_are_told_the_limit(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    client = await aiohttp_client(create_app(settings_for(database_url, tmp_path, max_queued=1)))
    async with saved_agent(client) as (agent_id, _):
        key = parse_id("agent", agent_id)
        await AgentGate.create(agent_id=key, open_until=FAR, reason="It is down.")
        to_agent = {"agentId": agent_id}
        one = await new_job(client, assign=to_agent)
        ready = await new_job(client, assign=to_agent)
        free = await new_job(client, autoExecute=True)
        await mutate(client, "executeJob", input={"id": one["id"]})
        before = await everything()
        new = {"name": "One more", "acceptanceCriteria": SAYS_OK, "assign": to_agent}
        for name, given in {
            "createJob": new | {"autoExecute": True},
            "updateJob": {"id": ready["id"], "autoExecute": True},
            "assignJob": {"id": free["id"], "assign": to_agent},
        }.items():
            assert await mutate(client, name, input=given) == {
                "__typename": "LimitExceeded",
                "code": "LIMIT_EXCEEDED",
                "message": "1 executions wait already, which is the limit; try again later.",
                "limit": 1,
            }
        assert await everything() == before
