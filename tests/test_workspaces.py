"""Workspaces: nobody sees into another one, and within one members see what the setting says."""

from __future__ import annotations

import asyncio
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from tortoise import Tortoise, connections
from tortoise.migrations.api import migrate as apply_migrations

from models import (
    ActorKind,
    Agent,
    ApiKey,
    IdempotencyKey,
    Job,
    JobLog,
    QueueEntry,
    Role,
    Workspace,
)
from models.base import uuid7
from services import (
    agents,
    dependencies,
    idempotency,
    jobs,
    keys,
    reading,
    verification,
    workspaces,
)
from services.actors import LOCAL_ADMIN, Viewer
from services.agents import SaveAgent
from services.dependencies import DependencyDraft
from services.errors import InvalidInput, NotFound
from services.filters import JobFilter
from services.idempotency import Keyed
from services.jobs import CreateJob
from services.paging import Window
from services.runtime import Runtime
from signoff import database, sample
from signoff.app import create_app
from tests.support.graphql import (
    Json,
    agent,
    gql,
    make_key,
    make_workspace,
    mutate,
    new_job,
    problems,
    read_job,
)
from tests.support.making import NOWHERE, SAYS_OK, execute, make_job
from tests.support.running import AiohttpClient, Client, settings_for
from tests.test_migrations import AT, FIRST_VERSION

CREATE: TypeAdapter[CreateJob] = TypeAdapter(CreateJob)


async def save(rt: Runtime, viewer: Viewer, name: str) -> Agent:
    return (await agents.save(rt, viewer, SaveAgent(name=name, endpoint_url=NOWHERE))).agent


def who(name: str, role: Role = Role.MEMBER, workspace_id: int = 1) -> Viewer:
    return Viewer(ActorKind.API_KEY, name, name, role, workspace_id=workspace_id)


# What is decided, in Python and in SQL


async def test_rows_and_queries_agree_on_what_a_caller_sees(rt: Runtime) -> None:
    second = (await workspaces.create("second")).id
    made = [
        await make_job(rt, viewer=who(name, workspace_id=workspace))
        for name, workspace in product(("mia", "olaf", "ada"), (1, second))
    ]
    scopes: list[frozenset[str] | None] = [None, frozenset(), frozenset({"olaf", "nobody"})]
    callers = [
        Viewer(
            ActorKind.API_KEY,
            name,
            name,
            role,
            workspace_id=workspace,
            owners=owners,
            sees_workspace=wide,
        )
        for name, role, workspace, owners, wide in product(
            ("mia", "eve"), Role, (1, second, 99), scopes, (False, True)
        )
    ]
    counts: set[int] = set()
    for caller in callers:
        by_row = {job.id for job in made if caller.sees(job)}
        by_query = set(await Job.filter(caller.sight.condition()).values_list("id", flat=True))
        page = await reading.jobs(caller, None, (), Window(first=100))
        assert by_row == by_query == {job.id for job in page.rows}, caller
        assert await page.total() == len(by_row)
        logs = await reading.logs(caller, None, None, None, 100, 2**62)
        assert {entry.job_id for entry in logs.rows} == by_row
        named = await reading.logs(caller, JobFilter(), None, None, 100, 2**62)
        assert {entry.job_id for entry in named.rows} == by_row
        for job in made:
            assert not caller.owns(job) or caller.sees(job)
        counts.add(len(by_row))
    assert counts == {0, 1, 2, 3}


async def test_a_member_sees_the_workspace_by_setting_and_changes_own_jobs_only(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    settings = settings_for(database_url, tmp_path, members_see="workspace")
    client = await aiohttp_client(create_app(settings))
    acme = await make_workspace(database_url, "acme")
    mia = await make_key(database_url, "Mia", Role.MEMBER)
    olaf = await make_key(database_url, "Olaf", Role.MEMBER)
    bob = await make_key(database_url, "Mia", Role.MEMBER, workspace_id=acme)
    narrow = await make_key(database_url, "Eve", Role.MEMBER, owners=["Olaf"])
    hers = await new_job(client, mia, name="hers")
    await new_job(client, olaf, name="his")
    listing = "{ jobs { totalCount nodes { name } } }"
    for key, names in (
        (mia, ["his", "hers"]),
        (olaf, ["his", "hers"]),
        (bob, []),
        (narrow, ["his"]),
    ):
        found = (await gql(client, listing, key))["jobs"]
        assert [each["name"] for each in found["nodes"]] == names
        assert found["totalCount"] == len(names)
    before = await read_job(client, hers["id"], mia)
    assert await read_job(client, hers["id"], olaf) is not None
    for name, given in (
        ("cancelJob", {"input": {"id": hers["id"]}}),
        ("updateJob", {"input": {"id": hers["id"], "name": "x"}}),
        ("addJobNote", {"id": hers["id"], "message": "m"}),
    ):
        assert (await mutate(client, name, olaf, **given))["__typename"] == "Forbidden", name
        assert (await mutate(client, name, bob, **given))["__typename"] == "NotFound", name
    assert await read_job(client, hers["id"], mia) == before


# What belongs to one


async def test_agents_have_names_of_their_own_in_each(client: Client, database_url: str) -> None:
    acme = await make_workspace(database_url, "acme")
    ada = await make_key(database_url, "Ada", Role.ADMIN)
    bob = await make_key(database_url, "Bob", Role.ADMIN, workspace_id=acme)
    async with agent(client, ada) as (mine, _), agent(client, bob) as (theirs, _):
        assert mine != theirs
        for key in (ada, bob):
            given: Json = {"name": "Echo", "endpointUrl": "http://127.0.0.1:9/"}
            assert await problems(client, "saveAgent", key, input=given) == {
                "input.name": "an agent “Echo” exists already"
            }
        for id in (theirs, "agent_" + "0" * 32):
            made = {"name": "x", "acceptanceCriteria": SAYS_OK}
            refused = await mutate(
                client, "createJob", ada, input=made | {"assign": {"agentId": id}}
            )
            assert (refused["__typename"], refused["id"]) == ("NotFound", id)
            ladder = made | {"retryPolicy": {"fallbackAgentIds": [mine, id]}}
            assert await problems(client, "createJob", ada, input=ladder) == {
                "input.retryPolicy.fallbackAgentIds.1": "there is no such agent"
            }
            where = {"agent": {"id": {"eq": id}}}
            query = "query($where: JobFilter) { jobs(where: $where) { totalCount } }"
            assert (await gql(client, query, ada, where=where))["jobs"]["totalCount"] == 0
        assert (await gql(client, "{ jobs { totalCount } }", ada))["jobs"]["totalCount"] == 0


async def test_a_job_depends_on_none_of_another_workspace(rt: Runtime) -> None:
    second = (await workspaces.create("second")).id
    theirs = await make_job(rt, viewer=who("mia", Role.ADMIN, second))
    mine = await make_job(rt, viewer=who("mia", Role.ADMIN))
    with pytest.raises(NotFound):
        await dependencies.check(who("mia", Role.ADMIN), [DependencyDraft(job_id=theirs.id)])
    await dependencies.check(who("mia", Role.ADMIN), [DependencyDraft(job_id=mine.id)])


async def test_an_idempotency_key_is_a_users_of_one_workspace(rt: Runtime) -> None:
    second = (await workspaces.create("second")).id
    command = CREATE.validate_python(
        {"name": "x", "acceptance_criteria": SAYS_OK, "idempotency_key": "k"}
    )
    first = [await jobs.create(rt, who("mia", workspace_id=id), command) for id in (1, second)]
    again = [await jobs.create(rt, who("mia", workspace_id=id), command) for id in (1, second)]
    assert [job.id for job in first] == [job.id for job in again]
    assert first[0].id != first[1].id
    assert [job.workspace_id for job in first] == [1, second]


async def test_owners_of_one_name_do_not_hold_each_other_up(rt: Runtime) -> None:
    """Places in the queue are told for an agent's jobs of one owner, and an agent is in one."""
    second = (await workspaces.create("second")).id
    here, there = who("mia", Role.ADMIN), who("mia", Role.ADMIN, second)
    for viewer in (here, there):
        made = await save(rt, viewer, "Slow")
        await agents.set_availability(rt, viewer, made.id, type(made.availability).PAUSED)
    for viewer in (here, there):
        (found,) = (await reading.agents(viewer, None, Window())).rows
        active = type(found.availability).ACTIVE
        await agents.set_availability(rt, viewer, found.id, active)
        await Agent.filter(id=found.id).update(max_concurrency=0)
        for _ in range(3):
            job = await make_job(rt, found, viewer)
            await execute(rt, job, viewer, wait_seconds=0)
        entries = QueueEntry.filter(agent_id=found.id).order_by("queued_at")
        assert await entries.values_list("rank", flat=True) == [1, 2, 3]


async def test_the_sample_agent_is_the_default_workspaces(rt: Runtime) -> None:
    second = (await workspaces.create("second")).id
    other = await save(rt, who("bob", Role.ADMIN, second), sample.NAME)
    assert await sample.register(rt, "http://127.0.0.1:1") is None  # somebody has agents
    mine = await save(rt, LOCAL_ADMIN, sample.NAME)
    assert (await sample.register(rt, "http://127.0.0.1:1") or other).id == mine.id


async def test_a_name_is_given_to_one_workspace(rt: Runtime) -> None:
    assert [each.name for each in await workspaces.oldest()] == ["default"]
    made = await workspaces.create("acme")
    assert await workspaces.name_of(made.id) == "acme"
    for name in ("acme", "default", "", "  ", "x" * 201, "a\0"):
        with pytest.raises(InvalidInput):
            await workspaces.create(name)
    assert [each.name for each in await workspaces.oldest()] == ["default", "acme"]


async def test_a_workspace_and_the_entry_that_tells_of_it_are_made_together(rt: Runtime) -> None:
    async def rename(old: str, new: str) -> None:
        sql = f'ALTER TABLE "{old}" RENAME TO "{new}"'
        await connections.get("default").execute_query(sql)

    await rename("audit_entries", "elsewhere")
    with pytest.raises(Exception, match="audit_entries"):
        await workspaces.create("acme")
    assert [each.name for each in await workspaces.oldest()] == ["default"]
    await rename("elsewhere", "audit_entries")
    made = await workspaces.create("acme")
    found = await verification.of_workspace(who("ada", Role.ADMIN, made.id), int)
    assert (found.ok, found.checked) == (True, 1)


async def test_workspaces_that_are_made_at_the_same_moment(rt: Runtime) -> None:
    names = ["a", "b", "c", "a", "b", "c"]
    found = await asyncio.gather(*map(workspaces.create, names), return_exceptions=True)
    made = [each for each in found if isinstance(each, Workspace)]
    assert sorted(each.name for each in made) == ["a", "b", "c"]
    assert len({each.id for each in made}) == len(made)
    assert {type(each) for each in found} == {Workspace, InvalidInput}
    for each in made:
        assert await workspaces.name_of(each.id) == each.name
        checked = await verification.of_workspace(who("ada", Role.ADMIN, each.id), int)
        assert (checked.ok, checked.checked) == (True, 1)


# What was there before

SECOND_VERSION = [
    """INSERT INTO api_keys (id, created_at, name, role, prefix, key_hash)
    VALUES ('{job}', {at}, 'mia', 'MEMBER', 'signoff_x', '{hash}')""",
    """INSERT INTO idempotency_keys (id, created_at, viewer_id, key, request_hash, job_id)
    VALUES ('{job}', {now}, 'mia', 'k', '{request}', '{job}')""",
    """INSERT INTO job_logs (type, status, payload_truncated, actor_kind, actor_name, created_at,
        job_id) VALUES ('NOTE', 'ASSIGNED', false, 'SYSTEM', 'Signoff', {at}, '{job}')""",
]


async def test_what_was_there_before_is_in_the_default_workspace(empty_database_url: str) -> None:
    job_id, agent_id = uuid7(), uuid7()
    text = "signoff_of_before"
    config = database.config(empty_database_url, migrating=True)
    command = Keyed(idempotency_key="k")
    given = {
        "job": job_id,
        "agent": agent_id,
        "at": AT,
        "now": "CURRENT_TIMESTAMP",
        "hash": keys._hash(text),  # pyright: ignore[reportPrivateUsage]
        "request": idempotency._digest(command),  # pyright: ignore[reportPrivateUsage]
    }
    try:
        await apply_migrations(config=config, target="models.0001_initial")
        for statement in (*FIRST_VERSION, *SECOND_VERSION):
            await connections.get("default").execute_script(statement.format(**given))
    finally:
        await Tortoise.close_connections()
    for _ in range(2):
        await database.migrate(empty_database_url)
    async with database.connected(empty_database_url):
        assert [each.name for each in await Workspace.all()] == ["default"]
        for table in (Job, Agent, ApiKey, JobLog, IdempotencyKey):
            assert await table.all().values_list("workspace_id", flat=True) == [1], table
        viewer = keys.viewer_of(await keys.key_of(text))
        assert (viewer.id, viewer.workspace_id, viewer.is_scoped) == ("mia", 1, False)
        page = await reading.jobs(viewer, None, (), Window())
        assert [job.id for job in page.rows] == [job_id]
        agent = await agents.get(viewer, agent_id)
        assert (agent.name, agent.idempotent) == ("Ada", True)
        twin: dict[str, Any] = dict(await Agent.get(id=agent_id).values())
        await Agent(**twin | {"id": uuid7(), "workspace_id": 2}).save(force_create=True)
        known = await idempotency._known(viewer, command)  # pyright: ignore[reportPrivateUsage]
        assert known is not None
        assert known.id == job_id
