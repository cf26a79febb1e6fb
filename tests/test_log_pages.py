"""The log by pages: a reader who goes on after the last entry misses nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol, cast
from uuid import UUID

import asyncpg
import pytest

from models import Role
from services.values import parse_id
from tests.support.graphql import Json, gql, make_key, mutate, new_job
from tests.support.running import Client
from tests.support.sockets import streaming

LOG = """
query($after: EventCursor, $where: JobFilter) {
  jobLogs(after: $after, where: $where, first: 100) { nodes { cursor type message job { id } } }
}"""
CHANGES = """
subscription($where: JobFilter, $after: EventCursor) {
  jobStatusChanged(where: $where, after: $after) { from to job { name archivedAt } }
}"""
START = "MA"
"""The position before the first entry."""
INSERT = """
INSERT INTO job_logs
  (job_id, type, status, message, payload_truncated, actor_kind, actor_name, created_at)
VALUES ($1, 'NOTE', 'PENDING', 'late', false, 'SYSTEM', 'Elsewhere', now())
RETURNING seq"""


class Connection(Protocol):
    """What is used of asyncpg, which has no types for it."""

    async def execute(self, query: str) -> str: ...

    async def fetchval(self, query: str, *values: object) -> int: ...

    async def close(self) -> None: ...


@pytest.fixture
async def elsewhere(database_url: str) -> AsyncIterator[Connection]:
    """Another process's connection."""
    connection = cast("Connection", await asyncpg.connect(database_url))
    yield connection
    await connection.close()


async def page(client: Client, key: str | None = None, /, **variables: object) -> list[Json]:
    return (await gql(client, LOG, key, **variables))["jobLogs"]["nodes"]


def messages(nodes: list[Json]) -> list[str]:
    return [node["message"] for node in nodes]


async def note(client: Client, job: Json, message: str) -> None:
    noted = await mutate(client, "addJobNote", id=job["id"], message=message)
    assert noted["__typename"] == "JobLog"


@pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
@pytest.mark.parametrize(
    ("how", "expected"),
    [("COMMIT", ["late", "first", "second"]), ("ROLLBACK", ["first", "second"])],
)
async def test_a_page_ends_before_an_entry_that_is_still_to_come(
    client: Client, elsewhere: Connection, how: str, expected: list[str]
) -> None:
    job = await new_job(client)
    after = (await page(client))[-1]["cursor"]
    await elsewhere.execute("BEGIN")
    await elsewhere.fetchval(INSERT, UUID(str(parse_id("job", job["id"]))))
    await note(client, job, "first")
    seen = await page(client, after=after)
    await elsewhere.execute(how)
    await note(client, job, "second")
    seen += await page(client, after=seen[-1]["cursor"] if seen else after)
    assert messages(seen) == expected


async def test_a_page_has_what_its_reader_has_just_written(client: Client) -> None:
    job = await new_job(client)
    after = (await page(client))[-1]["cursor"]
    for number in range(10):
        await note(client, job, str(number))
        assert messages(await page(client, after=after)) == [str(n) for n in range(number + 1)]


async def test_a_members_log_has_own_archived_jobs_and_no_others(
    client: Client, database_url: str
) -> None:
    mia = await make_key(database_url, "Mia", Role.MEMBER)
    olaf = await make_key(database_url, "Olaf", Role.MEMBER)
    ada = await make_key(database_url, "Ada", Role.ADMIN)
    mine, others = await new_job(client, mia), await new_job(client, olaf)
    await mutate(client, "cancelJob", mia, input={"id": mine["id"]})
    archived = await mutate(client, "archiveJob", mia, id=mine["id"])
    assert archived["archivedAt"] is not None
    everything = await page(client, ada)
    assert {node["job"]["id"] for node in everything} == {mine["id"], others["id"]}
    own = [node for node in everything if node["job"]["id"] == mine["id"]]
    assert [node["type"] for node in own] == ["STATUS_CHANGE", "STATUS_CHANGE", "CONFIG_CHANGE"]
    assert await page(client, mia) == own
    assert await page(client, ada, where={"id": {"eq": mine["id"]}}) == own


async def test_a_filtered_subscription_tells_of_jobs_that_are_archived_by_now(
    client: Client,
) -> None:
    old = await new_job(client, name="old", priority="URGENT")
    await mutate(client, "cancelJob", input={"id": old["id"]})
    await mutate(client, "archiveJob", id=old["id"])
    await new_job(client, name="calm")
    await new_job(client, name="new", priority="URGENT")
    where = {"priority": {"eq": "URGENT"}}
    async with streaming(client, CHANGES, where=where, after=START) as stream:
        changes = [(await stream.next())["data"]["jobStatusChanged"] for _ in range(3)]
    assert [(each["job"]["name"], each["from"], each["to"]) for each in changes] == [
        ("old", None, "PENDING"),
        ("old", "PENDING", "CANCELLED"),
        ("new", None, "PENDING"),
    ]
    assert changes[0]["job"]["archivedAt"] is not None
