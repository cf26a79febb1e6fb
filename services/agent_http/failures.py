"""Why a call to an agent gave no answer, in words a person can act on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from http import HTTPStatus
from socket import EAI_AGAIN

import aiohttp

from services.agent_http.addresses import AddressBlocked
from services.agent_http.usage import NOTHING

MAX_RETRY_AFTER = 3600.0
MAX_EXCERPT_CHARACTERS = 2000


class AgentFault(StrEnum):
    UNREACHABLE = "UNREACHABLE"
    TIMEOUT = "TIMEOUT"
    REJECTED = "REJECTED"
    BUSY = "BUSY"
    SERVER_ERROR = "SERVER_ERROR"
    REDIRECTED = "REDIRECTED"
    TOO_LARGE = "TOO_LARGE"
    NOT_JSON = "NOT_JSON"
    DISCONNECTED = "DISCONNECTED"
    GONE = "GONE"
    NOT_AWAITABLE = "NOT_AWAITABLE"


class AgentCallFailed(Exception):
    """One try that gave no output.

    `may_have_executed` is false only with proof that the agent did not take the request;
    `transient` says that another try may well succeed; `retry_after` are the seconds the agent
    asked for, at most an hour. No text in it holds a secret of the request. `usage` is what the
    answer says that the try took all the same.
    """

    def __init__(
        self,
        fault: AgentFault,
        message: str,
        *,
        may_have_executed: bool,
        transient: bool = False,
        retry_after: float | None = None,
        http_status: int | None = None,
        excerpt: str | None = None,
    ) -> None:
        super().__init__(message)
        self.fault = fault
        self.message = message
        self.may_have_executed = may_have_executed
        self.transient = transient
        self.retry_after = retry_after
        self.http_status = http_status
        self.excerpt = excerpt
        self.usage = NOTHING


@dataclass(frozen=True, slots=True)
class Refusal:
    """A status that carries no output, and what it means."""

    fault: AgentFault
    advice: str
    may_have_executed: bool = True
    transient: bool = False


_ADVICE = {
    401: "Check the agent's auth header.",
    403: "Check the agent's auth header.",
    404: "Check the agent's endpoint URL.",
    405: "Its endpoint must accept POST.",
    413: "The job's input is too large for it.",
}


def refusal(status: int, *, retry_after: float | None) -> Refusal | None:
    """`None` for success."""
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return None
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return Refusal(
            AgentFault.REDIRECTED,
            "Redirects are not followed: register the address it leads to.",
        )
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return Refusal(AgentFault.BUSY, _wait(retry_after), may_have_executed=False, transient=True)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        executed = retry_after is None
        return Refusal(
            AgentFault.BUSY, _wait(retry_after), may_have_executed=executed, transient=True
        )
    if status != HTTPStatus.REQUEST_TIMEOUT and HTTPStatus.BAD_REQUEST <= status < 500:  # noqa: PLR2004
        return Refusal(AgentFault.REJECTED, _ADVICE.get(status, "It refused the request."))
    return Refusal(AgentFault.SERVER_ERROR, "Its own logs tell why.")


def _wait(retry_after: float | None) -> str:
    if retry_after is None:
        return "It is busy; try again later."
    return f"It is busy and asks to wait {retry_after:g} seconds."


def status_line(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def retry_after(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """Seconds from now, at most `MAX_RETRY_AFTER`; `None` if absent or unreadable."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdecimal():
        return min(float(text), MAX_RETRY_AFTER)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    seconds = (at - (now or datetime.now(UTC))).total_seconds()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


# The first that fits counts.
_UNREACHABLE: tuple[tuple[type[Exception], str, bool], ...] = (
    (
        aiohttp.ClientConnectorDNSError,
        "The agent's host name does not exist. Check its endpoint URL.",
        False,
    ),
    (
        aiohttp.ClientConnectorCertificateError,
        "The agent's TLS certificate is not valid for its address.",
        False,
    ),
    (
        aiohttp.ClientSSLError,
        "The agent does not speak TLS. Check its endpoint URL.",
        False,
    ),
    (
        TimeoutError,
        "No connection to the agent in time. Is its server running and reachable?",
        True,
    ),
    (
        OSError,
        "No connection to the agent. Is its server running at its endpoint URL?",
        True,
    ),
)


def unreachable(error: Exception) -> AgentCallFailed:
    """For an error before there was a connection: nothing can have been sent."""
    message, transient = _why_unreachable(error)
    return AgentCallFailed(
        AgentFault.UNREACHABLE, message, may_have_executed=False, transient=transient
    )


def _why_unreachable(error: Exception) -> tuple[str, bool]:
    cause = getattr(error, "os_error", None)
    if isinstance(cause, AddressBlocked):
        return str(cause), False
    if isinstance(cause, OSError) and cause.errno == EAI_AGAIN:
        return "The agent's host name could not be looked up just now.", True
    for kind, message, transient in _UNREACHABLE:
        if isinstance(error, kind):
            return message, transient
    return "The agent's endpoint URL cannot be used. Check it.", False


def broken(error: Exception) -> AgentCallFailed:
    """For an error on a connection: nobody knows what the agent did."""
    if isinstance(error, aiohttp.ClientResponseError):
        return AgentCallFailed(
            AgentFault.NOT_JSON,
            "The agent's answer is not valid HTTP.",
            may_have_executed=True,
        )
    return AgentCallFailed(
        AgentFault.DISCONNECTED,
        "The agent closed the connection before its answer was complete.",
        may_have_executed=True,
        transient=True,
    )
