"""The page in a real browser that reaches loopback only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import strawberry
from aiohttp import web
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
from pytest_aiohttp import AiohttpClient, AiohttpServer
from strawberry.aiohttp.views import GraphQLView
from strawberry.types.info import Info

from schema import sdl
from signoff import graphiql
from tests.support.browser import WatchedPage

KEY = '{"Authorization": "Bearer a-key"}'


@strawberry.type
class Viewer:
    id: strawberry.ID | None
    name: str
    role: str


@strawberry.type
class Query:
    @strawberry.field
    async def viewer(self, info: Info) -> Viewer:
        return Viewer(id=None, name="Ada", role=info.context["request"].headers["Authorization"])


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def ticks(self, info: Info) -> AsyncGenerator[str]:
        for tick in (1, 2, 3):
            yield f"tick {tick} for {info.context['connection_params']['Authorization']}"
            await asyncio.sleep(0.2)
        await asyncio.Event().wait()


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

    async def open_tab(self, name: str) -> None:
        await self._tab(name).click()

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

    async def stop(self) -> None:
        await self._page.get_by_role("button", name="Stop query").click()


@pytest.fixture
def app() -> web.Application:
    schema = strawberry.Schema(Query, subscription=Subscription)
    app = web.Application()
    app.router.add_route("*", "/graphql", GraphQLView(schema, graphql_ide=None))
    graphiql.add_routes(app)
    return app


@pytest.fixture
async def site(app: web.Application, aiohttp_server: AiohttpServer) -> TestServer:
    return await aiohttp_server(app)


@pytest.fixture
async def client(site: TestServer, browser_page: WatchedPage) -> Client:
    await browser_page.page.goto(str(site.make_url("/graphiql")))
    return Client(browser_page.page)


async def test_a_query_and_a_live_subscription_with_the_key_typed_once(
    client: Client, browser_page: WatchedPage, output: Path
) -> None:
    await client.set_headers(KEY)
    await client.ask("Me", "query Me { viewer { role } }")
    await expect(client.result).to_contain_text('"role": "Bearer a-key"')

    await client.open_tab("StatusChanges")
    await client.ask("Ticks", "subscription Ticks { ticks }")
    await expect(client.result).to_contain_text("tick 3 for Bearer a-key")
    await browser_page.page.screenshot(path=output / "graphiql.png")
    await client.stop()

    assert (browser_page.errors, browser_page.foreign) == ([], [])


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
