"""From a bearer token to its caller: what is trusted of it, and what its claims mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self, cast

import structlog
from joserfc import jws, jwt
from joserfc.errors import JoseError
from pydantic import TypeAdapter, ValidationError

from models import DEFAULT_WORKSPACE, ActorKind, Role
from services import workspaces
from services.actors import TOKEN_PREFIX, Viewer
from services.errors import Unauthenticated
from services.values import Name
from signoff.oidc.issuer_keys import IssuerKeys
from signoff.settings import Settings

logger = structlog.get_logger(__name__)

MAX_CHARACTERS = 16_384
MAX_SUBJECT = 200 - len(TOKEN_PREFIX)
TYPES = ("jwt", "at+jwt", "application/at+jwt")
"""Of tokens that let somebody in; an issuer signs others too, such as of a log-out."""
RANKS = (Role.VIEWER, Role.MEMBER, Role.ADMIN)
NAME: TypeAdapter[str] = TypeAdapter(Name)
REFUSED = "The token is not accepted; get a new one from the issuer, and send it as a bearer token."


class Refused(Exception):
    """The message is for the log: the caller is not told what was wrong."""


@dataclass(slots=True)
class OidcTokens:
    """Takes tokens of one issuer, signed by a key of its own, for one audience."""

    keys: IssuerKeys
    audience: str
    algorithms: tuple[str, ...]
    leeway: int
    role_claim: str
    roles: Mapping[str, Role]
    workspace_claim: str | None
    _workspaces: dict[str, int] = field(default_factory=dict[str, int])

    @classmethod
    def of(cls, settings: Settings) -> Self:
        assert settings.oidc_issuer is not None  # noqa: S101 - the settings see to these two
        assert settings.oidc_audience is not None  # noqa: S101
        pairs = (pair.rpartition("=") for pair in settings.oidc_roles.split(","))
        return cls(
            keys=IssuerKeys(settings.oidc_issuer, settings.oidc_jwks_url),
            audience=settings.oidc_audience,
            algorithms=tuple(settings.oidc_algorithms.split(",")),
            leeway=settings.oidc_leeway_seconds,
            role_claim=settings.oidc_role_claim,
            roles={value: Role(role) for value, _, role in pairs},
            workspace_claim=settings.oidc_workspace_claim,
        )

    async def viewer_of(self, text: str, *, members_see_workspace: bool) -> Viewer:
        """The caller; raises `Unauthenticated`, which tells nothing of the reason."""
        try:
            claims = await self._claims(text)
            return await self._viewer(claims, see=members_see_workspace)
        except ValidationError:
            reason = "a claim is not of the form that it must have"
        # Whatever a token makes a library stumble over, it is not accepted.
        except (Refused, JoseError, ValueError, TypeError, KeyError, ArithmeticError) as error:
            reason = str(error)[:200] or type(error).__name__
        except (AttributeError, RecursionError, OSError) as error:
            reason = type(error).__name__
        logger.info("token refused", reason=reason)
        raise Unauthenticated(REFUSED)

    async def _claims(self, text: str) -> dict[str, Any]:
        """The claims of a token that the issuer made for us and that holds now."""
        if len(text) > MAX_CHARACTERS or text.count(".") != 2 or not text.isascii():  # noqa: PLR2004
            raise Refused("it is no signed token")
        header = jws.extract_compact(text.encode()).headers()
        algorithm, kid = header["alg"], header.get("kid")
        if algorithm not in self.algorithms:
            raise Refused("its algorithm is not allowed")
        if "crit" in header or str(header.get("typ", "JWT")).lower() not in TYPES:
            raise Refused("it is of another type")
        key = await self.keys.find(kid if kid is None else str(kid), algorithm)
        if key is None:
            raise Refused("its key is not the issuer's")
        registry = jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
        claims = jwt.decode(text, key, registry=registry).claims
        jwt.JWTClaimsRegistry(
            leeway=self.leeway,
            iss={"essential": True, "value": self.keys.issuer},
            aud={"essential": True, "value": self.audience},
            exp={"essential": True},
            sub={"essential": True},
        ).validate(claims)
        return claims

    async def _viewer(self, claims: Mapping[str, Any], *, see: bool) -> Viewer:
        subject = NAME.validate_python(claims["sub"], strict=True)
        if len(subject) > MAX_SUBJECT:
            raise Refused("its subject is too long")
        return Viewer(
            ActorKind.USER,
            TOKEN_PREFIX + subject,
            _name(claims, subject),
            self._role(claims),
            workspace_id=await self._workspace(claims),
            sees_workspace=see,
            expires_at=datetime.fromtimestamp(claims["exp"] + self.leeway, UTC),
        )

    def _role(self, claims: Mapping[str, Any]) -> Role:
        """The highest that a value of the claim stands for."""
        given = claim(claims, self.role_claim)
        values: list[object] = [*given] if isinstance(given, list) else [given]
        found = [
            self.roles[each] for each in values if isinstance(each, str) and each in self.roles
        ]
        if not found:
            raise Refused("it gives no role")
        return max(found, key=RANKS.index)

    async def _workspace(self, claims: Mapping[str, Any]) -> int:
        if self.workspace_claim is None:
            return DEFAULT_WORKSPACE
        name = NAME.validate_python(claim(claims, self.workspace_claim), strict=True)
        if name not in self._workspaces:  # they are never renamed or deleted
            found = await workspaces.named(name)
            if found is None:
                raise Refused("there is no workspace of that name")
            self._workspaces[name] = found.id
        return self._workspaces[name]


def claim(claims: Mapping[str, Any], path: str) -> object:
    """A claim by its name, or by a path with dots, such as `realm_access.roles`."""
    if path in claims:
        return claims[path]
    found: object = claims
    for part in path.split("."):
        found = cast("dict[str, object]", found).get(part) if isinstance(found, dict) else None
    return found


def _name(claims: Mapping[str, Any], subject: str) -> str:
    """What a person is called in the log."""
    for given in (claims.get("name"), claims.get("preferred_username"), claims.get("email")):
        try:
            return NAME.validate_python(given, strict=True)
        except ValueError:
            continue
    return subject
