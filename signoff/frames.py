"""Frames of graphql-transport-ws, as clients send them and as we do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from signoff.asked import Asked, NotAsked, asked, decoded, encoded

MAX_ID = 128
"""Characters of an operation's id, which every one of its frames repeats."""
MAX_REASON = 123
"""Bytes of a close reason."""


class BadFrame(ValueError):
    """It is no message of the protocol; the text says why."""


@dataclass(frozen=True, slots=True)
class Init:
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ping:
    size: int = 0


@dataclass(frozen=True, slots=True)
class Pong:
    size: int = 0


@dataclass(frozen=True, slots=True)
class Subscribe:
    id: str
    asked: Asked


@dataclass(frozen=True, slots=True)
class Complete:
    id: str


Message = Init | Ping | Pong | Subscribe | Complete


def parsed(text: str) -> Message:
    """The message in a text frame; raises `BadFrame` whatever else it is."""
    try:
        content = decoded(text)
    except NotAsked as error:
        raise BadFrame(str(error)) from None
    if not isinstance(content, dict):
        raise BadFrame("A message must be a JSON object.")
    frame = cast("dict[str, Any]", content)
    match frame.get("type"):
        case "connection_init":
            return Init(_payload(frame))
        case "ping":
            _payload(frame)
            return Ping(len(text))
        case "pong":
            _payload(frame)
            return Pong(len(text))
        case "subscribe":
            return Subscribe(_id(frame), replace(_asked(frame), size=len(text)))
        case "complete":
            return Complete(_id(frame))
        case _:
            raise BadFrame("The message's `type` is not one of graphql-transport-ws.")


def _payload(frame: Mapping[str, Any]) -> dict[str, Any]:
    payload = frame.get("payload")
    if payload is not None and not isinstance(payload, dict):
        raise BadFrame("The message's `payload` must be an object or null, if provided.")
    return cast("dict[str, Any] | None", payload) or {}


def _id(frame: Mapping[str, Any]) -> str:
    id = frame.get("id")
    if not isinstance(id, str) or not 1 <= len(id) <= MAX_ID:
        raise BadFrame(f"The message's `id` must be a string of 1 to {MAX_ID} characters.")
    return id


def _asked(frame: Mapping[str, Any]) -> Asked:
    try:
        return asked(frame.get("payload"))
    except NotAsked as error:
        raise BadFrame(str(error)) from None


def reason(text: str) -> bytes:
    """As much of it as a close frame can hold."""
    return text.encode(errors="replace")[:MAX_REASON].decode(errors="ignore").encode()


def next_frame(id: str, payload: bytes) -> bytes:
    """A result that is encoded already, and may be shared by many."""
    return b"%b%b}" % (next_head(id), payload)


def next_head(id: str) -> bytes:
    """How each result of an operation begins; it ends with a brace."""
    return b'{"type":"next","id":%b,"payload":' % _text(id)


def error_frame(id: str, errors: Sequence[Mapping[str, Any]]) -> bytes:
    return encoded({"type": "error", "id": id, "payload": list(errors)})


def complete_frame(id: str) -> bytes:
    return b'{"type":"complete","id":%b}' % _text(id)


def _text(id: str) -> bytes:
    return encoded(cast("Any", id))


ACK = b'{"type":"connection_ack"}'
PONG = b'{"type":"pong"}'
