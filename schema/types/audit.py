from __future__ import annotations

from datetime import datetime
from typing import Self

import strawberry
from strawberry.scalars import JSON

import models
from models import jsontext
from schema.scalars import EventCursor
from schema.types.actor import Actor
from services.paging import encode_position
from services.values import public_id
from services.verification import Verification


@strawberry.type(description="Something that was done, and belongs to no job.")
class AuditEntry:
    id: strawberry.ID
    actor: Actor
    action: str = strawberry.field(description="Such as `agent.changed`.")
    subject: str = strawberry.field(description="The id of what it was done to.")
    changes: JSON = strawberry.field(
        description="`{field: {from, to}}`, without secrets; a long value is `{bytes, sha256}`."
    )
    at: datetime
    hash: str = strawberry.field(description="Over all of it and the hash of the entry before it.")

    @classmethod
    def of(cls, row: models.AuditEntry) -> Self:
        return cls(
            id=strawberry.ID(public_id("audit", row.seq)),
            actor=Actor.of(row),
            action=row.action,
            subject=row.subject,
            changes=jsontext.loads(row.changes_json),
            at=row.created_at,
            hash=row.hash,
        )


@strawberry.type(description="Whether logs are as they were written.")
class AuditVerification:
    ok: bool
    checked: int = strawberry.field(description="Entries that are as they were written.")
    first_broken: EventCursor | None = strawberry.field(
        description="The first entry of a job that is not; null if something else is wrong."
    )
    head_hash: str = strawberry.field(
        description="The hash that the log ends with; of all logs together, one over those of each."
    )
    pruned: int = strawberry.field(
        description="Logs whose beginning retention removed, as the audit log tells."
    )
    problem: str | None = strawberry.field(description="What is wrong, in words.")

    @classmethod
    def of(cls, found: Verification) -> Self:
        broken = found.first_broken
        return cls(
            ok=found.ok,
            checked=found.checked,
            first_broken=None if broken is None else EventCursor(encode_position(broken)),
            head_hash=found.head,
            pruned=found.pruned,
            problem=found.problem,
        )
