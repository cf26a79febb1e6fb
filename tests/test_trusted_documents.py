"""A server that was given its documents runs these, and nothing else, on any transport."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from models import Role
from signoff.app import RUNTIME, VIEW, create_app
from signoff.guarding import Guard
from signoff.wiring import BadSettings
from tests.support import commands
from tests.support.browser import WatchedPage
from tests.support.graphql import Json, make_key
from tests.support.making import holds, make_job
from tests.support.running import AiohttpClient, Client, settings_for
from tests.support.sockets import connected

VIEWER = "query Me {\n  viewer { id }\n}\n"
CREATE = """mutation Create($input: CreateJobInput!) {
  createJob(input: $input) { __typename }
}"""
CHANGES = "subscription Changes { jobStatusChanged { cursor } }"
COUNT = "{ jobs { totalCount } }"
STRANGE = "{ viewer { name } }"
INPUT = {"name": "x", "acceptanceCriteria": {"text": "y"}}


@pytest.fixture
def database_kind() -> str:
    """None of this depends on the database."""
    return "sqlite"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    (folder / "deeper").mkdir(parents=True)
    (folder / "viewer.graphql").write_text(VIEWER)
    (folder / "deeper" / "changes.graphql").write_text(CHANGES)
    (folder / "relay.json").write_text(json.dumps({"5bac2e9f": CREATE}))
    apollo = {
        "format": "apollo-persisted-query-manifest",
        "version": 1,
        "operations": [{"id": digest(COUNT), "name": "Count", "type": "query", "body": COUNT}],
    }
    (folder / "deeper" / "apollo.json").write_text(json.dumps(apollo))
    return folder


@pytest.fixture
async def given(
    database_url: str, tmp_path: Path, folder: Path, aiohttp_client: AiohttpClient
) -> Client:
    settings = settings_for(database_url, tmp_path, trusted_documents=folder)
    return await aiohttp_client(create_app(settings))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


async def post(client: Client, body: Json, **headers: str) -> tuple[int, Json]:
    async with client.post("/graphql", json=body, headers=headers) as response:
        return response.status, await response.json()


def named(text: str) -> list[Json]:
    """The ways to ask for a document without its text."""
    persisted = {"persistedQuery": {"version": 1, "sha256Hash": digest(text)}}
    return [
        {"documentId": f"sha256:{digest(text)}"},
        {"documentId": digest(text)},
        {"extensions": persisted},
        {"query": "", "extensions": persisted},
        {"query": None, "documentId": f"sha256:{digest(text)}"},
    ]


async def test_documents_are_run_by_their_names_and_by_their_text(given: Client) -> None:
    for body in [{"query": VIEWER}, *named(VIEWER)]:
        assert await post(given, body) == (200, {"data": {"viewer": {"id": "local"}}}), body
    made = {"data": {"createJob": {"__typename": "Job"}}}
    for body in [{"query": CREATE}, {"documentId": "5bac2e9f"}, *named(CREATE)]:
        assert await post(given, body | {"variables": {"input": INPUT}}) == (200, made), body
    for body in named(COUNT):
        assert await post(given, body) == (200, {"data": {"jobs": {"totalCount": 7}}})
    params = {"documentId": f"sha256:{digest(VIEWER)}"}
    async with given.get("/graphql", params=params) as response:
        assert await response.json() == {"data": {"viewer": {"id": "local"}}}
    params = {"documentId": f"sha256:{digest(CREATE)}", "variables": json.dumps({"input": INPUT})}
    async with given.get("/graphql", params=params) as response:
        assert response.status == 405


async def test_nothing_else_is_run(given: Client) -> None:
    untrusted: list[Json] = [
        {"query": STRANGE},
        {"query": VIEWER.strip()},  # not a character may differ
        {"query": VIEWER + " "},
        {"query": CREATE + CREATE.replace("Create(", "Other("), "operationName": "Other"},
        {"query": STRANGE, "documentId": f"sha256:{digest(VIEWER)}"},
        {"query": STRANGE, "extensions": {"persistedQuery": {"sha256Hash": digest(VIEWER)}}},
        {"query": "{ __schema { queryType { name } } }"},
        {"query": "{"},
        {"documentId": "sha256:" + digest(STRANGE)},
        {"documentId": "viewer.graphql"},
        {"documentId": "../viewer"},
        {"documentId": digest(VIEWER).upper()},
        {"extensions": {"persistedQuery": {"sha256Hash": digest(STRANGE)}}},
    ]
    for body in untrusted:
        given_too = {"variables": {"input": INPUT}}
        for accept, expected in (
            ("application/json", {200, 400}),
            ("application/graphql-response+json", {400}),
        ):
            status, answer = await post(given, body | given_too, Accept=accept)
            (error,) = answer["errors"]
            assert status in expected, body
            assert error["extensions"] == {"code": "UNTRUSTED_DOCUMENT"}, body
            assert "data" not in answer
    assert await post(given, {"query": COUNT}) == (200, {"data": {"jobs": {"totalCount": 0}}})


async def test_the_same_on_a_websocket_and_in_a_stream(given: Client) -> None:
    async with connected(given) as socket:

        async def asked(id: str, payload: Json) -> Json:
            await socket.send({"id": id, "type": "subscribe", "payload": payload})
            return await socket.receive()

        for n, body in enumerate(named(VIEWER)):
            message = await asked(f"ok{n}", body)
            assert message["payload"] == {"data": {"viewer": {"id": "local"}}}
            assert (await socket.receive())["type"] == "complete"
        for n, body in enumerate([{"query": STRANGE}, *named(STRANGE)]):
            message = await asked(f"no{n}", body)
            assert message["type"] == "error"
            assert message["payload"][0]["extensions"] == {"code": "UNTRUSTED_DOCUMENT"}
        await socket.ping()
    headers = {"Accept": "text/event-stream"}
    for body in [{"query": STRANGE}, *named(STRANGE)]:
        async with given.post("/graphql", json=body, headers=headers) as response:
            assert b"UNTRUSTED_DOCUMENT" in await response.read()
    async with given.post("/graphql", json=named(VIEWER)[0], headers=headers) as response:
        assert b'{"data":{"viewer":{"id":"local"}}}' in await response.read()


async def test_a_subscription_by_its_id_is_shared_with_the_same_by_its_text(given: Client) -> None:
    hub = given.app[VIEW].hub
    bodies: list[Json] = [{"query": CHANGES}, *named(CHANGES)]
    async with connected(given) as socket:
        for n, body in enumerate(bodies):
            await socket.send({"id": str(n), "type": "subscribe", "payload": body})
        await holds(lambda: (hub.subscribers, hub.groups) == (len(bodies), 1))
        await make_job(given.app[RUNTIME])
        told = [await socket.receive() for _ in bodies]
        assert {each["id"] for each in told} == {str(n) for n in range(len(bodies))}
        assert [each["payload"] for each in told] == [told[0]["payload"]] * len(bodies)
        assert "errors" not in told[0]["payload"]


async def test_a_server_without_documents_says_so(client: Client) -> None:
    for body in named(VIEWER):
        status, answer = await post(client, body)
        assert (status, answer["errors"][0]["extensions"]["code"]) == (400, "UNTRUSTED_DOCUMENT")
        assert "send the query itself" in answer["errors"][0]["message"]
    both = {"query": VIEWER, "extensions": {"persistedQuery": {"sha256Hash": digest(STRANGE)}}}
    assert await post(client, both) == (200, {"data": {"viewer": {"id": "local"}}})


async def test_a_caller_needs_a_key_and_the_role_all_the_same(
    given: Client, database_url: str
) -> None:
    key = await make_key(database_url, "v", Role.VIEWER)
    assert (await post(given, {"query": VIEWER}))[0] == 401
    body = {"documentId": "5bac2e9f", "variables": {"input": INPUT}}
    refused = {"data": {"createJob": {"__typename": "Forbidden"}}}
    assert await post(given, body, Authorization=f"Bearer {key}") == (200, refused)


# At the start


def guard(folder: Path, **changes: Any) -> Guard:
    settings = settings_for("sqlite://unused.db", folder, trusted_documents=folder, **changes)
    return Guard.of(settings)


def test_what_is_there_is_counted_once(folder: Path) -> None:
    (folder / "again.graphql").write_text(VIEWER)
    found = guard(folder).trusted
    assert found is not None
    assert found.count == 4


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("bad.graphql", "{ nothing }", "bad.graphql: Cannot query field 'nothing'"),
        ("bad.graphql", "{ viewer {", "bad.graphql: Syntax Error"),
        ("bad.graphql", "", "bad.graphql: Syntax Error"),
        ("bad.graphql", b"\xff", "bad.graphql cannot be read"),
        ("bad.json", "{", "bad.json is not JSON"),
        ("bad.json", "[]", "bad.json is no manifest"),
        ("bad.json", '{"a": 1}', "bad.json is no manifest"),
        ("bad.json", '{"operations": [{"id": "a"}]}', "bad.json is no manifest"),
        ("bad.json", '{"operations": [1]}', "bad.json is no manifest"),
        ("bad.json", '{"abc": "{ nothing }"}', "bad.json: abc: Cannot query field 'nothing'"),
        ("bad.json", '{"5bac2e9f": "{ viewer { id } }"}', "another document has the same key"),
        ("long.graphql", "{ viewer { id } } #" + "a" * 70_000, "long.graphql: This has 70019 cha"),
        ("bad.graphql", "{ " + "viewer { id } " * 40 + "}", "bad.graphql: This has 31 times"),
    ],
)
def test_what_cannot_be_used_stops_the_start_with_its_name(
    folder: Path, name: str, content: str | bytes, told: str
) -> None:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(BadSettings) as refused:
        guard(folder)
    assert told in str(refused.value)


def test_a_folder_without_documents_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"has no \*\.graphql file and no JSON manifest"):
        guard(tmp_path)
    with pytest.raises(BadSettings, match="there is no folder"):
        guard(tmp_path / "missing")


async def test_serve_refuses_to_start_with_a_bad_document(tmp_path: Path, folder: Path) -> None:
    (folder / "bad.graphql").write_text("{ nothing }")
    code, _, err = await commands.run(
        tmp_path, commands.environment(), "serve", "--port", "0", "--trusted-documents", str(folder)
    )
    assert code == 1
    assert err.splitlines() == [
        f"signoff: {folder}/bad.graphql: Cannot query field 'nothing' on type 'Query'."
    ]


async def test_serve_runs_the_documents_of_a_folder(tmp_path: Path, folder: Path) -> None:
    arguments = ("serve", "--port", "0", "--trusted-documents", str(folder))
    async with commands.process(tmp_path, commands.environment(), *arguments) as server:
        lines = await commands.until_line(server, "  Documents")
    assert lines[-1] == f"  Documents  only those in {folder} are run"


async def test_graphiql_says_why_it_has_no_schema(given: Client, browser_page: WatchedPage) -> None:
    await browser_page.page.goto(str(given.make_url("/graphiql")))
    result = browser_page.page.locator(".result-window")
    await result.get_by_text("UNTRUSTED_DOCUMENT").first.wait_for()
    assert browser_page.foreign == []
