"""Webhooks over the API: who may do what with whose, and what is told of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import pytest

from models import Role, Webhook, WebhookDelivery
from services.webhooks.hooks import MAX_PER_OWNER
from signoff import database
from signoff.app import create_app
from tests.fakes.agents import FakeAgent, fake_agent
from tests.support.graphql import (
    DELIVERY,
    WEBHOOK,
    Json,
    answer,
    beside,
    gql,
    make_key,
    mutate,
    mutation,
    new_job,
    problems,
)
from tests.support.hooks import heard, takes, verified
from tests.support.making import holds, until
from tests.support.running import AiohttpClient, Client, settings_for

READ = f"""query($id: ID!) {{
  webhook(id: $id) {{
    {WEBHOOK}
    deliveries {{ totalCount nodes {{ {DELIVERY} event {{ id type }} }} }}
  }}
}}"""
LIST = "{ webhooks { totalCount nodes { id url } } }"
NODE = "query($id: ID!) { node(id: $id) { __typename id } }"
NOBODYS, NO_DELIVERY = "webhook_" + "f" * 32, "delivery_" + "f" * 32


@dataclass
class World:
    client: Client
    endpoint: FakeAgent
    keys: dict[str, str]
    url: str

    def given(self, **changes: Any) -> Json:
        return {"url": f"{self.endpoint.url}?token=t0ken", "types": ["STATUS_CHANGE"]} | changes

    async def made(self, who: str, **changes: Any) -> tuple[str, str]:
        """The id and the secret of a new webhook."""
        saved = await mutate(
            self.client, "saveWebhook", self.keys[who], input=self.given(**changes)
        )
        assert saved["__typename"] == "NewWebhook", saved
        return saved["webhook"]["id"], saved["secret"]

    async def read(self, who: str, id: str) -> Json | None:
        return (await gql(self.client, READ, self.keys[who], id=id))["webhook"]

    async def delivered(self, who: str, id: str) -> Json:
        """The webhook, when it has a delivery that succeeded."""

        async def found() -> Json | None:
            hook = await self.read(who, id)
            assert hook
            states = [each["state"] for each in hook["deliveries"]["nodes"]]
            return hook if "SUCCEEDED" in states else None

        return await until(found)

    async def rows(self) -> tuple[list[Json], list[Json]]:
        """Everything written of webhooks: to see that nothing changed."""

        async def read() -> tuple[list[Json], list[Json]]:
            async with database.connected(self.url):
                hooks = await Webhook.all().order_by("id").values()
                return hooks, await WebhookDelivery.all().order_by("id").values()

        return await beside(read())


@pytest.fixture
async def world(client: Client, database_url: str) -> AsyncGenerator[World]:
    roles = {"Vera": Role.VIEWER, "Mia": Role.MEMBER, "Olaf": Role.MEMBER, "Ada": Role.ADMIN}
    keys = {name: await make_key(database_url, name, role) for name, role in roles.items()}
    async with fake_agent(takes) as endpoint:
        yield World(client, endpoint, keys, database_url)


async def test_a_webhook_is_made_read_changed_and_removed(world: World) -> None:
    where = {"tags": {"any": ["a"]}, "priority": {"gte": "HIGH"}, "not": {"archived": {"eq": True}}}
    id, secret = await world.made("Mia", where=where)
    assert secret.startswith("whsec_")
    expected: Json = {
        "id": id,
        "url": f"{world.endpoint.url}?token=t0ken",
        "types": ["STATUS_CHANGE"],
        "where": where,
        "enabled": True,
        "disabledReason": None,
        "oldSecretUntil": None,
        "circuit": {"state": "CLOSED", "failures": 0, "reason": None},
        "owner": {"kind": "API_KEY", "id": "Mia", "name": "Mia"},
    }
    empty: Json = {"deliveries": {"totalCount": 0, "nodes": []}}
    assert await world.read("Mia", id) == expected | empty
    given = {"id": id, "url": world.endpoint.url, "types": ["VERDICT"], "enabled": False}
    key = world.keys["Mia"]
    changed = await mutate(world.client, "saveWebhook", key, input=given)
    expected |= {"url": world.endpoint.url, "types": ["VERDICT"], "enabled": False}
    assert changed == {"__typename": "NewWebhook", "secret": None, "webhook": expected}
    without = await mutate(world.client, "saveWebhook", key, input=given | {"where": None})
    expected |= {"where": None}
    assert without["webhook"] == expected
    assert (await gql(world.client, NODE, key, id=id))["node"] == {
        "__typename": "Webhook",
        "id": id,
    }
    removed = await mutate(world.client, "deleteWebhook", key, id=id)
    assert removed == {"__typename": "Webhook"} | expected
    assert await world.read("Mia", id) is None
    assert await world.rows() == ([], [])


async def test_deliveries_are_shown_with_their_events_and_made_again(world: World) -> None:
    id, secret = await world.made("Mia")
    key = world.keys["Mia"]
    job = await new_job(world.client, key)
    hook = await world.delivered("Mia", id)
    assert hook["deliveries"]["totalCount"] == 1
    (delivery,) = hook["deliveries"]["nodes"]
    assert verified(world.endpoint.received[0], secret)["data"]["jobId"] == job["id"]
    assert delivery.pop("attemptedAt") >= delivery.pop("createdAt")
    assert delivery.pop("event")["type"] == "STATUS_CHANGE"
    assert delivery == {
        "id": delivery["id"],
        "type": "job.status_changed",
        "state": "SUCCEEDED",
        "attempts": 1,
        "statusCode": 200,
        "error": None,
        "nextAttemptAt": None,
    }
    assert (await gql(world.client, NODE, key, id=delivery["id"]))["node"]["id"] == delivery["id"]
    again = await mutate(world.client, "redeliverWebhook", key, deliveryId=delivery["id"])
    assert (again["__typename"], again["state"]) == ("WebhookDelivery", "PENDING")
    assert again["nextAttemptAt"] is not None
    await heard(world.endpoint, 2)
    tested = await mutate(world.client, "testWebhook", key, id=id)
    assert (tested["type"], tested["state"]) == ("webhook.test", "PENDING")
    assert (await heard(world.endpoint, 3))[2]["type"] == "webhook.test"
    page = "query($id: ID!) { webhook(id: $id) { deliveries(states: [FAILED]) { totalCount } } }"
    assert (await gql(world.client, page, key, id=id))["webhook"]["deliveries"]["totalCount"] == 0


async def test_a_secret_is_told_when_it_is_made_and_never_again(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    id, first = await world.made("Mia")
    key = world.keys["Mia"]
    await new_job(world.client, key)
    await world.delivered("Mia", id)
    rotated = await mutate(world.client, "rotateWebhookSecret", key, id=id, overlapSeconds=60)
    second = rotated["secret"]
    assert rotated["webhook"]["oldSecretUntil"] is not None
    assert second != first
    told = [
        await world.read("Mia", id),
        await world.read("Ada", id),
        await mutate(world.client, "saveWebhook", key, input=world.given(id=id)),
        await gql(world.client, "{ jobLogs { nodes { message payload } } }", key),
        await world.rows(),
        capfd.readouterr(),
    ]
    for secret in (first, second):
        assert secret not in str(told)
    assert "t0ken" not in str(told[3:])


async def test_an_address_is_in_no_log_when_it_fails(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    id, _ = await world.made("Ada", url="http://127.0.0.1:9/hook?token=t0ken")
    await new_job(world.client, world.keys["Ada"])

    async def failed() -> Json | None:
        hook = await world.read("Ada", id)
        assert hook
        nodes = hook["deliveries"]["nodes"]
        return nodes[0] if nodes and nodes[0]["attempts"] else None

    delivery = await until(failed)
    assert (delivery["state"], delivery["statusCode"]) == ("PENDING", None)
    assert delivery["error"] == "No connection."
    out = capfd.readouterr()
    assert "t0ken" not in out.out + out.err
    assert "127.0.0.1:9" not in out.out + out.err


async def test_each_sees_own_webhooks_and_admins_see_all(world: World) -> None:
    mias, _ = await world.made("Mia")
    adas, _ = await world.made("Ada")
    for who, seen in (("Mia", [mias]), ("Olaf", []), ("Ada", [adas, mias])):
        found = (await gql(world.client, LIST, world.keys[who]))["webhooks"]
        assert [each["id"] for each in found["nodes"]] == seen
        assert found["totalCount"] == len(seen)
        for id in (mias, adas):
            node = (await gql(world.client, NODE, world.keys[who], id=id))["node"]
            assert (node is not None) is (id in seen)
            assert (await world.read(who, id) is not None) is (id in seen)


async def test_a_viewer_neither_makes_nor_sees_any(world: World) -> None:
    id, _ = await world.made("Ada")
    before = await world.rows()
    key = world.keys["Vera"]
    for query in (LIST, READ):
        body = await answer(world.client, query, key, id=id)
        assert body["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    assert (await gql(world.client, NODE, key, id=id))["node"] is None
    for name, given in calls(world, id, NO_DELIVERY).items():
        refused = await mutate(world.client, name, key, **given)
        assert refused["code"] == "FORBIDDEN", name
    assert await world.rows() == before


def calls(world: World, id: str, delivery_id: str) -> dict[str, Json]:
    return {
        "saveWebhook": {"input": world.given(id=id)},
        "rotateWebhookSecret": {"id": id, "overlapSeconds": 0},
        "deleteWebhook": {"id": id},
        "testWebhook": {"id": id},
        "redeliverWebhook": {"deliveryId": delivery_id},
    }


async def test_anothers_webhook_answers_exactly_like_one_that_is_not_there(world: World) -> None:
    id, _ = await world.made("Mia")
    await new_job(world.client, world.keys["Mia"])
    delivery_id = (await world.delivered("Mia", id))["deliveries"]["nodes"][0]["id"]
    before = await world.rows()
    key = world.keys["Olaf"]
    missing = calls(world, NOBODYS, NO_DELIVERY)
    for name, given in calls(world, id, delivery_id).items():
        seen = await answer(world.client, mutation(name), key, **given)
        unseen = await answer(world.client, mutation(name), key, **missing[name])
        text = str(seen).replace(id, NOBODYS).replace(delivery_id, NO_DELIVERY)
        assert text == str(unseen), name
        assert seen["data"][name]["code"] == "NOT_FOUND"
    for each in (id, delivery_id, NOBODYS, NO_DELIVERY, "webhook_x", "delivery_1"):
        assert (await gql(world.client, NODE, key, id=each))["node"] is None
    assert await world.rows() == before


async def test_an_admin_changes_anothers_webhook_and_its_owner_stays(world: World) -> None:
    id, _ = await world.made("Mia")
    saved = await mutate(
        world.client, "saveWebhook", world.keys["Ada"], input=world.given(id=id, enabled=False)
    )
    assert saved["secret"] is None
    assert (saved["webhook"]["owner"]["id"], saved["webhook"]["enabled"]) == ("Mia", False)
    assert await world.read("Mia", id) is not None


async def test_an_event_that_its_viewer_may_not_see_is_not_shown(
    world: World, database_url: str
) -> None:
    """Somebody who is no admin any more keeps the deliveries, without what they tell of."""
    both = await make_key(database_url, "Olaf", Role.ADMIN)
    world.keys["Olaf as admin"] = both
    id, _ = await world.made("Olaf as admin")
    await new_job(world.client, world.keys["Mia"])
    hook = await world.delivered("Olaf as admin", id)
    assert hook["deliveries"]["nodes"][0]["event"] is not None
    seen = await world.read("Olaf", id)
    assert seen
    assert seen["deliveries"]["nodes"][0]["event"] is None


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"url": "ftp://example.com/"}, "input.url"),
        ({"url": "http://user:s3cret@example.com/"}, "input.url"),
        ({"url": "http://example.com/#x"}, "input.url"),
        ({"url": "http://169.254.169.254/"}, "input.url"),
        ({"url": "http://0x7f000001/"}, "input.url"),
        ({"url": ""}, "input.url"),
        ({"types": []}, "input.types"),
        ({"types": ["VERDICT", "VERDICT"]}, "input.types"),
        ({"where": {"createdAt": {"gt": "yesterday"}}}, "input.where.createdAt.gt"),
        ({"where": {"not": {"not": {"not": {"not": {"not": {}}}}}}}, "input.where"),
        ({"id": "job_" + "0" * 32}, "input.id"),
    ],
)
async def test_what_cannot_be_is_refused_with_its_place(
    world: World, given: Json, path: str
) -> None:
    found = await problems(
        world.client, "saveWebhook", world.keys["Mia"], input=world.given(**given)
    )
    assert list(found) == [path]
    assert "s3cret" not in str(found)
    assert await world.rows() == ([], [])


@pytest.mark.parametrize("seconds", [-1, 604_801])
async def test_an_overlap_is_a_week_at_most(world: World, seconds: int) -> None:
    id, _ = await world.made("Mia")
    before = await world.rows()
    given = {"id": id, "overlapSeconds": seconds}
    found = await problems(world.client, "rotateWebhookSecret", world.keys["Mia"], **given)
    assert found == {"overlapSeconds": "must be between 0 and 604800"}
    assert await world.rows() == before


async def test_nobody_has_too_many(world: World) -> None:
    for _ in range(MAX_PER_OWNER):
        await world.made("Mia")
    refused = await mutate(world.client, "saveWebhook", world.keys["Mia"], input=world.given())
    assert (refused["__typename"], refused["limit"]) == ("LimitExceeded", MAX_PER_OWNER)
    await world.made("Olaf")
    assert len((await world.rows())[0]) == MAX_PER_OWNER + 1


async def test_private_addresses_need_their_own_setting(
    database_url: str, aiohttp_client: AiohttpClient, tmp_path: Any
) -> None:
    """Members make webhooks, so that agents may be private says nothing of these."""
    settings = settings_for(database_url, tmp_path, allow_private_webhooks=False)
    client = await aiohttp_client(create_app(settings))
    async with fake_agent(takes) as endpoint:
        given = {"url": endpoint.url, "types": ["STATUS_CHANGE"]}
        assert await problems(client, "saveWebhook", input=given) == {
            "input.url": "This address is not on the public internet. "
            "Set SIGNOFF_ALLOW_PRIVATE_WEBHOOKS=true to allow webhooks in your own network."
        }
        assert endpoint.connections == 0


async def test_metrics_tell_of_deliveries(world: World) -> None:
    id, _ = await world.made("Ada")
    await new_job(world.client, world.keys["Ada"])
    await world.delivered("Ada", id)
    headers = {"Authorization": f"Bearer {world.keys['Ada']}"}
    async with await world.client.get("/metrics", headers=headers) as response:
        text = await response.text()
    assert 'signoff_webhook_call_seconds_count{outcome="OK"} 1.0' in text
    assert "signoff_webhook_backlog 0.0" in text
    assert "signoff_webhook_oldest_seconds 0.0" in text
    assert "127.0.0.1" not in text
    await holds(lambda: len(world.endpoint.received) == 1)
