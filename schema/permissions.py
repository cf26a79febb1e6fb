"""Who may call a root field. Every one declares it; what they see of it is the services' rule."""

from __future__ import annotations

from inspect import isawaitable
from typing import Any

import strawberry
from strawberry.extensions import FieldExtension
from strawberry.extensions.field_extension import AsyncExtensionResolver

from models import Role
from services.errors import Forbidden

RANKS = {Role.VIEWER: 0, Role.MEMBER: 1, Role.ADMIN: 2}


class Allow(FieldExtension):
    """Callers with at least this role."""

    def __init__(self, role: Role) -> None:
        self.role = role

    async def resolve_async(
        self, next_: AsyncExtensionResolver, source: Any, info: strawberry.Info, **kwargs: Any
    ) -> Any:
        role = info.context.viewer.role
        if RANKS[role] < RANKS[self.role]:
            raise Forbidden(f"This needs the role {self.role}; your key has {role}.")
        result = next_(source, info, **kwargs)
        return await result if isawaitable(result) else result  # a subscription's is a generator


VIEWERS, MEMBERS, ADMINS = Allow(Role.VIEWER), Allow(Role.MEMBER), Allow(Role.ADMIN)
