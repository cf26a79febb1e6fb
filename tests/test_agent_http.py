from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import hmac
import json
import logging
import socket
import ssl
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.agent_http import (
    AgentCallFailed,
    AgentClient,
    AgentFault,
    AgentReply,
    AgentRequest,
    BadSignature,
    check_auth_header,
    check_endpoint_url,
    check_secret,
    connections,
    new_secret,
    sign,
    verify,
)
from services.agent_http.addresses import AddrInfo, Peer, allowed
from services.agent_http.answers import EXCERPT_SECONDS
from services.agent_http.failures import retry_after
from services.agent_http.headers import feedback_header
from tests.fakes.agents import FakeAgent, FakeResolver, Received, fake_agent

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
TOKEN = "tok-5f1c9e"  # noqa: S105 made up
AUTH = f"Authorization: Bearer {TOKEN}"
SETTING = "SIGNOFF_ALLOW_PRIVATE_AGENTS"


def request_to(url: str, body: bytes = b'{"n":1}') -> AgentRequest:
    return AgentRequest(
        url=url,
        body=body,
        job_id="job_1",
        attempt_number=2,
        idempotency_key="attempt-key-1",
        signing_secret=SECRET,
        auth_header=AUTH,
    )


@pytest.fixture
async def client() -> AsyncGenerator[AgentClient, None]:
    async with AgentClient(allow_private=True) as made:
        yield made


async def failure(
    client: AgentClient, request: AgentRequest, *, deadline: float = 5.0
) -> AgentCallFailed:
    with pytest.raises(AgentCallFailed) as caught:
        await client.call(request, deadline=deadline)
    return caught.value


async def called(client: AgentClient, request: AgentRequest) -> AgentReply:
    reply = await client.call(request, deadline=5)
    assert isinstance(reply, AgentReply)
    return reply


async def ok(received: Received) -> None:
    await received.answer(b'{"ok":true}')


def answering(body: bytes, status: str = "200 OK", *headers: str) -> Callable[..., Awaitable[None]]:
    async def behave(received: Received) -> None:
        await received.answer(body, status, *headers)

    return behave


# --- what is sent, what comes back


async def test_body_and_headers_are_sent_as_promised(client: AgentClient) -> None:
    async with fake_agent(ok) as agent:
        request = replace(request_to(agent.url), feedback=("Naïve → wrong", "b"))
        before = int(time.time())
        reply = await called(client, request)

    [received] = agent.received
    assert received.start_line == "POST /run HTTP/1.1"
    assert received.body == b'{"n":1}'
    timestamp = received.headers.pop("webhook-timestamp")
    assert before <= int(timestamp) <= time.time()
    mac = hmac.new(b"k" * 32, f"attempt-key-1.{timestamp}.".encode() + b'{"n":1}', hashlib.sha256)
    assert received.headers.pop("user-agent").startswith("signoff/")
    assert received.headers == {
        "host": f"127.0.0.1:{agent.port}",
        "content-type": "application/json",
        "accept": "application/json",
        "accept-encoding": "identity",
        "idempotency-key": "attempt-key-1",
        "signoff-job-id": "job_1",
        "signoff-attempt": "2",
        "webhook-id": "attempt-key-1",
        "webhook-signature": "v1," + base64.b64encode(mac.digest()).decode(),
        "signoff-feedback": '["Na\\u00efve \\u2192 wrong", "b"]',
        "authorization": f"Bearer {TOKEN}",
        "content-length": "7",
    }
    assert reply == AgentReply(200, b'{"ok":true}', {"ok": True}, reply.latency_ms)


async def test_no_feedback_and_no_auth_send_no_such_header(client: AgentClient) -> None:
    async with fake_agent(ok) as agent:
        await called(client, replace(request_to(agent.url), auth_header=None))
    assert "signoff-feedback" not in agent.received[0].headers
    assert "authorization" not in agent.received[0].headers


async def test_two_mebibytes_go_through_a_real_server(client: AgentClient) -> None:
    body = json.dumps("x" * 2_000_000).encode()

    async def handle(request: web.Request) -> web.Response:
        received = await request.read()
        verify(SECRET, request.headers, received, now=time.time())
        return web.json_response({"length": len(received)})

    app = web.Application(client_max_size=3_000_000)
    app.router.add_post("/run", handle)
    async with TestServer(app) as server:
        reply = await called(client, request_to(str(server.make_url("/run")), body))
    assert reply.value == {"length": 2_000_002}


async def test_latency_covers_the_whole_body(client: AgentClient) -> None:
    async def slowly(received: Received) -> None:
        await received.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{")
        await asyncio.sleep(0.1)
        await received.send(b"}")

    async with fake_agent(slowly) as agent:
        reply = await called(client, request_to(agent.url))
    assert 95 <= reply.latency_ms < 2000


# --- what a status means


@pytest.mark.parametrize(
    ("status", "fault", "executed", "transient"),
    [
        ("301 Moved Permanently", AgentFault.REDIRECTED, True, False),
        ("307 Temporary Redirect", AgentFault.REDIRECTED, True, False),
        ("400 Bad Request", AgentFault.REJECTED, True, False),
        ("401 Unauthorized", AgentFault.REJECTED, True, False),
        ("408 Request Timeout", AgentFault.SERVER_ERROR, True, False),
        ("429 Too Many Requests", AgentFault.BUSY, False, True),
        ("500 Internal Server Error", AgentFault.SERVER_ERROR, True, False),
        ("503 Service Unavailable", AgentFault.BUSY, True, True),
        ("599 Odd", AgentFault.SERVER_ERROR, True, False),
    ],
)
async def test_a_status_is_told_apart(
    client: AgentClient, status: str, fault: AgentFault, executed: bool, transient: bool
) -> None:
    async with fake_agent(answering(b"why", status)) as agent:
        failed = await failure(client, request_to(agent.url))
    assert (failed.fault, failed.may_have_executed, failed.transient) == (
        fault,
        executed,
        transient,
    )
    assert failed.http_status == int(status[:3])
    assert failed.excerpt == "why"
    assert failed.retry_after is None
    assert status[:3] in failed.message
    assert len(agent.received) == 1


async def test_503_with_retry_after_proves_that_nothing_ran(client: AgentClient) -> None:
    async with fake_agent(answering(b"", "503 Busy", "retry-after: 7")) as agent:
        failed = await failure(client, request_to(agent.url))
    assert (failed.may_have_executed, failed.retry_after, failed.excerpt) == (False, 7.0, None)
    assert failed.message == (
        "The agent answered 503 Service Unavailable. It is busy and asks to wait 7 seconds."
    )


NOON = datetime(2025, 11, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        ("0", 0.0),
        ("9" * 5000, 3600.0),
        (format_datetime(NOON + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOON - timedelta(seconds=90), usegmt=True), 0.0),
        (format_datetime(NOON + timedelta(days=9), usegmt=True), 3600.0),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("²", None),
    ],
)
def test_retry_after_is_read_and_capped(text: str, seconds: float | None) -> None:
    assert retry_after({"Retry-After": text}, now=NOON) == seconds


async def test_a_redirect_is_not_followed(client: AgentClient) -> None:
    async with fake_agent(ok) as target:
        moved = answering(b"", "308 Permanent Redirect", f"location: {target.url}")
        async with fake_agent(moved) as agent:
            failed = await failure(client, request_to(agent.url))
    assert failed.fault is AgentFault.REDIRECTED
    assert target.connections == 0


async def test_a_failure_with_an_endless_body_is_told_by_its_status(client: AgentClient) -> None:
    async def endless(received: Received) -> None:
        await received.send(b"HTTP/1.1 500 Oops\r\n\r\n")
        while True:
            await received.send(b"x" * 65536)

    async with fake_agent(endless) as agent:
        started = time.monotonic()
        failed = await failure(client, request_to(agent.url))
        assert time.monotonic() - started < EXCERPT_SECONDS
        await agent.all_closed()
    assert failed.fault is AgentFault.SERVER_ERROR
    assert failed.excerpt == "x" * 2000


async def test_a_failure_whose_body_stalls_keeps_status_and_beginning(client: AgentClient) -> None:
    async def stalling(received: Received) -> None:
        await received.send(
            b"HTTP/1.1 429 Busy\r\nretry-after: 3\r\ncontent-length: 100\r\n\r\nwait"
        )
        await received.stall()

    async with fake_agent(stalling) as agent:
        failed = await failure(client, request_to(agent.url), deadline=0.3)
    assert (failed.fault, failed.excerpt, failed.retry_after) == (AgentFault.BUSY, "wait", 3.0)
    assert failed.may_have_executed is False


# --- strict JSON


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \n",
        b"hello",
        b"<html></html>",
        b"NaN",
        b'{"a": Infinity}',
        b"[1e999]",
        b'"\xff"',
        b'"\\ud800"',
        b"\xef\xbb\xbf{}",
        b"{} {}",
        b"[" * 100_000,
        b"[" * 255 + b"]" * 255,
        b'{"a":' * 100_000,
        b"1" * 400,
    ],
    ids=lambda body: repr(body[:12]),
)
async def test_what_is_not_strict_json_is_refused(client: AgentClient, body: bytes) -> None:
    async with fake_agent(answering(body)) as agent:
        failed = await failure(client, request_to(agent.url))
    assert failed.fault is AgentFault.NOT_JSON
    assert failed.may_have_executed is True
    assert failed.transient is False
    assert failed.http_status == 200


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"null", None),
        (b'{"a":1,"a":2}', {"a": 2}),
        (b'"\\u0000"', "\x00"),
        (b"18446744073709551615", 18446744073709551615),
        (b"18446744073709551616", 18446744073709551616.0),
        (b"[" * 254 + b"]" * 254, None),
    ],
)
async def test_any_json_is_taken_whatever_its_content_type(
    client: AgentClient, body: bytes, value: object
) -> None:
    async with fake_agent(answering(body, "201 Created", "content-type: text/html")) as agent:
        reply = await called(client, request_to(agent.url))
    assert (reply.status, reply.body) == (201, body)
    if not body.startswith(b"["):
        assert reply.value == value
        assert type(reply.value) is type(value)


async def test_an_empty_answer_says_so(client: AgentClient) -> None:
    async def no_content(received: Received) -> None:
        await received.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with fake_agent(no_content) as agent:
        failed = await failure(client, request_to(agent.url))
    assert (failed.fault, failed.http_status) == (AgentFault.NOT_JSON, 204)
    assert failed.message == "The agent's answer is empty; it must be JSON."


async def test_a_compressed_answer_is_refused_and_not_inflated(client: AgentClient) -> None:
    bomb = gzip.compress(b"0" * 50_000_000)
    async with fake_agent(answering(bomb, "200 OK", "content-encoding: gzip")) as agent:
        failed = await failure(client, request_to(agent.url))
    assert failed.fault is AgentFault.NOT_JSON
    assert "accept-encoding: identity" in failed.message


async def test_a_compressed_failure_has_no_excerpt(client: AgentClient) -> None:
    body = gzip.compress(b"0" * 50_000_000)
    async with fake_agent(answering(body, "500 Oops", "content-encoding: gzip")) as agent:
        failed = await failure(client, request_to(agent.url))
    assert (failed.fault, failed.excerpt) == (AgentFault.SERVER_ERROR, None)


async def test_what_is_not_http_is_told(client: AgentClient) -> None:
    async def banner(received: Received) -> None:
        await received.send(b"220 mail.example.com ESMTP\r\n\r\n")

    async with fake_agent(banner) as agent:
        failed = await failure(client, request_to(agent.url))
    assert failed.fault is AgentFault.NOT_JSON
    assert failed.message == "The agent's answer is not valid HTTP."


# --- bounds


@pytest.mark.parametrize("chunked", [False, True])
async def test_reading_stops_at_the_cap(chunked: bool) -> None:
    sent = 0

    async def endless(received: Received) -> None:
        nonlocal sent
        await received.send(
            b"HTTP/1.1 200 OK\r\n"
            + (b"transfer-encoding: chunked\r\n" if chunked else b"")
            + b"\r\n"
        )
        while True:
            data = b"1" * 1000
            await received.send(b"3e8\r\n" + data + b"\r\n" if chunked else data)
            sent += len(data)

    async with (
        AgentClient(allow_private=True, max_response_bytes=10_000) as client,
        fake_agent(endless) as agent,
    ):
        failed = await failure(client, request_to(agent.url))
        await agent.all_closed()
    assert failed.fault is AgentFault.TOO_LARGE
    assert failed.message == "The agent's answer has more than 10000 bytes."
    assert sent < 50_000_000


async def test_the_cap_itself_is_allowed() -> None:
    async with (
        AgentClient(allow_private=True, max_response_bytes=10) as client,
        fake_agent(answering(b'"12345678"')) as exact,
        fake_agent(answering(b'"123456789"')) as over,
    ):
        assert (await called(client, request_to(exact.url))).value == "12345678"
        failed = await failure(client, request_to(over.url))
    assert failed.fault is AgentFault.TOO_LARGE


async def never(received: Received) -> None:
    await received.stall()


async def slow_headers(received: Received) -> None:
    await received.send(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        await received.send(b"a")
        await asyncio.sleep(0.02)


async def drip(received: Received) -> None:
    await received.send(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await received.send(b"1")
        await asyncio.sleep(0.02)


async def continues(received: Received) -> None:
    while True:
        await received.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("behave", [never, slow_headers, drip, continues])
async def test_one_deadline_over_everything(
    client: AgentClient, behave: Callable[[Received], Awaitable[None]]
) -> None:
    async with fake_agent(behave) as agent:
        started = time.monotonic()
        failed = await failure(client, request_to(agent.url), deadline=0.3)
        took = time.monotonic() - started
        await agent.all_closed()
    assert failed.fault is AgentFault.TIMEOUT
    assert (failed.may_have_executed, failed.transient) == (True, False)
    assert failed.message == "The agent did not answer completely within 0.3 seconds."
    assert 0.29 <= took < 2


async def test_the_deadline_covers_the_name_lookup() -> None:
    async with AgentClient(allow_private=True, resolver=FakeResolver(silent=True)) as client:
        started = time.monotonic()
        failed = await failure(client, request_to("http://agent.test/"), deadline=0.2)
    assert time.monotonic() - started < 2
    assert (failed.fault, failed.may_have_executed, failed.transient) == (
        AgentFault.UNREACHABLE,
        False,
        True,
    )


# --- whether the agent may have done it


def unused_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


async def test_a_refused_connection_proves_that_nothing_ran(client: AgentClient) -> None:
    failed = await failure(client, request_to(f"http://127.0.0.1:{unused_port()}/"))
    assert (failed.fault, failed.may_have_executed, failed.transient) == (
        AgentFault.UNREACHABLE,
        False,
        True,
    )
    assert failed.message == (
        "No connection to the agent. Is its server running at its endpoint URL?"
    )
    assert failed.http_status is None


@pytest.mark.parametrize(
    ("error", "transient"), [(socket.EAI_NONAME, False), (socket.EAI_AGAIN, True)]
)
async def test_an_unknown_name_proves_that_nothing_ran(error: int, transient: bool) -> None:
    resolver = FakeResolver(error=socket.gaierror(error, "x"))
    async with AgentClient(allow_private=True, resolver=resolver) as client:
        failed = await failure(client, request_to("http://agent.test/"))
    assert (failed.fault, failed.may_have_executed, failed.transient) == (
        AgentFault.UNREACHABLE,
        False,
        transient,
    )


async def test_a_tls_handshake_that_hangs_ends_at_the_connect_timeout() -> None:
    async with (
        AgentClient(allow_private=True, connect_timeout=0.2) as client,
        fake_agent(ok) as agent,
    ):
        started = time.monotonic()
        failed = await failure(client, request_to(agent.url.replace("http:", "https:")))
        assert time.monotonic() - started < 2
        await agent.all_closed()
    assert (failed.fault, failed.may_have_executed, failed.transient) == (
        AgentFault.UNREACHABLE,
        False,
        True,
    )
    assert agent.received == []


def self_signed(folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    file = folder / "server.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    return context


async def test_a_bad_certificate_is_refused_before_anything_is_sent(
    client: AgentClient, tmp_path: Path
) -> None:
    async with fake_agent(ok, tls=self_signed(tmp_path)) as agent:
        failed = await failure(client, request_to(agent.url))
    assert (failed.fault, failed.may_have_executed, failed.transient) == (
        AgentFault.UNREACHABLE,
        False,
        False,
    )
    assert failed.message == "The agent's TLS certificate is not valid for its address."
    assert agent.received == []


async def closing(received: Received) -> None:
    received.close()


async def resetting(received: Received) -> None:
    received.writer.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
    )
    received.close()


async def truncating(received: Received) -> None:
    await received.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{}")
    received.close()


@pytest.mark.parametrize("behave", [closing, resetting, truncating])
async def test_a_lost_connection_may_have_executed(
    client: AgentClient, behave: Callable[[Received], Awaitable[None]]
) -> None:
    async with fake_agent(behave) as agent:
        failed = await failure(client, request_to(agent.url))
    assert (failed.fault, failed.may_have_executed, failed.transient) == (
        AgentFault.DISCONNECTED,
        True,
        True,
    )
    assert len(agent.received) == 1


# --- connections


async def test_a_connection_is_used_again(client: AgentClient) -> None:
    async with fake_agent(ok) as agent:
        for _ in range(5):
            await called(client, request_to(agent.url))
    assert (len(agent.received), agent.connections) == (5, 1)


async def test_a_server_that_closes_after_each_answer_fails_no_call(client: AgentClient) -> None:
    async def once(received: Received) -> None:
        await received.answer(b"{}")
        received.close()

    async with fake_agent(once) as agent:
        for _ in range(50):
            await called(client, request_to(agent.url))
    assert agent.connections == 50


async def test_a_server_that_drops_reused_connections_fails_one_call_only(
    client: AgentClient,
) -> None:
    seen: set[asyncio.StreamWriter] = set()

    async def dropping(received: Received) -> None:
        if received.writer in seen:
            received.close()
            return
        seen.add(received.writer)
        await received.answer(b"{}")

    async with fake_agent(dropping) as agent:
        await called(client, request_to(agent.url))
        failed = await failure(client, request_to(agent.url))
        for _ in range(5):
            await called(client, request_to(agent.url))
    assert (failed.fault, failed.may_have_executed) == (AgentFault.DISCONNECTED, True)
    assert (agent.connections, len(agent.received)) == (6, 7)


@pytest.mark.parametrize("taken_in", [False, True])
async def test_unasked_bytes_are_never_the_answer_of_the_next_call(
    client: AgentClient, taken_in: bool
) -> None:
    late = asyncio.Event()
    sent = asyncio.Event()

    async def chatty(received: Received) -> None:
        await received.answer(b'"answer %d"' % len(agent.received))
        await late.wait()
        await received.answer(b'"poison"')
        sent.set()

    async with fake_agent(chatty) as agent, fake_agent(ok) as another:
        first = await called(client, request_to(agent.url))
        late.set()
        await sent.wait()
        if taken_in:  # a whole call to somebody else: the loop has read what had come
            await called(client, request_to(another.url))
        second = await called(client, request_to(agent.url))
    assert (first.value, second.value) == ("answer 1", "answer 2")
    assert agent.connections == 2


async def test_cookies_are_neither_kept_nor_sent(client: AgentClient) -> None:
    async with fake_agent(answering(b"{}", "200 OK", "set-cookie: a=b; Path=/")) as agent:
        for _ in range(2):
            await called(client, request_to(agent.url))
    assert ["cookie" in received.headers for received in agent.received] == [False, False]


async def test_proxies_of_the_environment_are_not_used(
    client: AgentClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_agent(ok) as agent, fake_agent(ok) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        await called(client, request_to(agent.url))
    assert (agent.connections, proxy.connections) == (1, 0)


async def test_cancelling_closes_the_connection(client: AgentClient) -> None:
    asked = asyncio.Event()

    async def stalling(received: Received) -> None:
        asked.set()
        await received.stall()

    async with fake_agent(stalling) as agent:
        task = asyncio.ensure_future(client.call(request_to(agent.url), deadline=60))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(agent.all_closed(), 5)


async def test_giving_up_does_not_wait_for_a_peer_that_reads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[socket.socket] = []

    def make(info: AddrInfo) -> socket.socket:
        made.append(socket.socket(info[0], info[1], info[2]))
        return made[-1]

    def unguarded(*, allow_private: bool, peer: Peer) -> Callable[[AddrInfo], socket.socket]:
        return make

    monkeypatch.setattr(connections, "guarded_sockets", unguarded)
    accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    server = await asyncio.start_server(lambda r, w: accepted.put_nowait((r, w)), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    body = b'"' + b"x" * 50_000_000 + b'"'

    async with AgentClient(allow_private=True) as client:
        failed = await failure(client, request_to(url, body), deadline=0.3)
        await asyncio.sleep(0)
        assert [sock.fileno() for sock in made] == [-1]

    _, writer = accepted.get_nowait()
    writer.close()
    server.close()
    assert failed.fault is AgentFault.TIMEOUT


async def test_many_calls_at_once_are_not_queued(client: AgentClient) -> None:
    together = asyncio.Barrier(150)

    async def meet(received: Received) -> None:
        await together.wait()
        await received.answer(b"{}")

    async with fake_agent(meet) as agent:
        calls = [client.call(request_to(agent.url), deadline=20) for _ in range(150)]
        assert len(await asyncio.gather(*calls)) == 150
    assert agent.connections == 150


# --- addresses

PRIVATE = [
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.0.1",
    "0.0.0.0",  # noqa: S104 that it is refused
    "100.64.0.1",
    "169.254.1.1",
    "198.18.0.1",
    "240.0.0.1",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "::ffff:127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "2001:0:53aa:64c::1",
    "2001:db8::1",
    "64:ff9b:1::1",
    "::7f00:1",
]
NEVER = [
    "224.0.0.1",
    "255.255.255.255",
    "ff02::1",
    "::ffff:224.0.0.1",
    "agent.test",
    "",
]
METADATA = {
    "most clouds": "169.254.169.254",
    "AWS, the name server": "169.254.169.253",
    "AWS, tasks": "169.254.170.2",
    "AWS, pods": "169.254.170.23",
    "Alibaba": "100.100.100.200",
    "Azure": "168.63.129.16",
    "Oracle": "192.0.0.192",
    "Scaleway": "169.254.42.42",
    "Tencent": "169.254.0.23",
    "Tencent, older": "169.254.10.10",
}
METADATA_V6 = {
    "AWS": "fd00:ec2::254",
    "AWS, pods": "fd00:ec2::23",
    "Google": "fd20:ce::254",
    "Oracle": "fd00:c1::a9fe:a9fe",
    "Scaleway": "fd00:42::42",
    "Alibaba": "fd00:100::100:200",
    "Akamai": "fd00:a9fe:a9fe::1",
    "OpenStack": "fe80::a9fe:a9fe",
    "OpenStack, with its zone": "fe80::a9fe:a9fe%eth0",
    "Google, in full": "FD20:00CE:0000:0000:0000:0000:0000:0254",
}
WRAPPED: dict[str, Callable[[int], int]] = {
    "mapped": lambda v4: 0xFFFF << 32 | v4,
    "compatible": lambda v4: v4,
    "translated": lambda v4: 0xFFFF << 48 | v4,
    "NAT64": lambda v4: 0x64FF9B << 96 | v4,
    "local NAT64": lambda v4: 0x64FF9B0001 << 80 | v4,
    "local NAT64, a network of its own": lambda v4: 0x64FF9B0001ABCD000000AB << 32 | v4,
    "local NAT64, 48 bits": lambda v4: 0x64FF9B0001 << 80 | v4 >> 16 << 64 | (v4 & 0xFFFF) << 40,
    "local NAT64, 56 bits": lambda v4: (
        0x64FF9B000100 << 72 | v4 >> 24 << 64 | (v4 & 0xFFFFFF) << 32
    ),
    "local NAT64, 64 bits": lambda v4: 0x64FF9B00010000 << 64 | v4 << 24,
    "6to4": lambda v4: 0x2002 << 112 | v4 << 80 | 1,
    "Teredo's client": lambda v4: 0x20010000 << 96 | 0x01020304 << 64 | v4 ^ 0xFFFFFFFF,
    "Teredo's server": lambda v4: 0x20010000 << 96 | v4 << 64 | 0x01020304 ^ 0xFFFFFFFF,
}
PUBLIC = [
    "8.8.8.8",
    "172.32.0.1",
    "100.128.0.1",
    "2606:4700::1",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_a_private_address_needs_the_setting(address: str) -> None:
    assert allowed(address, allow_private=False) is False
    assert allowed(address, allow_private=True) is True


@pytest.mark.parametrize("address", NEVER)
def test_some_addresses_are_never_dialled(address: str) -> None:
    assert allowed(address, allow_private=False) is False
    assert allowed(address, allow_private=True) is False


@pytest.mark.parametrize("address", [*METADATA.values(), *METADATA_V6.values()])
def test_metadata_services_are_never_dialled(address: str) -> None:
    assert allowed(address, allow_private=False) is False
    assert allowed(address, allow_private=True) is False


@pytest.mark.parametrize("wrapping", WRAPPED)
@pytest.mark.parametrize("address", METADATA.values())
def test_nor_is_one_in_an_address_of_ipv6(address: str, wrapping: str) -> None:
    wrapped = str(IPv6Address(WRAPPED[wrapping](int(IPv4Address(address)))))
    assert allowed(wrapped, allow_private=False) is False
    assert allowed(wrapped, allow_private=True) is False


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_a_wrapped_private_address_needs_the_setting(wrapping: str) -> None:
    wrapped = str(IPv6Address(WRAPPED[wrapping](int(IPv4Address("10.1.2.3")))))
    assert allowed(wrapped, allow_private=False) is False
    assert allowed(wrapped, allow_private=True) is True


def test_wrapped_addresses_are_those_of_the_standards() -> None:
    told = {name: str(IPv6Address(wrap(0xA9FEA9FE))) for name, wrap in WRAPPED.items()}
    assert told["local NAT64"] == "64:ff9b:1::a9fe:a9fe"
    assert told["local NAT64, 48 bits"] == "64:ff9b:1:a9fe:a9:fe00::"
    assert told["local NAT64, 56 bits"] == "64:ff9b:1:a9:fe:a9fe::"
    assert told["local NAT64, 64 bits"] == "64:ff9b:1:0:a9:fea9:fe00:0"
    assert told["6to4"] == "2002:a9fe:a9fe::1"


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_dialled(address: str) -> None:
    assert allowed(address, allow_private=False) is True


@pytest.fixture
async def guarded() -> AsyncGenerator[AgentClient, None]:
    async with AgentClient(allow_private=False) as made:
        yield made


@contextlib.asynccontextmanager
async def agent_everywhere() -> AsyncGenerator[FakeAgent, None]:
    """An agent on every address of this machine, IPv6 too."""
    agent = FakeAgent(ok)
    server = await asyncio.start_server(agent.serve, "::", 0, family=socket.AF_INET6)
    await server.start_serving()
    agent.port = server.sockets[0].getsockname()[1]
    both = socket.create_server(("0.0.0.0", agent.port), reuse_port=False)  # noqa: S104
    second = await asyncio.start_server(agent.serve, sock=both)
    try:
        yield agent
    finally:
        server.close()
        second.close()
        await agent.stop()


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "2130706433",
        "127.1",
        "127。0。0。1",
        "①②⑦.0.0.1",
        "0.0.0.0",  # noqa: S104 that it is refused
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "localhost",
        "localhost.",
        "LOCALHOST",
    ],
)
async def test_no_spelling_of_this_machine_is_dialled(guarded: AgentClient, host: str) -> None:
    async with agent_everywhere() as agent:
        failed = await failure(guarded, request_to(f"http://{host}:{agent.port}/"))
    assert (failed.fault, failed.may_have_executed, failed.transient) == (
        AgentFault.UNREACHABLE,
        False,
        False,
    )
    assert agent.connections == 0
    assert "127.0.0.1" not in failed.message


@pytest.mark.parametrize(
    "addresses",
    [
        ("127.0.0.1",),
        ("127.0.0.1", "127.0.0.2"),
        ("::1", "127.0.0.1"),
        ("10.0.0.1", "::ffff:127.0.0.1", "169.254.169.254"),
        ("64:ff9b::7f00:1", "2002:7f00:1::"),
    ],
)
async def test_a_name_that_leads_inside_is_not_dialled(addresses: tuple[str, ...]) -> None:
    async with (
        AgentClient(allow_private=False, resolver=FakeResolver(addresses)) as client,
        agent_everywhere() as agent,
    ):
        failed = await failure(client, request_to(f"http://agent.test:{agent.port}/"))
    assert agent.connections == 0
    assert failed.message == (
        "The agent's address is not on the public internet, so nothing was sent. "
        f"Set {SETTING}=true to allow agents in your own network."
    )


async def test_a_name_that_changes_to_an_inner_address_is_not_dialled() -> None:
    resolver = FakeResolver(("127.0.0.1",))
    async with (
        AgentClient(allow_private=True, resolver=resolver) as client,
        agent_everywhere() as agent,
    ):
        await called(client, request_to(f"http://agent.test:{agent.port}/"))
        resolver.addresses = ("169.254.169.254",)
        failed = await failure(client, request_to(f"http://other.test:{agent.port}/"))
    assert agent.connections == 1
    assert failed.message == (
        "The agent's address is a group's or a cloud's metadata service, never an agent's, "
        "so nothing was sent."
    )


async def test_with_the_setting_this_machine_is_dialled(client: AgentClient) -> None:
    async with agent_everywhere() as agent:
        for host in ("127.0.0.1", "localhost", "[::1]", "0.0.0.0"):  # noqa: S104
            reply = await called(client, request_to(f"http://{host}:{agent.port}/"))
            assert reply.value == {"ok": True}


async def test_a_host_that_cannot_be_a_name_is_unreachable(client: AgentClient) -> None:
    failed = await failure(client, request_to(f"http://{'a' * 70}.test/"))
    assert (failed.fault, failed.may_have_executed) == (AgentFault.UNREACHABLE, False)


@pytest.mark.parametrize(
    "url",
    [
        "https://agent.example.com/run",
        "http://agent.example.com:8080/run?x=1&y=a%20b",
        "https://bücher.example/run",
        "https://8.8.8.8/",
        "https://[2606:4700::1]/",
        "https://agent.example.com./@run",
    ],
)
def test_a_usable_endpoint_url_passes(url: str) -> None:
    check_endpoint_url(url, allow_private=False)


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("", "complete"),
        ("agent.example.com/run", "complete"),
        ("ftp://agent.example.com/", "complete"),
        ("file:///etc/passwd", "complete"),
        ("http:///run", "complete"),
        ("//agent.example.com/", "complete"),
        ("https://user:pw@agent.example.com/", "auth header"),
        ("https://@agent.example.com/", "auth header"),
        ("https://agent.example.com/#x", "fragment"),
        ("https://agent.example.com/#", "fragment"),
        ("https://agent.example.com/a b", "spaces"),
        ("https://agent.example.com/\r\nx: y", "spaces"),
        ("https://agent.example.com\\@x/", "backslashes"),
        ("https://agent.example.com:99999/", "Port"),
        ("https://agent.example.com:0/", "port"),
        ("https://[::1/", "cannot be read"),
        ("https://a..b/", "valid name"),
        ("https://" + "a" * 64 + ".com/", "valid name"),
        ("https://agent.example.com/" + "a" * 2000, "2000"),
        ("http://127.1/", "four numbers"),
        ("http://0x7f000001/", "four numbers"),
        ("http://2130706433/", "four numbers"),
        ("http://127。0。0。1/", SETTING),
        ("http://10.0.0.1/", SETTING),
        ("http://[::ffff:10.0.0.1]/", SETTING),
        ("http://localhost:8000/", SETTING),
        ("http://agent.LOCALHOST./", SETTING),
    ],
)
def test_an_endpoint_url_that_cannot_work_is_refused(url: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        check_endpoint_url(url, allow_private=False)


def test_with_the_setting_an_inner_endpoint_url_passes() -> None:
    for host in ("localhost:8000", "10.0.0.1", "[::1]:9"):
        check_endpoint_url(f"http://{host}/", allow_private=True)
    with pytest.raises(ValueError, match="metadata"):
        check_endpoint_url("http://169.254.169.254/", allow_private=True)


# --- secrets


async def test_no_secret_is_told(client: AgentClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def echo(received: Received) -> None:
        head = "\n".join(f"{k}: {v}" for k, v in received.headers.items())
        await received.answer(f"{SECRET} {head}".encode(), "500 Oops")

    behaviours = [echo, closing, truncating, answering(TOKEN.encode()), answering(b"", "302 Found")]
    told: list[str] = [repr(request_to("http://agent.test/"))]
    for behave in behaviours:
        async with fake_agent(behave) as agent:
            failed = await failure(client, request_to(agent.url))
        told += ["".join(traceback.format_exception(failed)), repr(vars(failed)), repr(failed.args)]
        assert failed.__context__ is None
    for text in [*told, caplog.text]:
        assert TOKEN not in text
        assert SECRET not in text


async def test_unusable_settings_are_told_without_the_secret(client: AgentClient) -> None:
    request = request_to("http://127.0.0.1:1/")
    for broken in (
        replace(request, auth_header=f"X: {TOKEN}\r\nb: c"),
        replace(request, signing_secret=TOKEN),
    ):
        failed = await failure(client, broken)
        assert (failed.fault, failed.may_have_executed) == (AgentFault.UNREACHABLE, False)
        assert failed.message.startswith("The agent's settings cannot be used.")
        assert TOKEN not in "".join(traceback.format_exception(failed))


# --- signatures


def test_a_signature_is_the_one_of_the_standard() -> None:
    # The example of the reference implementations of Standard Webhooks.
    headers = sign(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        timestamp=1614265330,
        body=b'{"test": 2432232314}',
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_verify_accepts_only_what_was_signed_lately_with_the_secret() -> None:
    headers = sign(SECRET, id="a", timestamp=1000, body=b"{}")
    other = sign(new_secret(), id="a", timestamp=1000, body=b"{}")["webhook-signature"]
    both = headers | {"webhook-signature": f"{other} {headers['webhook-signature']}"}
    verify(SECRET, headers, b"{}", now=1300)
    verify(SECRET, {name.title(): value for name, value in both.items()}, b"{}", now=700)

    wrong: list[tuple[dict[str, str], bytes, float]] = [
        (headers, b"{} ", 1000),
        (headers, b"{}", 1301),
        (headers, b"{}", 699),
        (headers | {"webhook-id": "b"}, b"{}", 1000),
        (headers | {"webhook-timestamp": "1001"}, b"{}", 1000),
        (headers | {"webhook-timestamp": "²"}, b"{}", 1000),
        (headers | {"webhook-timestamp": "9" * 5000}, b"{}", 1000),
        (headers | {"webhook-signature": other}, b"{}", 1000),
        (headers | {"webhook-signature": headers["webhook-signature"][3:]}, b"{}", 1000),
        (headers | {"webhook-signature": "v1,\udcff é"}, b"{}", 1000),
        (headers | {"webhook-id": "\udcff"}, b"{}", 1000),
        ({}, b"{}", 1000),
    ]
    for given, body, now in wrong:
        with pytest.raises(BadSignature):
            verify(SECRET, given, body, now=now)


def test_secrets_are_checked() -> None:
    first, second = new_secret(), new_secret()
    assert first != second
    check_secret(first)
    check_secret("whsec_" + base64.b64encode(b"x" * 24).decode())
    check_secret("whsec_" + base64.b64encode(b"x" * 64).decode())
    for text in (
        "",
        "whsec_",
        first.removeprefix("whsec_"),
        "whsec_not base64!",
        "whsec_é",
        "whsec_" + base64.b64encode(b"x" * 23).decode(),
        "whsec_" + base64.b64encode(b"x" * 65).decode(),
    ):
        with pytest.raises(ValueError, match="24 to 64 random bytes"):
            check_secret(text)


# --- header lines


@pytest.mark.parametrize(
    "line", ["Authorization: Bearer x", "X-Api-Key:abc", "cookie: a=b; c=d", "x: a:b\tc"]
)
def test_a_usable_auth_header_passes(line: str) -> None:
    check_auth_header(line)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Bearer hunter2",
        ": hunter2",
        "X:",
        "X: ",
        "X Y: hunter2",
        "X : hunter2",
        "X: hunter2\r\nHost: evil",
        "X: hunter2\n",
        "X\n: hunter2",
        "X: hunter2\x00",
        "X: hunter2\x7f",
        "X: hunter2 ä",
        "X: hunter2 €",
        "Ä: hunter2",
        "X: hunter2" + "x" * 5000,
        "Host: hunter2",
        "content-LENGTH: 2",
        "Transfer-Encoding: hunter2",
        "Connection: hunter2",
        "Content-Type: hunter2",
        "Idempotency-Key: hunter2",
        "Webhook-Id: hunter2",
        "Signoff-Anything: hunter2",
    ],
)
def test_an_unusable_auth_header_is_refused_without_quoting_it(line: str) -> None:
    with pytest.raises(ValueError, match="header") as caught:
        check_auth_header(line)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("items", "kept"),
    [
        (["a", "b"], ["a", "b"]),
        (["a\r\n\x00\x7f"], ["a\r\n\x00\x7f"]),
        (["x" * 10_000], ["x" * 6132 + "…"]),
        (["x" * 6138, "y"], ["x" * 6138]),
        (["x" * 6000, "y" * 200, "z"], ["x" * 6000, "y" * 128 + "…"]),
        (["😀" * 1000], ["😀" * 511 + "…"]),
    ],
)
def test_feedback_fits_a_header(items: list[str], kept: list[str]) -> None:
    header = feedback_header(items)
    assert json.loads(header) == kept
    assert len(header) <= 6144
    assert all(" " <= character <= "~" for character in header)


async def test_the_longest_feedback_reaches_an_ordinary_server(client: AgentClient) -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.json_response(len(json.loads(request.headers["signoff-feedback"])[0]))

    app = web.Application()
    app.router.add_post("/run", handle)
    async with TestServer(app) as server:
        request = replace(request_to(str(server.make_url("/run"))), feedback=("x" * 10_000,))
        reply = await called(client, request)
    assert reply.value == 6133
