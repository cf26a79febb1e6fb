"""The GraphiQL page, served from this package alone: no CDN, nothing inline."""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from aiohttp import web

PACKAGE = Path(__file__).parent
PAGE = PACKAGE / "static" / "graphiql" / "index.html"
ASSETS = PACKAGE / "static" / "graphiql" / "assets"
EXAMPLES = PACKAGE / "examples"

DIRECTIVES = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self' 'unsafe-inline'",  # the editor positions every line with inline styles
    "img-src 'self' data:",
    "font-src data:",
    "connect-src 'self'",
    "worker-src 'self'",
    "frame-ancestors 'none'",
    "form-action 'none'",
    "base-uri 'none'",
)
SECURITY = {
    "Content-Security-Policy": "; ".join(DIRECTIVES),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
REVALIDATED = {**SECURITY, "Cache-Control": "no-cache"}
IMMUTABLE = {**SECURITY, "Cache-Control": "public, max-age=31536000, immutable"}


class Example(TypedDict):
    """One tab of the page; `variables` is the text of its editor."""

    query: str
    variables: str


def add_routes(app: web.Application) -> None:
    """Serves the page at `/graphiql`; it talks to `/graphql` on the same origin."""
    app.router.add_get("/graphiql", _page)
    app.router.add_get("/graphiql/examples.json", _examples)
    app.router.add_get("/graphiql/assets/{name}", _asset)


def examples() -> list[Example]:
    """`signoff/examples/*.graphql` in the order of their names, each with its `.json` if any."""
    return [_example(file) for file in sorted(EXAMPLES.glob("*.graphql"))]


def _example(file: Path) -> Example:
    variables = file.with_suffix(".json")
    return Example(
        query=file.read_text("utf-8"),
        variables=variables.read_text("utf-8") if variables.exists() else "",
    )


async def _page(request: web.Request) -> web.Response:
    return await _whole(request, PAGE, REVALIDATED)


async def _examples(request: web.Request) -> web.Response:
    return web.json_response(examples(), headers=REVALIDATED)


async def _asset(request: web.Request) -> web.Response:
    """Only files that are in the folder, whose names change with their content."""
    asset = ASSETS / request.match_info["name"]
    if asset.parent != ASSETS or not asset.is_file():
        raise web.HTTPNotFound
    return await _whole(request, asset, IMMUTABLE)


async def _whole(request: web.Request, file: Path, headers: Mapping[str, str]) -> web.Response:
    """All of a file, or 304: aiohttp's own answers to bad ranges and conditions are not JSON."""
    content = await asyncio.to_thread(file.read_bytes)
    tag = hashlib.sha256(content).hexdigest()[:32]
    known = {each.value for each in request.if_none_match or ()}
    if known & {tag, "*"}:
        response = web.Response(status=304, headers=headers)
    else:
        kind, _ = mimetypes.guess_type(file.name)
        response = web.Response(body=content, content_type=kind, headers=headers)
    response.etag = tag
    return response
