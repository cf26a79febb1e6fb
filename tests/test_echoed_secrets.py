"""An agent may send back what it was sent: our secrets are not kept and not shown."""

from __future__ import annotations

import html
import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from structlog.testing import capture_logs
from tortoise.models import Model

import models
from models import JobStatus
from services import agent_http
from services.agent_http import AgentCallFailed, AgentClient, AgentReply, AgentRequest
from services.judges.openai import OpenAIJudge
from services.redaction import MIN_BEGINNING, Secrets
from services.runtime import Runtime
from signoff import database
from tests.fakes import openai_server
from tests.fakes.agents import Behaviour, Received, fake_agent
from tests.support.graphql import SAYS_OK, Json, beside, finished_job, gql, mutate
from tests.support.hooks import make_hook
from tests.support.making import execute, make_agent, make_job
from tests.support.running import Client
from tests.test_llm_judge import failure

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


# However it is written

TOKENS = "S3cr/et+To/ken0123456789"
PASSWORD = 'p4ss&w0rd/of"ours'  # noqa: S105 made up
BASIC = b64encode(f"somebody:{PASSWORD}".encode()).decode()
SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "json": lambda text: json.dumps(text)[1:-1],
    "as PHP writes it": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    "unicode escapes": lambda text: "".join(f"\\u{ord(each):04X}" for each in text),
    "json in json": lambda text: json.dumps(json.dumps(text).replace("/", "\\/"))[1:-1],
    "python": lambda text: "".join(f"\\x{ord(each):02x}" for each in text),
    "percent": lambda text: quote(text, safe=""),
    "percent, lower case": lambda text: "".join(f"%{ord(each):02x}" for each in text),
    "percent twice": lambda text: quote(quote(text, safe=""), safe=""),
    "a form": lambda text: quote_plus(f"Bearer {text}"),
    "html": lambda text: html.escape(text).replace("/", "&sol;"),
    "html numbers": lambda text: "".join(f"&#{ord(each)};" for each in text),
    "html twice": lambda text: html.escape(html.escape(text)),
    "html hex in json": lambda text: "".join(f"\\u0026#x{ord(each):x};" for each in text),
    "a URL in json in html": lambda text: html.escape(json.dumps(quote(text))),
    "base64": lambda text: b64encode(text.encode()).decode(),
    "base64 in the midst": lambda text: urlsafe_b64encode(f"to {text} ...".encode()).decode(),
    "base64 further on": lambda text: b64encode(f"for {text} ...".encode()).decode(),
    "utf-16": lambda text: text.encode("utf-16-le").decode(),
}

JSON_STRINGS = {"json", "as PHP writes it", "unicode escapes", "html hex in json"}


def left(told: str, secret: str, spelling: str) -> set[str]:
    """Pieces of eight characters of it, as it is and as it is written."""
    written = SPELLINGS[spelling](secret)
    if spelling.startswith("base64 "):
        written = written[8:-8]  # what stands around it
    pieces = {text[at : at + 8] for text in (secret, written) for at in range(len(text) - 7)}
    return {each for each in pieces if each in told}


def request_to(url: str, secret: str, header: str) -> AgentRequest:
    return AgentRequest(
        url=url,
        body=b"{}",
        job_id="job_1",
        attempt_number=1,
        idempotency_key="key",
        signing_secret=secret,
        auth_header=header,
    )


ANSWERS = {
    "an error": ("{}", "500 Internal Server Error"),
    "a refusal": ("<p>{}</p>", "401 Unauthorized"),
    "a redirect": ("moved to {}", "302 Found"),
    "no JSON": ("Hello {}", "200 OK"),
}


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_no_spelling_in_an_explanation_is_kept(kind: str, spelling: str) -> None:
    text, status = ANSWERS[kind]
    own = agent_http.new_secret()
    secrets = [TOKENS, own] if kind != "a refusal" else [BASIC, PASSWORD]
    header = "Basic " + BASIC if kind == "a refusal" else "Bearer " + TOKENS

    async def behave(received: Received) -> None:
        told = " ".join(SPELLINGS[spelling](each) for each in secrets)
        await received.answer(text.format(told).encode(), status, f"Location: /{TOKENS}")

    async with fake_agent(behave) as endpoint, AgentClient(allow_private=True) as client:
        asked = request_to(endpoint.url, own, f"Authorization: {header}")
        with pytest.raises(AgentCallFailed) as failed:
            await client.call(asked, deadline=5)
    told = f"{failed.value.excerpt} {failed.value}"
    assert "[secret]" in told
    assert [left(told, each, spelling) for each in secrets] == [set(), set()]


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_no_spelling_in_an_output_is_kept(spelling: str) -> None:
    own = agent_http.new_secret()
    written = " ".join(SPELLINGS[spelling](each) for each in (TOKENS, own))
    echo = f'"{written}"' if spelling in JSON_STRINGS else json.dumps(written)

    async def behave(received: Received) -> None:
        await received.answer(f'["before", {echo}, "after \\"all\\""]'.encode())

    async with fake_agent(behave) as endpoint, AgentClient(allow_private=True) as client:
        asked = request_to(endpoint.url, own, f"X-Api-Key: {TOKENS}")
        reply = await client.call(asked, deadline=5)
    assert isinstance(reply, AgentReply)
    assert (reply.value[0], reply.value[-1]) == ("before", 'after "all"')
    for told in (reply.body.decode(), json.dumps(reply.value)):
        assert "[secret]" in told
        assert [left(told, each, spelling) for each in (TOKENS, own)] == [set(), set()]


@pytest.mark.parametrize("spelling", [each for each in SPELLINGS if "base64 " not in each])
def test_of_a_secret_that_is_cut_only_few_characters_are_left(spelling: str) -> None:
    hidden, write = Secrets([TOKENS]), SPELLINGS[spelling]
    text = "You sent " + write(TOKENS)
    whole, begun = write(TOKENS), write(TOKENS[:MIN_BEGINNING]) + " "
    few = next(n for n, (a, b) in enumerate(zip(whole, begun, strict=False)) if a != b)
    for end in range(len("You sent ") + few, len(text) + 1):
        told = hidden.out_of_excerpt(text[:end].encode()).decode()
        assert "[secret]" in told, (end, told)
        assert len(told) <= len("You sent Bearer+[secret]") + few, (end, told)


async def test_a_secret_at_the_end_of_an_excerpt_is_taken_out_before_it_is_cut() -> None:
    async def behave(received: Received) -> None:
        await received.answer(("x" * 1_990 + TOKENS * 900).encode(), "500 Oh")

    async with fake_agent(behave) as endpoint, AgentClient(allow_private=True) as client:
        asked = request_to(endpoint.url, agent_http.new_secret(), f"X-Api-Key: {TOKENS}")
        with pytest.raises(AgentCallFailed) as failed:
            await client.call(asked, deadline=5)
    assert failed.value.excerpt == "x" * 1_990 + "[secret][s"


async def test_an_explanation_does_not_tell_what_is_in_the_address() -> None:
    async def behave(received: Received) -> None:
        await received.answer(f"Cannot {received.start_line}".encode(), "404 Not Found")

    async with fake_agent(behave) as endpoint, AgentClient(allow_private=True) as client:
        url = f"{endpoint.url}?v=1&key={quote_plus(TOKENS)}"
        asked = request_to(url, agent_http.new_secret(), "X-Api-Key: other-key-of-ours")
        with pytest.raises(AgentCallFailed) as failed:
            await client.call(asked, deadline=5)
    assert failed.value.excerpt == "Cannot POST /run?v=1&key=[secret] HTTP/1.1"


def test_innocent_text_stays_as_it_is() -> None:
    text = b'{"a": "100% R&D &amp; \\u00e9\\/\\"", "b": "S3cr%2", "c": "&copy;"}'
    hidden = Secrets([TOKENS, "", "12345678"])
    assert hidden.out_of(text) == hidden.out_of_excerpt(text) == text
    assert hidden.out_of(b'{"n": 912345678.5}') == b'{"n": 911111111.5}'
    assert repr(hidden) == "<2 secrets>"


# Wherever it comes back


def told_in(*headers: str, status: str, body: str = "{}") -> Behaviour:
    async def behave(received: Received) -> None:
        await received.answer(body.encode(), status, *headers)

    return behave


PHP = SPELLINGS["as PHP writes it"](TOKENS)
FAILING = {
    "error": told_in(status="500 Oh", body=f'{{"error":"bad token {PHP}"}}'),
    "phrase": told_in(status=f"500 {TOKENS}"),
    "not JSON": told_in(status="200 OK", body=f"<p>{PHP}</p>"),
    "redirect": told_in(f"Location: https://example.com/{TOKENS}", status="307 Elsewhere"),
    "location": told_in(f"Location: /jobs?token={quote(TOKENS)}", status="202 Accepted"),
    "usage": told_in(f"Signoff-Cost-Usd: {TOKENS}", status="400 No"),
    "busy": told_in(f"Retry-After: {TOKENS}", status="503 Busy", body=PHP),
    "bad head": told_in(f"Content-Encoding: {TOKENS}", status="200 OK"),
}


@pytest.mark.parametrize("kind", FAILING)
async def test_no_part_of_an_answer_brings_a_secret_into_the_database(
    rt: Runtime, kind: str
) -> None:
    async with fake_agent(FAILING[kind]) as endpoint:
        agent = await make_agent(rt, endpoint.url, auth_header=f"Authorization: Bearer {TOKENS}")
        with capture_logs() as lines:
            job = await execute(rt, await make_job(rt, agent))
    assert job.status is JobStatus.RESUBMISSION_REQUIRED
    assert endpoint.received[0].headers["authorization"] == f"Bearer {TOKENS}"
    kept = await stored() + repr(lines)
    assert "AGENT_RESPONSE" in kept
    assert [left(kept, TOKENS, each) for each in ("plain", "as PHP writes it")] == [set()] * 2


async def test_what_a_receiver_echoes_is_not_kept(rt: Runtime) -> None:
    async def behave(received: Received) -> None:
        echo = f"{received.start_line} {secret}"
        await received.answer(
            echo.encode(), f"500 {secret}", f"Location: /{TOKENS}", "X: " + secret
        )

    secret = ""
    async with fake_agent(behave) as endpoint, fake_agent(FAILING["error"]) as agent:
        hook = await make_hook(rt, f"{endpoint.url}?token={quote(TOKENS)}")
        secret = hook.secret
        with capture_logs() as lines:
            await execute(rt, await make_job(rt, await make_agent(rt, agent.url)))
            [first, *_] = await hook.settled(3)
    assert quote(TOKENS) in endpoint.received[0].start_line
    assert (first.status_code, first.error) == (500, "It answered 500 Internal Server Error.")
    kept = await stored_of_webhooks() + repr(lines)
    for each in (TOKENS, secret.removeprefix("whsec_")):
        assert left(kept, each, "plain") | left(kept, each, "percent") == set()


async def stored_of_webhooks() -> str:
    tables: list[type[Model]] = [models.Webhook, models.WebhookDelivery, models.AuditEntry]
    return repr([await table.all().values() for table in tables])


@pytest.mark.parametrize("spelling", SPELLINGS)
async def test_what_the_judge_echoes_is_not_kept(spelling: str) -> None:
    said = SPELLINGS[spelling](TOKENS)
    behaviours = [
        openai_server.fails(401, "y" * 290 + said),
        openai_server.fails(500, said),
        openai_server.sends(said.encode(), "text/html"),
        openai_server.sends(b"x" * 1_990 + said.encode()),
        openai_server.sends(json.dumps({"status": said, "output": []}).encode()),
    ]
    async with openai_server.running() as server:
        judge = OpenAIJudge(TOKENS, server.base_url, "fake", max_retries=0)
        server.script.extend(behaviours)
        failures = [await failure(judge) for _ in behaviours]
        await judge.close()
    for failed in failures:
        told = f"{failed} {json.dumps(failed.raw)} {failed.raw}"
        assert left(told, TOKENS, spelling) == set()
    assert server.keys == [f"Bearer {TOKENS}"] * len(behaviours)
