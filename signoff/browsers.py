"""What a browser may do here on behalf of a page: CSRF, CORS and the headers of every answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from services.errors import ErrorCode
from signoff.refusals import Refused, not_here

METHODS = (hdrs.METH_GET, hdrs.METH_POST)
PREFLIGHTED = (
    "GraphQL-Require-Preflight",
    "Apollo-Require-Preflight",
    "X-Apollo-Operation-Name",
    "Authorization",
)
"""Headers that a page of another site cannot send before its browser has asked us."""
BY_BROWSERS = ("Sec-Fetch-Site", "Origin", "Referer", "Cookie")
"""A request with one of them may come from a browser; also one of a `Mozilla/…`."""
HEADERS = "authorization, content-type, x-request-id, traceparent, " + ", ".join(
    name.lower() for name in PREFLIGHTED if name != "Authorization"
)
EXPOSED = "X-Request-Id, Retry-After, Allow"
PREFLIGHT_SECONDS = "600"
EVERYWHERE = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""Of every answer; a page's own content security policy goes before."""
SERVER = "signoff"
"""Without a version, and without aiohttp's."""
TLS_ONLY = "max-age=31536000"


class Pages:
    """Rules for pages; `origins` are those of other sites that may use `/graphql`."""

    def __init__(self, origins: Collection[str] = ()) -> None:
        self._origins = frozenset(origins)

    def check(self, headers: Mapping[str, str]) -> None:
        """Raises `Refused` for what a page of a site that was not named asks for."""
        if not self._named(headers) and not same_origin(headers):
            raise Refused(403, "Requests of other sites' pages are refused.", ErrorCode.FORBIDDEN)

    def check_get(self, headers: Mapping[str, str]) -> None:
        """Raises `Refused` for a GET that another site's page may have caused.

        Such as by `<img src>`: a browser sends it without asking, and without Sec-Fetch-Site
        to a server that is neither on this machine nor behind TLS.
        """
        ours = headers.get("Sec-Fetch-Site") in {"same-origin", "none"}
        asked_first = any(headers.get(name) for name in PREFLIGHTED)
        if not (ours or asked_first) and may_be_browser(headers):
            message = "To GET from a browser, send GraphQL-Require-Preflight: 1; or POST."
            raise Refused(403, message, ErrorCode.FORBIDDEN)

    def preflight(self, request: web.Request) -> web.Response:
        """The answer to a browser that asks what another site's page may send."""
        asks = hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        if not asks or not self._named(request.headers):
            raise not_here(*METHODS)
        return web.Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": ", ".join(METHODS),
                "Access-Control-Allow-Headers": HEADERS,
                "Access-Control-Max-Age": PREFLIGHT_SECONDS,
            },
        )

    def mark(self, request: Mapping[str, str], headers: MutableMapping[str, str]) -> None:
        """Add what tells a browser, and caches on the way, who may read the answer.

        Never `Allow-Credentials`: a key comes in a header of its own, not in a cookie.
        """
        headers["Vary"] = "Origin, Accept"
        if self._named(request):
            headers["Access-Control-Allow-Origin"] = request["Origin"]
            headers["Access-Control-Expose-Headers"] = EXPOSED

    def _named(self, headers: Mapping[str, str]) -> bool:
        return headers.get("Origin") in self._origins


def same_origin(headers: Mapping[str, str]) -> bool:
    """Whether a request comes from a page of ours, or from no page at all."""
    site = headers.get("Sec-Fetch-Site")
    if site is not None and site not in ("same-origin", "none"):
        return False
    origin = headers.get("Origin")
    try:
        return origin is None or urlsplit(origin).netloc == headers.get("Host")
    except ValueError:
        return False


def may_be_browser(headers: Mapping[str, str]) -> bool:
    agent = headers.get("User-Agent", "")
    return agent.startswith("Mozilla/") or any(name in headers for name in BY_BROWSERS)


def protect(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Set the headers of every answer.

    Behind TLS, also the order to come back by TLS only; over plain HTTP browsers ignore it.
    """
    response.headers["Server"] = SERVER
    if isinstance(response, web.WebSocketResponse):  # nothing that a browser shows or keeps
        return
    for name, value in EVERYWHERE.items():
        response.headers.setdefault(name, value)
    if request.secure or request.headers.get("X-Forwarded-Proto", "").lower() == "https":
        response.headers.setdefault("Strict-Transport-Security", TLS_ONLY)
