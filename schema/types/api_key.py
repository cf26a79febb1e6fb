from __future__ import annotations

from datetime import datetime
from typing import Self
from uuid import UUID

import strawberry

import models
from models import jsontext
from resolvers import agents
from resolvers.context import Info
from schema.enums import Role
from schema.types.agent import Agent
from services.values import public_id


@strawberry.type(description="A credential of a user; its text is kept nowhere.")
class ApiKey:
    id: strawberry.ID
    name: str = strawberry.field(description="The user; keys of one name are one user's.")
    role: Role
    prefix: str = strawberry.field(description="How its text begins.")
    owners: list[str] | None = strawberry.field(
        description="Whose jobs it sees and acts on beside its own; null: as its role says."
    )
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = strawberry.field(description="To the minute.")
    agents_json: strawberry.Private[str | None]

    @strawberry.field(description="The agents that it may give work to; null: all.")
    async def agents(self, info: Info) -> list[Agent] | None:
        if self.agents_json is None:
            return None
        ids = [UUID(each) for each in jsontext.loads(self.agents_json)]
        return [Agent.of(row) for row in await agents.by_keys(info, ids)]

    @classmethod
    def of(cls, row: models.ApiKey) -> Self:
        return cls(
            id=strawberry.ID(public_id("key", row.id)),
            name=row.name,
            role=row.role,
            prefix=row.prefix,
            owners=jsontext.loads_or_none(row.owners_json),
            created_at=row.created_at,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
            last_used_at=row.last_used_at,
            agents_json=row.agents_json,
        )


@strawberry.type(description="A key that was just made.")
class NewApiKey:
    api_key: ApiKey
    key: str = strawberry.field(description="Its text: told here, and never again.")
