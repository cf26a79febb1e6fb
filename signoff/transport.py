"""GraphQL over HTTP, WebSocket and SSE."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn, TypeGuard, cast

import orjson
from aiohttp import web
from cross_web import AsyncHTTPRequestAdapter, HTTPException
from strawberry.aiohttp.views import GraphQLView
from strawberry.exceptions import ConnectionRejectionError
from strawberry.http import GraphQLHTTPResponse, GraphQLRequestData
from strawberry.subscriptions import GRAPHQL_SSE_PROTOCOL, GRAPHQL_TRANSPORT_WS_PROTOCOL
from strawberry.types.unset import UNSET, UnsetType

from resolvers.context import Context
from schema import schema
from schema.sharing import Asked
from services.actors import NOBODY, Viewer
from services.errors import ErrorCode, Unauthenticated
from services.runtime import Runtime
from signoff import subscribers
from signoff.auth import Gate
from signoff.encoding import encoded
from signoff.hub import Hub
from signoff.subscribers import SharingHandler

MAX_MESSAGE_BYTES = 2_097_152
HEARTBEAT_SECONDS = 20
INIT_SECONDS = 10
"""A WebSocket that has not introduced itself by then is closed with 4408."""
MAX_OPERATIONS = 100
"""Operations under way on one WebSocket."""
MEMBERS: dict[str, tuple[type, str]] = {
    "query": (str, "a string"),
    "variables": (dict, "an object"),
    "extensions": (dict, "an object"),
}
"""Of a request, and what they must be."""
LONG_NUMBER = re.compile(r"\d{19}")


@dataclass(slots=True)
class SocketContext(Context):
    """A WebSocket's: the caller may introduce themselves after connecting."""

    headers: Mapping[str, str]
    connection_params: dict[str, Any] = field(default_factory=dict[str, Any])


SUBSCRIPTION = web.RequestKey("subscription", tuple[Asked, Viewer])
"""Of a request that is answered by a stream of events: whose and what they are."""


class View(GraphQLView[Context, None]):
    graphql_transport_ws_handler_class = SharingHandler

    def __init__(self, rt: Runtime, gate: Gate) -> None:
        super().__init__(
            schema=schema,
            graphql_ide=None,
            subscription_protocols=(GRAPHQL_TRANSPORT_WS_PROTOCOL, GRAPHQL_SSE_PROTOCOL),
            connection_init_wait_timeout=timedelta(seconds=INIT_SECONDS),
            max_subscriptions_per_connection=MAX_OPERATIONS,
        )
        self.hub = Hub(rt, schema)
        self._rt = rt
        self._gate = gate

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self.run(request=request)
        except HTTPException as error:
            return failure(error.status_code, error.reason, ErrorCode.VALIDATION)
        except Unauthenticated as error:
            response = failure(401, str(error), error.code)
            response.headers["WWW-Authenticate"] = "Bearer"
            return response

    async def get_context(
        self, request: web.Request, response: web.Response | web.WebSocketResponse
    ) -> Context:
        if isinstance(response, web.WebSocketResponse):
            return SocketContext(self._rt, NOBODY, request.headers)
        authorization = request.headers.get("Authorization")
        return Context(self._rt, await self._gate.viewer(authorization, request.headers))

    async def on_ws_connect(self, context: Context) -> UnsetType | dict[str, object] | None:
        """A key comes in the payload of `connection_init`, or in the handshake's header."""
        socket = cast("SocketContext", context)
        params = {name.lower(): value for name, value in socket.connection_params.items()}
        given = params.get("authorization", socket.headers.get("Authorization"))
        try:
            viewer = await self._gate.viewer(None if given is None else str(given), socket.headers)
        except Unauthenticated as error:
            raise ConnectionRejectionError from error
        context.enter(viewer)
        return UNSET

    async def create_websocket_response(
        self, request: web.Request, subprotocol: str | None
    ) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(
            protocols=[subprotocol] if subprotocol else [],
            heartbeat=HEARTBEAT_SECONDS,
            max_msg_size=MAX_MESSAGE_BYTES,
            compress=False,
        )
        await socket.prepare(request)
        return socket

    def is_websocket_request(self, request: web.Request) -> TypeGuard[web.Request]:
        return "Upgrade" in request.headers and super().is_websocket_request(request)

    def should_render_graphql_ide(self, request: object) -> bool:
        """Never here: it has a path of its own."""
        return False

    async def parse_http_body(
        self, request: AsyncHTTPRequestAdapter
    ) -> GraphQLRequestData | list[GraphQLRequestData]:
        """JSON only, and said so: a form's content type would pass a browser's preflight."""
        if request.method != "POST":
            return await super().parse_http_body(request)
        media_type = (request.content_type or "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise HTTPException(415, "POST a body of content type application/json.")
        asked = self.parse_json(await request.get_body())
        for name, (kind, what) in MEMBERS.items():
            if not isinstance(asked.get(name), kind | None):
                raise HTTPException(
                    400,
                    f"The GraphQL operation's `{name}` must be {what} or null, if provided.",
                )
        streaming = self._get_stream_transport_from_headers(request.headers)
        return GraphQLRequestData(
            query=asked.get("query"),
            variables=asked.get("variables"),
            operation_name=asked.get("operationName"),
            extensions=asked.get("extensions"),
            protocol=streaming.protocol if streaming else "http",
        )

    async def execute_operation(
        self,
        request: web.Request,
        request_adapter: AsyncHTTPRequestAdapter,
        request_data: GraphQLRequestData | list[GraphQLRequestData],
        context: Context,
        root_value: None,
        sub_response: web.Response,
    ) -> Any:
        if isinstance(request_data, GraphQLRequestData) and request_data.protocol == "sse":
            asked = Asked(
                request_data.query or "", request_data.variables, request_data.operation_name
            )
            if self.hub.takes(asked):
                request[SUBSCRIPTION] = asked, context.viewer
        return await super().execute_operation(
            request, request_adapter, request_data, context, root_value, sub_response
        )

    async def create_streaming_response(
        self,
        request: web.Request,
        stream: Callable[[], AsyncGenerator[str, None]],
        sub_response: web.Response,
        headers: Mapping[str, str],
    ) -> web.StreamResponse:
        """Subscriptions are told by the hub; `stream`, which was not begun, is for all else."""
        if SUBSCRIPTION not in request:
            return await super().create_streaming_response(request, stream, sub_response, headers)
        asked, viewer = request[SUBSCRIPTION]
        return await subscribers.stream(request, self.hub, viewer, asked, headers)

    def parse_json(self, data: str | bytes) -> Any:
        content = super().parse_json(data)
        if not isinstance(content, dict):
            raise HTTPException(400, "The body must be a JSON object with a `query`.")
        return cast("dict[str, Any]", content)

    def decode_json(self, data: str | bytes) -> object:
        """Integers exactly: orjson makes floats of those over 64 bits, which must be refused."""
        try:
            text = data if isinstance(data, str) else data.decode()
        except UnicodeDecodeError as error:
            raise json.JSONDecodeError("is not UTF-8", "", error.start) from None
        return _exact(text) if LONG_NUMBER.search(text) else orjson.loads(text)

    def create_response(
        self,
        response_data: GraphQLHTTPResponse | list[GraphQLHTTPResponse],
        sub_response: web.Response,
    ) -> web.Response:
        sub_response.body = encoded(response_data)
        sub_response.headers["Content-Type"] = "application/json; charset=utf-8"
        return sub_response

    def encode_json(self, data: object) -> str:
        """A string, since bytes would become binary frames on a WebSocket."""
        return encoded(data).decode()


def _exact(text: str) -> object:
    """Python's own reader knows integers of any size; what it cannot read is no JSON to us."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise json.JSONDecodeError(str(error), text, 0) from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def failure(status: int, message: str, code: str) -> web.Response:
    """An error before any operation, in the shape of GraphQL's own."""
    body = {"errors": [{"message": message, "extensions": {"code": code}}]}
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")
