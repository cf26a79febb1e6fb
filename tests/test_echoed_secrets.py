"""An agent may send back what it was sent: our secrets are not kept and not shown."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tortoise.models import Model

import models
from services import agent_http
from signoff import database
from tests.fakes.agents import Behaviour, Received, fake_agent
from tests.support.graphql import SAYS_OK, Json, beside, finished_job, gql, mutate
from tests.support.running import Client

TOKEN = "t0p/s3cret+of/ours=="  # noqa: S105
ALL_OF_IT = """
query($id: ID!) {
  job(id: $id) {
    status result statusMessage
    attempts { nodes { state response error { message } } }
    logs(first: 100) { nodes { type message payload } }
  }
}"""


async def stored() -> str:
    """Every value of every table but the sealed secrets."""
    names = [getattr(models, name) for name in models.__all__]
    tables = [each for each in names if isinstance(each, type) and issubclass(each, Model)]
    rows: list[dict[str, Any]] = [row for table in tables for row in await table.all().values()]
    return "\n".join(str(value) for row in rows for value in row.values())


async def stored_in(database_url: str) -> str:
    async def reading() -> str:
        async with database.connected(database_url):
            return await stored()

    return await beside(reading())


def plain(told: Json) -> str:
    return json.dumps(told)


def slashes_escaped(told: Json) -> str:
    """As PHP writes it."""
    return json.dumps(told).replace("/", "\\/")


def all_escaped(told: Json) -> str:
    """As JSON may be written, and a careful writer of HTML does."""
    return json.dumps(told).replace("/", "\\u002F").replace("+", "\\u002b").replace("=", "\\u003d")


def echoes(secret: str, write: Any) -> Behaviour:
    async def behave(received: Received) -> None:
        told = {"ok": True, "you sent": received.headers, "signed with": secret}
        await received.answer(write(told).encode())

    return behave


@pytest.mark.parametrize("write", [plain, slashes_escaped, all_escaped])
@pytest.mark.parametrize("header", [f"Authorization: Bearer {TOKEN}", f"X-Api-Key: {TOKEN}"])
async def test_an_echo_of_our_secrets_is_kept_and_shown_without_them(
    client: Client, database_url: str, header: str, write: Any
) -> None:
    secret = agent_http.new_secret()
    async with fake_agent(echoes(secret, write)) as endpoint:
        given = {
            "name": "Echo",
            "endpointUrl": endpoint.url,
            "secret": secret,
            "authHeader": header,
        }
        saved = await mutate(client, "saveAgent", input=given)
        job = await finished_job(client, saved["id"], acceptanceCriteria=SAYS_OK)
        tried = await mutate(client, "testAgent", id=saved["id"], input={})
    name, _, value = header.partition(": ")
    assert {each.headers[name.lower()] for each in endpoint.received} == {value}
    shown = await gql(client, ALL_OF_IT, id=job["id"])
    assert shown["job"]["status"] == "COMPLETED"
    assert shown["job"]["result"]["signed with"] == "[secret]"
    assert shown["job"]["result"]["you sent"][name.lower()].endswith("[secret]")
    for text in (await stored_in(database_url), json.dumps([shown, tried, job])):
        assert "you sent" in text
        assert "s3cret" not in text
        assert secret.removeprefix("whsec_") not in text.replace("\\/", "/")


async def test_a_short_secret_is_not_taken_out_of_innocent_text(client: Client) -> None:
    async def answers(received: Received) -> None:
        await received.answer(b'{"ok":true,"text":"abc of it"}')

    async with fake_agent(answers) as endpoint:
        given = {"name": "A", "endpointUrl": endpoint.url, "authHeader": "X-Api-Key: abc"}
        saved = await mutate(client, "saveAgent", input=given)
        job = await finished_job(client, saved["id"])
    assert job["result"] == {"ok": True, "text": "abc of it"}
