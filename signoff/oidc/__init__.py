"""Bearer tokens of an OpenID Connect issuer, for who installed the extra `oidc`."""

from __future__ import annotations

from signoff.auth import Tokens
from signoff.settings import Settings
from signoff.wiring import BadSettings


def of(settings: Settings) -> Tokens | None:
    """None where no issuer is set: then nothing of the extra is imported."""
    if settings.oidc_issuer is None:
        return None
    try:
        from signoff.oidc.tokens import OidcTokens  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("joserfc"):
            raise
        raise BadSettings(
            "SIGNOFF_OIDC_ISSUER asks for tokens: pip install 'signoff[oidc]'"
        ) from None
    return OidcTokens.of(settings)
