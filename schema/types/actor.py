from __future__ import annotations

from typing import Self

import strawberry

import models
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


@strawberry.type(description="The caller.")
class Viewer:
    id: strawberry.ID
    name: str
    role: Role

    @classmethod
    def of(cls, viewer: Caller) -> Self:
        return cls(id=strawberry.ID(viewer.id), name=viewer.name, role=viewer.role)
