"""Jobs that wait for others: when they start, what they get, and what they never become."""

from __future__ import annotations

import asyncio
from contextvars import Context
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from models import (
    DependencyPolicy,
    Job,
    JobDependency,
    JobStatus,
    Role,
    StatusReason,
    Timer,
    TimerKind,
    jsontext,
)
from services import agents, assignment, decisions, engine, jobs, references, scheduling, timers
from services.actors import LOCAL_ADMIN
from services.agents import SaveAgent
from services.assignment import AssignJob
from services.decisions import CancelJob, ForceComplete, ResubmitJob
from services.errors import (
    DependenciesUnmet,
    DependencyCycle,
    InvalidInput,
    NotFound,
    SchemaMismatch,
    VersionConflict,
)
from services.jobs import UpdateJob
from services.references import NotResolved
from services.runtime import Runtime
from services.values import public_id
from signoff.settings import Settings
from signoff.wiring import runtime
from tests.fakes.agents import FakeAgent, fake_agent
from tests.support import graphql
from tests.support.graphql import Json, gql, make_key, mutate, new_job, problems
from tests.support.making import (
    ADMIN,
    MEMBER,
    OTHER,
    SAYS_OK,
    answers,
    attempts_of,
    execute,
    in_turn,
    logs_of,
    make_agent,
    make_job,
    says_no,
    says_ok,
    snapshot,
    until,
)
from tests.support.running import Client, settings_for
from tests.support.server import serving

MANY = 20


def on(*wanted: Job, **named: Job) -> list[dict[str, Any]]:
    """Dependencies: some without a name, some by theirs."""
    return [{"job_id": job.id} for job in wanted] + [
        {"job_id": job.id, "alias": alias} for alias, job in named.items()
    ]


async def force(rt: Runtime, job: Job, result: Any = None) -> Job:
    given = {"id": job.id, "result": result, "reason": "It is done."}
    return await decisions.force_complete(rt, ADMIN, ForceComplete.model_validate(given))


async def cancel(rt: Runtime, job: Job) -> Job:
    return await decisions.cancel(rt, ADMIN, CancelJob(id=job.id))


async def update(rt: Runtime, job: Job, **changes: Any) -> Job:
    return await jobs.update(rt, ADMIN, UpdateJob.model_validate({"id": job.id} | changes))


async def becomes(job: Job, status: JobStatus) -> Job:
    async def found() -> Job | None:
        row = await Job.get(id=job.id)
        return row if row.status is status else None

    return await until(found)


async def looked_at(job: Job) -> Job:
    """The job when nothing but a change can start it soon."""

    async def found() -> bool:
        (timer,) = await Timer.filter(job_id=job.id, kind=TimerKind.START)
        return timer.at > datetime.now(UTC) + timedelta(seconds=30)

    await until(found)
    return await Job.get(id=job.id)


# Started by completion


async def test_job_starts_when_the_last_of_what_it_waits_for_is_done(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        first, second = await make_job(rt, agent), await make_job(rt, agent)
        job = await make_job(rt, agent, auto_execute=True, depends_on=on(first, second))
        await execute(rt, first)
        assert (await looked_at(job)).status is JobStatus.ASSIGNED
        assert len(endpoint.received) == 1
        await execute(rt, second)
        done = await becomes(job, JobStatus.COMPLETED)
        assert (done.attempt_count, done.armed) == (1, False)
        assert len(endpoint.received) == 3
        started = (await logs_of(job))[1]
        assert (started.status, started.actor_name) == (JobStatus.IN_EXECUTION, "Signoff")


async def test_chain_runs_by_itself_from_end_to_end(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        chain = [await make_job(rt, agent)]
        for _ in range(5):
            given = on(chain[-1])
            chain.append(await make_job(rt, agent, auto_execute=True, depends_on=given))
        await execute(rt, chain[0])
        await becomes(chain[-1], JobStatus.COMPLETED)
        starts = [(await attempts_of(job))[0].started_at for job in chain]
        assert all(a and b and a < b for a, b in pairwise(starts))


async def test_job_that_nobody_armed_is_not_started(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        first = await make_job(rt, agent)
        job = await make_job(rt, agent, depends_on=on(first))
        marker = await make_job(rt, agent, depends_on=on(first), auto_execute=True)
        await execute(rt, first)
        await becomes(marker, JobStatus.COMPLETED)
        assert (await looked_at(job)).status is JobStatus.ASSIGNED
        assert (await execute(rt, job)).status is JobStatus.COMPLETED
        assert len(endpoint.received) == 3


async def test_blocked_job_is_not_executed_and_says_what_it_waits_for(rt: Runtime) -> None:
    agent = await make_agent(rt)
    first, second = await make_job(rt), await make_job(rt)
    done = await force(rt, await make_job(rt))
    job = await make_job(rt, agent, depends_on=on(first, done, second))
    await looked_at(job)
    before = await snapshot(job)
    with pytest.raises(DependenciesUnmet) as refused:
        await execute(rt, job)
    assert str(refused.value) == "It waits for 2 jobs that are not completed."
    assert [each.id for each in refused.value.jobs] == [first.id, second.id]
    assert await snapshot(job) == before


async def test_when_ready_arms_a_blocked_job(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        first = await make_job(rt)
        job = await make_job(rt, agent, depends_on=on(first))
        armed = await execute(rt, job, when_ready=True, wait_seconds=0)
        assert (armed.status, armed.armed) == (JobStatus.ASSIGNED, True)
        told = (await logs_of(job))[-1].message
        assert told == (
            "It starts by itself when it can. It waits for a job that is not completed."
        )
        await force(rt, first)
        await becomes(job, JobStatus.COMPLETED)


async def test_both_its_time_and_its_dependencies_are_waited_for(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        first = await make_job(rt)
        run_at = datetime.now(UTC) + timedelta(milliseconds=600)
        job = await make_job(rt, agent, auto_execute=True, run_at=run_at, depends_on=on(first))
        await force(rt, first)
        done = await becomes(job, JobStatus.COMPLETED)
        assert (await logs_of(done))[1].created_at >= run_at


async def test_of_many_completions_at_once_the_last_starts_it_once(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url, max_concurrency=50)
        firsts = [await make_job(rt, agent) for _ in range(MANY)]
        waiting = [
            await make_job(rt, agent, auto_execute=True, depends_on=on(*order))
            for order in (firsts, firsts[::-1])
        ]
        await asyncio.gather(*(execute(rt, each, wait_seconds=0) for each in firsts))
        for job in waiting:
            assert (await becomes(job, JobStatus.COMPLETED)).attempt_count == 1
            started = (await attempts_of(job))[0].created_at
            ended = [(await Job.get(id=each.id)).status_changed_at for each in firsts]
            assert started >= max(ended)
        assert len(endpoint.received) == MANY + 2


async def test_many_completed_by_hand_at_once_start_it_once(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        firsts = [await make_job(rt) for _ in range(MANY)]
        waiting = [
            await make_job(rt, agent, auto_execute=True, depends_on=on(*order))
            for order in (firsts, firsts[::-1])
        ]
        await asyncio.gather(*(force(rt, each) for each in firsts))
        for job in waiting:
            assert (await becomes(job, JobStatus.COMPLETED)).attempt_count == 1
        assert len(endpoint.received) == 2


async def test_dependency_added_while_it_completes_is_not_waited_for_in_vain(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        for _ in range(5):
            first = await make_job(rt)
            _, *waiting = await asyncio.gather(
                force(rt, first),
                *(make_job(rt, agent, auto_execute=True, depends_on=on(first)) for _ in range(4)),
            )
            for job in waiting:
                await becomes(job, JobStatus.COMPLETED)


async def test_blocked_job_that_has_just_changed_is_looked_at_twice(rt: Runtime) -> None:
    job = await make_job(rt, await make_agent(rt), depends_on=on(await make_job(rt)))
    job = await looked_at(job)
    (timer,) = await Timer.filter(job_id=job.id)
    assert timer.at == job.updated_at + timers.SETTLED
    await Job.filter(id=job.id).update(updated_at=job.updated_at - timers.SETTLED)
    await Timer.filter(job_id=job.id).update(at=datetime.now(UTC))
    await scheduling.due(rt, datetime.now(UTC))
    (timer,) = await Timer.filter(job_id=job.id)
    assert timer.at == timers.PARKED


async def test_dependencies_can_be_replaced(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        never, done = await make_job(rt), await force(rt, await make_job(rt))
        job = await make_job(rt, agent, auto_execute=True, depends_on=on(never))
        row = await update(rt, job, depends_on=on(never, done))
        assert row.dependency_count == 2
        assert (await looked_at(job)).status is JobStatus.ASSIGNED
        row = await update(rt, job, depends_on=on(done))
        assert row.dependency_count == 1
        await becomes(job, JobStatus.COMPLETED)
        other = await make_job(rt, agent, auto_execute=True, depends_on=on(never))
        await update(rt, other, depends_on=[])
        await becomes(other, JobStatus.COMPLETED)
        assert await JobDependency.filter(job_id=other.id).count() == 0


async def test_completion_by_a_process_without_a_worker_starts_it_elsewhere(
    database_url: str, tmp_path: Path
) -> None:
    settings = settings_for(database_url, tmp_path)
    async with fake_agent(says_ok) as endpoint:
        async with runtime(settings, allow_private_agents=True, work=False) as rt:
            agent = await make_agent(rt, endpoint.url)
            first = await make_job(rt)
            job = await make_job(rt, agent, auto_execute=True, depends_on=on(first))
            await force(rt, first)
        assert endpoint.received == []
        async with runtime(settings, allow_private_agents=True):
            await becomes(job, JobStatus.COMPLETED)
        assert len(endpoint.received) == 1


async def test_completion_is_heard_of_without_looking(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here, and where others may write, elsewhere."""
    monkeypatch.setattr(engine, "POLL_SECONDS", 600.0)
    settings = settings_for(database_url, tmp_path)
    async with fake_agent(says_ok) as endpoint, runtime(settings, allow_private_agents=True) as rt:
        agent = await make_agent(rt, endpoint.url)
        first = await make_job(rt)
        job = await make_job(rt, agent, auto_execute=True, depends_on=on(first))
        await looked_at(job)
        if database_url.startswith("sqlite"):
            await force(rt, first)
        else:
            await asyncio.create_task(forced_elsewhere(settings, first), context=Context())
        await becomes(job, JobStatus.COMPLETED)


async def forced_elsewhere(settings: Settings, job: Job) -> None:
    """By a server without a worker."""
    async with runtime(settings, allow_private_agents=True, work=False) as rt:
        await force(rt, job)
        await rt.events.until(partial(told, job), 10)


async def told(job: Job) -> bool:
    return (await Job.get(id=job.id)).status is JobStatus.COMPLETED


SAVE = "mutation($input: SaveAgentInput!) { saveAgent(input: $input) { ... on Agent { id } } }"
CREATE = "mutation($input: CreateJobInput!) { createJob(input: $input) { ... on Job { id } } }"
EXECUTE = "mutation($input: ExecuteJobInput!) { executeJob(input: $input) { __typename } }"
STATUS = "query($id: ID!) { job(id: $id) { status attemptCount } }"


@pytest.mark.timeout(120)
async def test_server_killed_when_a_job_was_completed_starts_what_waits_for_it(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        fake_agent(says_ok) as endpoint,
        serving(database_url, tmp_path) as server,
    ):
        given = {"name": "Echo", "endpointUrl": endpoint.url, "idempotent": True}
        agent_id = (await server.graphql(SAVE, input=given))["saveAgent"]["id"]

        async def create(**more: Any) -> str:
            base = {"name": "A job", "acceptanceCriteria": SAYS_OK, "assign": {"agentId": agent_id}}
            return (await server.graphql(CREATE, input=base | more))["createJob"]["id"]

        async def is_completed(id: str) -> bool:
            return (await server.graphql(STATUS, id=id))["job"]["status"] == "COMPLETED"

        first = await create()
        then = [await create(autoExecute=True, dependsOn=[{"jobId": first}]) for _ in range(10)]
        await server.graphql(EXECUTE, input={"id": first})
        await until(partial(is_completed, first))
        await server.kill()
        await server.start()
        for waiting in then:
            await until(partial(is_completed, waiting))
            job = (await server.graphql(STATUS, id=waiting))["job"]
            assert job == {"status": "COMPLETED", "attemptCount": 1}


# Sent back


async def test_resubmitted_dependency_blocks_again_what_has_not_started(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        first = await force(rt, await make_job(rt, agent))
        job = await make_job(rt, agent, depends_on=on(first))
        await decisions.resubmit(rt, ADMIN, ResubmitJob(id=first.id, reason="No."))
        with pytest.raises(DependenciesUnmet):
            await execute(rt, job)
        await execute(rt, job, when_ready=True, wait_seconds=0)
        assert (await looked_at(job)).armed
        await execute(rt, first, ADMIN)
        await becomes(job, JobStatus.COMPLETED)


# Cancelled


async def test_cancelled_dependency_blocks_until_it_is_done_after_all(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        first = await make_job(rt)
        job = await make_job(rt, agent, auto_execute=True, depends_on=on(first))
        assert job.dependency_policy is DependencyPolicy.BLOCK
        await cancel(rt, first)
        why = f"Held: it depends on {public_id('job', first.id)}, and that was cancelled."

        async def says(message: str | None) -> None:
            async def found() -> bool:
                return (await Job.get(id=job.id)).status_message == message

            await until(found)

        await says(why)
        assert (await looked_at(job)).status is JobStatus.ASSIGNED
        await decisions.reopen(rt, ADMIN, first.id, "After all.", None)
        await says(None)
        await force(rt, first)
        await becomes(job, JobStatus.COMPLETED)
        told = [entry.message for entry in await logs_of(job)][1:3]
        assert told == [why, "It is held no longer."]


async def test_cancelled_dependency_cancels_all_down_the_line(rt: Runtime) -> None:
    first = await make_job(rt)
    policy: Json = {"on_dependency_cancelled": "CANCEL"}
    second = await make_job(rt, depends_on=on(first), **policy)
    third = await make_job(rt, await make_agent(rt), depends_on=on(second), **policy)
    await cancel(rt, first)
    for job, on_which in ((second, first), (third, second)):
        gone = await becomes(job, JobStatus.CANCELLED)
        assert gone.status_reason is StatusReason.DEPENDENCY_CANCELLED
        dependency = public_id("job", on_which.id)
        assert gone.status_message == f"It depends on {dependency}, and that was cancelled."
        assert (await logs_of(job))[-1].actor_name == "Signoff"
    assert await Timer.all().count() == 0


async def test_dependency_that_was_cancelled_before_cancels_too(rt: Runtime) -> None:
    first = await cancel(rt, await make_job(rt))
    job = await make_job(rt, depends_on=on(first), on_dependency_cancelled="CANCEL")
    await becomes(job, JobStatus.CANCELLED)


async def test_expired_dependency_counts_as_cancelled(rt: Runtime) -> None:
    first = await make_job(rt, ttl_seconds=1)
    job = await make_job(rt, depends_on=on(first), on_dependency_cancelled="CANCEL")
    gone = await becomes(job, JobStatus.CANCELLED)
    assert gone.status_reason is StatusReason.DEPENDENCY_CANCELLED


async def test_cancelled_dependency_can_be_ignored(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        first, second = await make_job(rt), await make_job(rt)
        job = await make_job(
            rt,
            agent,
            auto_execute=True,
            depends_on=on(a=first, b=second),
            on_dependency_cancelled="IGNORE",
            input={"a": {"$result": "a"}, "b": {"$result": "b"}},
        )
        await cancel(rt, first)
        assert (await looked_at(job)).status is JobStatus.ASSIGNED
        await force(rt, second, 2)
        await becomes(job, JobStatus.COMPLETED)
        assert orjson.loads(endpoint.received[0].body) == {"a": None, "b": 2}


# Circles


@pytest.mark.parametrize("length", [1, 2, 3, 10])
async def test_circle_of_any_length_is_refused(rt: Runtime, length: int) -> None:
    ring = [await make_job(rt)]
    for _ in range(length - 1):
        ring.append(await make_job(rt, depends_on=on(ring[-1])))
    for job in ring:
        if job.dependency_count:
            await looked_at(job)
    before = await snapshot(ring[0])
    with pytest.raises(DependencyCycle) as refused:
        await update(rt, ring[0], depends_on=on(await make_job(rt), ring[-1]))
    assert [job.id for job in refused.value.jobs] == [
        ring[0].id,
        *[job.id for job in ring[:0:-1]],
    ]
    assert await snapshot(ring[0]) == before
    assert await JobDependency.filter(job_id=ring[0].id).count() == 0


async def test_diamonds_are_no_circles(rt: Runtime) -> None:
    top = await make_job(rt)
    left, right = [await make_job(rt, depends_on=on(top)) for _ in range(2)]
    bottom = await make_job(rt)
    row = await update(rt, bottom, depends_on=on(left, right, top))
    assert row.dependency_count == 3


async def test_two_at_once_cannot_close_a_circle_between_them(rt: Runtime) -> None:
    for size in (2, 2, 2, 5, 5):
        ring = [await make_job(rt) for _ in range(size)]
        outcomes = await asyncio.gather(
            *(update(rt, job, depends_on=on(ring[number - 1])) for number, job in enumerate(ring)),
            return_exceptions=True,
        )
        kinds = sorted(type(each).__name__ for each in outcomes)
        assert kinds == ["DependencyCycle"] + ["Job"] * (size - 1)
        ids = [job.id for job in ring]
        assert await JobDependency.filter(job_id__in=ids).count() == size - 1


# Refused


async def test_unknown_and_foreign_jobs_are_not_there(rt: Runtime) -> None:
    foreign = await make_job(rt, viewer=OTHER)
    gone = Job(id=foreign.id.__class__(int=7))
    for other in (foreign, gone):
        with pytest.raises(NotFound) as refused:
            await make_job(rt, depends_on=on(await make_job(rt), other))
        assert refused.value.id == public_id("job", other.id)
        job = await make_job(rt)
        before = await snapshot(job)
        given = UpdateJob.model_validate({"id": job.id, "depends_on": on(other)})
        with pytest.raises(NotFound):
            await jobs.update(rt, MEMBER, given)
        assert await snapshot(job) == before
    assert await JobDependency.all().count() == 0


async def test_dependencies_of_the_wrong_form_are_refused(client: Client) -> None:
    job = await new_job(client)
    other = await new_job(client)
    id, another = job["id"], other["id"]
    base: Json = {"name": "x", "acceptanceCriteria": graphql.SAYS_OK}
    for given, told in (
        ([{"jobId": id, "alias": "1a"}], "input.dependsOn.0.alias"),
        ([{"jobId": id, "alias": "a-b"}], "input.dependsOn.0.alias"),
        ([{"jobId": id, "alias": "a\n"}], "input.dependsOn.0.alias"),
        ([{"jobId": id, "alias": ""}], "input.dependsOn.0.alias"),
        ([{"jobId": "job_1"}], "input.dependsOn.0.jobId"),
        ([{"jobId": id, "alias": "a"}, {"jobId": another, "alias": "a"}], "input.dependsOn"),
        ([{"jobId": id}, {"jobId": id}], "input.dependsOn"),
        ([{"jobId": id}] * 101, "input.dependsOn"),
    ):
        for name, more in (("createJob", base), ("updateJob", {"id": id})):
            refused = await problems(client, name, input=more | {"dependsOn": given})
            assert list(refused) == [told]


async def test_change_of_dependencies_is_refused_for_a_version_that_has_passed(rt: Runtime) -> None:
    job, other = await make_job(rt), await make_job(rt)
    before = await snapshot(job)
    with pytest.raises(VersionConflict):
        await update(rt, job, depends_on=on(other), expected_version=7)
    assert await snapshot(job) == before
    assert await JobDependency.all().count() == 0


# Results


async def sent(endpoint: FakeAgent, number: int = -1) -> Any:
    return orjson.loads(endpoint.received[number].body)


async def test_results_are_put_where_the_input_refers_to_them(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        first = await force(rt, await make_job(rt), {"a": {"b": [1, {"c/d": "deep"}]}})
        second = await force(rt, await make_job(rt), "text")
        given = {
            "whole": {"$result": "first"},
            "list": [{"$result": "second"}, {"$result": "first", "pointer": "/a/b/1/c~1d"}],
            "plain": {"pointer": "/a", "text": "$result"},
        }
        depends_on = on(first=first, second=second)
        job = await execute(rt, await make_job(rt, agent, input=given, depends_on=depends_on))
        assert job.status is JobStatus.COMPLETED
        body = {
            "whole": {"a": {"b": [1, {"c/d": "deep"}]}},
            "list": ["text", "deep"],
            "plain": {"pointer": "/a", "text": "$result"},
        }
        assert await sent(endpoint) == body
        (attempt,) = await attempts_of(job)
        assert jsontext.loads(attempt.request_json or "") == body
        assert jsontext.loads((await Job.get(id=job.id)).input_json) == given


async def test_input_can_be_one_result(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        first = await force(rt, await make_job(rt), [1, None])
        await execute(rt, await make_job(rt, agent, input={"$result": "x"}, depends_on=on(x=first)))
        assert await sent(endpoint) == [1, None]


async def test_checks_see_what_the_agent_was_sent(rt: Runtime) -> None:
    same = {"items": [{"text": "It echoes.", "kind": "EXPRESSION", "config": {"cel": CEL}}]}
    async with fake_agent(answers({"answer": "ok"})) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        first = await force(rt, await make_job(rt), "ok")
        given: Json = {"input": {"q": {"$result": "x"}}, "depends_on": on(x=first)}
        job = await make_job(rt, agent, acceptance_criteria=same, **given)
        assert (await execute(rt, job)).status is JobStatus.COMPLETED


CEL = "input.q == output.answer"


async def test_another_attempt_of_an_execution_is_sent_the_same(rt: Runtime) -> None:
    async with fake_agent(in_turn(says_no, says_ok)) as endpoint:
        agent = await make_agent(rt, endpoint.url, idempotent=True)
        first = await force(rt, await make_job(rt), 1)
        policy = {"max_attempts": 2, "initial_seconds": 0, "retry_on_verdict_fail": True}
        given: Json = {"input": {"$result": "x"}, "depends_on": on(x=first), "retry_policy": policy}
        job = await execute(rt, await make_job(rt, agent, **given))
        assert (job.status, job.attempt_count) == (JobStatus.COMPLETED, 2)
        assert [await sent(endpoint, number) for number in (0, 1)] == [1, 1]


async def test_agent_that_takes_over_is_sent_the_same(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        schema = {"type": "integer"}
        other = await make_agent(rt, endpoint.url, input_schema=schema)
        first = await force(rt, await make_job(rt), 1)
        policy = {"fallback_agent_ids": [other.id]}
        given: Json = {"input": {"$result": "x"}, "depends_on": on(x=first), "retry_policy": policy}
        job = await execute(rt, await make_job(rt, await make_agent(rt), **given))
        assert (job.status, job.agent_id) == (JobStatus.COMPLETED, other.id)
        assert await sent(endpoint) == 1


async def test_later_execution_is_sent_the_newest_results(rt: Runtime) -> None:
    async with fake_agent(in_turn(says_no, says_ok)) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        first = await force(rt, await make_job(rt, agent), 1)
        given: Json = {"input": {"$result": "x"}, "depends_on": on(x=first)}
        job = await execute(rt, await make_job(rt, agent, **given))
        await decisions.resubmit(rt, ADMIN, ResubmitJob(id=first.id, reason="No."))
        await force(rt, first, 2)
        await execute(rt, job)
        assert [await sent(endpoint, number) for number in (0, 1)] == [1, 2]


async def test_input_from_before_dependencies_is_sent_as_it_stands(rt: Runtime) -> None:
    async with fake_agent(says_ok) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url))
        await Job.filter(id=job.id).update(input_json='{"$result":{"x":1}}')
        assert (await execute(rt, job)).status is JobStatus.COMPLETED
    (received,) = fake.received
    assert orjson.loads(received.body) == {"$result": {"x": 1}}


async def test_pointer_to_nothing_refuses_and_holds(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        first = await force(rt, await make_job(rt, agent), {"a": 1})
        given: Json = {"input": {"$result": "x", "pointer": "/b"}, "depends_on": on(x=first)}
        job = await make_job(rt, agent, **given)
        await looked_at(job)
        before = await snapshot(job)
        with pytest.raises(DependenciesUnmet) as refused:
            await execute(rt, job)
        assert str(refused.value) == "The result of “x” at /b is not there."
        assert [each.id for each in refused.value.jobs] == [first.id]
        assert await snapshot(job) == before
        await update(rt, job, auto_execute=True)

        async def is_held() -> bool:
            told = (await Job.get(id=job.id)).status_message
            return told == "Held: The result of “x” at /b is not there."

        await until(is_held)
        assert endpoint.received == []
        await decisions.resubmit(rt, ADMIN, ResubmitJob(id=first.id, reason="No."))
        await force(rt, first, {"b": 2})
        await becomes(job, JobStatus.COMPLETED)
        assert await sent(endpoint) == 2


async def test_input_made_of_results_must_fit_the_agent(rt: Runtime) -> None:
    async with fake_agent(says_ok) as endpoint:
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
        agent = await make_agent(rt, endpoint.url, input_schema=schema)
        first = await force(rt, await make_job(rt), "no number")
        given: Json = {"input": {"n": {"$result": "x"}}, "depends_on": on(x=first)}
        job = await make_job(rt, agent, **given)
        await looked_at(job)
        before = await snapshot(job)
        with pytest.raises(SchemaMismatch) as refused:
            await execute(rt, job)
        assert (refused.value.pointer, refused.value.keyword) == ("/n", "type")
        assert await snapshot(job) == before
        await update(rt, job, auto_execute=True)
        await holds_with(job, "Held: The input does not fit what")
        saved = {"id": agent.id, "name": agent.name, "endpoint_url": endpoint.url}
        anything = SaveAgent.model_validate(saved | {"input_schema": {}})
        await agents.save(rt, LOCAL_ADMIN, anything)
        await becomes(job, JobStatus.COMPLETED)


async def holds_with(job: Job, beginning: str) -> None:
    async def found() -> bool:
        return ((await Job.get(id=job.id)).status_message or "").startswith(beginning)

    await until(found)


BAD: list[tuple[Any, dict[str, str]]] = [
    ({"$result": "y"}, {"input.input": "“y” is not the alias of a job in dependsOn"}),
    ([0, {"k": {"$result": 5}}], {"input.input.1.k": references.FORM}),
    ({"$result": "x", "more": 1}, {"input.input": references.FORM}),
    ({"$result": "x", "pointer": 1}, {"input.input": references.FORM}),
    (
        {"$result": "x", "pointer": "a"},
        {"input.input": "a JSON pointer is empty or begins with “/” (RFC 6901)"},
    ),
]


@pytest.mark.parametrize(("given", "told"), BAD, ids=[str(each[0]) for each in BAD])
async def test_reference_that_cannot_be_is_refused(
    rt: Runtime, given: Any, told: dict[str, str]
) -> None:
    first = await make_job(rt)

    async def refuses(work: Any) -> None:
        with pytest.raises(InvalidInput) as refused:
            await work
        assert {".".join(p.path): p.message for p in refused.value.problems} == told

    await refuses(make_job(rt, input=given, depends_on=on(x=first)))
    job = await make_job(rt, depends_on=on(x=first))
    await looked_at(job)
    before = await snapshot(job)
    await refuses(update(rt, job, input=given))
    agent = await make_agent(rt)
    assigned = {"id": job.id, "assign": {"agent_id": agent.id}, "input": given}
    await refuses(assignment.assign(rt, MEMBER, AssignJob.model_validate(assigned)))
    assert await snapshot(job) == before


async def test_alias_in_use_cannot_be_taken_away(rt: Runtime) -> None:
    first = await make_job(rt)
    job = await make_job(rt, input={"$result": "x"}, depends_on=on(x=first))
    for depends_on in ([], on(first), on(y=first)):
        with pytest.raises(InvalidInput, match="“x” is not the alias"):
            await update(rt, job, depends_on=depends_on)
    await update(rt, job, depends_on=[], input=1)


def test_body_of_results_has_a_bound() -> None:
    result = "x" * 1_000_000
    given = [{"$result": "a"}] * 4
    assert len(references.resolve(given, {"a": result}.__getitem__)) > 4_000_000
    with pytest.raises(NotResolved, match="makes an input of more than 4194304 bytes"):
        references.resolve([*given, given[0]], {"a": result}.__getitem__)


def test_body_of_results_is_nested_no_deeper_than_json_can_be_written() -> None:
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    given: Any = {"$result": "a"}
    for _ in range(100):
        given = [given]
    with pytest.raises(NotResolved, match="nested too deeply"):
        references.resolve(given, {"a": deep}.__getitem__)


# What clients see

SEEN = """
query($id: ID!) { job(id: $id) {
  isBlocked armed autoExecute runAt dueAt expiresAt
  dependsOn { alias satisfied job { id name } }
  dependents(first: 10) { nodes { name } totalCount }
  availableActions { action allowed reason }
} }"""
LIST = "query($where: JobFilter) { jobs(where: $where) { nodes { name isBlocked } } }"


async def names(client: Client, key: str | None = None, **where: Any) -> list[str]:
    found = await gql(client, LIST, key, where=where)
    return sorted(node["name"] for node in found["jobs"]["nodes"])


async def test_clients_see_what_waits_for_what(client: Client) -> None:
    async with graphql.agent(client) as (agent_id, _):
        first = await new_job(client, name="first")
        done = await new_job(client, name="done")
        await mutate(client, "forceComplete", input={"id": done["id"], "result": 1, "reason": "r"})
        job = await new_job(
            client,
            name="last",
            assign={"agentId": agent_id},
            dependsOn=[{"jobId": first["id"], "alias": "f"}, {"jobId": done["id"]}],
            dueAt="2100-01-01T00:00:00Z",
        )
        seen = (await gql(client, SEEN, id=job["id"]))["job"]
        execute = next(a for a in seen.pop("availableActions") if a["action"] == "EXECUTE")
        assert execute["reason"] == "It waits for a job that is not completed."
        assert seen == {
            "isBlocked": True,
            "armed": False,
            "autoExecute": False,
            "runAt": None,
            "dueAt": "2100-01-01T00:00:00+00:00",
            "expiresAt": None,
            "dependsOn": [
                {"alias": "f", "satisfied": False, "job": {"id": first["id"], "name": "first"}},
                {"alias": None, "satisfied": True, "job": {"id": done["id"], "name": "done"}},
            ],
            "dependents": {"nodes": [], "totalCount": 0},
        }
        seen = (await gql(client, SEEN, id=first["id"]))["job"]
        assert (seen["isBlocked"], seen["dependsOn"]) == (False, [])
        assert seen["dependents"] == {"nodes": [{"name": "last"}], "totalCount": 1}
        assert await names(client, blocked=True) == ["last"]
        assert await names(client, blocked=False) == ["done", "first"]
        assert await names(client, dueAt={"gt": "P1D"}) == ["last"]
        others: Json = {"not": {"dueAt": {"gt": "P1D"}}}
        assert await names(client, **others) == ["done", "first"]
        refused = await mutate(client, "executeJob", input={"id": job["id"]})
        assert refused == {
            "__typename": "DependencyProblem",
            "code": "DEPENDENCIES_UNMET",
            "message": "It waits for a job that is not completed.",
            "jobs": [{"id": first["id"]}],
        }
        closing = {"id": first["id"], "dependsOn": [{"jobId": job["id"]}]}
        refused = await mutate(client, "updateJob", input=closing)
        assert refused == {
            "__typename": "DependencyProblem",
            "code": "DEPENDENCY_CYCLE",
            "message": "The job would wait for itself, in a circle of 2.",
            "jobs": [{"id": first["id"]}, {"id": job["id"]}],
        }
        await mutate(client, "forceComplete", input={"id": first["id"], "result": 1, "reason": "r"})
        assert await names(client, blocked=True) == []
        assert (await gql(client, SEEN, id=job["id"]))["job"]["isBlocked"] is False


async def test_ignored_and_ended_jobs_are_not_blocked(client: Client) -> None:
    gone = await new_job(client, name="gone")
    waits = [{"jobId": gone["id"]}]
    ignoring = {"name": "ignores", "dependsOn": waits, "onDependencyCancelled": "IGNORE"}
    await new_job(client, **ignoring)
    await new_job(client, name="blocked", dependsOn=waits)
    ended = await new_job(client, name="ended", dependsOn=waits)
    await mutate(client, "cancelJob", input={"id": ended["id"]})
    await mutate(client, "cancelJob", input={"id": gone["id"]})
    assert await names(client, blocked=True) == ["blocked"]
    assert await names(client, blocked=False) == ["ended", "gone", "ignores"]
    nodes = (await gql(client, LIST, where=None))["jobs"]["nodes"]
    assert {node["name"] for node in nodes if node["isBlocked"]} == {"blocked"}


async def test_members_see_nothing_of_jobs_that_are_not_theirs(
    client: Client, database_url: str
) -> None:
    boss = await make_key(database_url, "Ada", Role.ADMIN)
    mia = await make_key(database_url, "Mia", Role.MEMBER)
    async with graphql.agent(client, boss) as (agent_id, _):
        foreign = await new_job(client, boss, name="secret")
        own = await new_job(client, mia, name="own", assign={"agentId": agent_id})
        waits = [{"jobId": foreign["id"], "alias": "x"}]
        base: Json = {"name": "x", "acceptanceCriteria": graphql.SAYS_OK, "dependsOn": waits}
        refused = await mutate(client, "createJob", mia, input=base)
        assert (refused["__typename"], refused["id"]) == ("NotFound", foreign["id"])
        given = {"id": own["id"], "dependsOn": waits}
        refused = await mutate(client, "updateJob", mia, input=given)
        assert (refused["__typename"], refused["id"]) == ("NotFound", foreign["id"])
        await mutate(client, "updateJob", boss, input=given)
        seen = (await gql(client, SEEN, mia, id=own["id"]))["job"]
        assert (seen["isBlocked"], seen["dependsOn"]) == (True, [])
        refused = await mutate(client, "executeJob", mia, input={"id": own["id"]})
        assert (refused["code"], refused["jobs"]) == ("DEPENDENCIES_UNMET", [])
        seen = (await gql(client, SEEN, boss, id=foreign["id"]))["job"]
        assert seen["dependents"] == {"nodes": [{"name": "own"}], "totalCount": 1}
        theirs = await new_job(client, boss, name="theirs", dependsOn=[{"jobId": own["id"]}])
        seen = (await gql(client, SEEN, mia, id=own["id"]))["job"]
        assert seen["dependents"] == {"nodes": [], "totalCount": 0}
        assert theirs["name"] == "theirs"
