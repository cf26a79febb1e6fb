from __future__ import annotations

from datetime import datetime
from typing import Self

import strawberry

import models
from resolvers import workspaces
from schema.enums import ActorKind, Role
from services.actors import Viewer as Caller


@strawberry.type(description="Who did something.")
class Actor:
    kind: ActorKind
    id: strawberry.ID | None = strawberry.field(description="Null for the system.")
    name: str

    @classmethod
    def of(cls, row: models.JobLog | models.AuditEntry) -> Self:
        id = None if row.actor_id is None else strawberry.ID(row.actor_id)
        return cls(kind=row.actor_kind, id=id, name=row.actor_name)

    @classmethod
    def creator(cls, row: models.Job) -> Self:
        id = strawberry.ID(row.created_by_id)
        return cls(kind=row.created_by_kind, id=id, name=row.created_by_name)

    @classmethod
    def of_webhook(cls, row: models.Webhook) -> Self:
        return cls(kind=row.owner_kind, id=strawberry.ID(row.owner_id), name=row.owner_name)


@strawberry.type(description="The caller.")
class Viewer:
    id: strawberry.ID
    name: str
    role: Role
    expires_at: datetime | None = strawberry.field(
        description="When the key or token that they came with ends."
    )
    workspace_id: strawberry.Private[int]

    @strawberry.field(description="The name of the workspace that all they see is in.")
    async def workspace(self) -> str:
        return await workspaces.name_of(self.workspace_id)

    @classmethod
    def of(cls, viewer: Caller) -> Self:
        return cls(
            id=strawberry.ID(viewer.id),
            name=viewer.name,
            role=viewer.role,
            expires_at=viewer.expires_at,
            workspace_id=viewer.workspace_id,
        )
