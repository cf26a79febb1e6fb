"""The page in a real browser that reaches loopback only."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer
from graphql import (
    DocumentNode,
    OperationDefinitionNode,
    build_schema,
    get_variable_values,
    parse,
    validate,
)
from playwright.async_api import Locator, Page, expect
from pytest_aiohttp import AiohttpClient

from models import Role
from schema import sdl
from services import keys
from signoff import database, graphiql
from signoff.app import create_app
from signoff.settings import Settings
from tests.support import databases
from tests.support.browser import WatchedPage

CREATE = next(each for each in graphiql.examples() if "mutation CreateJob" in each["query"])


def _name(example: graphiql.Example) -> str:
    name = _operation(parse(example["query"])).name
    assert name
    return name.value


def _operation(document: DocumentNode) -> OperationDefinitionNode:
    (operation,) = document.definitions
    assert isinstance(operation, OperationDefinitionNode)
    return operation


class Client:
    """What a person does on the page."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.result = page.locator(".result-window")
        self.stop_button = page.get_by_role("button", name="Stop query")

    async def open_tab(self, name: str) -> None:
        await self._tab(name).click()
        editor = self._page.locator("[data-uri$='operation.graphql']")
        await expect(editor).to_contain_text(name)  # what runs is what the editor holds

    async def write(self, file: str, text: str) -> None:
        await self._page.locator(f"[data-uri$='{file}']").click()
        await self._page.keyboard.press("ControlOrMeta+A")
        await self._page.keyboard.insert_text(text)

    def _tab(self, name: str) -> Locator:
        return self._page.get_by_role("tab").get_by_role("button", name=name, exact=True)

    async def ask(self, name: str, operation: str) -> None:
        await self.write("operation.graphql", operation)
        await expect(self._tab(name)).to_be_visible()  # has understood what was typed
        await self.run()

    async def set_headers(self, text: str) -> None:
        await self._page.get_by_role("button", name="Headers").click()
        await self.write("request-headers.json", text)

    async def run(self) -> None:
        await self._page.get_by_role("button", name="Execute query").click()


@pytest.fixture
def settings(migrated_sqlite: Path, tmp_path: Path) -> Settings:
    url = databases.sqlite_copy(migrated_sqlite, tmp_path)
    return Settings(database_url=url, key_file=tmp_path / "signoff.key")


@pytest.fixture
async def key(settings: Settings) -> str:
    """An admin's key: from now on the server asks for one."""
    async with database.connected(settings.database_url):
        _, text = await keys.create("Ada", Role.ADMIN)
    return text


@pytest.fixture
async def site(settings: Settings) -> AsyncGenerator[TestServer]:
    server = TestServer(create_app(settings))
    async with server:
        yield server


@pytest.fixture
async def client(site: TestServer, browser_page: WatchedPage) -> Client:
    await browser_page.page.goto(str(site.make_url("/graphiql")))
    return Client(browser_page.page)


async def _create_job(site: TestServer, headers: dict[str, str]) -> None:
    variables = json.loads(CREATE["variables"])
    del variables["input"]["assign"]
    body = {"query": CREATE["query"], "variables": variables}
    async with (
        ClientSession(headers=headers) as session,
        session.post(site.make_url("/graphql"), json=body) as response,
    ):
        assert (await response.json())["data"]["createJob"]["__typename"] == "Job"


async def _change_until_seen(client: Client, site: TestServer, headers: dict[str, str]) -> None:
    """The page does not show from when on it is subscribed."""
    for _ in range(20):
        await _create_job(site, headers)
        with contextlib.suppress(AssertionError):
            await expect(client.result).to_contain_text('"to": "PENDING"', timeout=500)
            return
    pytest.fail(f"no change was shown: {await client.result.inner_text()}")


async def test_a_query_and_a_live_subscription(
    client: Client, site: TestServer, browser_page: WatchedPage, output: Path
) -> None:
    await client.ask("Me", "query Me { viewer { role } }")
    await expect(client.result).to_contain_text('"role": "ADMIN"')

    await client.open_tab("StatusChanges")
    await client.run()
    await _change_until_seen(client, site, {})
    await browser_page.page.screenshot(path=output / "graphiql.png")
    await client.stop_button.click()

    assert (browser_page.errors, browser_page.foreign) == ([], [])


async def test_a_key_typed_in_one_tab_opens_the_others_and_the_docs(
    key: str, client: Client, site: TestServer, browser_page: WatchedPage
) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    await expect(client.result).to_contain_text("Send an API key")
    await client.set_headers(json.dumps(headers))
    await client.run()
    await expect(client.result).to_contain_text('"name": "Ada"')

    await client.open_tab("StatusChanges")
    await client.run()
    await _change_until_seen(client, site, headers)

    await browser_page.page.get_by_role("button", name="Show Documentation Explorer").click()
    await expect(browser_page.page.get_by_role("link", name="Subscription")).to_be_visible()
    assert key not in await browser_page.page.evaluate("JSON.stringify(localStorage)")


async def test_every_example_is_a_tab(client: Client, browser_page: WatchedPage) -> None:
    tabs = browser_page.page.get_by_role("tab")
    await expect(tabs).to_have_count(len(graphiql.examples()))
    assert await tabs.all_inner_texts() == [_name(each) for each in graphiql.examples()]


@pytest.mark.parametrize("example", graphiql.examples(), ids=_name)
def test_an_example_fits_the_schema(example: graphiql.Example) -> None:
    declared = build_schema(sdl())
    document = parse(example["query"])
    assert validate(declared, document) == []
    given = json.loads(example["variables"] or "{}")
    variables = _operation(document).variable_definitions or ()
    assert not isinstance(get_variable_values(declared, variables, given), list)


@pytest.fixture
def app() -> web.Application:
    """The page's routes without a server behind them."""
    app = web.Application()
    graphiql.add_routes(app)
    return app


async def test_the_page_forbids_everything_but_its_own_files(
    app: web.Application, aiohttp_client: AiohttpClient
) -> None:
    client = await aiohttp_client(app)
    page = await client.get("/graphiql")
    policy = page.headers["Content-Security-Policy"]
    assert page.status == 200
    assert "script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert page.headers["Cache-Control"] == "no-cache"


ODD = {
    "Range": ("bytes=zzz", "bytes=999999999-", "bytes=0-3", "lines=1-2"),
    "If-Match": ('"other"', "*"),
    "If-Unmodified-Since": ("Thu, 01 Jan 1970 00:00:00 GMT",),
    "If-None-Match": ('"other"', "nonsense"),
}


async def test_ranges_and_conditions_get_the_whole_page(
    app: web.Application, aiohttp_client: AiohttpClient
) -> None:
    client = await aiohttp_client(app)
    page = await client.get("/graphiql")
    whole = await page.read()
    for name, values in ODD.items():
        for value in values:
            response = await client.get("/graphiql", headers={name: value})
            assert (response.status, response.content_type) == (200, "text/html"), (name, value)
            assert await response.read() == whole


async def test_a_page_that_is_known_is_not_sent_again(
    app: web.Application, aiohttp_client: AiohttpClient
) -> None:
    client = await aiohttp_client(app)
    tag = (await client.get("/graphiql")).headers["ETag"]
    for known in (tag, f'"other", {tag}', "*"):
        response = await client.get("/graphiql", headers={"If-None-Match": known})
        assert (response.status, await response.read()) == (304, b"")
        assert (response.headers["ETag"], response.headers["Cache-Control"]) == (tag, "no-cache")


async def test_assets_are_cached_for_good_and_nothing_beside_them_is_served(
    app: web.Application, aiohttp_client: AiohttpClient
) -> None:
    client = await aiohttp_client(app)
    for file in graphiql.ASSETS.iterdir():
        response = await client.get(f"/graphiql/assets/{file.name}")
        assert response.headers["Cache-Control"].endswith("immutable")
        assert response.headers["ETag"]
    for stranger in ("..%2Findex.html", "..", "absent.js", "%2Fetc%2Fpasswd"):
        assert (await client.get(f"/graphiql/assets/{stranger}")).status == 404
