"""The header lines of a request to an agent."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

MAX_FEEDBACK_BYTES = 6 * 1024
MAX_AUTH_HEADER_LENGTH = 4096
_ELLIPSIS = "…"
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e]*")
_RESERVED = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "idempotency-key",
        "keep-alive",
        "proxy-connection",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)
_RESERVED_PREFIXES = ("signoff-", "webhook-")


def user_agent() -> str:
    try:
        return f"signoff/{version('signoff')}"
    except PackageNotFoundError:
        return "signoff/0"


def check_auth_header(line: str) -> None:
    """Raise `ValueError`, which never quotes the value, unless `line` is a `Name: value`."""
    parse_auth_header(line)


def parse_auth_header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    value = value.strip(" \t")
    if not colon or not value or not _TOKEN.fullmatch(name):
        raise ValueError("An auth header is “Name: value”, such as “Authorization: Bearer …”.")
    if len(line) > MAX_AUTH_HEADER_LENGTH:
        raise ValueError(f"An auth header has at most {MAX_AUTH_HEADER_LENGTH} characters.")
    # aiohttp writes anything else as UTF-8, which servers read as something else.
    if not _VALUE.fullmatch(value):
        raise ValueError("The value of an auth header is printable ASCII on one line.")
    if name.lower() in _RESERVED or name.lower().startswith(_RESERVED_PREFIXES):
        raise ValueError(f"The header {name} is set by Signoff itself; use another one.")
    return name, value


def feedback_header(items: Sequence[str]) -> str:
    """A JSON array in ASCII of at most `MAX_FEEDBACK_BYTES`: the first items that fit.

    The first that does not is shortened, the rest left out.
    """
    kept: list[str] = []
    room = MAX_FEEDBACK_BYTES - len("[]")
    for item in items:
        text = _escaped(item)
        if len(text) + len(", ") > room:
            kept.extend(_shortened(item, room - len(', ""')))
            break
        kept.append(text)
        room -= len(text) + len(", ")
    return f"[{', '.join(kept)}]"


def _shortened(text: str, room: int) -> list[str]:
    """`text` cut and ended with an ellipsis, escaped; nothing if not one character has room."""
    room -= len(_escaped(_ELLIPSIS)) - 2
    end = 0
    for character in text:
        room -= len(_escaped(character)) - 2
        if room < 0:
            break
        end += 1
    return [_escaped(text[:end] + _ELLIPSIS)] if end else []


def _escaped(text: str) -> str:
    return json.dumps(text)
