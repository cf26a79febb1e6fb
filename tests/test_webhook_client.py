"""Requests to webhooks: never to where they must not go, and never longer than they may take."""

from __future__ import annotations

import asyncio
import threading

import pytest

from services.webhooks.client import Answer, Outcome, WebhookClient
from tests.fakes.agents import FakeResolver, Received, fake_agent
from tests.support.hooks import takes
from tests.support.making import stalls

NOT_PUBLIC = (
    "The webhook's address is not on the public internet, so nothing was sent. "
    "Set SIGNOFF_ALLOW_PRIVATE_WEBHOOKS=true to allow webhooks in your own network."
)
NEVER = (
    "The webhook's address is a group's or a cloud's metadata service, never a webhook's, "
    "so nothing was sent."
)


async def post(client: WebhookClient, url: str, deadline: float = 5) -> Answer:
    return await client.post(url, {"webhook-id": "delivery_1"}, b"{}", deadline=deadline)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "0x7f000001", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "localhost"],
)
async def test_a_private_address_is_not_dialled_however_it_is_spelled(host: str) -> None:
    async with WebhookClient(allow_private=False) as client, fake_agent(takes) as endpoint:
        answer = await post(client, f"http://{host}:{endpoint.port}/")
        assert answer.outcome is Outcome.UNREACHABLE
        assert endpoint.connections == 0


async def test_a_name_that_leads_to_a_private_address_is_not_dialled() -> None:
    for address, allow_private, error in (
        ("127.0.0.1", False, NOT_PUBLIC),
        ("10.0.0.1", False, NOT_PUBLIC),
        ("169.254.169.254", True, NEVER),
    ):
        resolver = FakeResolver((address,))
        async with WebhookClient(allow_private=allow_private, resolver=resolver) as client:
            answer = await post(client, "http://example.com/")
        assert answer == Answer(Outcome.UNREACHABLE, error=error)


async def test_a_private_address_is_dialled_where_that_is_allowed() -> None:
    async with WebhookClient(allow_private=True) as client, fake_agent(takes) as endpoint:
        assert await post(client, endpoint.url) == Answer(Outcome.OK, 200)


async def test_a_redirect_is_not_followed() -> None:
    async with fake_agent(takes) as target:

        async def redirects(received: Received) -> None:
            await received.answer(b"", "307 Temporary Redirect", f"location: {target.url}")

        async with WebhookClient(allow_private=True) as client, fake_agent(redirects) as endpoint:
            answer = await post(client, endpoint.url)
        assert (answer.outcome, answer.status) == (Outcome.REDIRECTED, 307)
        assert target.connections == 0


async def test_an_endpoint_has_so_much_time_and_no_more() -> None:
    async def drips(received: Received) -> None:
        for byte in b"HTTP/1.1 200 OK\r\n" * 1000:
            await received.send(bytes([byte]))
            await asyncio.sleep(0.02)

    for behave in (stalls, drips):
        async with WebhookClient(allow_private=True) as client, fake_agent(behave) as endpoint:
            answer = await post(client, endpoint.url, 0.3)
            assert answer == Answer(Outcome.TIMEOUT, error="It did not answer in time.")
            await endpoint.all_closed()


async def test_a_name_that_is_not_there_is_said_so() -> None:
    resolver = FakeResolver(error=OSError("no such name"))
    async with WebhookClient(allow_private=False, resolver=resolver) as client:
        answer = await post(client, "http://nowhere.example/?token=t0ken")
    assert answer == Answer(Outcome.UNREACHABLE, error="Its host name could not be looked up.")


async def test_cookies_of_one_endpoint_are_sent_to_none() -> None:
    async def sets(received: Received) -> None:
        await received.answer(b"", "200 OK", "set-cookie: a=b")

    async with WebhookClient(allow_private=True) as client, fake_agent(sets) as endpoint:
        for _ in range(2):
            assert (await post(client, endpoint.url)).outcome is Outcome.OK
        assert ["cookie" in each.headers for each in endpoint.received] == [False, False]
        assert endpoint.connections == 1


async def test_names_are_looked_up_while_all_threads_of_the_loop_are_busy() -> None:
    let_go = threading.Event()
    loop = asyncio.get_running_loop()
    busy = [loop.run_in_executor(None, let_go.wait) for _ in range(100)]
    try:
        async with WebhookClient(allow_private=True) as client, fake_agent(takes) as endpoint:
            answer = await post(client, f"http://localhost:{endpoint.port}/")
        assert answer == Answer(Outcome.OK, 200)
    finally:
        let_go.set()
        await asyncio.gather(*busy)
