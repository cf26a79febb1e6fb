"""One HTTP request to one agent, and what came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from http import HTTPStatus
from io import BytesIO
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from services import tracing
from services.agent_http import answers, failures, locations, signing, usage
from services.agent_http.connections import Connector, Dial, current_dial, session
from services.agent_http.failures import AgentCallFailed, AgentFault
from services.agent_http.headers import feedback_header, parse_auth_header, user_agent
from services.agent_http.messages import Accepted, AgentReply, AgentRequest

MAX_RESPONSE_BYTES = 1_048_576
Send = Callable[[], AbstractAsyncContextManager[aiohttp.ClientResponse]]


class AgentClient:
    """One per process, used as an async context manager. Follows no redirect, keeps no cookie."""

    def __init__(
        self,
        *,
        allow_private: bool,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        connect_timeout: float = 10.0,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._allow_private = allow_private
        self.max_response_bytes = max_response_bytes
        self._connect_timeout = connect_timeout
        self._resolver = resolver
        self._user_agent = user_agent()

    async def __aenter__(self) -> Self:
        self._connector = Connector(allow_private=self._allow_private, resolver=self._resolver)
        self._session = session(self._connector, self._connect_timeout)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def call(self, request: AgentRequest, *, deadline: float) -> AgentReply | Accepted:
        """One try. `deadline` are the seconds for all of it; raises `AgentCallFailed`."""
        headers = self._headers(request) | _of_a_call(request)

        def post() -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
            return self._session.post(
                URL(request.url),
                # Not bytes, which aiohttp writes in one go and warns of from 1 MiB on.
                data=BytesIO(request.body),
                headers=headers,
                allow_redirects=False,
            )

        return await self._call(request, post, deadline)

    async def poll(
        self, request: AgentRequest, path: str, *, deadline: float
    ) -> AgentReply | Accepted:
        """Ask how far the agent is, at a path on its own origin; in all else the same."""
        headers = self._headers(replace(request, body=b""))

        def get() -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
            url = locations.url_at(path, request.url)
            return self._session.get(url, headers=headers, allow_redirects=False)

        return await self._call(request, get, deadline)

    async def _call(
        self, request: AgentRequest, send: Send, deadline: float
    ) -> AgentReply | Accepted:
        dial = Dial()
        token = current_dial.set(dial)
        try:
            return await self._explained(request, send, dial, deadline)
        finally:
            current_dial.reset(token)
            dial.drop()

    async def _explained(
        self, request: AgentRequest, send: Send, dial: Dial, deadline: float
    ) -> AgentReply | Accepted:
        try:
            async with asyncio.timeout(deadline) as limit:
                return await self._exchange(request, send, limit)
        except (aiohttp.ClientError, OSError) as error:
            failure = _explain(error, dial, deadline)
        except ValueError as error:
            if dial.connected:
                raise
            failure = failures.unreachable(error)
        if dial.reused and dial.key and failure.fault is AgentFault.DISCONNECTED:
            self._connector.stop_reusing(dial.key)
        # Outside of the `except`: aiohttp's errors carry the headers, and a log prints contexts.
        raise failure

    async def _exchange(
        self, request: AgentRequest, send: Send, limit: asyncio.Timeout
    ) -> AgentReply | Accepted:
        started = time.monotonic()
        async with send() as response:
            if response.status == HTTPStatus.ACCEPTED:
                wait = failures.retry_after(response.headers)
                return Accepted(response.headers.get("Location"), wait)
            told = usage.read(response.headers)
            try:
                await answers.check_status(response, request, limit)
                body = await answers.read(response, cap=self.max_response_bytes)
                body = await answers.without_secrets(body, request)
                value = answers.decode(body, response.status, request)
            except AgentCallFailed as failure:
                failure.usage = told
                raise
        latency_ms = round((time.monotonic() - started) * 1000)
        return AgentReply(response.status, body, value, latency_ms, told)

    def _headers(self, request: AgentRequest) -> dict[str, str]:
        try:
            return self._own_headers(request) | _auth_header(request)
        except ValueError as error:
            raise AgentCallFailed(
                AgentFault.UNREACHABLE,
                f"The agent's settings cannot be used. {error}",
                may_have_executed=False,
            ) from None

    def _own_headers(self, request: AgentRequest) -> dict[str, str]:
        headers = {
            "accept": "application/json",
            "accept-encoding": "identity",
            "user-agent": self._user_agent,
            "idempotency-key": request.idempotency_key,
            "signoff-job-id": request.job_id,
            "signoff-attempt": str(request.attempt_number),
        }
        headers |= signing.sign(
            request.signing_secret,
            id=request.idempotency_key,
            timestamp=int(time.time()),
            body=request.body,
        )
        if traceparent := tracing.current():
            headers["traceparent"] = traceparent
        return headers


def _of_a_call(request: AgentRequest) -> dict[str, str]:
    headers = {"content-type": "application/json"}
    if request.feedback:
        headers["signoff-feedback"] = feedback_header(request.feedback)
    if request.callback_url is not None:
        headers["signoff-callback-url"] = request.callback_url
    return headers


def _auth_header(request: AgentRequest) -> dict[str, str]:
    if request.auth_header is None:
        return {}
    name, value = parse_auth_header(request.auth_header)
    return {name: value}


def _explain(error: Exception, dial: Dial, deadline: float) -> AgentCallFailed:
    if not dial.connected:
        return failures.unreachable(error)
    if isinstance(error, TimeoutError):
        return _too_slow(deadline)
    return failures.broken(error)


def _too_slow(deadline: float) -> AgentCallFailed:
    return AgentCallFailed(
        AgentFault.TIMEOUT,
        f"The agent did not answer completely within {max(round(deadline, 1), 0.1):g} seconds.",
        may_have_executed=True,
    )
