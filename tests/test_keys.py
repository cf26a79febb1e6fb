"""API keys: made, narrowed, used, and at an end."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from models import ActorKind, ApiKey, Role
from services import jobs, keys
from services.actors import Viewer
from services.errors import InvalidInput, NotFound, Unauthenticated
from services.key_uses import APART, KeyUses
from services.runtime import Runtime
from services.values import parse_id
from signoff.app import create_app
from signoff.auth import Gate
from tests.fakes.agents import fake_agent
from tests.support.graphql import (
    Json,
    agent,
    answer,
    gql,
    make_key,
    make_workspace,
    mutate,
    new_job,
    problems,
    read_job,
    refusal,
)
from tests.support.making import MEMBER, execute, make_agent, make_job, says_ok, until
from tests.support.running import AiohttpClient, Client, settings_for

WHO = "{ viewer { name role expiresAt } }"
KEYS = """query($first: Int, $after: String) { apiKeys(first: $first, after: $after) {
  totalCount pageInfo { hasNextPage endCursor }
  nodes { id name role prefix owners createdAt expiresAt revokedAt lastUsedAt agents { id } } } }"""
LIMITED = "Your key is limited to some agents or owners: it cannot manage keys or webhooks."


async def code(client: Client, key: str) -> str:
    """What the caller gets: `ok`, or the code of the refusal."""
    body = await answer(client, WHO, key)
    return body["errors"][0]["extensions"]["code"] if "errors" in body else "ok"


def soon(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


# Made and taken back


async def test_an_admin_makes_lists_and_revokes_keys(client: Client, database_url: str) -> None:
    async with agent(client) as (agent_id, _):
        given: Json = {"role": "MEMBER", "agentIds": [agent_id], "owners": ["Olaf"]}
        made = await mutate(client, "createApiKey", input={"name": "Mia"} | given)
        text, shown = made["key"], made["apiKey"]
        assert text.startswith(shown["prefix"])
        assert (shown["name"], shown["role"], shown["owners"], shown["agents"]) == (
            *("Mia", "MEMBER", ["Olaf"]),
            [{"id": agent_id}],
        )
        assert (await refusal(client, KEYS, text))["code"] == "FORBIDDEN"
        admin = await make_key(database_url, "Ada", Role.ADMIN)
        page = (await gql(client, KEYS, admin))["apiKeys"]
        assert [node["name"] for node in page["nodes"]] == ["Ada", "Mia"]
        assert text not in str(page)
        assert admin not in str(page)
        assert await code(client, text) == "ok"
        revoked = await mutate(client, "revokeApiKey", admin, id=shown["id"])
        assert revoked["revokedAt"] is not None
        assert await code(client, text) == "UNAUTHENTICATED"
        again = await mutate(client, "revokeApiKey", admin, id=shown["id"])
        assert again["revokedAt"] == revoked["revokedAt"]


async def test_keys_are_paged(client: Client, database_url: str) -> None:
    admin = await make_key(database_url, "Ada", Role.ADMIN)
    for number in range(4):
        await mutate(client, "createApiKey", admin, input={"name": f"u{number}", "role": "VIEWER"})
    first = (await gql(client, KEYS, admin, first=3))["apiKeys"]
    assert (first["totalCount"], [each["name"] for each in first["nodes"]]) == (
        5,
        ["u3", "u2", "u1"],
    )
    rest = await gql(client, KEYS, admin, first=3, after=first["pageInfo"]["endCursor"])
    assert [each["name"] for each in rest["apiKeys"]["nodes"]] == ["u0", "Ada"]


async def test_a_key_that_cannot_be_is_refused_by_its_values(client: Client) -> None:
    past, name = soon(-1).isoformat(), "input.name"
    for given, path in (
        ({"name": ""}, name),
        ({"name": "  "}, name),
        ({"name": "System"}, name),
        ({"name": "OIDC:una"}, name),
        ({"name": "x" * 201}, name),
        ({"name": "a\0b"}, name),
        ({"owners": ["local"]}, "input.owners.0"),
        ({"owners": ["x"] * 201}, "input.owners"),
        ({"ttlSeconds": 0}, "input.ttlSeconds"),
        ({"expiresAt": past}, "input.expiresAt"),
        ({"expiresAt": soon(9).isoformat(), "ttlSeconds": 9}, "input.ttlSeconds"),
        ({"agentIds": ["agent_" + "0" * 32]}, "input.agentIds.0"),
        ({"agentIds": ["job_" + "0" * 32]}, "input.agentIds.0"),
    ):
        wanted: Json = {"name": "Mia", "role": "MEMBER"} | given
        assert list(await problems(client, "createApiKey", input=wanted)) == [path], given
    assert await ApiKey.all().count() == 0


async def test_only_the_hash_of_a_key_is_kept(rt: Runtime, database_url: str) -> None:
    key, text = await keys.create("Mia", Role.MEMBER)
    row = await ApiKey.get(id=key.id).values()
    assert text not in str(row)
    assert text.removeprefix(key.prefix) not in str(row)


# At an end


async def test_an_expired_key_opens_nothing_from_that_moment_on(
    client: Client, database_url: str
) -> None:
    key = await make_key(database_url, "Mia", Role.MEMBER, expires_at=soon(1.5))
    lasting = await make_key(database_url, "Mia", Role.MEMBER, expires_at=soon(3600))
    assert await code(client, key) == "ok"
    told = (await gql(client, WHO, lasting))["viewer"]["expiresAt"]
    assert datetime.fromisoformat(told) > datetime.now(UTC)

    async def over() -> bool:
        return await code(client, key) == "UNAUTHENTICATED"

    await until(over)
    assert await code(client, lasting) == "ok"


async def test_a_key_that_ends_makes_none_that_outlives_it(
    client: Client, database_url: str
) -> None:
    ending = await make_key(database_url, "Ada", Role.ADMIN, expires_at=soon(3600))
    for given in ({}, {"ttlSeconds": 3700}, {"expiresAt": soon(4000).isoformat()}):
        wanted: Json = {"name": "Eve", "role": "ADMIN"} | given
        assert await problems(client, "createApiKey", ending, input=wanted) == {
            "input.expiresAt": "must not be after your own key's, which made it"
        }
    shorter = {"name": "Eve", "role": "ADMIN", "ttlSeconds": 60}
    made = await mutate(client, "createApiKey", ending, input=shorter)
    assert made["__typename"] == "NewApiKey"


async def test_open_connections_learn_which_of_their_keys_are_still_good(rt: Runtime) -> None:
    made = [await keys.create(f"u{n}", Role.MEMBER) for n in range(3)]
    texts = [text for _, text in made]
    good, revoked, expired = texts
    await ApiKey.filter(id=made[2][0].id).update(expires_at=soon(-1))
    assert (await keys.viewers_of(texts)).keys() == {good, revoked}
    await keys.revoke(made[1][0].prefix)
    crowd = [f"signoff_{n}" for n in range(1200)]
    assert await keys.viewers_of([*crowd, good, expired]) == {good: keys.viewer_of(made[0][0])}
    assert await keys.viewers_of([]) == {}


async def test_the_first_look_for_keys_lets_nobody_past_it(rt: Runtime) -> None:
    await keys.create("mia", Role.MEMBER)
    gate = Gate(local=True)
    come = [gate.viewer(None, {"Host": "localhost"}) for _ in range(10)]
    done = await asyncio.gather(*come, return_exceptions=True)
    assert [type(each) for each in done] == [Unauthenticated] * 10


# Scopes


async def test_a_key_for_some_agents_gives_work_to_no_other(
    client: Client, database_url: str
) -> None:
    admin = await make_key(database_url, "Ada", Role.ADMIN)
    async with agent(client, admin) as (mine, _), agent(client, admin, name="B") as (other, fake):
        whole = await make_key(database_url, "Mia", Role.MEMBER)
        key = await make_key(database_url, "Mia", Role.MEMBER, agents=[parse_id("agent", mine)])
        theirs = await new_job(client, whole, assign={"agentId": other})
        laddered = await new_job(
            client, whole, assign={"agentId": mine}, retryPolicy={"fallbackAgentIds": [other]}
        )
        free = await new_job(client, whole)
        before = [await read_job(client, job["id"], whole) for job in (theirs, laddered, free)]
        make: Json = {"name": "x", "acceptanceCriteria": {"text": "ok"}}
        to = {"assign": {"agentId": other}}
        no_agent = "Your key is not for the agent “B”."
        no_job = "Your key is not for an agent of this job."
        for name, given, message in (
            ("createJob", {"input": make | to}, no_agent),
            ("assignJob", {"input": {"id": free["id"]} | to}, no_agent),
            ("executeJob", {"input": {"id": theirs["id"]}}, no_job),
            ("executeJob", {"input": {"id": theirs["id"], "whenReady": True}}, no_job),
            ("executeJob", {"input": {"id": laddered["id"]}}, no_job),
            ("updateJob", {"input": {"id": theirs["id"], "autoExecute": True}}, no_job),
            ("reassignJob", {"input": {"id": theirs["id"], "assign": {"agentId": mine}}}, no_job),
            ("unassignJob", {"id": theirs["id"]}, no_job),
            ("cancelJob", {"input": {"id": theirs["id"]}}, no_job),
            ("addJobNote", {"id": theirs["id"], "message": "m"}, no_job),
        ):
            refused = await mutate(client, name, key, **given)
            assert (refused["__typename"], refused["message"]) == ("Forbidden", message), name
        ladder = {"fallbackAgentIds": [other]}
        for name, given in (
            ("createJob", make | {"retryPolicy": ladder}),
            ("updateJob", {"id": free["id"], "retryPolicy": ladder}),
        ):
            assert await problems(client, name, key, input=given) == {
                "input.retryPolicy.fallbackAgentIds.0": "is an agent that your key is not for"
            }
        assert before == [
            await read_job(client, job["id"], whole) for job in (theirs, laddered, free)
        ]
        assert fake.received == []
        allowed = "query($id: ID!) { job(id: $id) { availableActions { allowed reason } } }"
        actions = (await gql(client, allowed, key, id=theirs["id"]))["job"]["availableActions"]
        assert {each["allowed"] for each in actions} == {False}
        done = await new_job(client, key, assign={"agentId": mine})
        done = await mutate(client, "executeJob", key, input={"id": done["id"], "waitSeconds": 30})
        assert done["status"] == "COMPLETED"


async def test_an_admins_key_for_some_agents_changes_no_other(
    client: Client, database_url: str
) -> None:
    admin = await make_key(database_url, "Ada", Role.ADMIN)
    async with agent(client, admin) as (mine, _), agent(client, admin, name="B") as (other, _):
        key = await make_key(database_url, "Ada", Role.ADMIN, agents=[parse_id("agent", mine)])
        url = "http://127.0.0.1:9/"
        for name, given in (
            ("saveAgent", {"input": {"name": "New", "endpointUrl": url}}),
            ("saveAgent", {"input": {"id": other, "name": "B", "endpointUrl": url}}),
            ("setAgentAvailability", {"id": other, "availability": "DISABLED"}),
            ("resetAgentCircuit", {"id": other}),
            ("testAgent", {"id": other, "input": {"ok": True}}),
        ):
            assert (await mutate(client, name, key, **given))["__typename"] == "Forbidden", name
        found = await gql(client, "{ agents { nodes { name availability endpointUrl } } }", admin)
        assert [each["availability"] for each in found["agents"]["nodes"]] == ["ACTIVE"] * 2
        assert url not in str(found)
        paused = await mutate(client, "setAgentAvailability", key, id=mine, availability="PAUSED")
        assert paused["availability"] == "PAUSED"


@pytest.mark.parametrize("role", list(Role))
async def test_a_key_for_some_owners_sees_their_jobs_and_its_own(
    client: Client, database_url: str, role: Role
) -> None:
    for name in ("Mia", "Olaf", "Eve", "Ada"):
        whole = await make_key(database_url, name, Role.MEMBER)
        await new_job(client, whole, name=name)
    key = await make_key(database_url, "Mia", role, owners=["Olaf", "Nobody"])
    listing = "{ jobs { totalCount nodes { id name } } jobLogs { totalCount } }"
    found = await gql(client, listing, key)
    assert {each["name"] for each in found["jobs"]["nodes"]} == {"Mia", "Olaf"}
    assert (found["jobs"]["totalCount"], found["jobLogs"]["totalCount"]) == (2, 2)
    olafs = next(each["id"] for each in found["jobs"]["nodes"] if each["name"] == "Olaf")
    done = await mutate(client, "cancelJob", key, input={"id": olafs})
    assert done["__typename"] == ("Forbidden" if role is Role.VIEWER else "Job")


async def test_an_admins_key_for_some_owners_acts_on_their_jobs_alone(
    client: Client, database_url: str
) -> None:
    eve = await make_key(database_url, "Eve", Role.MEMBER)
    olaf = await make_key(database_url, "Olaf", Role.MEMBER)
    key = await make_key(database_url, "Ada", Role.ADMIN, owners=["Olaf"])
    hers, his = await new_job(client, eve), await new_job(client, olaf)
    force = {"result": 1, "reason": "r"}
    refused = await mutate(client, "forceComplete", key, input={"id": hers["id"]} | force)
    assert refused["__typename"] == "NotFound"
    done = await mutate(client, "forceComplete", key, input={"id": his["id"]} | force)
    assert done["status"] == "COMPLETED"
    saved = {"name": "Mine", "endpointUrl": "http://127.0.0.1:9/"}
    assert (await mutate(client, "saveAgent", key, input=saved))["__typename"] == "Forbidden"


async def test_a_narrowed_key_manages_no_keys(client: Client, database_url: str) -> None:
    admin = await make_key(database_url, "Ada", Role.ADMIN)
    known = (await gql(client, KEYS, admin))["apiKeys"]["nodes"][0]["id"]
    scopes: list[Json] = [{"agents": []}, {"owners": []}, {"owners": ["Mia"]}]
    for scope in scopes:
        key = await make_key(database_url, "Ada", Role.ADMIN, **scope)
        new = {"name": "Eve", "role": "ADMIN"}
        for name, given in (("createApiKey", {"input": new}), ("revokeApiKey", {"id": known})):
            refused = await mutate(client, name, key, **given)
            assert (refused["__typename"], refused["message"]) == ("Forbidden", LIMITED)
        assert (await refusal(client, KEYS, key))["code"] == "FORBIDDEN"
        async with client.get("/metrics", headers={"Authorization": f"Bearer {key}"}) as response:
            assert response.status == 403
    assert await code(client, admin) == "ok"


async def test_a_narrowed_key_is_not_told_what_a_wider_one_was_answered(rt: Runtime) -> None:
    """With the same idempotency key and request, as if it were a repetition."""
    async with fake_agent(says_ok) as fake:
        job = await make_job(rt, await make_agent(rt, fake.url))
        wide = Viewer(ActorKind.API_KEY, "ada", "Ada", Role.ADMIN)
        narrow = Viewer(ActorKind.API_KEY, "ada", "Ada", Role.ADMIN, owners=frozenset({"olaf"}))
        done = await execute(rt, job, wide, idempotency_key="k")
        with pytest.raises(NotFound):
            await jobs.get(narrow, job.id)
        for viewer in (narrow, Viewer(ActorKind.API_KEY, "ada", "Ada", Role.ADMIN, workspace_id=2)):
            with pytest.raises(NotFound):
                await execute(rt, job, viewer, idempotency_key="k")
        assert (await execute(rt, job, wide, idempotency_key="k")).id == done.id
        assert len(fake.received) == 1
    assert not narrow.sees(await make_job(rt, viewer=MEMBER))


# Uses


async def test_the_last_use_of_a_key_is_written_once_a_minute_at_most(rt: Runtime) -> None:
    made, _ = await keys.create("Mia", Role.MEMBER)
    uses = KeyUses()

    async def used() -> datetime | None:
        return (await ApiKey.get(id=made.id)).last_used_at

    async with uses.written():
        began = datetime.now(UTC)
        for _ in range(100):
            uses.note(await ApiKey.get(id=made.id))
        first = await until(used)
        assert began <= first <= datetime.now(UTC)
        for key in (await ApiKey.get(id=made.id), made):  # as read before it was written, too
            uses.note(key)
    assert await used() == first
    earlier = first - APART - timedelta(seconds=1)
    await ApiKey.filter(id=made.id).update(last_used_at=earlier)
    async with uses.written():
        uses.note(await ApiKey.get(id=made.id))
    assert (await used() or earlier) > earlier


async def test_a_request_with_a_key_leaves_its_time(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    client = await aiohttp_client(create_app(settings_for(database_url, tmp_path)))
    admin = await make_key(database_url, "Ada", Role.ADMIN)

    async def told() -> Json | None:
        (key,) = (await gql(client, KEYS, admin))["apiKeys"]["nodes"]
        return key["lastUsedAt"]

    at = await until(told)
    assert isinstance(at, str)
    await asyncio.gather(*[gql(client, WHO, admin) for _ in range(50)])
    assert await told() == at


async def test_a_key_is_for_its_workspace(client: Client, database_url: str) -> None:
    admin = await make_key(database_url, "Ada", Role.ADMIN)
    acme = await make_workspace(database_url, "acme")
    theirs = await make_key(database_url, "Bob", Role.ADMIN, workspace_id=acme)
    (known,) = (await gql(client, KEYS, theirs))["apiKeys"]["nodes"]
    assert known["name"] == "Bob"
    missing = "key_" + "0" * 32
    for id in (known["id"], missing, "x"):
        refused = await mutate(client, "revokeApiKey", admin, id=id)
        assert refused == {
            "__typename": "NotFound",
            "code": "NOT_FOUND",
            "message": f"There is no {id} that you can see.",
            "id": id,
        }
    assert await code(client, theirs) == "ok"
    new = await mutate(client, "createApiKey", theirs, input={"name": "Ada", "role": "ADMIN"})
    found = await gql(client, "{ viewer { name workspace } }", new["key"])
    assert found["viewer"] == {"name": "Ada", "workspace": "acme"}
    with pytest.raises(InvalidInput):
        await keys.create("Eve", Role.MEMBER, workspace_id=acme, agents=[UUID(int=1)])
