"""Signatures of Standard Webhooks: an agent can tell our requests from anybody else's.

The signed text is `<webhook-id>.<webhook-timestamp>.<body>`, the signature HMAC-SHA256. Imports
nothing of ours, so that an agent may copy this file.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping

PREFIX = "whsec_"
MIN_KEY_BYTES, MAX_KEY_BYTES = 24, 64
_SECONDS = re.compile(r"[0-9]{1,12}")


class BadSignature(ValueError):
    """The request is not from who holds the secret, or is too old. Its text is safe to show."""


def new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def check_secret(text: str) -> None:
    """Raise `ValueError`, which never quotes the secret, unless `sign` can use it."""
    _key(text)


def sign(secret: str, *, id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers that prove where a request comes from."""
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": _signature(_key(secret), id, str(timestamp), body).decode(),
    }


def verify(
    secret: str, headers: Mapping[str, str], body: bytes, *, now: float, tolerance: float = 300
) -> None:
    """Raise `BadSignature` unless `body` was signed with `secret` within `tolerance` seconds."""
    given = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, timestamp = given["webhook-id"], given["webhook-timestamp"]
        signatures = given["webhook-signature"].split(" ")
    except KeyError as missing:
        raise BadSignature(f"The request has no header {missing.args[0]}.") from None
    if not _SECONDS.fullmatch(timestamp):
        raise BadSignature("The header webhook-timestamp is not a number of seconds.")
    if abs(now - int(timestamp)) > tolerance:
        raise BadSignature("The request was signed too long ago, or a clock is wrong.")
    expected = _signature(_key(secret), message_id, timestamp, body)
    matches = [
        hmac.compare_digest(expected, text.encode(errors="surrogateescape")) for text in signatures
    ]
    if not any(matches):
        raise BadSignature("The signature does not fit the request.")


def _signature(key: bytes, id: str, timestamp: str, body: bytes) -> bytes:
    # A server hands on odd bytes in a header as surrogates.
    signed = f"{id}.{timestamp}.".encode(errors="surrogateescape") + body
    mac = hmac.new(key, signed, hashlib.sha256)
    return b"v1," + base64.b64encode(mac.digest())


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(PREFIX) or not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise ValueError(
            f"A signing secret is “{PREFIX}” and the base64 of "
            f"{MIN_KEY_BYTES} to {MAX_KEY_BYTES} random bytes."
        )
    return key
