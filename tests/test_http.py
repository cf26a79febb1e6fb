"""What the HTTP side takes and refuses, before any operation."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import structlog
from graphql import build_client_schema, get_introspection_query
from tortoise import connections
from yarl import URL

from schema import sdl
from signoff import database, logs
from signoff.app import create_app
from signoff.asked import encoded
from tests.support.graphql import Json, answer, beside, gql, mutation, new_job, post
from tests.support.running import AiohttpClient, Client, settings_for

VIEWER = '{"query": "{ viewer { id } }"}'
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def database_kind() -> str:
    """None of this depends on the database, but where a test says so."""
    return "sqlite"


async def sent(
    client: Client, body: str | bytes, headers: dict[str, str] | None = None
) -> tuple[int, Json]:
    data = body.encode() if isinstance(body, str) else body
    async with client.post("/graphql", data=BytesIO(data), headers=JSON | (headers or {})) as got:
        assert got.content_type == "application/json"
        return got.status, await got.json()


def code(body: Json) -> str:
    (error,) = body["errors"]
    assert error["message"]
    return error["extensions"]["code"]


# The request


async def test_a_post_is_exactly_json(client: Client) -> None:
    for kind in ("application/json", "application/json; charset=utf-8", "application/json ;x=y"):
        assert await sent(client, VIEWER, {"Content-Type": kind}) == (
            200,
            {"data": {"viewer": {"id": "local"}}},
        )
    for kind in (
        "text/plain",
        "text/plain; x=application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=application/json",
        "application/jsonp",
        "application/graphql",
        "",
    ):
        status, body = await sent(client, VIEWER, {"Content-Type": kind})
        assert (status, code(body)) == (415, "VALIDATION"), kind


async def test_a_get_may_query_but_never_change(client: Client) -> None:
    async with client.get("/graphql", params={"query": "{ viewer { id } }"}) as got:
        assert (got.status, await got.json()) == (200, {"data": {"viewer": {"id": "local"}}})
    query = "query($id: ID!) { node(id: $id) { id } }"
    params = {"query": query, "variables": '{"id": "x"}'}
    async with client.get("/graphql", params=params) as got:
        assert await got.json() == {"data": {"node": None}}
    given = {"input": {"name": "x", "acceptanceCriteria": {"text": "y"}}}
    params = {"query": mutation("createJob"), "variables": json.dumps(given)}
    async with client.get("/graphql", params=params) as got:
        assert (got.status, got.content_type) == (405, "application/json")
        assert (got.headers["Allow"], code(await got.json())) == ("POST", "HTTP_405")
    both = {
        "query": f"query A {{ viewer {{ id }} }} {mutation('createJob')}",
        "operationName": "B",
        "variables": json.dumps(given),
    }
    both["query"] = both["query"].replace("mutation(", "mutation B(")
    async with client.get("/graphql", params=both) as got:
        assert got.status == 405
    assert (await gql(client, "{ jobs { totalCount } }"))["jobs"]["totalCount"] == 0


async def test_a_body_has_so_many_arrays_and_objects(client: Client) -> None:
    rows = "[]," * 50_000
    given = f'{{"query": "{{ viewer {{ id }} }}", "variables": {{"x": [{rows} 1]}}}}'
    status, body = await sent(client, given)
    assert (status, code(body)) == (400, "VALIDATION")
    assert body["errors"][0]["message"] == "This has more than 50000 arrays and objects."


async def test_the_name_of_an_operation_has_at_most_256_characters(client: Client) -> None:
    for length, told in ((256, "GRAPHQL_ERROR"), (257, "VALIDATION")):
        asked = json.dumps({"query": "{ viewer { id } }", "operationName": "x" * length})
        status, body = await sent(client, asked)
        assert (status, code(body)) == (400, told)


async def test_nothing_else_may_be_expected_than_to_go_on(client: Client) -> None:
    status, body = await sent(client, VIEWER, {"Expect": "x"})
    assert (status, code(body)) == (417, "HTTP_417")
    status, body = await sent(client, VIEWER, {"Expect": "100-Continue"})
    assert (status, body) == (200, {"data": {"viewer": {"id": "local"}}})
    for path in ("/", "/healthz", "/graphiql", "/callbacks/x", "/nowhere"):
        for method in ("GET", "POST"):
            async with client.request(method, path, headers={"Expect": "x"}) as got:
                assert (got.status, got.content_type) == (417, "application/json"), path
                assert code(await got.json()) == "HTTP_417"
                assert got.headers["X-Content-Type-Options"] == "nosniff"


async def test_bad_variables_in_a_get_are_a_client_error(client: Client) -> None:
    for name in ("variables", "extensions"):
        for value in ("{", "[1]", "7", '"x"', "null", "[" * 2_000):
            params = {"query": "{ viewer { id } }", name: value}
            async with client.get("/graphql", params=params) as got:
                body = await got.json()
                assert got.status in {200, 400}, (name, value)
                if got.status == 400:
                    assert code(body)
    async with client.get("/graphql") as got:
        assert (got.status, code(await got.json())) == (400, "VALIDATION")


async def test_pages_of_other_sites_are_refused(client: Client) -> None:
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": f"http://127.0.0.1:{client.port}"},
    ):
        status, body = await sent(client, VIEWER, headers)
        assert (status, code(body)) == (403, "FORBIDDEN"), headers
        async with client.get(
            "/graphql", params={"query": "{ viewer { id } }"}, headers=headers
        ) as got:
            assert got.status == 403
        with pytest.raises(Exception, match="403"):
            await client.ws_connect("/graphql", headers=headers)
    for headers in (
        {"Origin": f"http://127.0.0.1:{client.port}"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
    ):
        assert (await sent(client, VIEWER, headers))[0] == 200


async def test_without_keys_only_this_machine_by_its_own_name_is_let_in(client: Client) -> None:
    for host in ("localhost", "127.0.0.1", "127.0.0.2:1", "[::1]:80", "a.localhost"):
        assert (await sent(client, VIEWER, {"Host": host}))[0] == 200, host
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1"):
        status, body = await sent(client, VIEWER, {"Host": host})
        assert (status, code(body)) == (401, "UNAUTHENTICATED"), host


async def test_an_authorization_that_is_no_bearer_is_refused(client: Client) -> None:
    for value in ("Basic YTpi", "Bearer", "Bearer ", "bearer x", "signoff_x", "Bearer \u00e9"):
        async with client.post(
            "/graphql", data=VIEWER.encode(), headers=JSON | {"Authorization": value}
        ) as got:
            assert (got.status, code(await got.json())) == (401, "UNAUTHENTICATED"), value
            assert got.headers["WWW-Authenticate"] == "Bearer"


PLAIN, MODERN = "application/json", "application/graphql-response+json"


async def typed(client: Client, accept: str | None, query: str) -> tuple[int, str, Json]:
    headers = {} if accept is None else {"Accept": accept}
    body = {"query": query}
    skipped = ("Accept",) if accept is None else ()
    async with client.post(
        "/graphql", json=body, headers=headers, skip_auto_headers=skipped
    ) as got:
        assert got.charset == "utf-8"
        return got.status, got.content_type, await got.json()


async def test_the_answers_type_is_what_the_client_likes_best(client: Client) -> None:
    for accept, kind in (
        (None, PLAIN),
        ("", PLAIN),
        ("*/*", PLAIN),
        ("application/*", PLAIN),
        (PLAIN, PLAIN),
        (MODERN, MODERN),
        (MODERN.upper(), MODERN),
        (f"{MODERN}; charset=utf-8", MODERN),
        (f"{MODERN}, {PLAIN};q=0.9", MODERN),
        (f"{PLAIN};q=0.9, {MODERN}", MODERN),
        (f"{PLAIN}, {MODERN}", PLAIN),
        (f"{MODERN}, {PLAIN}, text/event-stream, multipart/mixed", MODERN),
        (f"{PLAIN};q=0, */*", MODERN),
        ("text/html, application/xhtml+xml, */*;q=0.8", PLAIN),
        (f"text/html, {MODERN};q=0.1", MODERN),
    ):
        found = await typed(client, accept, "{ viewer { id } }")
        assert found == (200, kind, {"data": {"viewer": {"id": "local"}}}), accept


async def test_what_cannot_be_answered_so_is_406(client: Client) -> None:
    for accept in (
        "text/html",
        "image/*",
        "multipart/mixed",
        f"{PLAIN};q=0",
        f"{PLAIN};q=x",
        f"{PLAIN}; charset=latin-1",
        "*/*;q=0",
        "nonsense",
    ):
        status, kind, body = await typed(client, accept, "{ viewer { id } }")
        assert (status, kind, code(body)) == (406, PLAIN, "HTTP_406"), accept
    for accept in ("text/event-stream", "text/html"):
        params = {"query": "{ viewer { id } }"}
        async with client.get("/graphql", params=params, headers={"Accept": accept}) as got:
            assert (got.status, code(await got.json())) == (406, "HTTP_406")


async def test_a_subscription_is_streamed_to_who_takes_streams(client: Client) -> None:
    query = "subscription { jobStatusChanged { cursor } }"
    for accept in ("text/event-stream", f"{MODERN}, {PLAIN}, text/event-stream"):
        headers = {"Accept": accept}
        async with client.post("/graphql", json={"query": query}, headers=headers) as got:
            assert (got.status, got.content_type) == (200, "text/event-stream")
    for accept in (PLAIN, MODERN, "*/*"):
        status, _, body = await typed(client, accept, query)
        assert (status, code(body)) == (406, "HTTP_406")
    async with client.get("/graphql", params={"query": query}) as got:
        assert (got.status, got.headers["Allow"]) == (405, "POST")


async def test_errors_before_execution_are_400_in_the_modern_type_alone(client: Client) -> None:
    for query in ("{", "{ nonsense }", "query($id: ID!) { node(id: $id) { id } }"):
        status, kind, body = await typed(client, MODERN, query)
        assert (status, kind, code(body)) == (400, MODERN, "GRAPHQL_ERROR")
        assert "data" not in body
        assert await typed(client, PLAIN, query) == (200, PLAIN, body)
    in_execution = '{ jobs(after: "x") { totalCount } }'
    for kind in (PLAIN, MODERN):
        status, _, body = await typed(client, kind, in_execution)
        assert (status, body["data"], code(body)) == (200, None, "VALIDATION")


async def test_of_several_operations_none_is_the_first(client: Client) -> None:
    both = "query A { viewer { id } } query B { viewer { name } }"
    for kind in (PLAIN, MODERN):
        status, _, body = await typed(client, kind, both)
        assert (status, code(body)) == (400, "GRAPHQL_ERROR")
        status, _, body = await typed(client, kind, "fragment F on Viewer { id }")
        assert body["errors"]
    for name, status in (("A", 200), ("B", 200), ("C", 400), ("", 400), (None, 400)):
        async with client.post("/graphql", json={"query": both, "operationName": name}) as got:
            assert got.status == status, name
    async with client.get("/graphql", params={"query": both, "operationName": "B"}) as got:
        assert await got.json() == {"data": {"viewer": {"name": "Local admin"}}}


async def test_a_batch_is_refused(client: Client) -> None:
    for body in ("[]", f"[{VIEWER}]", f"[{VIEWER}, {VIEWER}]"):
        status, answered = await sent(client, body)
        message = "Several operations in one request are not taken: send one."
        assert (status, answered["errors"][0]["message"]) == (400, message)


async def test_only_utf8_is_read(client: Client) -> None:
    for charset, status in (("utf-8", 200), ("UTF-8", 200), ('"utf8"', 200), ("latin-1", 415)):
        kind = f"Application/JSON; charset={charset}"
        assert (await sent(client, VIEWER, {"Content-Type": kind}))[0] == status
    assert (await sent(client, VIEWER.encode("utf-16").decode("latin-1")))[0] == 400


async def test_a_parameter_given_twice_is_refused(client: Client) -> None:
    query = quote("{ viewer { id } }")
    async with client.get(URL(f"/graphql?query={query}&query={query}", encoded=True)) as got:
        assert (got.status, code(await got.json())) == (400, "VALIDATION")


def test_what_is_no_number_in_json_is_never_written() -> None:
    assert encoded({"x": [float("nan"), float("inf")]}) == b'{"x":[null,null]}'


async def test_mistakes_of_clients_are_no_errors_in_the_log(client: Client, log: Any) -> None:
    for body in (b"", b"{", b"[]", b'{"query": "{"}', b'{"query": "{ nonsense }"}', b"\xff"):
        await sent(client, body)
    for method, path in (("GET", "/nothing"), ("PUT", "/graphql"), ("GET", "/graphql")):
        async with client.request(method, path) as got:
            assert got.status >= 400
    async with client.ws_connect("/graphql", protocols=("graphql-transport-ws",)) as ws:
        await ws.send_str("[")
        await ws.receive(timeout=20)
    async with client.post("/graphql", data="x", headers={"Authorization": "Bearer x"}) as got:
        assert got.status == 401
    assert {each["level"] for each in log()} <= {"debug", "info"}


# Errors


async def test_a_body_that_is_no_request_is_a_client_error(client: Client) -> None:
    for body in (
        b"",
        b"{",
        b"null",
        b"7",
        b'"x"',
        b"[]",
        b"[" + VIEWER.encode() + b"]",
        b"{}",
        b'{"query": null}',
        b'{"query": 7}',
        b'{"query": ["x"]}',
        b'{"query": {}}',
        b'{"query": ""}',
        b'{"query": "{ viewer { id } }", "x": \xff}',
        b'{"query": "\xff"}',
        b'\xff\xfe{"query": "{ viewer { id } }"}',
        b'{"query": "{ viewer { id } }", "x": NaN}',
        b'{"query": "{ viewer { id } }", "x": 1e999}',
        b'{"query": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ):
        status, answered = await sent(client, body)
        assert status == 400, (body[:60], status, answered)
        assert code(answered) in {"VALIDATION", "GRAPHQL_ERROR"}, body[:60]


async def test_members_of_a_wrong_type_are_a_client_error(client: Client) -> None:
    for name in ("operationName", "variables", "extensions"):
        for value in (7, True, ["x"], "x", {"a": 1}, 1.5):
            body = {"query": "query A { viewer { id } }", name: value}
            status, answered = await sent(client, json.dumps(body))
            assert status in {200, 400}, (name, value, answered)
            if name == "operationName" or (name == "variables" and value != {"a": 1}):
                assert (answered.get("data"), bool(answered["errors"])) == (None, True), (
                    name,
                    value,
                )
                assert code(answered) in {"VALIDATION", "GRAPHQL_ERROR"}


async def test_a_member_of_a_wrong_type_is_named(client: Client) -> None:
    for name, what in (("query", "a string"), ("variables", "an object")):
        status, body = await sent(client, json.dumps({"query": "{ viewer { id } }", name: [1]}))
        message = f"The operation's `{name}` must be {what} or null, if provided."
        assert (status, body["errors"][0]["message"]) == (400, message)


async def test_a_body_too_large_is_refused(client: Client) -> None:
    body = json.dumps({"query": "{ viewer { id } }", "x": "x" * 2_097_152})
    status, answered = await sent(client, body)
    assert (status, code(answered)) == (413, "HTTP_413")


async def test_a_compressed_body_is_not_inflated_past_the_limit(client: Client) -> None:
    body = gzip.compress(b'{"query": "{ viewer { id } }", "x": "' + b"x" * 50_000_000 + b'"}')
    status, answered = await sent(client, body, {"Content-Encoding": "gzip"})
    assert status in {400, 413, 415}
    assert code(answered)


async def test_what_is_not_there_and_what_is_not_allowed_is_json(client: Client) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("POST", "/healthz", 405),
        ("PUT", "/graphql", 405),
        ("DELETE", "/graphql", 405),
        ("PATCH", "/graphql", 405),
        ("OPTIONS", "/graphql", 405),
        ("GET", "/sample-agent", 405),
        ("POST", "/sample-agent", 404),
        ("GET", "/%00", 404),
        ("GET", "/graphql/", 404),
    ):
        async with client.request(method, path) as got:
            assert (got.status, got.content_type) == (status, "application/json"), (method, path)
            assert code(await got.json())
    async with client.get("/", allow_redirects=False) as got:
        assert (got.status, got.headers["Location"]) == (302, "/graphiql")
    async with client.get("/healthz") as got:
        assert (got.status, await got.json()) == (200, {"status": "ok"})


async def test_mistakes_in_a_document_have_a_code_and_a_place(client: Client) -> None:
    for query in ("{", "{ nonsense }", "{ viewer }", "{ viewer { id }", "\0", "😀"):
        body = await answer(client, query)
        assert {each["extensions"]["code"] for each in body["errors"]} == {"GRAPHQL_ERROR"}
        assert body["errors"][0]["locations"]
    body = await answer(client, "query($id: ID!) { node(id: $id) { id } }")
    assert code(body) == "GRAPHQL_ERROR"


async def test_aliases_each_get_their_answer(client: Client) -> None:
    fields = " ".join(f"a{n}: viewer {{ name }}" for n in range(50))
    data = await gql(client, f"{{ {fields} }}")
    assert data == {f"a{n}": {"name": "Local admin"} for n in range(50)}


async def test_the_schema_can_be_read_from_the_server(client: Client) -> None:
    query = get_introspection_query(
        descriptions=True, specified_by_url=True, input_value_deprecation=True
    )
    introspected = build_client_schema(await gql(client, query))  # type: ignore[arg-type]
    assert set(introspected.type_map) >= {"Job", "Agent", "Mutation", "CreateJobResult"}
    assert "type Mutation" in sdl()


# Ids, logs, failures of ours


async def test_a_request_id_is_echoed_or_made(client: Client) -> None:
    for given in ("abc-1.2_3", "x" * 64):
        async with client.get("/healthz", headers={"X-Request-Id": given}) as got:
            assert got.headers["X-Request-Id"] == given
    for given in ("x" * 65, "a b", "é", "<script>", ""):
        async with client.get("/healthz", headers={"X-Request-Id": given}) as got:
            made = got.headers["X-Request-Id"]
            assert (made != given, len(made)) == (True, 16)
    for path in ("/nothing", "/graphql"):
        async with client.put(path, headers={"X-Request-Id": "mine"}) as got:
            assert got.headers["X-Request-Id"] == "mine"


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Any:
    """What the server logs as JSON lines, as it does without a terminal."""
    root = logging.getLogger()
    before = root.handlers, root.level
    logs.configure("DEBUG")
    stream = BytesIO()
    handler = root.handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    lines: list[str] = []

    class Lines:
        def write(self, text: str) -> None:
            lines.append(text)

        def flush(self) -> None: ...

    handler.setStream(Lines())
    yield lambda: [json.loads(line) for line in "".join(lines).splitlines()]
    stream.close()
    root.handlers, _ = before
    root.setLevel(before[1])
    structlog.reset_defaults()


async def test_each_request_is_logged_with_its_id_and_without_its_query_string(
    client: Client, log: Any
) -> None:
    secret = quote('{ node(id: "s3cret") { id } }')
    async with client.get(f"/graphql?query={secret}", headers={"X-Request-Id": "r-1"}) as got:
        assert got.status == 200
    lines = [each for each in log() if each.get("request_id") == "r-1"]
    (line,) = [each for each in lines if each["event"] == "request"]
    assert (line["method"], line["path"]) == ("GET", "/graphql")
    assert line["status"] == 200
    assert "s3cret" not in str(line)


async def drop(url: str, table: str) -> None:
    async with database.connected(url):
        await connections.get("default").execute_script(f"DROP TABLE {table}")


async def test_an_error_of_ours_is_masked_and_found_in_the_log_by_its_id(
    client: Client, database_url: str, log: Any
) -> None:
    await beside(drop(database_url, "verdicts"))
    job = await new_job(client)
    query = "query($id: ID!) { job(id: $id) { name latestVerdict { id } } }"
    async with await post(client, query, None, {"id": job["id"]}) as got:
        body = await got.json()
        request_id = got.headers["X-Request-Id"]
    (error,) = body["errors"]
    id = error["extensions"]["id"]
    assert body["data"] == {"job": {"name": "A job", "latestVerdict": None}}
    assert error["message"] == f"Something went wrong on our side; the server's log has it as {id}."
    assert error["extensions"] == {"code": "INTERNAL", "id": id}
    assert "verdicts" not in str(body)
    (line,) = [each for each in log() if each.get("error_id") == id]
    assert (line["level"], line["request_id"]) == ("error", request_id)
    assert "verdicts" in line["exception"]


async def test_an_error_before_any_operation_is_masked_too(
    client: Client, database_url: str, log: Any
) -> None:
    await beside(drop(database_url, "api_keys"))
    status, body = await sent(client, VIEWER)
    (error,) = body["errors"]
    assert (status, error["extensions"]) == (500, {"code": "INTERNAL"})
    id = error["message"].removesuffix(".").rpartition(" ")[2]
    assert [each["level"] for each in log() if each.get("error_id") == id] == ["error"]


async def test_a_half_sent_body_does_not_hold_the_server_up(client: Client) -> None:
    head = "POST /graphql HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(f"{head}Content-Length: 100\r\n\r\n{{".encode())
    await writer.drain()
    assert (await sent(client, VIEWER))[0] == 200
    writer.close()
    await writer.wait_closed()
    assert reader is not None


async def test_a_server_told_to_listen_everywhere_lets_nobody_in_without_a_key(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    settings = settings_for(database_url, tmp_path, host="0.0.0.0")  # noqa: S104
    client = await aiohttp_client(create_app(settings))
    status, body = await sent(client, VIEWER)
    assert (status, code(body)) == (401, "UNAUTHENTICATED")
    assert socket.gethostbyname("localhost")
