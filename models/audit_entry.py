from __future__ import annotations

from tortoise import fields
from tortoise.indexes import Index
from tortoise.models import Model

from models.base import InstantField, now
from models.job import ActorKind


class AuditEntry(Model):
    """What was done in a workspace that belongs to no job.

    `seq` is its place; `hash` is over all that it says and over that of the workspace's entry
    before it.
    """

    seq: fields.Field[int] = fields.BigIntField(primary_key=True)
    workspace_id = fields.IntField()
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
        indexes = (
            Index(fields=("workspace_id", "seq"), name="ix_audit_entries_workspace"),
            Index(fields=("subject", "seq"), name="ix_audit_entries_subject"),
        )
