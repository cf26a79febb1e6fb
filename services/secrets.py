"""Secrets at rest."""

from __future__ import annotations

from cryptography.fernet import Fernet, InvalidToken


class SecretUnreadable(Exception):
    """A stored secret was sealed with another key than the one in use."""


class Vault:
    """Seals secrets with a key that is not in the database."""

    def __init__(self, key: str) -> None:
        self._fernet = Fernet(key)

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
