"""What pages of other sites can do here through their visitors' browsers, and what all get."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import WSServerHandshakeError, web
from pydantic import ValidationError

from models import Role
from signoff.app import create_app
from signoff.browsers import EVERYWHERE
from tests.support.browser import WatchedPage
from tests.support.graphql import Json, make_key
from tests.support.running import AiohttpClient, Client, settings_for
from tests.support.sockets import PROTOCOL

APP, OTHER = "https://app.example", "http://localhost:5173"
QUERY = {"query": "{ viewer { id } }"}
ANSWER = {"data": {"viewer": {"id": "local"}}}
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


@pytest.fixture
def database_kind() -> str:
    """None of this depends on the database."""
    return "sqlite"


@pytest.fixture
async def shared(database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient) -> Client:
    """A server that names two origins."""
    origins = f"{APP}, {OTHER}"
    return await aiohttp_client(
        create_app(settings_for(database_url, tmp_path, cors_origins=origins))
    )


async def got(client: Client, headers: dict[str, str]) -> tuple[int, Json]:
    async with client.get("/graphql", params=QUERY, headers=headers) as answer:
        return answer.status, await answer.json()


# GET


async def test_a_get_from_a_browser_needs_what_makes_it_ask_first(client: Client) -> None:
    for name in (
        "GraphQL-Require-Preflight",
        "Apollo-Require-Preflight",
        "X-Apollo-Operation-Name",
    ):
        headers = {"User-Agent": FIREFOX, name: "x"}
        assert await got(client, headers) == (200, ANSWER), name
        assert (await got(client, {"User-Agent": FIREFOX, name: ""}))[0] == 403, name
    for site in ("same-origin", "none"):
        assert await got(client, {"User-Agent": FIREFOX, "Sec-Fetch-Site": site}) == (200, ANSWER)


async def test_a_get_that_a_link_or_an_image_can_cause_is_refused(client: Client) -> None:
    """Over plain HTTP a browser sends neither Origin nor Sec-Fetch-Site with them."""
    for headers in (
        {"User-Agent": FIREFOX},
        {"User-Agent": FIREFOX, "Accept": "image/avif,image/webp,*/*"},
        {"Referer": "http://evil.example/"},
        {"Cookie": "a=b"},
        {"Sec-Fetch-Site": "cross-site", "GraphQL-Require-Preflight": "1"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        status, body = await got(client, headers)
        (error,) = body["errors"]
        assert (status, error["extensions"]) == (403, {"code": "FORBIDDEN"}), headers


async def test_a_get_without_any_browser_is_answered(client: Client, database_url: str) -> None:
    for agent in ("curl/8.5.0", "node", "python-requests/2", ""):
        assert await got(client, {"User-Agent": agent}) == (200, ANSWER)
    key = await make_key(database_url, "Mia", Role.MEMBER)
    status, _ = await got(client, {"User-Agent": FIREFOX, "Authorization": f"Bearer {key}"})
    assert status == 200


# Other sites


async def test_without_a_setting_no_other_origin_is_named(client: Client) -> None:
    preflight = {"Origin": APP, "Access-Control-Request-Method": "POST"}
    async with client.options("/graphql", headers=preflight) as answer:
        assert answer.status == 403
        assert "Access-Control-Allow-Origin" not in answer.headers
    async with client.options("/graphql") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, POST")


async def test_a_named_origin_is_told_what_it_may_send(shared: Client) -> None:
    for origin in (APP, OTHER):
        preflight = {
            "Origin": origin,
            "Sec-Fetch-Site": "cross-site",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        async with shared.options("/graphql", headers=preflight) as answer:
            assert (answer.status, await answer.read()) == (204, b"")
            told = answer.headers
        assert told["Access-Control-Allow-Origin"] == origin
        assert told["Access-Control-Allow-Methods"] == "GET, POST"
        assert {"authorization", "content-type", "graphql-require-preflight"} <= {
            each.strip() for each in told["Access-Control-Allow-Headers"].split(",")
        }
        assert told["Access-Control-Max-Age"] == "600"
        assert "Origin" in told["Vary"]
        assert "Access-Control-Allow-Credentials" not in told


async def test_a_named_origin_may_read_every_answer(shared: Client) -> None:
    headers = {"Origin": APP, "Sec-Fetch-Site": "cross-site"}
    for body, status in ((QUERY, 200), ({"x": 1}, 400)):
        async with shared.post("/graphql", json=body, headers=headers) as answer:
            assert answer.status == status
            assert answer.headers["Access-Control-Allow-Origin"] == APP
            exposed = answer.headers["Access-Control-Expose-Headers"]
            assert exposed == "X-Request-Id, Retry-After, Allow"
    async with shared.ws_connect("/graphql", protocols=(PROTOCOL,), headers=headers) as ws:
        await ws.send_json({"type": "connection_init"})
        assert await ws.receive_json(timeout=20) == {"type": "connection_ack"}


async def test_an_origin_is_named_exactly_or_not_at_all(shared: Client) -> None:
    for origin in (
        "null",
        "*",
        "https://app.example.evil.example",
        "https://evil-app.example",
        "http://app.example",
        "https://app.example:444",
        "https://app.example/",
        "HTTPS://APP.EXAMPLE",
        "https://sub.app.example",
    ):
        headers = {"Origin": origin}
        async with shared.post("/graphql", json=QUERY, headers=headers) as answer:
            (error,) = (await answer.json())["errors"]
            assert (answer.status, error["extensions"]["code"]) == (403, "FORBIDDEN"), origin
            assert "Access-Control-Allow-Origin" not in answer.headers
            assert "Origin" in answer.headers["Vary"]
        with pytest.raises(WSServerHandshakeError) as refused:
            await shared.ws_connect("/graphql", protocols=(PROTOCOL,), headers=headers)
        assert refused.value.status == 403


async def test_only_graphql_is_shared_with_other_origins(shared: Client) -> None:
    for path in ("/healthz", "/metrics", "/graphiql", "/nothing"):
        async with shared.get(path, headers={"Origin": APP}) as answer:
            assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize(
    "origins",
    [
        "*",
        "null",
        "app.example",
        "https://*.example",
        "https://app.example/x",
        "ftp://a",
        "https://",
    ],
)
def test_a_setting_that_names_no_exact_origin_is_refused(tmp_path: Path, origins: str) -> None:
    with pytest.raises(ValidationError, match="is no origin such as"):
        settings_for("sqlite://x", tmp_path, cors_origins=f"{APP},{origins}")


def test_origins_are_set_with_commas_between(monkeypatch: pytest.MonkeyPatch) -> None:
    from signoff.settings import Settings  # noqa: PLC0415 - reads the environment

    monkeypatch.setenv("SIGNOFF_CORS_ORIGINS", f" {APP} ,{OTHER},")
    assert Settings().cors_origins == (APP, OTHER)


# Every answer

PAGES = ("/graphql", "/graphiql", "/graphiql/examples.json", "/healthz", "/readyz", "/nothing", "/")


async def test_every_answer_has_the_security_headers(client: Client) -> None:
    for path in PAGES:
        async with client.get(path, allow_redirects=False) as answer:
            told = answer.headers
        assert told["X-Content-Type-Options"] == "nosniff", path
        assert told["X-Frame-Options"] == "DENY"
        assert told["Referrer-Policy"] == "no-referrer"
        assert told["Cross-Origin-Opener-Policy"] == "same-origin"
        assert told["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "frame-ancestors 'none'" in told["Content-Security-Policy"]
        assert "default-src 'none'" in told["Content-Security-Policy"]
        assert told["Server"] == "signoff"
        assert "Strict-Transport-Security" not in told


async def test_streams_have_them_too(client: Client) -> None:
    headers = {"Accept": "text/event-stream"}
    async with client.post("/graphql", json=QUERY, headers=headers) as answer:
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store, no-transform"


async def test_a_websocket_has_none_but_our_name(client: Client) -> None:
    async with client.ws_connect("/graphql", protocols=[PROTOCOL]) as socket:
        headers = cast("Any", socket)._response.headers
    assert headers["Server"] == "signoff"
    assert not EVERYWHERE.keys() & headers.keys()


async def test_behind_tls_browsers_are_told_to_stay_there(client: Client) -> None:
    async with client.get("/healthz", headers={"X-Forwarded-Proto": "https"}) as answer:
        assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"


async def test_no_script_of_graphiql_is_inline(client: Client) -> None:
    async with client.get("/graphiql") as answer:
        policy = answer.headers["Content-Security-Policy"]
        page = await answer.text()
    rules = dict(each.strip().split(" ", 1) for each in policy.split(";"))
    assert rules["script-src"] == "'self'"
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert "unsafe-eval" not in policy
    assert "onload=" not in page


# In a real browser

ATTACKS = """
async (url) => {
  const told = {};
  const tried = async (name, work) => {
    told[name] = await work().catch(() => "refused");
  };
  const body = JSON.stringify({query: "mutation { __typename }"});
  const post = async (mode, type) => {
    const headers = {"Content-Type": type};
    return (await fetch(url, {method: "POST", mode, headers, body})).type;
  };
  const query = url + "?query={viewer{id}}";
  await tried("form", () => post("no-cors", "text/plain"));
  await tried("json", () => post("cors", "application/json"));
  await tried("get", async () => (await fetch(query)).text());
  await tried("events", () => new Promise((yes, no) => {
    const events = new EventSource(query);
    events.onmessage = yes;
    events.onerror = no;
  }));
  await tried("socket", () => new Promise((yes) => {
    const socket = new WebSocket(url.replace("http", "ws"), "graphql-transport-ws");
    socket.onopen = () => yes("open");
    socket.onclose = (event) => yes("closed " + event.code);
  }));
  await tried("frame", () => new Promise((yes) => {
    const frame = document.createElement("iframe");
    frame.src = url.replace("/graphql", "/graphiql");
    frame.onload = () => yes(frame.contentDocument ? "read" : "blocked");
    document.body.append(frame);
  }));
  return told;
}
"""
READ = """
async (url) => {
  const headers = {"Content-Type": "application/json", "GraphQL-Require-Preflight": "1"};
  const body = JSON.stringify({query: "{ viewer { id } }"});
  const answer = await fetch(url, {method: "POST", headers, body});
  return [answer.headers.has("X-Request-Id"), await answer.json()];
}
"""


async def site(aiohttp_client: AiohttpClient) -> tuple[str, str]:
    """Another site, on an origin of its own: the address of its page, and that origin."""

    async def page(request: web.Request) -> web.Response:
        return web.Response(text="<body>another site</body>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/", page)
    url = (await aiohttp_client(app)).make_url("/")
    return str(url), str(url.origin())


async def test_another_sites_page_gets_nothing_in_a_real_browser(
    browser_page: WatchedPage, client: Client, aiohttp_client: AiohttpClient
) -> None:
    url, _ = await site(aiohttp_client)
    await browser_page.page.goto(url)
    told: Any = await browser_page.page.evaluate(ATTACKS, str(client.make_url("/graphql")))
    assert told == {
        "form": "refused",
        "json": "refused",
        "get": "refused",
        "events": "refused",
        "socket": "closed 1006",
        "frame": "blocked",
    }


async def test_a_named_sites_page_reads_answers_in_a_real_browser(
    browser_page: WatchedPage, database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    url, origin = await site(aiohttp_client)
    settings = settings_for(database_url, tmp_path, cors_origins=origin)
    client = await aiohttp_client(create_app(settings))
    await browser_page.page.goto(url)
    told: Any = await browser_page.page.evaluate(READ, str(client.make_url("/graphql")))
    assert told == [True, ANSWER]
