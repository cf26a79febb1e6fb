"""One HTTP request to a webhook's address, guarded as those to agents are."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from io import BytesIO
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from services.agent_http.addresses import WEBHOOK, AddressBlocked
from services.agent_http.connections import Connector, Dial, current_dial, session
from services.agent_http.failures import retry_after, status_line
from services.agent_http.headers import user_agent
from services.webhooks.lookups import Resolver

CONNECT_SECONDS = 10.0


class Outcome(StrEnum):
    OK = "OK"
    REJECTED = "REJECTED"
    REDIRECTED = "REDIRECTED"
    TIMEOUT = "TIMEOUT"
    UNREACHABLE = "UNREACHABLE"
    DISCONNECTED = "DISCONNECTED"
    UNREADABLE = "UNREADABLE"
    """Its address or secret was sealed with another key."""
    BROKEN = "BROKEN"
    """A mistake of ours."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a try. `error` says it in words, without anything of the address.

    `retry_after` are the seconds that the receiver asks to be left alone, at most an hour.
    """

    outcome: Outcome
    status: int | None = None
    error: str | None = None
    retry_after: float | None = None


class WebhookClient:
    """One a process, used as an async context manager.

    Follows no redirect, keeps no cookie, and reads nothing of an answer but its head.
    """

    def __init__(self, *, allow_private: bool, resolver: AbstractResolver | None = None) -> None:
        self._allow_private = allow_private
        self._resolver = resolver or Resolver()
        self._user_agent = user_agent()

    async def __aenter__(self) -> Self:
        self._connector = Connector(
            allow_private=self._allow_private, resolver=self._resolver, peer=WEBHOOK
        )
        self._session = session(self._connector, CONNECT_SECONDS)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()
        await self._resolver.close()

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, *, deadline: float
    ) -> Answer:
        """One try within `deadline` seconds; whatever the receiver does, it is an answer."""
        dial = Dial()
        token = current_dial.set(dial)
        try:
            async with asyncio.timeout(deadline):
                return await self._exchange(url, headers, body)
        except (aiohttp.ClientError, OSError) as error:
            answer = _explained(error, dial)
        except ValueError as error:
            if dial.connected:
                raise
            answer = _explained(error, dial)
        finally:
            current_dial.reset(token)
            dial.drop()
        if dial.reused and dial.key and answer.outcome is Outcome.DISCONNECTED:
            self._connector.stop_reusing(dial.key)
        return answer

    async def _exchange(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        own = {
            "content-type": "application/json",
            "accept-encoding": "identity",
            "user-agent": self._user_agent,
        }
        async with self._session.post(
            URL(url), data=BytesIO(body), headers={**own, **headers}, allow_redirects=False
        ) as response:
            return _read(response.status, response.headers)


def _read(status: int, headers: Mapping[str, str]) -> Answer:
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return Answer(Outcome.OK, status)
    said = f"It answered {status_line(status)}."
    if status < HTTPStatus.BAD_REQUEST:
        return Answer(Outcome.REDIRECTED, status, f"{said} Redirects are not followed.")
    return Answer(Outcome.REJECTED, status, said, retry_after(headers))


# The first that fits counts.
UNREACHABLE: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.ClientConnectorDNSError, "Its host name could not be looked up."),
    (aiohttp.ClientConnectorCertificateError, "Its TLS certificate is not valid for its address."),
    (aiohttp.ClientSSLError, "It does not speak TLS."),
    (TimeoutError, "No connection in time."),
    (OSError, "No connection."),
)


def _explained(error: Exception, dial: Dial) -> Answer:
    if not dial.connected:
        cause = getattr(error, "os_error", None)
        if isinstance(cause, AddressBlocked):
            return Answer(Outcome.UNREACHABLE, error=str(cause))
        known = (text for kind, text in UNREACHABLE if isinstance(error, kind))
        return Answer(Outcome.UNREACHABLE, error=next(known, "Its URL cannot be used."))
    if isinstance(error, TimeoutError):
        return Answer(Outcome.TIMEOUT, error="It did not answer in time.")
    if isinstance(error, aiohttp.ClientResponseError):
        return Answer(Outcome.REJECTED, error="Its answer is not valid HTTP.")
    return Answer(Outcome.DISCONNECTED, error="It closed the connection without an answer.")
