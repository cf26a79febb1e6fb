from __future__ import annotations

from tortoise import fields
from tortoise.models import Model

from models.base import InstantField, now
from models.job import ActorKind


class AuditEntry(Model):
    """What was done that belongs to no job; its key gives the order of its one chain."""

    seq: fields.Field[int] = fields.BigIntField(primary_key=True)
    action = fields.CharField(max_length=64)
    subject = fields.CharField(max_length=200)
    changes_json = fields.TextField()
    actor_kind = fields.CharEnumField(ActorKind, max_length=16, description="ActorKind")
    actor_id = fields.CharField(max_length=200, null=True)
    actor_name = fields.CharField(max_length=200)
    created_at = InstantField(default=now)
    hash = fields.CharField(max_length=64)

    class Meta(Model.Meta):
        table = "audit_entries"
        table_description = "The audit log of what belongs to no job"


class AuditHead(Model):
    """The one row, with key 1, that says where the chain of the audit entries ends."""

    id = fields.IntField(primary_key=True, generated=False)
    log_head = fields.CharField(max_length=64, default="")

    class Meta(Model.Meta):
        table = "audit_heads"
        table_description = "Where the chain of the audit log ends"
