"""GraphQL over HTTP: one answer, an event stream, or a WebSocket."""

from __future__ import annotations

from aiohttp import web
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError
from strawberry.types import ExecutionResult
from strawberry.types.graphql import OperationType

from resolvers.context import Context
from schema.failures import shown_failure
from services.actors import Viewer
from services.errors import LimitExceeded, RateLimited, Unauthenticated, UnknownDocument
from services.rates import Rates
from services.runtime import Runtime
from signoff import asked, results, websocket
from signoff.asked import Asked, encoded
from signoff.auth import Gate
from signoff.browsers import METHODS, Pages
from signoff.event_streams import EventStream
from signoff.guarding import Attempts, Guard
from signoff.hub import Hub
from signoff.media import Media, Wanted, wanted
from signoff.refusals import JSON, Refused, not_here, throttled, unauthenticated
from signoff.sessions import SOON, Sessions, client_of
from signoff.websocket import Socket

READS = {OperationType.QUERY}
CALLS = READS | {OperationType.MUTATION}


class View:
    """What answers at `/graphql`."""

    def __init__(
        self,
        rt: Runtime,
        gate: Gate,
        sessions: Sessions | None = None,
        pages: Pages | None = None,
        guard: Guard | None = None,
        failures: Rates | None = None,
    ) -> None:
        self._rt = rt
        self._guard = guard or Guard()
        self.hub = Hub(rt, self._guard)
        self._attempts = Attempts(gate, Rates() if failures is None else failures)
        self.sessions = Sessions(gate) if sessions is None else sessions
        self._pages = pages or Pages()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        """Raises `Refused`, in the media type that the client takes."""
        self._pages.check(request.headers)
        if request.method == "OPTIONS":
            return self._pages.preflight(request)
        if websocket.is_upgrade(request):
            return await self._socket(request)
        if request.method not in METHODS:
            raise not_here(*METHODS)
        return await self._answer(request)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        accepted = wanted(request.headers.get("Accept"))
        try:
            if request.method == "GET":
                return await self._got(request, accepted)
            return await self._posted(request, accepted)
        except Refused as error:
            return error.response(accepted.single or JSON)
        except Unauthenticated as error:
            return unauthenticated(error, accepted.single or JSON)
        except RateLimited as error:
            return throttled(error, accepted.single or JSON)

    async def _got(self, request: web.Request, accepted: Wanted) -> web.StreamResponse:
        """Queries alone, in one answer: a GET may be caused by any link."""
        if accepted.single is None:
            raise _not_acceptable(Media.JSON, Media.GRAPHQL)
        self._pages.check_get(request.headers)
        viewer = await self._viewer(request)
        try:
            result = await self._result(viewer, asked.of_get(request), READS)
        except InvalidOperationTypeError:
            raise not_here("POST") from None
        return _response(result, accepted.single)

    async def _posted(self, request: web.Request, accepted: Wanted) -> web.StreamResponse:
        if accepted.single is None and not accepted.streams:
            raise _not_acceptable(*Media)
        viewer = await self._viewer(request)
        is_here = request.content.is_eof()
        operation = await asked.of_post(request)
        if not is_here:  # a key may be revoked while a body comes
            viewer = await self._viewer(request)
        if accepted.single is None or accepted.streamed:
            return await self._streamed(request, viewer, operation)
        try:
            result = await self._result(viewer, operation, CALLS)
        except InvalidOperationTypeError:
            if not accepted.streams:
                raise _not_acceptable(Media.EVENTS) from None
            return await self._streamed(request, viewer, operation)
        return _response(result, accepted.single)

    async def _viewer(self, request: web.Request) -> Viewer:
        credential = request.headers.get("Authorization")
        return await self._attempts.viewer(credential, request.headers, request.remote)

    async def _result(
        self, viewer: Viewer, operation: Asked, kinds: set[OperationType]
    ) -> ExecutionResult:
        context = Context(self._rt, viewer)
        try:
            return await self._guard.schema.execute(
                self._guard.admitted(operation, context),
                variable_values=operation.variables,
                context_value=context,
                operation_name=operation.operation_name,
                allowed_operation_types=kinds,
                operation_extensions=operation.extensions,
            )
        except UnknownDocument as error:
            raise Refused(400, str(error), error.code) from None
        except CannotGetOperationTypeError as error:
            told = shown_failure(error)
            raise Refused(400, told.message, "GRAPHQL_ERROR") from None

    async def _streamed(
        self, request: web.Request, viewer: Viewer, operation: Asked
    ) -> web.StreamResponse:
        self._rt.rates.check(viewer.budget)
        stream = EventStream(self.hub, request)
        credential = request.headers.get("Authorization")
        client = client_of(request, credential, viewer)
        try:
            with self.sessions.opened(client, stream.end) as session:
                self.sessions.enter(session, credential, viewer, client)
                with self.sessions.operation(session):
                    return await stream.run(operation, viewer)
        except LimitExceeded as error:
            raise Refused(429, str(error), error.code, headers=SOON) from None

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        socket = Socket(self.hub, self._attempts, self.sessions, request)
        with self.sessions.opened(client_of(request), socket.close) as session:
            return await socket.run(session)


def _not_acceptable(*offered: Media) -> Refused:
    return Refused(406, f"This is answered as {', '.join(offered)}.", "HTTP_406")


def _response(result: ExecutionResult, media: Media) -> web.Response:
    """As application/json a request that can be read is 200, whatever becomes of it."""
    failed = media is Media.GRAPHQL and results.not_executed(result)
    wait = _wait(result)
    response = web.Response(
        status=429 if wait else 400 if failed else 200,
        body=encoded(results.body(result)),
        headers={"Content-Type": f"{media}; charset=utf-8", "Cache-Control": "no-store"},
    )
    if wait:
        response.headers["Retry-After"] = str(wait)
    return response


def _wait(result: ExecutionResult) -> int | None:
    """Seconds until a caller who asked for too much may ask again."""
    if not result.errors or result.data is not None:
        return None
    return (result.errors[0].extensions or {}).get("retryAfter")
