"""Odd answers, forged cursors, malformed headers, jobs that come back into lists."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest

from models import AttemptState, Job, JobStatus, Role, StatusReason
from services.runtime import Runtime
from tests.fakes.agents import Received, fake_agent
from tests.support.graphql import (
    Json,
    agent,
    finished_job,
    gql,
    make_key,
    mutate,
    new_job,
    refusal,
)
from tests.support.making import attempts_of, error_of, execute, logs_of, make_agent, make_job
from tests.support.running import Client

# Answers


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        ({"additionalProperties": False}, b'{"a\\u0000b":1}'),
        ({"properties": {"a\0b": {"type": "string"}}}, b'{"a\\u0000b":1}'),
        ({"enum": ["x"]}, b'"a\\u0000b"'),
    ],
    ids=["unexpected key", "wrong value of a key", "wrong value"],
)
async def test_an_answer_with_u0000_that_breaks_its_schema_settles_the_job(
    rt: Runtime, schema: Json, answer: bytes
) -> None:
    async def behave(received: Received) -> None:
        await received.answer(answer)

    async with fake_agent(behave) as fake:
        made = await make_agent(rt, fake.url, output_schema=schema)
        job = await make_job(rt, made)
        done = await execute(rt, job)
    assert done.status is JobStatus.RESUBMISSION_REQUIRED
    assert done.status_reason is StatusReason.OUTPUT_SCHEMA_INVALID
    assert "does not fit the outputSchema" in (done.status_message or "")
    (attempt,) = await attempts_of(job)
    assert attempt.state is AttemptState.FAILED
    assert attempt.response_json == answer.decode()
    assert (await error_of(job))["code"] == "OUTPUT_SCHEMA_INVALID"
    texts = [done.status_message, *(entry.message for entry in await logs_of(job))]
    assert not [text for text in texts if text and "\0" in text]
    assert (await Job.get(id=job.id)).status_message == done.status_message


# Lists

NAMES = """
query($where: JobFilter) { jobs(where: $where, first: 100) { nodes { name archivedAt } } }"""


async def listed(client: Client, where: Json | None = None) -> list[Json]:
    found = await gql(client, NAMES, where=where)
    return sorted(found["jobs"]["nodes"], key=lambda job: job["name"])


async def names(client: Client, where: Json | None = None) -> list[str]:
    return [job["name"] for job in await listed(client, where)]


async def archived(client: Client, job: Json) -> None:
    done = await mutate(client, "archiveJob", id=job["id"])
    assert done["archivedAt"] is not None
    assert await names(client) == []


async def check_back(client: Client, changed: Json, status: str) -> None:
    assert (changed["__typename"], changed["status"]) == ("Job", status)
    assert changed["archivedAt"] is None
    assert await listed(client) == [{"name": "A job", "archivedAt": None}]


async def test_an_archived_job_that_is_resubmitted_is_back_in_lists(client: Client) -> None:
    async with agent(client) as (agent_id, _):
        job = await finished_job(client, agent_id)
    await archived(client, job)
    given = {"id": job["id"], "reason": "Once more."}
    again = await mutate(client, "resubmitJob", input=given)
    await check_back(client, again, "RESUBMISSION_REQUIRED")


async def test_an_archived_job_that_is_reopened_is_back_in_lists(client: Client) -> None:
    job = await new_job(client)
    await mutate(client, "cancelJob", input={"id": job["id"]})
    await archived(client, job)
    again = await mutate(client, "reopenJob", id=job["id"], reason="It is needed.")
    await check_back(client, again, "PENDING")


async def test_not_in_a_phase_finds_jobs_without_any(client: Client) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def waits(received: Received) -> None:
        asked.set()
        await go_on.wait()
        await received.answer(b'{"ok":true}')

    await new_job(client, name="idle")
    async with fake_agent(waits) as endpoint:
        given = {"name": "Slow", "endpointUrl": endpoint.url}
        saved = await mutate(client, "saveAgent", input=given)
        job = await new_job(client, name="running", assign={"agentId": saved["id"]})
        await mutate(client, "executeJob", input={"id": job["id"]})
        await asked.wait()
        for where, expected in (
            ({"phase": {"eq": "CALLING_AGENT"}}, ["running"]),
            ({"phase": {"eq": "QUEUED"}}, []),
            ({"not": {"phase": {"eq": "QUEUED"}}}, ["idle", "running"]),
            ({"not": {"phase": {"eq": "CALLING_AGENT"}}}, ["idle"]),
            ({"not": {"phase": {"in": ["QUEUED", "CALLING_AGENT"]}}}, ["idle"]),
            ({"not": {"not": {"phase": {"eq": "CALLING_AGENT"}}}}, ["running"]),
            ({"not": {"phase": {"eq": "CALLING_AGENT"}, "name": {"eq": "idle"}}}, BOTH),
        ):
            assert await names(client, where) == expected, where
        go_on.set()


BOTH = ["idle", "running"]

# Forged cursors and ids

JOBS = """
query($after: String, $before: String, $orderBy: [JobOrder!]) {
  jobs(after: $after, before: $before, orderBy: $orderBy) { nodes { id } }
}"""
ATTEMPTS = """
query($id: ID!, $after: String, $before: String) {
  job(id: $id) { attempts(after: $after, before: $before) { nodes { id } } }
}"""
LOGS = """
query($id: ID!, $after: String, $before: String) {
  job(id: $id) { logs(after: $after, before: $before) { nodes { id } } }
}"""
ID = "0" * 32


def cursor_of(order: str, *values: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps([order, values]).encode()).decode().rstrip("=")


def priority(value: object) -> tuple[str, Json]:
    return cursor_of("-priority,-id", value, ID), {"orderBy": [{"field": "PRIORITY"}]}


def instant(value: str) -> tuple[str, Json]:
    return cursor_of("-created_at,-id", value, ID), {}


async def check_refused(client: Client, query: str, cursor: str, /, **arguments: Any) -> None:
    for name in ("after", "before"):
        extensions = await refusal(client, query, **{name: cursor}, **arguments)
        assert extensions["code"] == "VALIDATION"
        message = "is not a cursor of this list"
        assert extensions["fields"] == [{"path": [name], "message": message}]


@pytest.mark.parametrize(
    ("cursor", "arguments"),
    [
        priority(2**40),
        priority(-(2**31) - 1),
        priority(7),
        priority([]),
        instant("0001-01-01T00:00:00+23:00"),
        instant("9999-12-31T23:59:59-23:00"),
    ],
)
async def test_a_forged_cursor_of_jobs_is_a_typed_error(
    client: Client, cursor: str, arguments: Json
) -> None:
    await new_job(client)
    await check_refused(client, JOBS, cursor, **arguments)


@pytest.mark.parametrize("number", [2**31, 2**40, -(2**40), 2**63, 2**70, 1.5, True])
async def test_a_forged_cursor_of_attempts_is_a_typed_error(client: Client, number: object) -> None:
    job = await new_job(client)
    await check_refused(client, ATTEMPTS, cursor_of("number", number), id=job["id"])


async def test_a_forged_cursor_of_a_log_is_a_typed_error(client: Client) -> None:
    job = await new_job(client)
    await check_refused(client, LOGS, cursor_of("seq", 2**63), id=job["id"])


@pytest.mark.parametrize("tail", ["9" * 5000, "9" * 19, "9" * 18, "²", "-1", ""])
async def test_the_id_of_no_entry_finds_nothing(client: Client, tail: str) -> None:
    found = await gql(client, "query($id: ID!) { node(id: $id) { id } }", id=f"log_{tail}")
    assert found == {"node": None}


# Headers

VIEWER = "{ viewer { name } }"


async def status_with(client: Client, **headers: str) -> tuple[int, str | None]:
    """HTTP status and error code of a query that is sent with these headers."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"query": VIEWER}
    async with client.post("/graphql", json=body, headers=given) as response:
        answer = await response.json()
    codes = [each["extensions"]["code"] for each in answer.get("errors", [])]
    return response.status, codes[0] if codes else None


@pytest.mark.parametrize("host", ["[", "[::1", "http://[", "]"])
async def test_a_host_that_is_none_is_not_let_in(client: Client, host: str) -> None:
    status, code = await status_with(client, Host=host)
    assert (status, code) in {(401, "UNAUTHENTICATED"), (400, "VALIDATION")}


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "[", "//["])
async def test_an_origin_that_is_none_is_another_site(client: Client, origin: str) -> None:
    assert await status_with(client, Origin=origin) == (403, "FORBIDDEN")


@pytest.mark.parametrize(
    "headers",
    [
        {"X_Forwarded_For": "203.0.113.7"},
        {"x_forwarded_for": "127.0.0.1"},
        {"X_Forwarded_Host": "localhost"},
        {"Forwarded": "for=203.0.113.7"},
        {"Via": "1.1 proxy"},
    ],
    ids=lambda headers: next(iter(headers)),
)
async def test_without_keys_nobody_is_let_in_through_a_proxy(
    client: Client, headers: dict[str, str]
) -> None:
    assert await status_with(client, **headers) == (401, "UNAUTHENTICATED")
    assert await status_with(client) == (200, None)


async def test_through_a_proxy_a_key_opens_the_door(client: Client, database_url: str) -> None:
    key = await make_key(database_url, "Ada", Role.ADMIN)
    headers = {"X_Forwarded_For": "203.0.113.7", "Authorization": f"Bearer {key}"}
    assert await status_with(client, **headers) == (200, None)
