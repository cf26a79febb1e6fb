"""How much a caller may ask in a while, and what who asked too much is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest

from models import Role
from services import jobs
from services.actors import Viewer
from services.errors import RateLimited, Unauthenticated
from services.rates import Rates
from signoff.app import RUNTIME, create_app
from signoff.auth import Gate
from signoff.guarding import Attempts, network
from tests.support.graphql import Json, answer, gql, make_key
from tests.support.making import ADMIN, holds, make_job
from tests.support.running import AiohttpClient, Client, settings_for
from tests.support.sockets import PROTOCOL, connected

VIEWER = "{ viewer { id } }"
COST = 12


@pytest.fixture
def database_kind() -> str:
    """None of this depends on the database."""
    return "sqlite"


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


# The budget


def test_a_budget_is_used_at_once_and_comes_back_evenly() -> None:
    clock = Clock()
    rates = Rates(60, burst=10, clock=clock)
    assert rates.left("a") == 10
    rates.charge("a", 4)
    rates.charge("a", 6)
    assert rates.left("a") == 0
    with pytest.raises(RateLimited) as refused:
        rates.charge("a")
    assert refused.value.retry_after == 1
    with pytest.raises(RateLimited) as refused:
        rates.charge("a", 7)
    assert refused.value.retry_after == 7
    clock.now += 6.5
    assert rates.left("a") == 6
    with pytest.raises(RateLimited):
        rates.check("a", 7)
    rates.charge("a", 6)
    clock.now += 1000
    assert rates.left("a") == 10  # never more


def test_a_refused_charge_takes_nothing_and_callers_do_not_share() -> None:
    rates = Rates(60, burst=10, clock=Clock())
    for _ in range(100):
        with pytest.raises(RateLimited):
            rates.charge("a", 11)
    assert (rates.left("a"), len(rates)) == (10, 0)
    rates.charge("a", 10)
    assert rates.left("b") == 10
    rates.charge("b", 10)


def test_what_is_owed_has_to_come_back_first() -> None:
    clock = Clock()
    rates = Rates(60, burst=10, clock=clock)
    rates.owe("a", 15)
    assert rates.left("a") == 0
    with pytest.raises(RateLimited) as refused:
        rates.charge("a")
    assert refused.value.retry_after == 6
    clock.now += 6
    rates.charge("a")
    Rates().owe("a", 10**9)


def test_no_more_callers_than_so_many_are_remembered() -> None:
    rates = Rates(60, burst=10, clock=Clock(), max_callers=3)
    for caller in "abcd":
        rates.charge(caller, 10)
    assert len(rates) == 3
    assert [rates.left(caller) for caller in "abcd"] == [10, 0, 0, 0]


def test_without_a_limit_nothing_is_counted() -> None:
    rates = Rates()
    rates.charge("a", 10**9)
    rates.check("a", 10**9)
    assert (rates.left("a"), len(rates)) == (None, 0)


def test_sums_of_parts_are_exact_enough() -> None:
    rates = Rates(7, burst=1000, clock=Clock())
    for _ in range(1000):
        rates.charge("a")
    assert rates.left("a") == 0
    with pytest.raises(RateLimited):
        rates.charge("a")


# Over HTTP and WebSockets


@pytest.fixture
async def slow(database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient) -> Client:
    """A server where a caller has 30,000 units at once and gets one back in a minute."""
    given: Json = {"rate_per_minute": 1, "max_cost": 30_000}
    return await aiohttp_client(create_app(settings_for(database_url, tmp_path, **given)))


async def used_up(client: Client, key: str | None = None) -> None:
    """Ask for what there is, in operations as dear as may be."""
    await gql(client, VIEWER, key)
    dear = "query($n: Int) { jobs(first: 100) { nodes { logs(first: $n) { nodes { id type } } } } }"
    body: Json = {}
    for n in (93, 50, 20, 5, 1, 0, 0, 0, 0, 0, 0):
        body = await answer(client, dear, key, n=n)
    while "errors" not in (body := await answer(client, VIEWER, key)):
        pass
    assert body["errors"][0]["extensions"]["code"] == "RATE_LIMITED"


async def posted(client: Client, key: str | None = None, **headers: str) -> tuple[int, str, Json]:
    given = headers | ({"Authorization": f"Bearer {key}"} if key else {})
    async with client.post("/graphql", json={"query": VIEWER}, headers=given) as response:
        return response.status, response.headers.get("Retry-After", ""), await response.json()


async def test_who_asked_too_much_gets_429_and_when_to_come_back(slow: Client) -> None:
    await used_up(slow)
    for accept in ("application/json", "application/graphql-response+json", "*/*"):
        status, retry_after, body = await posted(slow, Accept=accept)
        (error,) = body["errors"]
        assert (status, "data" in body) == (429, False)
        assert error["extensions"] == {"code": "RATE_LIMITED", "retryAfter": int(retry_after)}
        assert error["message"].startswith("That was too much in a short time; try again in ")
        assert 60 < int(retry_after) <= 12 * 60


async def test_keys_of_a_user_share_a_budget_and_users_do_not(
    slow: Client, database_url: str
) -> None:
    ada, ada2 = [await make_key(database_url, "ada", Role.ADMIN) for _ in range(2)]
    bob = await make_key(database_url, "bob", Role.VIEWER)
    await used_up(slow, ada)
    assert (await posted(slow, ada2))[0] == 429
    assert (await posted(slow, bob))[0] == 200


async def test_a_mutation_that_comes_too_soon_changes_nothing(slow: Client) -> None:
    await used_up(slow)
    create = "mutation($input: CreateJobInput!) { createJob(input: $input) { __typename } }"
    given = {"name": "x", "acceptanceCriteria": {"text": "y"}}
    body = await answer(slow, create, input=given)
    assert body["errors"][0]["extensions"]["code"] == "RATE_LIMITED"


async def test_operations_on_a_websocket_count_and_the_socket_stays(slow: Client) -> None:
    async with connected(slow) as socket:
        await used_up(slow)
        for query in (VIEWER, "subscription { jobStatusChanged { cursor } }"):
            id = await socket.subscribe(query)
            message = await socket.receive()
            assert (message["type"], message["id"]) == ("error", id)
            assert message["payload"][0]["extensions"]["code"] == "RATE_LIMITED"
            assert message["payload"][0]["extensions"]["retryAfter"] > 0
        await socket.ping()


async def test_a_stream_of_events_is_not_begun(slow: Client) -> None:
    await used_up(slow)
    body = {"query": "subscription { jobStatusChanged { cursor } }"}
    headers = {"Accept": "text/event-stream"}
    while True:
        async with slow.post("/graphql", json=body, headers=headers) as response:
            if response.status == 200:  # it had a few units left, which this took
                assert b"RATE_LIMITED" in await response.read()
                break
            assert (response.status, "Retry-After" in response.headers) == (429, True)
            break


async def test_documents_that_are_new_cost_their_length(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    settings = settings_for(database_url, tmp_path, rate_per_minute=1, max_cost=11_000)
    client = await aiohttp_client(create_app(settings))
    text = "{ nothing } #" + "x" * 4_987  # its mistake costs 250, and each request 10
    for _ in range(2):
        body = await answer(client, text)
        assert body["errors"][0]["extensions"]["code"] == "GRAPHQL_ERROR"
    body = await answer(client, text)
    assert body["errors"][0]["extensions"]["code"] == "RATE_LIMITED"


async def test_the_work_of_a_document_that_is_refused_is_owed(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    settings = settings_for(database_url, tmp_path, rate_per_minute=1, max_cost=10_000)
    client = await aiohttp_client(create_app(settings))
    inside = "agent { id } " * 10
    fragments = " ".join(f"fragment F{n} on Job {{ {inside} }}" for n in range(40))
    spread = " ".join(f"...F{n}" for n in range(40))
    body = await answer(client, f"{{ jobs {{ nodes {{ {spread} }} }} }} {fragments}")
    assert body["errors"][0]["extensions"]["code"] == "LIMIT_EXCEEDED"
    body = await answer(client, VIEWER)
    assert body["errors"][0]["extensions"]["code"] == "RATE_LIMITED"


async def test_an_operation_that_is_not_found_costs_as_well(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    settings = settings_for(database_url, tmp_path, rate_per_minute=1, max_cost=10_000)
    client = await aiohttp_client(create_app(settings))
    before = await left(client)
    for _ in range(20):
        async with client.post("/graphql", json={"query": VIEWER, "operationName": "X"}) as got:
            assert got.status == 400
    assert await left(client) == before - 20 * 10 - COST


async def test_what_is_sent_costs_a_little_for_its_size(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    settings = settings_for(database_url, tmp_path, rate_per_minute=1, max_cost=100_000)
    client = await aiohttp_client(create_app(settings))
    before = await left(client)
    body = json.dumps({"query": VIEWER, "extensions": {"x": "x" * 1_000_000}}).encode()
    headers = {"Content-Type": "application/json"}
    async with client.post("/graphql", data=BytesIO(body), headers=headers) as got:
        assert got.status == 200
    between = await left(client)
    assert between == before - COST - len(body) // 100 - COST
    async with connected(client) as socket:
        payload = {"query": VIEWER, "extensions": {"x": "x" * 1_000_000}}
        await socket.send({"id": "1", "type": "subscribe", "payload": payload})
        assert (await socket.receive())["type"] == "next"
    assert between - 10_100 < await left(client) < between - 10_000


EVENTS = """subscription($after: EventCursor) {
    jobEvents(after: $after) { caughtUp events { message } } }"""
NOTE = "x" * 4_000  # 200 units


async def noted(client: Client, times: int) -> None:
    """Makes a job that so much is said of, at nobody's cost."""
    rt = client.app[RUNTIME]
    job = await make_job(rt)
    for _ in range(times):
        await jobs.add_note(rt, ADMIN, job.id, NOTE)


async def test_events_cost_and_end_with_what_is_left_of_the_budget(slow: Client) -> None:
    async with connected(slow) as socket:
        id = await socket.subscribe(EVENTS)
        assert (await socket.next(id))["data"]["jobEvents"]["caughtUp"]
        before = await left(slow)
        await noted(slow, 1)
        told: list[Json] = []
        while not told or told[-1]["message"] != NOTE:
            told += (await socket.next(id))["data"]["jobEvents"]["events"]
        assert 200 < before - await left(slow) - COST < 300
        slow.app[RUNTIME].rates.owe(ADMIN.budget, 30_000)
        await noted(slow, 1)
        ended = await socket.receive()
    assert (ended["type"], ended["id"]) == ("error", id)
    assert ended["payload"][0]["extensions"]["code"] == "RATE_LIMITED"
    assert ended["payload"][0]["extensions"]["retryAfter"] > 60


async def test_what_happened_before_is_told_as_the_budget_comes_back(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    settings = settings_for(database_url, tmp_path, rate_per_minute=60_000, max_cost=10_000)
    client = await aiohttp_client(create_app(settings))
    await noted(client, 99)
    told: list[str] = []
    async with connected(client) as socket:
        id = await socket.subscribe(EVENTS, after="MA")
        while len(told) < 100:
            events = (await socket.next(id))["data"]["jobEvents"]["events"]
            told += [each["message"] for each in events]
    assert told == [None] + [NOTE] * 99


async def test_a_dear_replay_is_told_also_to_who_uses_all_that_comes_back(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    settings = settings_for(database_url, tmp_path, rate_per_minute=60_000, max_cost=10_000)
    client = await aiohttp_client(create_app(settings))
    rates = client.app[RUNTIME].rates
    await noted(client, 90)

    async def use() -> None:
        while True:
            with suppress(RateLimited):
                rates.charge(ADMIN.budget, 50)
            await asyncio.sleep(0.02)

    using = asyncio.create_task(use())
    async with connected(client) as socket:
        id = await socket.subscribe(EVENTS, after="MA")
        told = (await socket.next(id))["data"]["jobEvents"]["events"]
        assert [each["message"] for each in told] == [None] + [NOTE] * 90
    using.cancel()


async def test_what_happens_after_a_dear_replay_waits_until_it_is_paid(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    settings = settings_for(database_url, tmp_path, rate_per_minute=60_000, max_cost=10_000)
    client = await aiohttp_client(create_app(settings))
    rates = client.app[RUNTIME].rates
    await noted(client, 90)
    rates.owe(ADMIN.budget, 3_000)
    async with connected(client) as socket:
        id = await socket.subscribe(EVENTS, after="MA")
        replayed = (await socket.next(id))["data"]["jobEvents"]
        assert len(replayed["events"]) == 91
        assert replayed["caughtUp"]
        assert rates.left(ADMIN.budget) == 0
        await noted(client, 0)
        told = await socket.next(id)
    assert [each["message"] for each in told["data"]["jobEvents"]["events"]] == [None]


async def test_looking_for_events_costs_though_none_is_found(slow: Client) -> None:
    query = """subscription { jobEvents(where: {name: {eq: "None of this name"}}) { cursor } }"""
    async with connected(slow) as socket:
        await socket.next(await socket.subscribe(query))
        rates = slow.app[RUNTIME].rates
        before = rates.left(ADMIN.budget) or 0
        await noted(slow, 1)
        await holds(lambda: rates.left(ADMIN.budget) in (before - 10, before - 20))


async def test_verifying_a_log_costs_for_each_entry(slow: Client) -> None:
    query, logs = "{ verifyAudit { checked } }", 2  # the audit log and the job's
    await noted(slow, 9)
    await answer(slow, query)  # now its document is known
    before = await left(slow)
    body = await answer(slow, query)
    entries = body["data"]["verifyAudit"]["checked"]
    assert entries >= 10
    assert before - await left(slow) - COST == 12 + 3 * (entries + logs)


async def left(client: Client) -> int:
    body: Json = {"query": VIEWER, "extensions": {"cost": True}}
    async with client.post("/graphql", json=body) as response:
        return (await response.json())["extensions"]["cost"]["remaining"]


async def test_a_rate_of_nought_is_no_limit(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    settings = settings_for(database_url, tmp_path, rate_per_minute=0)
    client = await aiohttp_client(create_app(settings))
    body: Json = {"query": VIEWER, "extensions": {"cost": True}}
    async with client.post("/graphql", json=body) as response:
        told = await response.json()
    assert told["extensions"]["cost"] == {
        "requested": COST,
        "maximum": 30_000,
        "remaining": None,
    }


# Failed authentications


@pytest.fixture
async def strict(database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient) -> Client:
    """A server on which an address may fail three times."""
    given: Json = {"auth_failures_per_minute": 3}
    return await aiohttp_client(create_app(settings_for(database_url, tmp_path, **given)))


async def test_an_address_that_fails_too_often_is_told_to_wait(
    strict: Client, database_url: str
) -> None:
    good = await make_key(database_url, "ada", Role.ADMIN)
    late = await make_key(database_url, "bob", Role.ADMIN)
    assert (await posted(strict, good))[0] == 200
    assert [(await posted(strict, f"signoff_{n}"))[0] for n in range(3)] == [401] * 3
    status, retry_after, body = await posted(strict, "signoff_4")
    assert (status, body["errors"][0]["extensions"]["code"]) == (429, "RATE_LIMITED")
    assert 1 <= int(retry_after) <= 20
    assert (await posted(strict, late))[0] == 200  # though it was never seen here before
    assert (await posted(strict, good))[0] == 200
    assert (await posted(strict, "signoff_6"))[0] == 429
    async with strict.ws_connect("/graphql", protocols=[PROTOCOL]) as socket:
        payload = {"Authorization": "Bearer signoff_5"}
        await socket.send_json({"type": "connection_init", "payload": payload})
        assert (await socket.receive()).data == 1013  # try again later
    async with connected(strict, payload={"Authorization": f"Bearer {good}"}) as socket:
        await socket.ping()


class Nobody(Gate):
    async def viewer(self, authorization: str | None, headers: Mapping[str, str]) -> Viewer:
        raise Unauthenticated("No.")


async def test_addresses_are_told_apart_by_what_their_holder_cannot_choose() -> None:
    assert network("203.0.113.7") == "203.0.113.7"
    assert network("::ffff:203.0.113.7") == "203.0.113.7"
    assert network("2001:db8:1:2:3:4:5:6") == network("2001:db8:1:2::1") == "2001:db8:1:2::/64"
    assert network("fe80::1%eth0") == "fe80::/64"
    attempts = Attempts(Nobody(local=True), Rates(60, burst=2, clock=Clock()))
    for address, error in (
        ("2001:db8::1", Unauthenticated),
        ("2001:db8::2", Unauthenticated),
        ("2001:db8::3", RateLimited),
        ("2001:db9::1", Unauthenticated),
    ):
        with pytest.raises(error):
            await attempts.viewer(None, {}, address)
