"""Secrets at rest."""

from __future__ import annotations

import base64

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


class SecretUnreadable(Exception):
    """A stored secret was sealed with another key than the one in use."""


class Vault:
    """Seals secrets with a key that is not in the database."""

    def __init__(self, key: str) -> None:
        self._fernet = Fernet(key)
        derived = HKDF(hashes.SHA256(), length=32, salt=None, info=b"signoff proofs")
        self._proofs = hmac.HMAC(derived.derive(base64.urlsafe_b64decode(key)), hashes.SHA256())

    @staticmethod
    def new_key() -> str:
        return Fernet.generate_key().decode()

    def seal(self, secret: str) -> str:
        return self._fernet.encrypt(secret.encode()).decode()

    def open(self, sealed: str) -> str:
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken:
            raise SecretUnreadable(
                "a stored secret cannot be read with this SIGNOFF_SECRET_KEY; "
                "start with the key it was saved with, or save the agent's secrets again"
            ) from None

    def proof(self, text: bytes) -> bytes:
        """32 bytes that only who has the key can know; the same each time."""
        mac = self._proofs.copy()
        mac.update(text)
        return mac.finalize()
