"""Who may call a root field. Every one declares it; what they see of it is the services' rule."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import strawberry
from strawberry.extensions import FieldExtension
from strawberry.extensions.field_extension import AsyncExtensionResolver, SyncExtensionResolver

from models import Role
from resolvers.context import Context
from services.errors import Forbidden

RANKS = {Role.VIEWER: 0, Role.MEMBER: 1, Role.ADMIN: 2}


class Allow(FieldExtension):
    """Callers with at least this role."""

    def __init__(self, role: Role) -> None:
        self.role = role

    def check(self, info: strawberry.Info[Context, None]) -> None:
        role = info.context.viewer.role
        if RANKS[role] < RANKS[self.role]:
            raise Forbidden(f"This needs the role {self.role}; your key has {role}.")

    async def resolve_async(
        self, next_: AsyncExtensionResolver, source: Any, info: strawberry.Info, **kwargs: Any
    ) -> Any:
        self.check(info)
        return await next_(source, info, **kwargs)


class AllowStream(Allow):
    """The same for a subscription, whose resolver is a generator."""

    def resolve(
        self, next_: SyncExtensionResolver, source: Any, info: strawberry.Info, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        self.check(info)
        return next_(source, info, **kwargs)


VIEWERS, MEMBERS, ADMINS = Allow(Role.VIEWER), Allow(Role.MEMBER), Allow(Role.ADMIN)
