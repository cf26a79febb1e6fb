"""One-time URLs by which an agent may answer later.

The last part of one is the attempt's key and a proof that only this server's secret key can
make: nothing of it is stored, and it is the same for all tries of the attempt, in whichever
process. It is good until the attempt has its answer, or has ended.
"""

from __future__ import annotations

import binascii
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from uuid import UUID

from services.runtime import Runtime
from services.secrets import Vault

PATH = "/callbacks/"
KEY_BYTES, PROOF_BYTES = 16, 32
TOKEN_LENGTH = (KEY_BYTES + PROOF_BYTES) * 4 // 3


def url_for(rt: Runtime, attempt_id: UUID) -> str | None:
    """None where the server does not know its own address."""
    base = rt.options.public_url
    return None if base is None else base + PATH + token(rt.vault, attempt_id)


def token(vault: Vault, attempt_id: UUID) -> str:
    key = attempt_id.bytes
    return urlsafe_b64encode(key + vault.proof(PATH.encode() + key)).decode()


def attempt_id_of(vault: Vault, text: str) -> UUID | None:
    """The attempt that a token is for; None for one that is not ours."""
    if len(text) != TOKEN_LENGTH or not text.isascii():
        return None
    try:
        attempt_id = UUID(bytes=urlsafe_b64decode(text)[:KEY_BYTES])
    except (binascii.Error, ValueError):
        return None
    genuine = hmac.compare_digest(token(vault, attempt_id).encode(), text.encode())
    return attempt_id if genuine else None
